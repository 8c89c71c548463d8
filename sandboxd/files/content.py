"""Content that belongs to jobs, one file for each, named by the job's id and nothing that a job or a client chose.

Several contents lie one after the other in a file; who knows their offsets finds them again. One file is one name to make
durable and one to remove, however many small files a job has.
"""

import contextlib
import errno
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from sandboxd.errors import SandboxdError
from sandboxd.ids import is_id
from sandboxd.isolation import syscalls

CHUNK_BYTES = 2**20
_UNDERWAY_BYTES = 8 * 2**20
"""After so many the disk begins to write: at the end there is little to wait for."""

_SHARED_BYTES = 2**18
_SHORT = "the file is shorter than the record says"
_CREATE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class StorageFailed(SandboxdError):
    """The disk did not take or give what it should."""


class Contents:
    """The files below one directory. Everything blocks for as long as the disk takes."""

    def __init__(self, directory: Path, *, min_free_bytes: int) -> None:
        """`min_free_bytes` of the file system are never filled."""
        self._directory = directory
        self._min_free_bytes = min_free_bytes

    def create(self, job_id: str) -> "Writer":
        """Begin the content of a job; what there was of it is replaced. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Writer(os.open(self._path(job_id), _CREATE, 0o600), self._min_free_bytes)

    def open(self, job_id: str) -> "Reader":
        """Read the content of a job. Raises OSError."""
        return Reader(os.open(self._path(job_id), _READ))

    def settle(self) -> None:
        """Bring the names to the disk: that of a file which was synced before. Raises OSError."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, job_ids: Iterable[str]) -> None:
        """Remove the content of jobs that may have some. Raises OSError."""
        for job_id in job_ids:
            self._path(job_id).unlink(missing_ok=True)

    def cut(self, job_id: str, size_bytes: int) -> None:
        """Forget what lies behind so many bytes of a job's content. Raises OSError."""
        if not size_bytes:
            self.remove([job_id])
            return
        descriptor = os.open(self._path(job_id), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)

    def ids(self) -> list[str]:
        """The jobs that have content here."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if is_id(name, "job"))

    def sweep(self, keep: Collection[str]) -> int:
        """Remove the content of all jobs but these; of how many. Raises OSError."""
        orphans = [job_id for job_id in self.ids() if job_id not in keep]
        self.remove(orphans)
        return len(orphans)

    def _path(self, job_id: str) -> Path:
        if not is_id(job_id, "job"):
            raise ValueError(f"{job_id!r} is not the id of a job")
        return self._directory / job_id


def check_free(descriptor: int, least_bytes: int) -> None:
    """Raises OSError (ENOSPC) where less is free on the file system of an open file."""
    status = os.fstatvfs(descriptor)
    if status.f_bavail * status.f_frsize < least_bytes:
        raise OSError(errno.ENOSPC, "the free space of the disk is kept for the record")


class Writer:
    """One file on its way to the disk."""

    def __init__(self, descriptor: int, min_free_bytes: int) -> None:
        """Takes over the descriptor."""
        self._descriptor = descriptor
        self._min_free_bytes = min_free_bytes
        self._underway_bytes = 0
        self.size_bytes = 0

    def write(self, piece: bytes | memoryview) -> None:
        """Append. Raises OSError, with ENOSPC also where too little of the disk would be left."""
        check_free(self._descriptor, self._min_free_bytes + len(piece))
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self.size_bytes += len(piece)
        if self.size_bytes >= self._underway_bytes + _UNDERWAY_BYTES:
            self._begin_to_sync()

    def cut(self, size_bytes: int) -> None:
        """Forget what lies behind so many bytes."""
        os.ftruncate(self._descriptor, size_bytes)
        os.lseek(self._descriptor, size_bytes, os.SEEK_SET)
        self.size_bytes = size_bytes
        self._underway_bytes = min(self._underway_bytes, size_bytes)

    def sync(self) -> None:
        """Bring what was written to the disk. Raises OSError."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _begin_to_sync(self) -> None:
        """It promises nothing, so that it may fail: `sync` tells."""
        size_bytes = self.size_bytes - self._underway_bytes
        with contextlib.suppress(OSError):
            syscalls.sync_file_range(
                self._descriptor, self._underway_bytes, size_bytes, syscalls.SYNC_FILE_RANGE_WRITE
            )
        self._underway_bytes = self.size_bytes


class Reader:
    """One file to read from. Who has it open reads it to the end, also when it is removed meanwhile."""

    def __init__(self, descriptor: int) -> None:
        """Takes over the descriptor."""
        self._descriptor = descriptor

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Exactly so much from there, at most CHUNK_BYTES. Raises OSError, with EIO if there is less."""
        piece = os.pread(self._descriptor, size_bytes, offset)
        if len(piece) != size_bytes:
            raise OSError(errno.EIO, _SHORT)
        return piece

    def pieces(self, offset: int, size_bytes: int) -> Iterator[bytes]:
        """So much from there, piece by piece. Raises OSError."""
        end = offset + size_bytes
        while offset < end:
            piece = self.read(offset, min(CHUNK_BYTES, end - offset))
            yield piece
            offset += len(piece)

    def views(self, offset: int, size_bytes: int) -> Iterator[memoryview]:
        """The same, each piece only until the next one is asked for: they share one place, which stays in the processor's cache."""
        space = memoryview(bytearray(min(size_bytes, _SHARED_BYTES)))
        end = offset + size_bytes
        while offset < end:
            view = space[: end - offset]
            if os.preadv(self._descriptor, [view], offset) != len(view):
                raise OSError(errno.EIO, _SHORT)
            yield view
            offset += len(view)

    def close(self) -> None:
        os.close(self._descriptor)
