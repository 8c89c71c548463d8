"""System calls that Python's `os` does not offer: one small wrapper each, kernel names kept, so that the man page is the documentation.

Every wrapper raises OSError with the kernel's errno. This is the only module that uses ctypes.

All functions are looked up, and told what they take, when this module is imported: what ctypes does at a function's first use
would be done anew by each init, a clone, and each page that it writes to for that is copied.
"""

import ctypes
import os
import platform
import struct
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc["syscall"]
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, *[ctypes.c_void_p] * 6)
_unshare, _setns, _ptrace = _libc.unshare, _libc.setns, _libc.ptrace
_unshare.argtypes = (ctypes.c_int,)
_setns.argtypes = (ctypes.c_int, ctypes.c_int)
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong)
_mount, _umount2 = _libc.mount, _libc.umount2
_mount.argtypes = (*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p)
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_sethostname, _fstatfs, _syncfs = _libc.sethostname, _libc.fstatfs, _libc.syncfs
_sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)
_syncfs.argtypes = (ctypes.c_int,)
_signalfd, _prctl = _libc.signalfd, _libc.prctl
_signalfd.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_signal, _sigprocmask = _libc.signal, _libc.sigprocmask
_signal.argtypes, _signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_ssize_t
_sigprocmask.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
_prctl.argtypes = (ctypes.c_int, *[ctypes.c_void_p] * 4)

# PyDLL keeps the interpreter lock during the call: a clone of this process must find it held by itself.
_syscall_holding_lock = ctypes.PyDLL(None, use_errno=True).syscall
_syscall_holding_lock.restype = ctypes.c_long
_syscall_holding_lock.argtypes = (ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t)
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_in_child = ctypes.pythonapi.PyOS_AfterFork_Child
_after_fork_in_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
for _hook in (_before_fork, _after_fork_in_child, _after_fork_in_parent):
    _hook.restype = None

MACHINE = platform.machine()
_PATHS = sys.getfilesystemencoding()

# Calls newer than the split between architectures have one number everywhere (asm-generic/unistd.h).
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_CLONE3 = 435
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442
_NR_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_NR_KEYCTL = {"x86_64": 250, "aarch64": 219}
_NR_CAPSET = {"x86_64": 126, "aarch64": 91}

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

CLONE_NEWTIME = 0x80
CLONE_PIDFD = 0x1000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_MOVE = 8192
MS_SLAVE = 1 << 19
MS_PRIVATE = 1 << 18
MS_REC = 1 << 14
MNT_DETACH = 2

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

PTRACE_TRACEME = 0
PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_SEIZE = 0x4206
PTRACE_O_TRACEEXEC = 0x10
PTRACE_O_EXITKILL = 0x100000
PTRACE_EVENT_EXEC = 4
WAIT_ALL = 0x40000000
"""__WALL of wait4(2): children of every kind."""

CLOSE_RANGE_CLOEXEC = 4
KEYCTL_JOIN_SESSION_KEYRING = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
LINUX_CAPABILITY_VERSION_3 = 0x20080522
SECCOMP_MODE_FILTER = 2
SYNC_FILE_RANGE_WAIT_BEFORE = 1
SYNC_FILE_RANGE_WRITE = 2
SYNC_FILE_RANGE_WAIT_AFTER = 4
SFD_CLOEXEC = os.O_CLOEXEC
_SIG_ERR = -1
_SIG_SETMASK = 2
SFD_NONBLOCK = os.O_NONBLOCK


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


_Argument = int | bytes | None


def _call(
    number: int,
    first: _Argument = 0,
    second: _Argument = 0,
    third: _Argument = 0,
    fourth: _Argument = 0,
    fifth: _Argument = 0,
) -> int:
    """syscall(2). What a call does not take, the kernel does not look at."""
    return _check(_syscall(number, first, second, third, fourth, fifth, 0))


def as_bytes(path: str) -> bytes:
    """os.fsencode() of a path, which takes twenty steps for it."""
    return path.encode(_PATHS, "surrogateescape")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_unshare(flags))


def setns(descriptor: int, kind: int) -> None:
    """setns(2)."""
    _check(_setns(descriptor, kind))


