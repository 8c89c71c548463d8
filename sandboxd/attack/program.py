"""What a hostile command would try, each attempt tiny and harmless should it succeed.

Runs inside a sandbox as `python3 -I - look` (or `limits`), read from standard input, with whatever Python the image has
(3.8 or newer) and nothing else: hence one file. It prints one line of JSON for each attempt: its name, `stopped`, `not_stopped` or `not_tried`, and what was seen.
What is called stopped was *seen* to be: an error number that a wall gives, a file's content, an absence. An error that
says no more than that the arguments were wrong (EINVAL, EFAULT) means that nothing stood before the kernel's code.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import platform
import resource
import socket
import stat
import sys
import time

try:
    import ctypes
except ImportError:  # a minimal Python
    ctypes = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:  # not run: typing takes a while to load
    from collections.abc import Callable, Iterable

    Attempt = Callable[[], object]

STOPPED, NOT_STOPPED, NOT_TRIED = "stopped", "not_stopped", "not_tried"

FILTERED = ("EPERM", "ENOSYS", "EAFNOSUPPORT")
"""What a filter of system calls answers."""
DENIED = ("EPERM", "EACCES", "EROFS", "ENOENT")
"""What permissions, read-only mounts and absence answer."""
UNREACHABLE = ("ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED", "EADDRNOTAVAIL", "EAFNOSUPPORT")

NUMBERS = {
    "x86_64": {
        "clone": 56, "ptrace": 101, "mount": 165, "umount2": 166, "swapon": 167, "init_module": 175,
        "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272,
        "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304,
        "setns": 308, "process_vm_readv": 310, "finit_module": 313, "bpf": 321, "userfaultfd": 323,
        "io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442,
        "pivot_root": 155, "syslog": 103, "modify_ldt": 154,
    },
    "aarch64": {
        "clone": 220, "ptrace": 117, "mount": 40, "umount2": 39, "swapon": 224, "init_module": 105,
        "kexec_load": 104, "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97,
        "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
        "setns": 268, "process_vm_readv": 270, "finit_module": 273, "bpf": 280, "userfaultfd": 282,
        "io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442,
        "pivot_root": 41, "syslog": 116,
    },
}  # fmt: skip

CLONE_NEW = {"user": 0x10000000, "mount": 0x20000, "net": 0x40000000, "pid": 0x20000000}
MOST_FAMILIES = 46
ALLOWED_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK."""
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys",
    "/proc/key-users", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags", "/proc/latency_stats", "/proc/pressure",
    "/proc/sched_debug", "/proc/scsi", "/proc/slabinfo", "/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo",
    "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/bpf", "/sys/fs/selinux", "/sys/kernel/debug",
    "/sys/kernel/security", "/sys/kernel/tracing", "/sys/kernel/vmcoreinfo",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
)  # fmt: skip
KERNEL_SETTINGS = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug",
    "/proc/sys/fs/binfmt_misc/register", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/sysrq",
    "/proc/sys/user/max_user_namespaces", "/proc/sys/net/ipv4/ip_forward", "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", "/proc/irq/default_smp_affinity",
)  # fmt: skip
OF_A_SERVICE = (
    "SANDBOXD_", "KUBERNETES_", "SSH_", "SUDO_", "INVOCATION_ID", "JOURNAL_STREAM", "NOTIFY_SOCKET", "STATE_DIRECTORY",
    "LISTEN_FDS", "CREDENTIALS_DIRECTORY",
)  # fmt: skip
"""How variables begin that belong to whoever started the service, and to no image."""
LOCAL_PORTS = (22, 80, 443, 2375, 5432, 6379, 8080, 9464)
METADATA, DOCUMENTATION = "169.254.169.254", "192.0.2.1"
"""A cloud's metadata service (link-local), and an address that nobody has (RFC 5737)."""
FAST_SECONDS = 5.0
"""A host may be held up for a moment. What is dropped without a word takes longer, and has a word of its own."""
CONNECT_SECONDS = 6.0


