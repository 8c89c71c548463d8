"""The file system of a sandbox.

The launcher's part is built with the new mount API (fsopen, open_tree, move_mount), what each sandbox has of its own with
mount(2): one call for each mount instead of up to eleven.

Three parts. *Templates* are what every sandbox has alike (/dev, /sys, the paths of /proc to hide): the launcher makes them once
and a sandbox attaches copies. *Its own* /proc, /dev and /sys, whatever its image is, stand beside the tree at first. *The tree*: a
tmpfs as writable layer, an overlay over the image's tree, and what is its own moved on top.

Mount points are made in the writable layer before the overlay is mounted. There they are directories that we made,
whatever the image has at that path: a symbolic link in an image is never followed.
"""

import glob
import os
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import syscalls
from sandboxd.isolation.network import RESOLVER
from sandboxd.isolation.sandbox_ids import inside_to_launcher
from sandboxd.isolation.spec import NetworkMode, SandboxSpec

_RO = syscalls.MOUNT_ATTR_RDONLY
_NOSUID = syscalls.MOUNT_ATTR_NOSUID
_NODEV = syscalls.MOUNT_ATTR_NODEV
_NOEXEC = syscalls.MOUNT_ATTR_NOEXEC
_MS_NO_PROGRAMS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC

DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
DEV_PARTS = ("pts", "shm", "mqueue")
"""What is mounted there for each sandbox."""

MASKED_IN_PROC = [
    "acpi",
    "asound",
    "config.gz",
    "interrupts",
    "kallsyms",
    "kcore",
    "keys",
    "key-users",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "pressure",
    "sched_debug",
    "scsi",
    "slabinfo",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
]
READ_ONLY_IN_PROC = ["bus", "fs", "irq", "sys"]
MASKED_IN_SYS = [
    "devices/virtual/powercap",
    "firmware",
    "fs/bpf",
    "fs/cgroup",
    "fs/selinux",
    "kernel/debug",
    "kernel/security",
    "kernel/tracing",
    "kernel/vmcoreinfo",
    "devices/system/cpu/cpu*/thermal_throttle",
]

SHM_BYTES = 64 * 2**20
_OWN = ("proc", "sys", "dev")
_MOUNT_POINTS = ("/proc", "/sys", "/dev", "/etc", "/tmp")  # noqa: S108 (inside the sandbox)
_DEV_BYTES = 64 * 2**10
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_MOST_TERMINALS = 64
"""All sandboxes together can have 3,072 (kernel.pty.max less pty.reserve): one must not take them all."""


class Templates(NamedTuple):
    """What the launcher made once: paths in its own mount namespace."""

    stage: str
    """A tmpfs that only the launcher's mount namespace has; a sandbox mounts its layers here."""
    dev: str
    sys: str
    empty: str
    """An empty read-only tmpfs to hide directories with."""
    null: str
    """A read-only bind of /dev/null to hide files with."""
    proc_masks: tuple[tuple[bytes, bytes], ...]
    """What hides, and what is to be hidden of a sandbox's /proc, of all that this kernel has: paths as it takes them."""

    def own(self, name: str) -> str:
        """Where a sandbox's own /proc, /dev or /sys is made ready."""
        return f"{self.stage}/own/{name}"


def make_templates(stage: str) -> Templates:
    """Make the templates below `stage`, an existing directory that becomes a tmpfs in this mount namespace.

    Called by the launcher, in U1 with a mount and a network namespace of its own: sysfs shows the network of who mounts it.
    Raises OSError, SandboxFailed.
    """
    stage_mount = _new_mount("tmpfs", {"size": "1m", "nr_inodes": "256", "mode": "0755"}, _NODEV)
    _attach(stage_mount, stage)
    for name in ("scratch", "machine", "root", "runtime", "dev", "sys", "empty"):
        os.mkdir(f"{stage}/{name}")
    for name in _OWN:
        os.makedirs(f"{stage}/own/{name}")
    _attach(
        _new_mount("tmpfs", {"size": "4k", "nr_inodes": "2"}, _RO | _NOSUID | _NODEV | _NOEXEC),
        f"{stage}/empty",
    )
    _make_dev(f"{stage}/dev")
    _make_null(f"{stage}/null")
    _make_sys(f"{stage}/sys", f"{stage}/empty", f"{stage}/null")
    empty, null = f"{stage}/empty", f"{stage}/null"
    masks = tuple(
        (
            os.fsencode(empty if os.path.isdir(f"/proc/{name}") else null),
            os.fsencode(f"{stage}/own/proc/{name}"),
        )
        for name in MASKED_IN_PROC
        if os.path.lexists(f"/proc/{name}")
    )
    return Templates(stage, f"{stage}/dev", f"{stage}/sys", empty, null, masks)


