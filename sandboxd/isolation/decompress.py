"""A stranger's file as what it is uncompressed: counted, hashed, bounded."""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import Protocol

import zstandard

from sandboxd.isolation.tar import BLOCK_BYTES, BadArchive

_CHUNK_BYTES = 256 * 2**10
_HEADER_BYTES = 4 * BLOCK_BYTES
"""No file's bytes, but they are read: a header, one of PAX and what fills a block up."""
_END_BYTES = 20 * BLOCK_BYTES
_MOST_WINDOW_BYTES = 128 * 2**20
"""What `zstd --ultra -22` needs; a frame may ask for as much as it likes."""
_GZIP = b"\x1f\x8b"
_BZIP2 = b"BZh"
_XZ = b"\xfd7zXZ"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""After one byte from 0x50 to 0x5f (RFC 8878, 3.1.2): some programs begin with such a frame."""
_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)


class _Content(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Stream:
    """An archive, uncompressed."""

    def __init__(self, content: _Content, most_bytes: int, *, is_compressed: bool) -> None:
        self.is_compressed = is_compressed
        self._content = content
        self._left = most_bytes
        self._hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """So many bytes, and no fewer unless it ends. Raises BadArchive."""
        pieces = []
        while size > 0 and (piece := self._read_piece(size)):
            pieces.append(piece)
            size -= len(piece)
            self._left -= len(piece)
            self._hash.update(piece)
            if self._left < 0:
                raise BadArchive("the archive is larger, uncompressed, than an image may be")
        return b"".join(pieces)

    def _read_piece(self, size: int) -> bytes:
        try:
            return self._content.read(size)
        except MemoryError as error:
            raise BadArchive("a dictionary of the archive is too large") from error
        except _ERRORS as error:
            raise BadArchive(f"not a tar archive that can be decompressed: {error}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            # What bz2 says of what is not its own.
            raise BadArchive(f"not a tar archive that can be decompressed: {error}") from error

    def skip(self, size: int) -> bool:
        """Pass over so many bytes. False: it ends before."""
        while size > 0 and (piece := self.read(min(size, _CHUNK_BYTES))):
            size -= len(piece)
        return size == 0

    def drain(self) -> None:
        """Read what follows the archive's end: it counts, too, and a compressed file ends with a checksum."""
        while self.read(_CHUNK_BYTES):
            pass

    def digest(self) -> str:
        """Of what has been read."""
        return f"sha256:{self._hash.hexdigest()}"


@contextlib.contextmanager
def decompressed(file_fd: int, most_bytes: int, most_entries: int) -> Iterator[Stream]:
    """The archive in a file, from its beginning: so many bytes of files, in so many entries."""
    os.lseek(file_fd, 0, os.SEEK_SET)
    with uncompressed(file_fd, most_bytes + most_entries * _HEADER_BYTES + _END_BYTES) as stream:
        yield stream


@contextlib.contextmanager
def uncompressed(file_fd: int, most_bytes: int) -> Iterator[Stream]:
    """A file or a pipe from where it stands. Its compression is told by its first bytes: what others call it is often wrong."""
    with os.fdopen(file_fd, "rb", closefd=False) as file:
        content = _content(file)
        yield Stream(content, most_bytes, is_compressed=content is not file)


def _content(file: io.BufferedReader) -> _Content:
    beginning = file.peek(8)[:8]
    if beginning.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)
    if beginning.startswith(_BZIP2):
        return bz2.BZ2File(file)
    if beginning.startswith(_XZ):
        return lzma.LZMAFile(file)
    if beginning.startswith(_ZSTD) or (
        beginning[1:4] == _ZSTD_SKIPPABLE and beginning[0] & 0xF0 == 0x50
    ):
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)
        return decompressor.stream_reader(file, read_across_frames=True)
    return file