def sync_file_range(descriptor: int, offset: int, size_bytes: int, flags: int) -> None:
    """sync_file_range(2)."""
    place = (ctypes.c_int64(offset), ctypes.c_int64(size_bytes))
    _check(_libc.sync_file_range(ctypes.c_int(descriptor), *place, ctypes.c_uint(flags)))


def ptrace(request: int, pid: int, value: int = 0) -> None:
    """ptrace(2), for requests that need no address."""
    _check(_ptrace(request, pid, None, value))


def clone3(flags: int, cgroup_fd: int | None = None) -> tuple[int, int]:
    """clone3(2) as fork: (0, -1) in the child; (pid, pidfd) in the parent.

    Only for a single-threaded process. Python's own fork hooks run around the call, so the child is a sound interpreter.
    """
    pidfd = ctypes.c_int(-1)
    exit_signal = 17  # SIGCHLD
    if cgroup_fd is not None:
        flags |= CLONE_INTO_CGROUP
    arguments = struct.pack(
        "=11Q",
        flags | CLONE_PIDFD,
        ctypes.addressof(pidfd),
        0,
        0,
        exit_signal,
        0,
        0,
        0,
        0,
        0,
        cgroup_fd or 0,
    )
    _before_fork()
    pid = _syscall_holding_lock(_NR_CLONE3, arguments, len(arguments))
    number = ctypes.get_errno()
    if pid == 0:
        _after_fork_in_child()
        return 0, -1
    _after_fork_in_parent()
    if pid < 0:
        raise OSError(number, os.strerror(number))
    return pid, pidfd.value


def mount(source: str, target: str, filesystem: str, flags: int, options: str) -> None:
    """mount(2) of a new file system; `options` are less than a page."""
    words = (source.encode(), as_bytes(target), filesystem.encode())
    _check(_mount(*words, flags, options.encode()))


def bind(source: bytes, target: bytes) -> None:
    """mount(2) with MS_BIND: what is at `source`, and below it, also at `target`. For who does it often: paths as the kernel takes them."""
    if _mount(source, target, None, MS_BIND | MS_REC, None) < 0:
        _check(-1)


def move(source: str, target: str) -> None:
    """mount(2) with MS_MOVE: the mount at `source`, with those below it, is at `target` instead."""
    _check(_mount(as_bytes(source), as_bytes(target), None, MS_MOVE, None))


def mount_propagation(path: str, flags: int) -> None:
    """mount(2) used to change how mounts below `path` propagate."""
    _check(_mount(None, path.encode(), None, flags, None))


def umount2(path: str, flags: int) -> None:
    """umount2(2)."""
    _check(_umount2(path.encode(), flags))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _call(_NR_PIVOT_ROOT[MACHINE], new_root.encode(), put_old.encode())


def open_tree(directory_fd: int, path: str, flags: int) -> int:
    """open_tree(2): a descriptor for a mount, or for a detached copy of it with OPEN_TREE_CLONE."""
    return _call(_NR_OPEN_TREE, directory_fd, as_bytes(path), flags | OPEN_TREE_CLOEXEC)


def move_mount(mount_fd: int, target_fd: int, target: str = "") -> None:
    """move_mount(2): attach what `mount_fd` holds at `target` below `target_fd` (at the descriptor itself if empty)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    _call(_NR_MOVE_MOUNT, mount_fd, b"", target_fd, as_bytes(target), flags)


def fsopen(filesystem: str) -> int:
    """fsopen(2)."""
    return _call(_NR_FSOPEN, filesystem.encode(), FSOPEN_CLOEXEC)


def fsconfig(filesystem_fd: int, command: int, key: str | None, value: str | None) -> None:
    """fsconfig(2)."""
    _call(
        _NR_FSCONFIG,
        filesystem_fd,
        command,
        key.encode() if key is not None else None,
        as_bytes(value) if value is not None else None,
        0,
    )


def fsmount(filesystem_fd: int, attributes: int) -> int:
    """fsmount(2): a descriptor for a mount that is not attached anywhere yet."""
    return _call(_NR_FSMOUNT, filesystem_fd, FSMOUNT_CLOEXEC, attributes)


def mount_setattr(
    mount_fd: int, attributes: int, *, path: str = "", recursive: bool, propagation: int = 0
) -> None:
    """mount_setattr(2): set MOUNT_ATTR_*, and MS_PRIVATE or MS_SLAVE, on the mount (and all below it).

    The mount is that of the descriptor, or with a `path` the one that is there.
    """
    request = struct.pack("=4Q", attributes, 0, propagation, 0)
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    _call(_NR_MOUNT_SETATTR, mount_fd, as_bytes(path), flags, request, len(request))


def openat2(directory_fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2). Raises ValueError for a path that holds NUL, at which the kernel would take it to end."""
    if "\0" in path:
        raise ValueError("embedded null byte")
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, mode, resolve)
    return _call(_NR_OPENAT2, directory_fd, as_bytes(path), how, len(how))


