"""The same sandbox with an OCI runtime (runc and its like) starting the command.

Theory of operation
===================

::

    launcher    as for every sandbox
      │           clone3 with new mount, pid, network, ipc and uts namespaces, all owned by U1
    keeper      PID 1 of the sandbox, root in U1. Mounts the tree that a native sandbox has, and goes into a small root of its
      │           own: the tree, /usr read-only, /proc, and a tmpfs for the runtime's files
    runtime     `create` and `start`, root in U1; ends before the command's first instruction
      │           new mount, user (U2) and cgroup namespaces; pivot_root into the tree, ids, capabilities, seccomp
    command     a child of the keeper once the runtime has ended

*What is the runtime's, and what is ours.* The runtime makes U2 and the last mount namespace, changes the root and the user, drops
capabilities and loads the filter: from a `config.json` that says what native sandboxes have (`config`, `seccomp_profile`).
The file system, the network, the pid namespace and the cgroup are made as for native sandboxes, by the same code. So limits,
usage, signals, exit codes and the end are the same: the keeper is the command's parent and hears from the kernel how it
ended, and SIGKILL to the keeper ends everything. The runtime keeps no state that outlives the sandbox.

*Before it starts.* A runtime tells in words only why a command cannot be executed. So the keeper tries it first: a child of
its own goes into the tree as the command's user, executes it, and is killed before the first instruction (`tracing`).

*The moment of the start.* The runtime needs more memory and more processes than a small job may have. So the command is held
at the end of its execve(2), by which time nothing of the runtime is left (ptrace(2)); then the limits are set, and it goes on.

Modules: `keeper`, and what it uses: `config`, `seccomp_profile`, `root`, `tracing`.
"""
