"""Isolation: run a command behind walls that it cannot pass. This package has never heard of jobs.

Theory of operation
===================

Three processes stand between the service and a command::

    service    ordinary user, ordinary namespaces. Holds the sockets, the database and the secrets.
      │          one SOCK_SEQPACKET socket (messages in `protocol`, descriptors by SCM_RIGHTS)
    launcher   the same user, but root of a user namespace of its own (U1). Single-threaded; empty environment.
      │          clone3 with new mount, pid, network, ipc, uts and cgroup namespaces, all owned by U1
    init       PID 1 of one sandbox. Builds the walls, enters a second user namespace (U2) and gives up all privilege.
      │          posix_spawn
    command    what somebody else wrote

*Who may do what.* In U1, id 0 is the service's own uid and 1…N are subordinate ids. U1 owns the sandbox's mounts,
network and processes. U2 maps 0…N-1 to U1's 1…N: the service's own uid does not exist in it, and whatever runs in U2
has no capability over anything that U1 owns. The launcher writes U2's maps, since only a process in U1 may.

*How it ends.* The service holds a pidfd of each init. SIGKILL to init ends every process of its pid namespace at once,
however it forked, stopped or daemonised. init dies with the launcher, and the launcher with the service (parent-death
signals). A sandbox runs for one user and is never used again.

*What is made ahead.* Sandboxes of shapes that are asked for again are parked with all walls up. For others a few blanks wait, in
which the steps before `learn_shape` are done; only the service can tell them what to become.

*What fails.* Each wall is a named step. A step that fails ends init, which reports the step and the reason; the command
never runs without a wall.

Modules, in the order of a sandbox's life: `launcher_client` and `sandbox` (the service's side), `places`, `workshop`, `blanks`
and `pool` (sandboxes built ahead of need, and how they go), `idmap`, `launcher`, `init`, `mounts`, `network`, `privileges`, `seccomp`, `command`, `files` (and `entries`, which reads
what comes out), and below them `syscalls`.
"""