def close_range(first: int, last: int = 0x7FFFFFFF, flags: int = 0) -> None:
    """close_range(2)."""
    _call(_NR_CLOSE_RANGE, first, last, flags)


def syncfs(descriptor: int) -> None:
    """syncfs(2): write out the file system that the descriptor is on."""
    _check(_syncfs(descriptor))


def join_new_session_keyring() -> None:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING, NULL): leave the keyring that was inherited."""
    _call(_NR_KEYCTL[MACHINE], KEYCTL_JOIN_SESSION_KEYRING, None)


def capset(capabilities: int) -> None:
    """capset(2): have these (a bit for each) permitted and effective, and none inheritable."""
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    _call(_NR_CAPSET[MACHINE], header, struct.pack("=6I", low, low, 0, high, high, 0))


def drop_from_bounding_set(last: int) -> None:
    """prctl(PR_CAPBSET_DROP) for each capability up to this one."""
    for capability in range(last + 1):
        if _prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            _check(-1)


def sethostname(name: str) -> None:
    """sethostname(2)."""
    encoded = name.encode()
    _check(_sethostname(encoded, len(encoded)))


def file_system_type(descriptor: int) -> int:
    """f_type of fstatfs(2): the magic number of the file system that an open file is in."""
    answer = ctypes.create_string_buffer(256)
    _check(_fstatfs(descriptor, answer))
    return int.from_bytes(answer.raw[:4], "little")


def reset_signal(number: int) -> None:
    """signal(2) to SIG_DFL, behind the back of Python, whose own way goes through enumerations."""
    if _signal(number, None) == _SIG_ERR:
        _check(-1)


def block_only(number: int) -> None:
    """sigprocmask(2): block this signal and no other."""
    _check(_sigprocmask(_SIG_SETMASK, _signal_set(number), None))


def _signal_set(number: int) -> bytes:
    return (1 << (number - 1)).to_bytes(128, "little")


def signalfd(signal_number: int) -> int:
    """signalfd(2) for one signal, which must be blocked: non-blocking, closed on exec."""
    return _check(_signalfd(-1, _signal_set(signal_number), SFD_CLOEXEC | SFD_NONBLOCK))


class FilterProgram:
    """A seccomp program in memory, as the kernel takes it: struct sock_fprog { unsigned short len; struct sock_filter *filter; }."""

    def __init__(self, program: bytes) -> None:
        """`program`: struct sock_filter[]. Made before the fork: to lay it out costs more than to install it."""
        self._instructions = ctypes.create_string_buffer(program, len(program))
        address = ctypes.addressof(self._instructions)
        self.fprog = struct.pack("@HP", len(program) // 8, address)


def install_seccomp_filter(program: FilterProgram) -> None:
    """prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER): from here on every system call passes `program`."""
    _check(_prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program.fprog, 0, 0))


def find_title() -> tuple[int, int]:
    """Where this process's command line lies in memory, from and to: the same in every clone of it.

    Fields 48 and 49 of proc_pid_stat(5), `arg_start` and `arg_end`.
    """
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return int(fields[45]), int(fields[46])


def set_title(place: tuple[int, int], title: str) -> None:
    """Overwrite the command line of this process, which everybody who can see the process can read."""
    start, end = place
    encoded = title.encode()[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, encoded, len(encoded))
