"""Archives of images, opened: a directory, a file, or what comes through a pipe; compressed by gzip or zstd or not at all.

What is compressed or comes through a pipe is first copied to a file without a name, within bounds: an archive is read twice.
"""

import contextlib
import gzip
import io
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import zstandard

from sandboxd.errors import Invalid, NotFound
from sandboxd.images.archive_layouts import Layout
from sandboxd.images.archive_members import CHUNK_BYTES, Members

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_MOST_WINDOW_BYTES = 128 * 2**20
"""What `zstd --ultra -22` needs; a frame may ask for as much as it likes."""
_MOST_OF_FREE_SPACE = 0.9
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
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        content = _uncompressed(file)
        if content is file and stat.S_ISREG(os.fstat(descriptor).st_mode):
            yield Members(descriptor)
            return
        with tempfile.TemporaryFile(dir=spool) as copy:
            _copy(content, copy, most_bytes)
            yield Members(copy.fileno())


def _uncompressed(file: io.BufferedReader) -> IO[bytes]:
    """The compression is told by its first bytes."""
    beginning = file.peek(4)[:4]
    if beginning.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]  # it reads like one
    if beginning == _ZSTD:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)
        return decompressor.stream_reader(file, read_across_frames=True, closefd=False)
    return file


def _copy(content: IO[bytes], copy: IO[bytes], most_bytes: int) -> None:
    free = int(shutil.disk_usage(f"/proc/self/fd/{copy.fileno()}").free * _MOST_OF_FREE_SPACE)
    left = min(most_bytes, free)
    while piece := _read(content):
        left -= len(piece)
        if left < 0:
            raise Invalid(
                "the archive is larger, uncompressed, than there is room for", code="bad_archive"
            )
        copy.write(piece)
    copy.flush()


def _read(content: IO[bytes]) -> bytes:
    try:
        return content.read(CHUNK_BYTES)
    except (zstandard.ZstdError, zlib.error, EOFError, gzip.BadGzipFile, MemoryError) as error:
        detail = f"the archive cannot be decompressed: {error}"
        raise Invalid(detail, code="bad_archive") from error
