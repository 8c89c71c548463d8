"""Archives of images, opened: a directory, a file, or what comes through a pipe; compressed by gzip or zstd or not at all.

What is compressed or comes through a pipe is first copied to a file without a name, within bounds: an archive is read twice.
"""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from sandboxd.errors import Invalid, NotFound
from sandboxd.images.archives.layouts import Layout
from sandboxd.images.archives.members import CHUNK_BYTES, Members
from sandboxd.images.store.free_space import room_in
from sandboxd.isolation.decompress import Stream, uncompressed
from sandboxd.isolation.tar import BadArchive

MOST_ARCHIVE_BYTES = 64 * 2**30
"""Uncompressed, of one that has to be copied."""
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Source(Protocol):
    """Files by name: those of an archive or of a directory."""

    def size_bytes(self, name: str) -> int | None: ...
    def resolve(self, name: str) -> str: ...
    def pieces(self, name: str) -> Iterator[bytes]: ...
    def close(self) -> None: ...


@contextlib.contextmanager
def opened(path: Path, spool: Path, *, most_bytes: int = MOST_ARCHIVE_BYTES) -> Iterator[Source]:
    """An archive, or an OCI layout in a directory. Blocks: for a thread. Raises NotFound, Invalid, OSError.

    `spool`: the directory for a copy of at most `most_bytes`.
    """
    if path.is_dir():
        with contextlib.closing(Layout(path)) as layout:
            yield layout
        return
    try:
        # Non-blocking: opening a FIFO would wait for who writes to it.
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", code="bad_archive") from None
    try:
        os.set_blocking(descriptor, True)
        with opened_file(descriptor, spool, most_bytes=most_bytes) as found:
            yield found
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened_file(
    descriptor: int, spool: Path, *, most_bytes: int = MOST_ARCHIVE_BYTES
) -> Iterator[Source]:
    """As `opened`, of a file or a pipe that is open, from where it stands. The descriptor stays the caller's."""
    with uncompressed(descriptor, min(most_bytes, room_in(spool))) as content:
        if not content.is_compressed and stat.S_ISREG(os.fstat(descriptor).st_mode):
            yield Members(descriptor)
            return
        with tempfile.TemporaryFile(dir=spool) as copy:
            _copy(content, copy)
            yield Members(copy.fileno())


def _copy(content: Stream, copy: IO[bytes]) -> None:
    try:
        while piece := content.read(CHUNK_BYTES):
            copy.write(piece)
    except BadArchive as error:
        raise Invalid(str(error), code="bad_archive") from error
    copy.flush()
