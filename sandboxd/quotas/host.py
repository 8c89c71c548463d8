"""What this host has and lets us use: CPUs, memory, kernel, and where each cgroup controller lives.

A controller lives in exactly one hierarchy, of v1 or of v2, and hybrid hosts split them up: the presence of a mount
says nothing. Sources: cgroups(7), Documentation/admin-guide/cgroup-v{1,2} of the kernel, proc(5) for mountinfo.
"""

import enum
import os
import platform
import pwd
import re
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import psutil

CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
"""The ones that limits need. On v2 there is no `cpuacct`: every cgroup has `cpu.stat`."""

OPTIONAL_CONTROLLERS = ("io", "freezer", "blkio", "cpuset")
"""Used where they are: for figures and rates of disks (`io` of v2, `blkio` of v1), to pause a sandbox (`freezer` of v1; on v2
every cgroup can be frozen), and to keep a job on CPUs of its choice (`cpuset`)."""

PARENT_DIRECTORY = "sandboxd"
"""Directory below a hierarchy's mount in which `sandboxd setup` makes one directory per user."""

SUPERVISOR = "supervisor"
"""Leaf of the delegated v2 subtree that holds our own processes."""


class CgroupVersion(enum.StrEnum):
    """The words are those of a job's `enforcement`."""

    V1 = "cgroup1"
    V2 = "cgroup2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Controller:
    """One cgroup controller."""

    name: str
    version: CgroupVersion | None
    """None: the host does not offer it."""
    mount: str | None = None
    """Where its hierarchy is mounted."""
    directory: str | None = None
    """The directory below which we may make cgroups with it; None: not delegated to us."""
    disabled: bool = False
    """Whether the kernel has it but was told at boot not to use it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """What was found, once, at start."""

    cpus: int
    """CPUs that this process may use."""
    memory_bytes: int
    swap_bytes: int
    kernel_release: str
    kernel: tuple[int, int]
    controllers: dict[str, Controller]
    rlimits: dict[str, tuple[int, int]]
    """Resource limit (`"nofile"`, …) to soft and hard value, -1 for none."""


class CgroupMount(NamedTuple):
    """One cgroup file system of /proc/self/mountinfo."""

    root: str
    """Which directory of the hierarchy is seen at the mount point."""
    point: str
    version: CgroupVersion
    options: frozenset[str]
    """Super block options: for v1 they name the controllers."""


def probe_host(user: str | None = None) -> Host:
    """Look at the host. `user` is the name that `sandboxd setup` was given; None: the one we run as."""
    release = platform.release()
    return Host(
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        swap_bytes=psutil.swap_memory().total,
        kernel_release=release,
        kernel=parse_kernel(release),
        controllers=probe_controllers(user or current_user()),
        rlimits={
            name: resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
            for name in ("nofile", "nproc", "fsize", "core", "memlock")
        },
    )


def probe_controllers(user: str) -> dict[str, Controller]:
    """Where each controller lives and whether its directory is ours."""
    mounts = list(parse_mountinfo(_read("/proc/self/mountinfo")))
    table = parse_proc_cgroups(_read("/proc/cgroups"))
    unified = next((mount for mount in mounts if mount.version is CgroupVersion.V2), None)
    own = find_own_cgroup2(unified, _read("/proc/self/cgroup")) if unified else None
    controllers = {}
    for name in (*CONTROLLERS, *OPTIONAL_CONTROLLERS):
        version, mount = locate(name, mounts, table)
        directory = None
        if mount is not None and version is CgroupVersion.V1:
            directory = _delegated1(mount, user)
        elif version is CgroupVersion.V2 and own is not None and _offers2(own, name):
            directory = own if _writable2(own) else None
        controllers[name] = Controller(
            name=name,
            version=version,
            mount=mount.point if mount else None,
            directory=directory,
            disabled=table.get(name) == 0,
        )
    return controllers


def locate(
    name: str, mounts: list[CgroupMount], table: dict[str, int]
) -> tuple[CgroupVersion | None, CgroupMount | None]:
    """Which hierarchy holds a controller, and its mount.

    `table` is what /proc/cgroups says. A v1 hierarchy that is not mounted here still keeps its controllers from v2, whose
    `cgroup.controllers` is therefore the last word on what v2 has.
    """
    if table.get(name) == 0:
        return None, None
    for mount in mounts:
        if mount.version is CgroupVersion.V1 and name in mount.options:
            return CgroupVersion.V1, mount
    for mount in mounts:
        if mount.version is CgroupVersion.V2 and _offers2(mount.point, name):
            return CgroupVersion.V2, mount
    return None, None


def parse_mountinfo(text: str) -> Iterable[CgroupMount]:
    """The cgroup mounts among the lines of /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        file_system, _, options = after.split(" ", 2)
        if file_system not in ("cgroup", "cgroup2"):
            continue
        root, point = (_unescape(field) for field in before.split(" ")[3:5])
        version = CgroupVersion.V2 if file_system == "cgroup2" else CgroupVersion.V1
        yield CgroupMount(root, point, version, frozenset(options.split(",")))


def parse_proc_cgroups(text: str) -> dict[str, int]:
    """Controller to its `enabled` column in /proc/cgroups. Newer kernels leave out what only v2 has."""
    rows = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {row[0]: int(row[3]) for row in rows if len(row) == 4}


def find_own_cgroup2(mount: CgroupMount, proc_self_cgroup: str) -> str | None:
    """The directory of the v2 subtree that we are in, from the `0::PATH` line of /proc/self/cgroup.

    After our processes were moved into the leaf it is the parent of that leaf. None: it cannot be seen at this mount.
    """
    for line in proc_self_cgroup.splitlines():
        if not line.startswith("0::/"):
            continue
        path = line.removeprefix("0::")
        root = mount.root.rstrip("/")
        if "/.." in path or not (path == root or path.startswith(f"{root}/")):
            return None
        directory = f"{mount.point}{path.removeprefix(root)}".rstrip("/")
        return directory.removesuffix(f"/{SUPERVISOR}")
    return None


def parse_kernel(release: str) -> tuple[int, int]:
    """`6.1.0-18-amd64` as (6, 1)."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        raise ValueError(f"kernel release {release!r} does not begin with two numbers")
    return int(match[1]), int(match[2])


def current_user() -> str:
    """The name of the user that we run as, or its number where it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _offers2(directory: str, name: str) -> bool:
    if name == "cpuacct":  # `cpu.stat` is there without any controller
        return os.path.exists(f"{directory}/cgroup.controllers")
    try:
        return name in _read(f"{directory}/cgroup.controllers").split()
    except OSError:
        return False


def _delegated1(mount: CgroupMount, user: str) -> str | None:
    directory = f"{mount.point}/{PARENT_DIRECTORY}/{user}"
    return directory if _may(directory, os.W_OK | os.X_OK) else None


def _writable2(directory: str) -> bool:
    """Whether the subtree is delegated to us: these three, no more, are handed over (cgroup-v2.rst, Delegation).

    The root of the whole hierarchy, which alone has no `cgroup.type`, is never ours, not even when we are root.
    """
    return (
        os.path.exists(f"{directory}/cgroup.type")
        and _may(directory, os.W_OK | os.X_OK)
        and _may(f"{directory}/cgroup.procs", os.W_OK)
        and _may(f"{directory}/cgroup.subtree_control", os.W_OK)
    )


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _unescape(field: str) -> str:
    """Undo the octal escapes (space, tab, newline, backslash) of mountinfo."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), field)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