class NotTried(Exception):
    """This machine or image has nothing to try it with; the reason."""


# Trying


def outcome_of(attempt: Attempt) -> str:
    """`done`, or the name of the error number with which it was refused."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def all_refused(attempts: dict[str, Attempt], refusals: Iterable[str]) -> tuple[str, str]:
    """Stopped if each attempt ends with one of these errors."""
    refusals = tuple(refusals)
    seen = {name: outcome_of(attempt) for name, attempt in attempts.items()}
    through = {name: how for name, how in seen.items() if how not in refusals}
    if through:
        return NOT_STOPPED, ", ".join(f"{name}: {how}" for name, how in through.items())
    return STOPPED, summary(seen)


def summary(seen: dict[str, str]) -> str:
    """`EPERM` where all went alike, else how many of each."""
    counts: dict[str, int] = {}
    for how in seen.values():
        counts[how] = counts.get(how, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count}x {how}" for how, count in sorted(counts.items()))


def call(name: str, *arguments: int) -> None:
    """A system call by its number, whatever the C library thinks of it. Raises OSError, NotTried."""
    if ctypes is None:
        raise NotTried("the image's Python has no ctypes")
    machine = platform.machine()
    if machine not in NUMBERS:
        raise NotTried(f"no system call numbers for {machine}")
    if name not in NUMBERS[machine]:
        raise NotTried(f"{machine} has no {name}")
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(word) for word in (NUMBERS[machine][name], *arguments)]
    if library.syscall(*words) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def calls(*named: tuple[str, tuple[int, ...]]) -> dict[str, Attempt]:
    """Attempts that are each one system call."""

    def one(name: str, arguments: tuple[int, ...]) -> Attempt:
        return lambda: call(name, *arguments)

    return {name: one(name, arguments) for name, arguments in named}


def in_child(attempt: Attempt) -> Attempt:
    """The attempt in a process of its own, since it would change this one if it succeeded. NotTried stays NotTried."""

    def run() -> None:
        pid = os.fork()
        if pid == 0:
            try:
                attempt()
            except OSError as error:
                os._exit(error.errno or 255)
            except NotTried:
                os._exit(254)
            os._exit(0)
        number = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
        if number == 254:
            raise NotTried("no system call numbers, or no ctypes, for this")
        if number:
            raise OSError(number, os.strerror(number))

    return run


def opening(path: str, flags: int) -> Attempt:
    """Open and close: nothing is written."""
    return lambda: os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY))


def text_of(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def status_of(pid: str = "self") -> dict[str, str]:
    """/proc/PID/status: proc_pid_status(5)."""
    lines = text_of(f"/proc/{pid}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def mounts() -> list[tuple[str, str, set[str], list[str], str]]:
    """(root, target, flags, optional fields, file system) of each line of /proc/self/mountinfo."""
    found = []
    for line in text_of("/proc/self/mountinfo").splitlines():
        words = line.split()
        dash = words.index("-")
        found.append((words[3], words[4], set(words[5].split(",")), words[6:dash], words[dash + 1]))
    return found


# What is tried, by name


def init_is_closed() -> tuple[str, str]:
    paths = (
        "exe",
        "root/",
        "cwd/",
        "fd",
        "environ",
        "mem",
        "maps",
        "stack",
        "syscall",
        "auxv",
        "io",
    )
    attempts: dict[str, Attempt] = {name: opening(f"/proc/1/{name}", os.O_RDONLY) for name in paths}
    attempts["exe for writing"] = opening("/proc/1/exe", os.O_WRONLY)
    attempts["oom_score_adj for writing"] = opening("/proc/1/oom_score_adj", os.O_WRONLY)
    return all_refused(attempts, ("EPERM", "EACCES"))


def init_cannot_be_traced() -> tuple[str, str]:
    seize = 0x4206  # which, unlike attaching, stops nobody
    attempts = calls(
        ("process_vm_readv", (1, 0, 0, 0, 0, 0)),
        ("pidfd_getfd", (0, 0, 0)),
    )
    attempts["ptrace seize"] = lambda: call("ptrace", seize, 1, 0, 0)
    return all_refused(attempts, ("EPERM", "ENOSYS"))


def descriptors() -> tuple[str, str]:
    found = []
    for number in range(4096):
        try:
            mode = os.fstat(number).st_mode
        except OSError:
            continue
        found.append(number)
        if number > 2 or stat.S_ISDIR(mode):
            return NOT_STOPPED, f"descriptor {number} is open"
    for number in range(3, 41):
        how = outcome_of(in_child(lambda number=number: os.chdir(f"/proc/self/fd/{number}")))  # type: ignore[misc]
        if how not in ("ENOENT", "EACCES"):
            return NOT_STOPPED, f"chdir to /proc/self/fd/{number}: {how}"
    return STOPPED, f"open: {', '.join(map(str, found))}"


def working_directory() -> tuple[str, str]:
    where = os.getcwd()
    if not where.startswith("/") or "unreachable" in where:
        return NOT_STOPPED, f"it is {where}"
    above = os.stat("/" + "../" * 64)
    root = os.stat("/")
    if (above.st_dev, above.st_ino) != (root.st_dev, root.st_ino):
        return NOT_STOPPED, "64 times .. is not /"
    return STOPPED, f"{where}, below /"


def capabilities() -> tuple[str, str]:
    status = status_of()
    held = [
        name for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)
    ]
    if held:
        return NOT_STOPPED, ", ".join(f"{name} {status[name]}" for name in held)
    return STOPPED, "all five sets are 0"


def no_new_privileges() -> tuple[str, str]:
    value = status_of().get("NoNewPrivs", "unknown")
    return (STOPPED if value == "1" else NOT_STOPPED), f"NoNewPrivs {value}"


def filter_is_on() -> tuple[str, str]:
    value = status_of().get("Seccomp", "unknown")
    return (STOPPED if value == "2" else NOT_STOPPED), f"Seccomp {value}"


def groups() -> tuple[str, str]:
    extra = sorted(set(os.getgroups()) - {os.getgid()})
    return (NOT_STOPPED, f"groups {extra}") if extra else (STOPPED, "none")


def cgroup_files() -> tuple[str, str]:
    base = "/sys/fs/cgroup"
    attempts: dict[str, Attempt] = {
        "make a cgroup": made_and_removed(f"{base}/attack", os.mkdir, os.rmdir),
        "join one": opening(f"{base}/cgroup.procs", os.O_WRONLY),
        "raise the limit": opening(f"{base}/memory.max", os.O_WRONLY),
        "make a file": made_and_removed(f"{base}/attack", create, os.unlink),
    }
    return all_refused(attempts, DENIED)


def made_and_removed(
    path: str, make: Callable[[str], object], remove: Callable[[str], object]
) -> Attempt:
    def attempt() -> None:
        make(path)
        remove(path)

    return attempt


def create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def release_agent() -> tuple[str, str]:
    if any(kind == "cgroup" for *_, kind in mounts()):
        return NOT_STOPPED, "cgroup v1 is mounted here"
    paths = glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True)
    return (NOT_STOPPED, paths[0]) if paths else (STOPPED, "no cgroup v1 is mounted")


def kernel_settings() -> tuple[str, str]:
    there = [path for path in KERNEL_SETTINGS if os.path.lexists(path)]
    if not there:
        raise NotTried("none of the files is there")
    return all_refused({path: opening(path, os.O_WRONLY) for path in there}, DENIED)


def magic_sysrq() -> tuple[str, str]:
    """It may be opened where it is hidden: then it is the null device."""
    path = "/proc/sysrq-trigger"
    try:
        status = os.stat(path)
    except OSError:
        return STOPPED, "absent"
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3):
        return STOPPED, "the null device is in its place"
    return all_refused({path: opening(path, os.O_WRONLY)}, DENIED)


def core_dumps() -> tuple[str, str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    fits = not 0 <= hard <= 1
    return (NOT_STOPPED if fits else STOPPED), f"RLIMIT_CORE {soft}, {hard}"


def masked_paths() -> tuple[str, str]:
    shown = []
    for path in MASKED:
        try:
            if os.path.isdir(path):
                content: object = os.listdir(path)
            else:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    content = os.read(descriptor, 64)
                finally:
                    os.close(descriptor)
        except OSError:
            continue
        if content:
            shown.append(path)
    if shown:
        return NOT_STOPPED, "something to read in " + ", ".join(shown)
    return STOPPED, f"{len(MASKED)} paths empty or absent"


def terminal_injection() -> tuple[str, str]:
    """On standard input, which is no terminal: whoever gets as far as to be told so (ENOTTY) passed the filter."""
    import fcntl

    attempts: dict[str, Attempt] = {}
    for name, number in (("TIOCSTI", TIOCSTI), ("TIOCLINUX", TIOCLINUX)):
        attempts[name] = lambda number=number: fcntl.ioctl(0, number, b"\0" * 8)  # type: ignore[misc]
        if ctypes is not None:
            attempts[f"{name} with high bits"] = lambda number=number: raw_ioctl(1 << 32 | number)  # type: ignore[misc]
    return all_refused(attempts, ("EPERM",))


def raw_ioctl(request: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.ioctl(0, ctypes.c_ulong(request), ctypes.create_string_buffer(8)) < 0:
        raise OSError(ctypes.get_errno(), "ioctl")


def controlling_terminal() -> tuple[str, str]:
    return all_refused({"/dev/tty": opening("/dev/tty", os.O_RDWR)}, ("ENXIO", *DENIED))


def kernel_keys() -> tuple[str, str]:
    get_keyring_id, session = 0, -3
    return all_refused(
        calls(
            ("keyctl", (get_keyring_id, session, 0)),
            ("add_key", (0, 0, 0, 0, session)),
            ("request_key", (0, 0, 0, 0)),
        ),
        FILTERED,
    )


def interfaces() -> tuple[str, str]:
    names = sorted(name for _, name in socket.if_nameindex())
    return (STOPPED if names == ["lo"] else NOT_STOPPED), ", ".join(names) or "none"


def host_sockets() -> tuple[str, str]:
    """Abstract unix sockets and listening ports of this network namespace: a new one has none."""
    shown = {}
    for name in ("unix", "tcp", "tcp6"):
        try:
            lines = text_of(f"/proc/net/{name}").splitlines()[1:]
        except OSError:
            continue
        if lines:
            shown[name] = len(lines)
    if shown:
        return NOT_STOPPED, ", ".join(
            f"{count} in /proc/net/{name}" for name, count in shown.items()
        )
    return STOPPED, "none to be seen"


def connecting(host: str, port: int) -> Attempt:
    def connect() -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(CONNECT_SECONDS)
            try:
                client.connect((host, port))
            except socket.timeout:  # noqa: UP041 - another class before Python 3.10
                raise OSError(errno.ETIMEDOUT, "no answer") from None

    return connect


def refused_fast(attempts: dict[str, Attempt]) -> tuple[str, str]:
    begun = time.monotonic()
    verdict, seen = all_refused(attempts, UNREACHABLE)
    seconds = time.monotonic() - begun
    if verdict == STOPPED and seconds > FAST_SECONDS:
        return NOT_STOPPED, f"{seen}, but after {seconds:.1f} s"
    return verdict, f"{seen} after {seconds * 1000:.0f} ms"


def local_services() -> tuple[str, str]:
    attempts = {f"127.0.0.1:{port}": connecting("127.0.0.1", port) for port in LOCAL_PORTS}
    attempts.update({f"[::1]:{port}": connecting("::1", port) for port in LOCAL_PORTS})
    return refused_fast(attempts)


def metadata_service() -> tuple[str, str]:
    return refused_fast({METADATA: connecting(METADATA, 80)})


def outside() -> tuple[str, str]:
    return refused_fast({DOCUMENTATION: connecting(DOCUMENTATION, 443)})


def other_processes() -> tuple[str, str]:
    mine, strangers = os.getpid(), []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in (1, mine):
            continue
        try:
            if status_of(name)["PPid"] != str(mine):
                strangers.append(name)
        except OSError:
            continue  # gone
    if strangers:
        return NOT_STOPPED, f"{len(strangers)} other processes in /proc"
    return STOPPED, "init and this one only"


def raw_sockets() -> tuple[str, str]:
    kinds = (
        (socket.AF_INET, socket.SOCK_RAW, 1),
        (socket.AF_INET6, socket.SOCK_RAW, 58),
        (17, socket.SOCK_RAW, 0),
    )
    attempts: dict[str, Attempt] = {
        f"family {kind[0]}": lambda kind=kind: socket.socket(*kind).close()  # type: ignore[misc]
        for kind in kinds
    }
    return all_refused(attempts, ("EPERM", "EAFNOSUPPORT"))


def socket_families() -> tuple[str, str]:
    """One family after the other; each way to ask for it."""
    attempts: dict[str, Attempt] = {}
    for number in sorted(set(range(MOST_FAMILIES)) - set(ALLOWED_FAMILIES)):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            attempts[f"family {number}, type {int(kind)}"] = lambda number=number, kind=kind: (
                socket.socket(  # type: ignore[misc]
                    number, kind
                ).close()
            )
    return all_refused(attempts, ("EAFNOSUPPORT", "EPERM"))


def netlink_families() -> tuple[str, str]:
    protocols = {"xfrm": 6, "netfilter": 12, "audit": 9, "generic": 16, "crypto": 21, "uevent": 15}
    attempts: dict[str, Attempt] = {
        name: lambda number=number: socket.socket(16, socket.SOCK_RAW, number).close()  # type: ignore[misc]
        for name, number in protocols.items()
    }
    return all_refused(attempts, ("EAFNOSUPPORT", "EPERM"))


def crypto_sockets() -> tuple[str, str]:
    attempts: dict[str, Attempt] = {
        "AF_ALG": lambda: socket.socket(38, socket.SOCK_SEQPACKET).close()
    }
    return all_refused(attempts, ("EAFNOSUPPORT", "EPERM"))


def new_namespaces() -> tuple[str, str]:
    attempts: dict[str, Attempt] = {}
    for name, flag in CLONE_NEW.items():
        attempts[f"unshare {name}"] = in_child(lambda flag=flag: call("unshare", flag))  # type: ignore[misc]
    attempts["clone user"] = in_child(lambda: cloned(CLONE_NEW["user"]))
    attempts["clone3"] = lambda: call("clone3", 0, 0)
    attempts["setns"] = lambda: call("setns", -1, 0)
    return all_refused(attempts, FILTERED)


def cloned(flags: int) -> None:
    """A child that ends at once, should there be one; without SIGCHLD as its last signal it is reaped with __WALL only."""
    call("clone", flags, 0, 0, 0, 0)
    os._exit(0)


def namespace_limit() -> tuple[str, str]:
    """The second wall, behind the filter."""
    value = text_of("/proc/sys/user/max_user_namespaces").strip()
    return (STOPPED if value == "0" else NOT_STOPPED), f"max_user_namespaces {value}"


def ids_are_foreign() -> tuple[str, str]:
    """Uid 0 here must not be uid 0 of the namespace above."""
    lines = [line.split() for line in text_of("/proc/self/uid_map").splitlines()]
    if any(line[:2] == ["0", "0"] and line[2] == "4294967295" for line in lines):
        return NOT_STOPPED, "the ids are the host's"
    return STOPPED, f"{sum(int(line[2]) for line in lines)} ids of a user namespace"


def mounting() -> tuple[str, str]:
    return all_refused(
        calls(
            ("mount", (0, 0, 0, 0, 0)),
            ("umount2", (0, 0)),
            ("pivot_root", (0, 0)),
            ("fsopen", (0, 0)),
            ("open_tree", (-1, 0, 0)),
            ("mount_setattr", (-1, 0, 0, 0, 0)),
        ),
        ("EPERM", "ENOSYS"),
    )


def kernel_interface(name: str, arguments: tuple[int, ...]) -> Callable[[], tuple[str, str]]:
    return lambda: all_refused(calls((name, arguments)), ("EPERM", "ENOSYS"))


def kernel_code() -> tuple[str, str]:
    return all_refused(
        calls(
            ("init_module", (0, 0, 0)),
            ("finit_module", (-1, 0, 0)),
            ("kexec_load", (0, 0, 0, 0)),
            ("swapon", (0, 0)),
            ("fanotify_init", (0, 0)),
            ("syslog", (10, 0, 0)),
        ),
        ("EPERM", "ENOSYS"),
    )


def file_handles() -> tuple[str, str]:
    return all_refused(
        calls(("open_by_handle_at", (-1, 0, 0)), ("name_to_handle_at", (-1, 0, 0, 0, 0))),
        ("EPERM", "ENOSYS"),
    )


def set_id_programs() -> tuple[str, str]:
    """Where the image has programs with the bit, their mount must ignore it; so must where the job can write."""
    suid = [
        path
        for pattern in ("/usr/bin/*", "/usr/sbin/*", "/bin/*")
        for path in glob.glob(pattern)
        if has_set_id(path)
    ]
    places = {*suid, "/tmp", "/dev/shm"}  # noqa: S108 (inside the sandbox)
    open_places = sorted(
        path
        for path in places
        if os.path.exists(path) and not os.statvfs(path).f_flag & os.ST_NOSUID
    )
    if open_places:
        return NOT_STOPPED, "no nosuid at " + ", ".join(open_places[:3])
    return STOPPED, f"nosuid, for {len(suid)} programs with the bit too"


def has_set_id(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID))
    except OSError:
        return False


def device_nodes() -> tuple[str, str]:
    path = scratch("node")
    kinds = {
        "null": (stat.S_IFCHR, 1, 3),
        "a disk": (stat.S_IFBLK, 8, 0),
        "memory": (stat.S_IFCHR, 1, 1),
    }

    def making(kind: int, major: int, minor: int) -> Attempt:
        def make(path: str) -> None:
            os.mknod(path, kind | 0o600, os.makedev(major, minor))

        return made_and_removed(path, make, os.unlink)

    return all_refused({name: making(*kind) for name, kind in kinds.items()}, ("EPERM",))


def host_mounts() -> tuple[str, str]:
    """Each mount private and nosuid, and none but the sandbox's own writable."""
    own = {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"}  # noqa: S108 (inside the sandbox)
    bad = []
    for _root, target, flags, optional, kind in mounts():
        if optional:
            bad.append(f"{target} hears of the host's mounts")
        if "nosuid" not in flags:
            bad.append(f"{target} without nosuid")
        if target not in own and "ro" not in flags and not is_harmless_device(target):
            bad.append(f"{target} ({kind}) is writable")
    return (
        (NOT_STOPPED, "; ".join(bad[:3]))
        if bad
        else (STOPPED, f"{len(mounts())} mounts, all private")
    )


def is_harmless_device(path: str) -> bool:
    status = os.stat(path)
    harmless = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0))
    return (
        stat.S_ISCHR(status.st_mode)
        and (os.major(status.st_rdev), os.minor(status.st_rdev)) in harmless
    )


