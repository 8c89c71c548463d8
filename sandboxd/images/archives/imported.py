"""Archives that are imported: opened, digested, and seen to stay as they are meanwhile."""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sandboxd.errors import Conflict, Invalid, NotFound

_CHUNK_BYTES = 2**20


class Archive(NamedTuple):
    """An open archive, as it was when it was opened."""

    descriptor: int
    path: Path
    size_bytes: int
    mtime_ns: int

    def digest(self, progress: Callable[[int, int], None] | None) -> str:
        """`sha256:…` of all of it; `progress` is told (bytes read, bytes in all)."""
        digest = hashlib.sha256()
        read = 0
        while piece := os.read(self.descriptor, _CHUNK_BYTES):
            digest.update(piece)
            read += len(piece)
            if progress is not None:
                progress(read, self.size_bytes)
        return f"sha256:{digest.hexdigest()}"

    def check_unchanged(self) -> None:
        """Raises Conflict if somebody wrote to it: what was unpacked may not be what was digested."""
        status = os.fstat(self.descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size_bytes, self.mtime_ns):
            raise Conflict(f"{self.path} changed while it was imported", code="archive_changed")


def open_archive(path: Path) -> Archive:
    """Raises NotFound, Invalid."""
    try:
        # Non-blocking: opening a FIFO would wait for who writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", code="bad_archive") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise Invalid(f"{path} is not a file", code="bad_archive")
    return Archive(descriptor, path, status.st_size, status.st_mtime_ns)
