"""The attempts by name: their row of docs/attacks.md, what is tried, and which wall is to stop it."""

from typing import NamedTuple


class Probe(NamedTuple):
    """One attempt."""

    name: str
    row: int
    tried: str
    wall: str


PROBES = (
    Probe("init-files", 1, "open init's program, memory, environment and root through /proc/1", "init is not dumpable"),
    Probe("descriptors", 2, "find a descriptor of the service, and change into it", "every descriptor is closed"),
    Probe("working-directory", 2, "get out of the root through the working directory", "pivot_root; the old root is gone"),
    Probe("workdir", 2, "have the command started in /proc/self/fd/7", "the directory is entered behind all walls"),
    Probe("init-trace", 3, "trace init, read its memory, take its descriptors", "system call filter; init is not dumpable"),
    Probe("capabilities", 10, "have a capability, effective, inheritable or ambient", "all sets are empty"),
    Probe("groups", 11, "have supplementary groups of the service", "setgroups to none"),
    Probe("users", 12, "run as -1, 4294967296, 0x0, a user in other digits", "users are checked before a job is accepted"),
    Probe("sysctls", 14, "set kernel parameters for a job", "a request has no such field"),
    Probe("cgroup-files", 16, "write below /sys/fs/cgroup", "/sys is read-only"),
    Probe("release-agent", 17, "find a release_agent of cgroup v1", "cgroup v1 is not mounted"),
    Probe("mounts", 17, "mount, unmount, pivot_root, the new mount calls", "system call filter; no capability"),
    Probe("kernel-settings", 18, "open core_pattern, modprobe, binfmt_misc, uevent_helper for writing", "/proc/sys and /sys are read-only"),
    Probe("sysrq", 18, "open /proc/sysrq-trigger for writing", "hidden"),
    Probe("core-dumps", 18, "have a core dump written", "RLIMIT_CORE is 1"),
    Probe("masked-paths", 19, "read what tells of the kernel and of others in /proc and /sys", "hidden paths"),
    Probe("terminal-injection", 20, "type into a terminal: TIOCSTI, TIOCLINUX, with high bits too", "system call filter"),
    Probe("terminal", 20, "open the terminal of whoever started the service", "a session of its own"),
    Probe("keyrings", 21, "use kernel keyrings", "system call filter"),
    Probe("interfaces", 22, "see network interfaces besides lo", "network namespace"),
    Probe("host-sockets", 22, "see sockets of the host, abstract ones too", "network namespace"),
    Probe("local-services", 22, "connect to services on the host's loopback", "network namespace"),
    Probe("metadata", 22, "connect to 169.254.169.254; the refusal is fast", "network namespace"),
    Probe("outside", 22, "connect to another machine; the refusal is fast", "network namespace"),
    Probe("processes", 23, "see processes of others in /proc", "pid namespace"),
    Probe("raw-sockets", 24, "open raw and packet sockets", "no capability; system call filter"),
    Probe("families", 24, "open sockets of every other family", "system call filter"),
    Probe("netlink", 24, "open netlink sockets for xfrm, netfilter, audit, crypto", "system call filter"),
    Probe("namespaces", 25, "make namespaces: unshare, clone, clone3, setns", "system call filter"),
    Probe("namespace-limit", 25, "the kernel's own limit on user namespaces, behind the filter", "max_user_namespaces is 0"),
    Probe("ids", 25, "have the host's ids", "user namespaces"),
    Probe("crypto-sockets", 26, "open AF_ALG, the way to CVE-2026-31431", "system call filter"),
    Probe("filter", 27, "run without a system call filter", "seccomp"),
    Probe("io_uring", 27, "io_uring_setup", "system call filter"),
    Probe("userfaultfd", 27, "userfaultfd", "system call filter"),
    Probe("bpf", 27, "bpf", "system call filter"),
    Probe("perf", 27, "perf_event_open", "system call filter"),
    Probe("kernel-code", 27, "load modules and kernels, swap, watch file systems, read the kernel's log", "system call filter"),
    Probe("file-handles", 28, "open files by handle", "system call filter"),
    Probe("set-id", 29, "gain by set-id programs", "nosuid on every mount"),
    Probe("no-new-privileges", 29, "gain by executing anything", "no_new_privs"),
    Probe("devices", 30, "make device nodes", "system call filter; nodev"),
    Probe("host-mounts", 36, "find a mount of the host that can be written or is shared", "mounts of its own, private"),
    Probe("host-files", 36, "read files and sockets of the host that no image shows", "pivot_root; the old root is gone"),
    Probe("image-files", 36, "change programs that all jobs share", "bound read-only"),
    Probe("wishes", 36, "ask for privileged, volumes, devices, capabilities, host namespaces", "a request has no such field"),
    Probe("environment", 37, "find variables of the service", "the environment is made anew"),
    Probe("sizes", 41, "hand in 5,000 arguments, and one of 200 kB", "sizes are checked before a job is accepted"),
    Probe("forks", 42, "start more processes than allowed", "pids limit"),
    Probe("memory", 43, "use more memory than allowed", "memory limit, told as out_of_memory"),
    Probe("shm-memory", 43, "the same with files in /dev/shm", "memory limit, told as out_of_memory"),
    Probe("shm", 43, "have a /dev/shm without a bound", "64 MiB at most"),
    Probe("disk", 44, "write more than allowed, to a deleted file", "bounded scratch"),
    Probe("files", 45, "make more files than allowed", "bounded scratch"),
    Probe("output", 46, "write more output than allowed", "output limit"),
    Probe("left-processes", 49, "leave detached processes behind", "they die with init"),
    Probe("processor-time", 49, "use the processor in a detached process", "processor time of all is counted"),
    Probe("outstay", 50, "ignore every signal and stay", "wall limit; SIGKILL to init"),
    Probe("descriptors-limit", 52, "open more files than allowed", "RLIMIT_NOFILE"),
    Probe("marks", 53, "find files, shared memory and queues of the job before", "nothing survives a sandbox"),
    Probe("limits-raised", 54, "raise limits, priority, real time", "hard limits; no capability"),
    Probe("oom-score", 54, "be the last to be killed without memory", "oom_score_adj is 1000"),
)  # fmt: skip
BY_NAME = {probe.name: probe for probe in PROBES}
ROWS = tuple(sorted({probe.row for probe in PROBES}))
