"""One process owns a database file: a lock beside it, and no file system on which locks are a promise of others."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sandboxd.errors import HostNotReady

NETWORK_FILESYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "smb3",
        "smbfs",
    }
)
"""SQLite's write-ahead log needs memory shared between its users and locks that hold (sqlite.org/wal.html)."""


@contextmanager
def owned(database: Path) -> Iterator[None]:
    """Own the database while the block runs; the kernel ends it with the process, however that ends.

    Raises HostNotReady if another process owns it, if the file system is of a network, or if there is no directory.
    """
    path = database.with_name(f"{database.name}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostNotReady(f"cannot open {path}: {error.strerror}") from error
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            kind = filesystem_of(database.parent.resolve(), mounts)
        if kind in NETWORK_FILESYSTEMS:
            raise HostNotReady(
                f"{database.parent} is on {kind}, and SQLite is not safe on a network file system: "
                "choose a data directory on a local disk"
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostNotReady(
                f"another process owns {database}: stop it, or choose another data directory"
            ) from error
        yield
    finally:
        os.close(descriptor)


def filesystem_of(directory: Path, mountinfo: Iterable[str]) -> str | None:
    """The type of the file system that an absolute directory is on, by the lines of proc_pid_mountinfo(5)."""
    best, kind = -1, None
    for line in mountinfo:
        fields, _, rest = line.partition(" - ")
        # A blank in a path is written as \040, a backslash as \134.
        point = Path(fields.split(" ")[4].encode("latin-1", "replace").decode("unicode_escape"))
        # Of two mounts on one point the later hides the earlier.
        if directory.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), rest.split(" ")[0]
    return kind