def host_files() -> tuple[str, str]:
    paths = [
        "/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/var/lib/sandboxd",
        "/var/run/secrets/kubernetes.io", "/run/systemd/private", "/proc/1/root/etc",
    ]  # fmt: skip
    if os.path.ismount(
        "/usr"
    ):  # the machine's own programs: its other files are not the image's, then
        paths += ["/etc/shadow", "/boot/vmlinuz", "/var/lib/dpkg", "/etc/ssh/ssh_host_ed25519_key"]
    there = [path for path in paths if reads(path)]
    return (
        (NOT_STOPPED, "can be read: " + ", ".join(there))
        if there
        else (STOPPED, "absent or closed")
    )


def reads(path: str) -> bool:
    try:
        return bool(os.listdir(path)) if os.path.isdir(path) else os.access(path, os.R_OK)
    except OSError:
        return False


def image_files() -> tuple[str, str]:
    """Only where the image's programs are bound read-only; an imported image is written to a scratch of the job's own."""
    target = "/usr" if os.path.ismount("/usr") else None
    if target is None:
        raise NotTried("nothing of the host is bound into this image")
    attempts: dict[str, Attempt] = {
        "make a file": made_and_removed(f"{target}/attack", create, os.unlink),
        "change a program": opening(os.path.realpath("/bin/sh"), os.O_WRONLY),
        "change a mode": lambda: os.chmod(target, stat.S_IMODE(os.stat(target).st_mode)),
    }
    return all_refused(attempts, ("EROFS", "EACCES", "EPERM"))


