"""Which disks the files of jobs are on: what the kernel limits the rate of has to be named by the number of a whole disk.

A partition is resolved to its disk; a device of the mapper (LVM, encryption) is a disk of its own. A file system without a device, such as an
overlay or one of the network, is on no disk that could be told. Sources: sysfs(5), proc_pid_mountinfo(5), Documentation/admin-guide/cgroup-v2.rst.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

HOST_FILES = "/usr"
"""What the image `host` is made of."""

_SYS = "/sys/dev/block"
_IN_MEMORY = ("tmpfs", "ramfs")


class Disks(NamedTuple):
    """Where some directories are."""

    numbers: tuple[str, ...]
    """`MAJOR:MINOR` of each disk, once."""
    untold: tuple[str, ...]
    """Directories that are on a disk that cannot be told."""


class _Mount(NamedTuple):
    kind: str
    source: str


def find_disks(directories: Iterable[str]) -> Disks:
    """The disks below directories, which need not exist yet."""
    mounts = parse_mounts(_read("/proc/self/mountinfo"))
    numbers: dict[str, None] = {}
    untold = []
    for directory in directories:
        number = _number(os.stat(_existing(directory)).st_dev)
        mount = mounts.get(number)
        if mount is not None and mount.kind in _IN_MEMORY:
            continue
        disk = whole_disk(number) or _disk_of_source(mount)
        if disk is None:
            untold.append(directory)
        else:
            numbers[disk] = None
    return Disks(tuple(numbers), tuple(untold))


def parse_mounts(text: str) -> dict[str, _Mount]:
    """`MAJOR:MINOR` of each mounted file system to what it is."""
    mounts = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, source = after.split(" ")[:2]
        mounts[before.split(" ")[2]] = _Mount(kind, source)
    return mounts


def whole_disk(number: str, sys: str = _SYS) -> str | None:
    """The disk of a block device, which is a partition or a disk itself; None: there is no such device."""
    device = os.path.realpath(f"{sys}/{number}")
    if not os.path.exists(f"{device}/dev"):
        return None
    if os.path.exists(f"{device}/partition"):
        device = os.path.dirname(device)
    return _read(f"{device}/dev").strip()


def _disk_of_source(mount: _Mount | None) -> str | None:
    """Btrfs numbers its file systems by itself; what it is mounted from is a device all the same."""
    if mount is None or not mount.source.startswith("/dev/"):
        return None
    try:
        return whole_disk(_number(os.stat(mount.source).st_rdev))
    except OSError:
        return None


def _existing(directory: str) -> str:
    while not os.path.exists(directory):
        directory = os.path.dirname(directory)
    return directory


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
