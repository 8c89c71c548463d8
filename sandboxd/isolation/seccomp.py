"""The system calls a command may make: an allow list, and the filter program made from it.

The list is that of Docker's and Podman's default profile for a process without capabilities, less what a sandboxed
command has no use for (tracing, io_uring, kernel keyrings, file handles), with arguments checked where a call is
needed but some uses of it are not. Everything else is refused with EPERM; calls newer than the table with ENOSYS, so that
a libc falls back to older ones. See seccomp(2) and Documentation/userspace-api/seccomp_filter.rst.
"""

import errno
import struct
from collections.abc import Callable
from typing import NamedTuple

from sandboxd.isolation import syscall_numbers

ALLOWED = frozenset(
    # One text, not three hundred lines of strings: it is read as a list of words.
    """
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod
    chown clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait
    epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat
    faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fdatasync
    fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex
    futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area
    getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage
    getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioprio_get kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link
    linkat listen listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise
    map_shadow_stack membarrier mincore mkdir mkdirat mlock mlock2 mlockall
    mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal
    msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat open openat
    openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect
    poll ppoll pread64 preadv preadv2 process_mrelease pselect6 pwrite64 pwritev pwritev2 read
    readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_yield select
    semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list
    set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid
    setregid setresgid setresuid setreuid setrlimit setsid setuid setxattr setxattrat shmat
    shmctl shmdt shutdown sigaltstack signalfd signalfd4 splice stat statfs statx symlink
    symlinkat sync_file_range sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
    times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork wait4 waitid
    write writev
    """.split()  # noqa: SIM905
)
"""Allowed with any arguments. Names that an architecture does not have are passed over there.

sched_setattr is among them though its policy is behind a pointer, which a filter cannot follow: a real-time or deadline policy
is refused by the kernel itself, since RLIMIT_RTPRIO is 0 and CAP_SYS_NICE is gone. modify_ldt is not, though Docker's list has
it: only 16-bit and old 32-bit programs need it, and the code behind it had holes (CVE-2017-17053).
"""