def environment() -> tuple[str, str]:
    found = sorted(name for name in os.environ if name.startswith(OF_A_SERVICE))
    if found:
        return NOT_STOPPED, "variables " + ", ".join(found[:5])
    return STOPPED, f"{len(os.environ)} variables, none of a service"


def raised_limits() -> tuple[str, str]:
    def raising(kind: int, hard: int) -> Attempt:
        def attempt() -> None:
            try:
                resource.setrlimit(kind, (hard + 1, hard + 1))
            except ValueError:  # how this module says EPERM
                raise OSError(errno.EPERM, "hard limit") from None

        return attempt

    attempts: dict[str, Attempt] = {}
    for name in ("CORE", "NOFILE", "MEMLOCK", "MSGQUEUE", "SIGPENDING"):
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None and (hard := resource.getrlimit(kind)[1]) != resource.RLIM_INFINITY:
            attempts[name] = raising(kind, hard)
    attempts["nice"] = lambda: os.setpriority(
        os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1
    )
    attempts["real time"] = lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return all_refused(attempts, ("EPERM", "EACCES"))


def oom_score() -> tuple[str, str]:
    def lower() -> None:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(descriptor, b"-1")
        finally:
            os.close(descriptor)

    verdict, seen = all_refused({"lower it": lower}, ("EPERM", "EACCES"))
    value = text_of("/proc/self/oom_score_adj").strip()
    return verdict, f"{seen}, stays {value}"