def _make_dev(path: str) -> None:
    """/dev: real device nodes of the host, bound one by one; nothing else can be made in it."""
    size = {"size": str(_DEV_BYTES), "nr_inodes": "64", "mode": "0755"}
    _attach(_new_mount("tmpfs", size, _NOSUID | _NOEXEC), path)
    for name, numbers in DEVICES.items():
        tree = syscalls.open_tree(syscalls.AT_FDCWD, f"/dev/{name}", syscalls.OPEN_TREE_CLONE)
        try:
            _check_device(tree, name, numbers)
            os.close(os.open(f"{path}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            # Private: where the host's mounts are shared, as with systemd, what is mounted over it there would come here.
            syscalls.mount_setattr(
                tree, _NOSUID | _NOEXEC, recursive=False, propagation=syscalls.MS_PRIVATE
            )
            syscalls.move_mount(tree, syscalls.AT_FDCWD, f"{path}/{name}")
        finally:
            os.close(tree)
    for name, target in DEVICE_LINKS.items():
        os.symlink(target, f"{path}/{name}")
    for name in DEV_PARTS:
        os.mkdir(f"{path}/{name}")
    with _opened(path) as directory:
        syscalls.mount_setattr(directory, _RO, recursive=False)


def _check_device(descriptor: int, name: str, numbers: tuple[int, int]) -> None:
    """What is bound must be the device itself, not something that was put in its place (CVE-2025-31133)."""
    status = os.fstat(descriptor)
    found = (os.major(status.st_rdev), os.minor(status.st_rdev))
    if not stat.S_ISCHR(status.st_mode) or found != numbers:
        raise SandboxFailed(
            "make templates", f"/dev/{name} is not character device {numbers[0]}:{numbers[1]}"
        )


def _make_null(path: str) -> None:
    """The host's /dev/null, checked once; never looked up again, least of all in a sandbox (CVE-2025-31133)."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444))
    tree = syscalls.open_tree(syscalls.AT_FDCWD, "/dev/null", syscalls.OPEN_TREE_CLONE)
    try:
        _check_device(tree, "null", DEVICES["null"])
        syscalls.mount_setattr(
            tree, _RO | _NOSUID | _NOEXEC, recursive=False, propagation=syscalls.MS_PRIVATE
        )
    except BaseException:
        os.close(tree)
        raise
    _attach(tree, path)


def _make_sys(path: str, empty: str, null: str) -> None:
    _attach(_new_mount("sysfs", {}, _RO | _NOSUID | _NODEV | _NOEXEC), path)
    for pattern in MASKED_IN_SYS:
        for found in glob.glob(f"{path}/{pattern}"):
            attach_copy(empty if os.path.isdir(found) else null, found)


def make_own(templates: Templates, *, id_count: int, show_cgroup: bool) -> int:
    """Mount what a sandbox has of its own whatever its image: /proc, /sys and /dev, for `build_tree` to move into its tree.

    In init's own mount namespace. Returns a descriptor of a copy of /proc without the read-only parts, for init's own use
    before the command runs. Raises OSError.
    """
    attach_copy(templates.dev, templates.own("dev"))
    _mount_dev_parts(templates.own("dev"), id_count)
    attach_copy(templates.sys, templates.own("sys"))
    if show_cgroup:
        # Above the empty directory that hides it otherwise.
        cgroup = _new_mount("cgroup2", {}, _RO | _NOSUID | _NODEV | _NOEXEC)
        _attach(cgroup, f"{templates.own('sys')}/fs/cgroup")
    return _mount_proc(templates)


def build_tree(spec: SandboxSpec, templates: Templates, *, id_count: int) -> None:
    """Mount the tree of one sandbox at the templates' `root`, in init's own mount namespace, with what `make_own` made.

    Raises OSError.
    """
    if spec.writable_root:
        _mount_writable(spec, f"{templates.stage}/root", id_count)
        return
    _mount_layers(spec, templates.stage, id_count)
    root = f"{templates.stage}/root"
    for source, target in spec.binds:
        bind_read_only(source, f"{root}{target}")
    for name in _etc_files(spec):
        # Of this sandbox's own layer: a file that all shared would be a place to meet (locks, inotify).
        bind_read_only(f"{templates.stage}/scratch/upper/etc/{name}", f"{root}/etc/{name}")
    for name in _OWN:
        syscalls.move(templates.own(name), f"{root}/{name}")


def _mount_writable(spec: SandboxSpec, root: str, id_count: int) -> None:
    """The tree itself, and through it what is below."""
    if spec.below:
        # The top of a tree is what its uppermost layer says it is: at first what the one below says.
        status = os.stat(spec.below[0])
        os.chown(spec.rootfs, status.st_uid, status.st_gid)
        os.chmod(spec.rootfs, stat.S_IMODE(status.st_mode))
        # Volatile: who asked for it brings all to the disk at once, when it is complete.
        work = f"{os.path.dirname(spec.rootfs)}/work"
        _mount_overlay(
            spec.below, spec.rootfs, work, root, syscalls.MS_NOEXEC, ",index=off,volatile"
        )
        return
    root_mount = syscalls.open_tree(syscalls.AT_FDCWD, spec.rootfs, syscalls.OPEN_TREE_CLONE)
    attributes = _NOSUID | _NODEV | _NOEXEC
    syscalls.mount_setattr(root_mount, attributes, recursive=True, propagation=syscalls.MS_PRIVATE)
    _attach(root_mount, root)
    # The service made the directory, and its uid does not exist in the sandbox that is to write here.
    root_id = inside_to_launcher(0, id_count)
    os.chown(root, root_id, root_id)


def _mount_layers(spec: SandboxSpec, stage: str, id_count: int) -> None:
    size = f"size={spec.scratch_bytes},nr_inodes={spec.scratch_inodes},mode=0755"
    _mount("tmpfs", f"{stage}/scratch", syscalls.MS_NOSUID | syscalls.MS_NODEV, size)
    upper = f"{stage}/scratch/upper"
    os.mkdir(upper)
    os.mkdir(f"{stage}/scratch/work")
    _fill_upper(spec, upper, id_count)
    _mount_overlay((spec.rootfs, *spec.below), upper, f"{stage}/scratch/work", f"{stage}/root")


def _mount_overlay(
    lowers: Sequence[str], upper: str, work: str, target: str, flags: int = 0, more: str = ""
) -> None:
    """The lower directories, the uppermost first, and one that is written to.

    By descriptor: a path may hold characters that overlay's options give a meaning, and is shown in mountinfo. By mount(2), which
    takes a page of options: fsconfig(2) takes 255 bytes for one, and `lowerdir+`, one by one, is younger than what we run on.
    """
    flags |= syscalls.MS_NOSUID | syscalls.MS_NODEV
    opened: list[int] = []
    try:
        for path in (*lowers, upper, work):
            opened.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        *numbers, upper_fd, work_fd = opened
        directories = (
            f"lowerdir={':'.join(map(str, numbers))},upperdir={upper_fd},workdir={work_fd}"
        )
        os.chdir("/proc/self/fd")
        try:
            syscalls.mount("overlay", target, "overlay", flags, f"{directories},userxattr{more}")
        except OSError as error:
            raise OSError(error.errno, f"overlay: {error.strerror}") from error
        finally:
            os.chdir("/")
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _fill_upper(spec: SandboxSpec, upper: str, id_count: int) -> None:
    """Make every mount point and writable directory, owned by who is to own it."""
    root_id = inside_to_launcher(0, id_count)
    uid, gid = inside_to_launcher(spec.uid, id_count), inside_to_launcher(spec.gid, id_count)
    os.chown(upper, root_id, root_id)
    targets = [*_MOUNT_POINTS, *(target for _, target in spec.binds)]
    for path in [*targets, *spec.writable]:
        _make_directories(upper, path, root_id)
    os.chmod(f"{upper}/tmp", 0o1777)  # noqa: S103, S108 (as /tmp is everywhere)
    for path in spec.writable:
        os.chown(f"{upper}{path}", uid, gid)
    for name, content in _etc_files(spec).items():
        file = os.open(f"{upper}/etc/{name}", _NEW_FILE, 0o644)
        try:
            os.write(file, content.encode("ascii"))
            os.fchown(file, root_id, root_id)
        finally:
            os.close(file)


def _make_directories(upper: str, path: str, owner: int) -> None:
    built = upper
    for part in path.strip("/").split("/"):
        built = f"{built}/{part}"
        try:
            os.mkdir(built, 0o755)
        except FileExistsError:
            continue
        os.chown(built, owner, owner)


def _etc_files(spec: SandboxSpec) -> dict[str, str]:
    hosts = f"127.0.0.1\tlocalhost {spec.hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    resolver = f"nameserver {RESOLVER[0]}\n" if spec.network is NetworkMode.EGRESS else ""
    return {"hosts": hosts, "hostname": f"{spec.hostname}\n", "resolv.conf": resolver}


def open_layer(templates: Templates) -> int:
    """The writable layer of the tree that was built, as a detached mount: above its root there is nothing."""
    path = f"{templates.stage}/scratch/upper"
    return syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)


def made_in_layer(spec: SandboxSpec) -> frozenset[str]:
    """The paths that are in the writable layer before any command runs."""
    made = {f"/etc/{name}" for name in _etc_files(spec)}
    for path in (*_MOUNT_POINTS, *(target for _, target in spec.binds), *spec.writable):
        parts = path.strip("/").split("/")
        made.update("/" + "/".join(parts[:length]) for length in range(1, len(parts) + 1))
    return frozenset(made)


def _mount_dev_parts(dev: str, id_count: int) -> None:
    """The parts of /dev that a sandbox must not share with another."""
    group = f",gid={inside_to_launcher(5, id_count)}" if id_count else ""
    terminals = f"newinstance,ptmxmode=0666,mode=0620,max={_MOST_TERMINALS}{group}"
    _mount("devpts", f"{dev}/pts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, terminals)
    _mount("tmpfs", f"{dev}/shm", _MS_NO_PROGRAMS, f"size={SHM_BYTES},nr_inodes=4096,mode=1777")
    _mount("mqueue", f"{dev}/mqueue", _MS_NO_PROGRAMS)


def _mount_proc(templates: Templates) -> int:
    """Mount /proc for this pid namespace with what must not be seen hidden. Returns the detached copy of `make_own`."""
    proc = templates.own("proc")
    _mount("proc", proc, _MS_NO_PROGRAMS)
    # Cloned once it is attached: before Linux 6.15 a detached mount cannot be (EINVAL).
    unmasked = syscalls.open_tree(syscalls.AT_FDCWD, proc, syscalls.OPEN_TREE_CLONE)
    for mask, path in templates.proc_masks:
        syscalls.bind(mask, path)
    for name in READ_ONLY_IN_PROC:
        bind_read_only(f"{proc}/{name}", f"{proc}/{name}", extra=_NOEXEC)
    return unmasked


def enter_root(root: str) -> None:
    """pivot_root(2) into a tree and let go of everything else: no path of the host can be reached any more."""
    os.chdir(root)
    old_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    syscalls.pivot_root(".", ".")
    os.fchdir(old_root)
    os.close(old_root)
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")


def bind_read_only(source: str, target: str, extra: int = 0) -> None:
    """Bind what is at `source`, and below it, at `target`. Nothing may run yet that could write there in between."""
    attach_copy(source, target)
    # Private: what the host mounts below later must not appear here, neither read-only nor nosuid.
    syscalls.mount_setattr(
        syscalls.AT_FDCWD,
        _RO | _NOSUID | _NODEV | extra,
        path=target,
        recursive=True,
        propagation=syscalls.MS_PRIVATE,
    )


def attach_copy(source: str, target: str) -> None:
    """Attach a copy of the mount at `source`, and of those below it, at `target`."""
    syscalls.bind(syscalls.as_bytes(source), syscalls.as_bytes(target))


def attach_new(
    filesystem: str, options: Mapping[str, str | None], target: str, *, read_only: bool = False
) -> None:
    """Mount a new file system without set-id programs and device files."""
    attributes = _NOSUID | _NODEV | (_RO if read_only else 0)
    _attach(_new_mount(filesystem, options, attributes), target)


def attach_and_hold(filesystem: str, options: str, target: str) -> int:
    """Mount a new file system for files that nobody runs. Returns its root, the caller's to close."""
    _mount(filesystem, target, _MS_NO_PROGRAMS, options)
    return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _mount(filesystem: str, target: str, flags: int, options: str = "") -> None:
    try:
        syscalls.mount("none", target, filesystem, flags, options)
    except OSError as error:
        raise OSError(error.errno, f"{filesystem}: {error.strerror}") from error


def _attach(mount_fd: int, target: str) -> None:
    """Attach and close."""
    try:
        syscalls.move_mount(mount_fd, syscalls.AT_FDCWD, target)
    finally:
        os.close(mount_fd)


def _new_mount(filesystem: str, options: Mapping[str, str | None], attributes: int) -> int:
    context = syscalls.fsopen(filesystem)
    try:
        for key, value in options.items():
            command = syscalls.FSCONFIG_SET_FLAG if value is None else syscalls.FSCONFIG_SET_STRING
            syscalls.fsconfig(context, command, key, value)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE, None, None)
        return syscalls.fsmount(context, attributes)
    except OSError as error:
        raise OSError(error.errno, f"{filesystem}: {error.strerror}") from error
    finally:
        os.close(context)


class _opened:
    """An O_PATH descriptor for the length of a `with`."""

    def __init__(self, path: str, flags: int = 0) -> None:
        self.path = path
        self.flags = flags

    def __enter__(self) -> int:
        self.descriptor = os.open(self.path, os.O_PATH | os.O_CLOEXEC | self.flags)
        return self.descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