ABSENT = frozenset(
    {"clone3", "io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "io_pgetevents"}
)
"""Answered as by a kernel that does not have them, on which libraries fall back to older ones.

clone3's flags are behind a pointer, which a filter cannot follow. The contexts of io_setup are taken from one number for
the whole host (fs.aio-max-nr): a single job could take them from everybody.
"""

NOTHING_TO_DO = frozenset({"sync", "syncfs"})
"""Answered as done. What a command writes is in memory and needs no disk, but the kernel would write out everybody's."""

NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0
TIOCSTI = 0x5412
TIOCLINUX = 0x541C
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
S_IFMT, S_IFCHR, S_IFBLK = 0o170000, 0o020000, 0o060000
PR_SET_MM = 35
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_SET_MODE_FILTER = 1
PRIO_USER = 2
F_SETPIPE_SZ = 1031
F_SETLEASE = 1024
SOL_SOCKET = 1
SO_ATTACH = (26, 50, 51, 52)
"""SO_ATTACH_FILTER, _BPF, _REUSEPORT_CBPF, _REUSEPORT_EBPF."""
MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB = 0x40000, 0x4, 0o4000
INIT_PID = 1
IOPRIO_CLASS_MASK = 7 << 13
IOPRIO_CLASS_RT = 1 << 13

# struct seccomp_data { int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6]; }
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

_LOAD, _JUMP, _EQUAL, _GREATER_OR_EQUAL, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x54, 0x06


class Instruction(NamedTuple):
    """struct sock_filter: one instruction of classic BPF."""

    code: int
    if_true: int
    if_false: int
    value: int


Program = list[Instruction]


def assemble(program: Program) -> bytes:
    """The program as the kernel takes it: an array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


UNCOUNTED = frozenset({"memfd_create", "shmget", "sched_setaffinity"})
"""Where no cgroup limits memory: what takes some that no process has resident, and what gives a job more CPUs again."""


def build(machine: str, *, counted: bool = True) -> Program:
    """The filter for an architecture (`platform.machine()`). Without `counted` UNCOUNTED is refused, too.

    A balanced tree over runs of equal calls: about seven comparisons instead of three hundred.
    Raises KeyError for an architecture without a table.
    """
    numbers = syscall_numbers.BY_MACHINE[machine]
    program = [
        _load(_ARCHITECTURE),
        Instruction(_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        # A 32-bit entry (int 0x80): its calls have other numbers and arguments; nothing here could judge them.
        _return(_KILL_PROCESS),
        _load(_NUMBER),
    ]
    if machine == "x86_64":
        program += [
            Instruction(_GREATER_OR_EQUAL, 0, 1, _X32_BIT),
            _return(_ERRNO | errno.ENOSYS),
        ]
    return program + _tree(_runs(numbers, frozenset() if counted else UNCOUNTED))


def _runs(numbers: dict[str, int], refused: frozenset[str]) -> list[tuple[int, Program]]:
    """(first number, code) for each run of neighbouring calls that are treated alike, from 0 upwards."""
    codes = {
        number: [_return(_ERRNO | errno.EPERM)] if name in refused else code_for(name)
        for name, number in numbers.items()
    }
    runs: list[tuple[int, Program]] = []
    for number in range(max(codes) + 1):
        code = codes.get(number, [_return(_ERRNO | errno.EPERM)])
        if not runs or runs[-1][1] != code:
            runs.append((number, code))
    runs.append((max(codes) + 1, [_return(_ERRNO | errno.ENOSYS)]))
    return runs


def _tree(runs: list[tuple[int, Program]]) -> Program:
    """Binary search for the run that holds the number in the accumulator."""
    if len(runs) == 1:
        return runs[0][1]
    middle = len(runs) // 2
    lower, upper = _tree(runs[:middle]), _tree(runs[middle:])
    # Conditional jumps reach 255 instructions, the unconditional one as far as needed.
    return [
        Instruction(_GREATER_OR_EQUAL, 0, 1, runs[middle][0]),
        Instruction(_JUMP, 0, 0, len(lower)),
        *lower,
        *upper,
    ]


def code_for(name: str) -> Program:
    """What is done with one call: loads of arguments, comparisons and returns, without loops."""
    if name in ALLOWED:
        return [_return(_ALLOW)]
    if name in ABSENT:
        return [_return(_ERRNO | errno.ENOSYS)]
    if name in NOTHING_TO_DO:
        return [_return(_ERRNO)]
    if name in _RULES:
        return _RULES[name]()
    return [_return(_ERRNO | errno.EPERM)]


def _clone() -> Program:
    """Threads and processes, but no new namespaces."""
    return [
        _load_argument(0),
        Instruction(_AND, 0, 0, NEW_NAMESPACES),
        Instruction(_EQUAL, 1, 0, 0),
        _return(_ERRNO | errno.EPERM),
        _return(_ALLOW),
    ]


def _socket() -> Program:
    """Families that need no more than a network namespace; netlink only to read routes and addresses."""
    return [
        _load_argument(0),
        Instruction(_EQUAL, 3, 0, AF_UNIX),
        Instruction(_EQUAL, 2, 0, AF_INET),
        Instruction(_EQUAL, 1, 0, AF_INET6),
        Instruction(_EQUAL, 1, 4, AF_NETLINK),
        _return(_ALLOW),
        _load_argument(2),
        Instruction(_EQUAL, 0, 1, NETLINK_ROUTE),
        _return(_ALLOW),
        _return(_ERRNO | errno.EAFNOSUPPORT),
    ]


def _socketpair() -> Program:
    return _allow_only(0, (AF_UNIX,), errno.EAFNOSUPPORT)


def _ioctl() -> Program:
    """Not the requests that type into a terminal. The kernel looks at 32 bits of the request: so do we (CVE-2019-10063)."""
    return _allow_all_but(1, (TIOCSTI, TIOCLINUX))


def _personality() -> Program:
    return _allow_only(0, PERSONALITIES, errno.EPERM)


def _prlimit64() -> Program:
    """Limits of the caller itself only: init has the same uid and must keep its own."""
    return _allow_only(0, (0,), errno.EPERM)


def _prctl() -> Program:
    return [
        _load_argument(0),
        Instruction(_EQUAL, 5, 0, PR_SET_MM),
        Instruction(_EQUAL, 0, 2, PR_SET_SECCOMP),
        _load_argument(1),
        Instruction(_EQUAL, 1, 0, SECCOMP_MODE_FILTER),
        _return(_ALLOW),
        _return(_ERRNO | errno.EINVAL),
        _return(_ERRNO | errno.EPERM),
    ]


def _seccomp() -> Program:
    """No filters of its own, as on a kernel without them.

    Compiled filters share one space with those of the whole host (net.core.bpf_jit_limit): some thousand processes can
    fill it, and then no sandbox can be built any more.
    """
    return [
        _load_argument(0),
        Instruction(_EQUAL, 1, 0, SECCOMP_SET_MODE_FILTER),
        _return(_ALLOW),
        _return(_ERRNO | errno.EINVAL),
    ]


def _ioprio_set() -> Program:
    """Not the real-time class, which starves all other users of a disk. The kernel, too, asks for CAP_SYS_NICE there."""
    return [
        _load_argument(2),
        Instruction(_AND, 0, 0, IOPRIO_CLASS_MASK),
        Instruction(_EQUAL, 0, 1, IOPRIO_CLASS_RT),
        _return(_ERRNO | errno.EPERM),
        _return(_ALLOW),
    ]


def _fcntl() -> Program:
    """Not larger pipes: their pages are counted for all sandboxes of a user together (fs.pipe-user-pages-soft).

    No leases either: who opens such a file waits for up to 45 seconds (fs.lease-break-time), outside the sandbox too.
    """
    return _allow_all_but(1, (F_SETPIPE_SZ, F_SETLEASE))


def _setsockopt() -> Program:
    """No filter programs: they use up what the whole host has for compiled ones, seccomp's own among them."""
    matches = [Instruction(_EQUAL, len(SO_ATTACH) - i, 0, v) for i, v in enumerate(SO_ATTACH)]
    return [
        _load_argument(1),
        Instruction(_EQUAL, 0, len(matches) + 1, SOL_SOCKET),
        _load_argument(2),
        *matches,
        _return(_ALLOW),
        _return(_ERRNO | errno.EPERM),
    ]


def _no_huge_pages(argument: int, flag: int) -> Program:
    """As on a host that has set none aside: no cgroup of ours limits those that there may be (hugetlbpage.rst)."""
    return [
        _load_argument(argument),
        Instruction(_AND, 0, 0, flag),
        Instruction(_EQUAL, 1, 0, 0),
        _return(_ERRNO | errno.ENOMEM),
        _return(_ALLOW),
    ]


def _mmap() -> Program:
    return _no_huge_pages(3, MAP_HUGETLB)


def _memfd_create() -> Program:
    return _no_huge_pages(1, MFD_HUGETLB)


def _shmget() -> Program:
    return _no_huge_pages(2, SHM_HUGETLB)


def _not_of_init() -> Program:
    """Not what it does to init, which has the same uid: it could be put to sleep."""
    return _allow_all_but(0, (INIT_PID,))


def _setpriority() -> Program:
    """By user is by init's, too."""
    return [
        _load_argument(0),
        Instruction(_EQUAL, 3, 0, PRIO_USER),
        _load_argument(1),
        Instruction(_EQUAL, 1, 0, INIT_PID),
        _return(_ALLOW),
        _return(_ERRNO | errno.EPERM),
    ]


def _mknod() -> Program:
    return _no_devices(mode_argument=1)


def _mknodat() -> Program:
    return _no_devices(mode_argument=2)


_RULES: dict[str, Callable[[], Program]] = {
    "clone": _clone,
    "socket": _socket,
    "socketpair": _socketpair,
    "ioctl": _ioctl,
    "personality": _personality,
    "prlimit64": _prlimit64,
    "prctl": _prctl,
    "seccomp": _seccomp,
    "ioprio_set": _ioprio_set,
    "fcntl": _fcntl,
    "mmap": _mmap,
    "memfd_create": _memfd_create,
    "shmget": _shmget,
    "setsockopt": _setsockopt,
    "sched_setaffinity": _not_of_init,
    "sched_setattr": _not_of_init,
    "sched_setparam": _not_of_init,
    "sched_setscheduler": _not_of_init,
    "setpriority": _setpriority,
    "mknod": _mknod,
    "mknodat": _mknodat,
}
"""Calls that are allowed for some arguments."""


def _allow_only(argument: int, values: tuple[int, ...], refusal: int) -> Program:
    program = [_load_argument(argument)]
    for left, value in zip(range(len(values), 0, -1), values, strict=True):
        program.append(Instruction(_EQUAL, left, 0, value))
    return [*program, _return(_ERRNO | refusal), _return(_ALLOW)]


def _allow_all_but(argument: int, values: tuple[int, ...]) -> Program:
    program = [_load_argument(argument)]
    for left, value in zip(range(len(values), 0, -1), values, strict=True):
        program.append(Instruction(_EQUAL, left, 0, value))
    return [*program, _return(_ALLOW), _return(_ERRNO | errno.EPERM)]


def _no_devices(mode_argument: int) -> Program:
    """FIFOs, sockets and plain files, but no device nodes."""
    return [
        _load_argument(mode_argument),
        Instruction(_AND, 0, 0, S_IFMT),
        Instruction(_EQUAL, 2, 0, S_IFCHR),
        Instruction(_EQUAL, 1, 0, S_IFBLK),
        _return(_ALLOW),
        _return(_ERRNO | errno.EPERM),
    ]


def _load(offset: int) -> Instruction:
    return Instruction(_LOAD, 0, 0, offset)


def _load_argument(index: int) -> Instruction:
    """The low 32 bits of an argument (both architectures are little-endian)."""
    return _load(_ARGUMENTS + 8 * index)


def _return(action: int) -> Instruction:
    return Instruction(_RETURN, 0, 0, action)