def shared_memory_bound() -> tuple[str, str]:
    if not os.path.ismount("/dev/shm"):  # noqa: S108 (inside the sandbox)
        raise NotTried("no /dev/shm")
    size = os.statvfs("/dev/shm")  # noqa: S108 (inside the sandbox)
    total = size.f_blocks * size.f_frsize
    return (STOPPED if total <= 64 * 2**20 else NOT_STOPPED), f"{total >> 20} MiB at most"


def scratch(name: str) -> str:
    return f"{os.environ.get('TMPDIR', '/tmp')}/attack-{os.getpid()}-{name}"  # noqa: S108 (inside)


# Limits: in a job that has little of everything


def forks() -> tuple[str, str]:
    most, children = 64, []
    reading, writing = os.pipe()
    how = "done"
    try:
        for _ in range(most):
            try:
                pid = os.fork()
            except OSError as error:
                how = errno.errorcode.get(error.errno or 0, "?")
                break
            if pid == 0:
                os.close(writing)
                os.read(reading, 1)  # until the parent is done
                os._exit(0)
            children.append(pid)
    finally:
        os.close(writing)
        os.close(reading)
        for pid in children:
            os.waitpid(pid, 0)
    verdict = STOPPED if how == "EAGAIN" else NOT_STOPPED
    return verdict, f"{how} after {len(children)} processes"


def disk() -> tuple[str, str]:
    most, written, path = 16 * 2**20, 0, scratch("disk")
    try:
        with open(path, "wb", buffering=0) as file:
            os.unlink(path)  # deleted, and still open: it counts all the same
            while written < most:
                written += file.write(b"\0" * 2**20) or 0
    except OSError as error:
        how = errno.errorcode.get(error.errno or 0, "?")
        return (
            STOPPED if how in ("ENOSPC", "EDQUOT") else NOT_STOPPED
        ), f"{how} after {written >> 20} MiB"
    return NOT_STOPPED, f"wrote {written >> 20} MiB"


def many_files() -> tuple[str, str]:
    most, directory = 5000, scratch("files")
    os.mkdir(directory)
    try:
        for number in range(most):
            try:
                os.close(os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY))
            except OSError as error:
                how = errno.errorcode.get(error.errno or 0, "?")
                verdict = STOPPED if how in ("ENOSPC", "EDQUOT") else NOT_STOPPED
                return verdict, f"{how} after {number} files"
        return NOT_STOPPED, f"made {most} files"
    finally:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)


def many_descriptors() -> tuple[str, str]:
    most, opened = 256, []
    try:
        for _ in range(most):
            opened.append(os.dup(0))
    except OSError as error:
        how = errno.errorcode.get(error.errno or 0, "?")
        return (
            STOPPED if how == "EMFILE" else NOT_STOPPED
        ), f"{how} after {len(opened)} descriptors"
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return NOT_STOPPED, f"opened {most}"


LOOK = {
    "init-files": init_is_closed,
    "init-trace": init_cannot_be_traced,
    "descriptors": descriptors,
    "working-directory": working_directory,
    "capabilities": capabilities,
    "groups": groups,
    "cgroup-files": cgroup_files,
    "release-agent": release_agent,
    "kernel-settings": kernel_settings,
    "sysrq": magic_sysrq,
    "core-dumps": core_dumps,
    "masked-paths": masked_paths,
    "terminal-injection": terminal_injection,
    "terminal": controlling_terminal,
    "keyrings": kernel_keys,
    "interfaces": interfaces,
    "host-sockets": host_sockets,
    "local-services": local_services,
    "metadata": metadata_service,
    "outside": outside,
    "processes": other_processes,
    "raw-sockets": raw_sockets,
    "families": socket_families,
    "netlink": netlink_families,
    "namespaces": new_namespaces,
    "namespace-limit": namespace_limit,
    "ids": ids_are_foreign,
    "mounts": mounting,
    "crypto-sockets": crypto_sockets,
    "filter": filter_is_on,
    "io_uring": kernel_interface("io_uring_setup", (1, 0)),
    "userfaultfd": kernel_interface("userfaultfd", (0,)),
    "bpf": kernel_interface("bpf", (0, 0, 0)),
    "perf": kernel_interface("perf_event_open", (0, 0, -1, -1, 0)),
    "kernel-code": kernel_code,
    "file-handles": file_handles,
    "set-id": set_id_programs,
    "no-new-privileges": no_new_privileges,
    "devices": device_nodes,
    "host-mounts": host_mounts,
    "host-files": host_files,
    "image-files": image_files,
    "environment": environment,
    "limits-raised": raised_limits,
    "oom-score": oom_score,
    "shm": shared_memory_bound,
}
LIMITS = {
    "descriptors-limit": many_descriptors,
    "disk": disk,
    "files": many_files,
    "forks": forks,
}


def report(attempts: dict[str, Callable[[], tuple[str, str]]]) -> None:
    """One line for each. An attempt that breaks says so, and keeps no other from being made."""
    for name, attempt in attempts.items():
        try:
            verdict, seen = attempt()
        except NotTried as reason:
            verdict, seen = NOT_TRIED, str(reason)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            verdict, seen = NOT_TRIED, f"broke: {type(error).__name__}: {error}"
        print(json.dumps({"name": name, "verdict": verdict, "seen": seen}), flush=True)


if __name__ == "__main__":
    report({"look": LOOK, "limits": LIMITS}[sys.argv[1]])
