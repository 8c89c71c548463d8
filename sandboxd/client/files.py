"""Files on their way to a job and back: how they are sent, and how what comes is checked."""

import asyncio
import base64
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sandboxd.client.types import IncompleteFile

LARGEST_INLINE_BYTES = 8 * 2**20
"""More than this together is sent in a form and not in the JSON."""
_PIECE_BYTES = 2**20

Content = str | bytes | Path
"""Text, bytes, or the path of a file here."""


class Part(NamedTuple):
    """One file to send."""

    path: str
    """Inside the sandbox."""
    content: bytes | Path
    mode: int

    @property
    def size_bytes(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


def parts_of(files: Mapping[str, Content]) -> list[Part]:
    """The files to send, path inside to content. One that is given by its path keeps its permission bits."""
    return [_part(path, content) for path, content in files.items()]


def _part(path: str, content: Content) -> Part:
    if isinstance(content, Path):
        return Part(path, content, content.stat().st_mode & 0o777)
    return Part(path, content.encode() if isinstance(content, str) else content, 0o644)


def fit_into_json(parts: Sequence[Part]) -> bool:
    return sum(part.size_bytes for part in parts) <= LARGEST_INLINE_BYTES


def as_json(part: Part) -> dict[str, Any]:
    """A file as `POST /v1/jobs` takes it."""
    content = part.content.read_bytes() if isinstance(part.content, Path) else part.content
    encoded: object = {"base64": base64.b64encode(content).decode("ascii")}
    try:
        encoded = content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    return {"path": part.path, "content": encoded, "mode": f"{part.mode:04o}"}


class Incoming:
    """An artifact that arrives: written on, and checked at its end."""

    def __init__(self, descriptor: int, headers: Mapping[str, str]) -> None:
        """`descriptor` stays the caller's."""
        self._descriptor = descriptor
        self._expected = headers.get("etag", "").strip('"')
        self._digest = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        self._digest.update(piece)
        write_all(self._descriptor, piece)

    def end(self) -> None:
        """Raises IncompleteFile if what came is not what the service has."""
        if self._digest.hexdigest() != self._expected:
            raise IncompleteFile("what came of the file is not what the service has")


def write_all(descriptor: int, piece: bytes) -> None:
    """A pipe may take less than the whole at once."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class Upload:
    """What is sent as it is read: a file by its path, or one that is open, from where it stands."""

    def __init__(self, source: str | Path | BinaryIO) -> None:
        self._source = source

    @contextmanager
    def opened(self) -> Iterator["OpenUpload"]:
        """An open file stays the caller's."""
        if isinstance(self._source, str | Path):
            with open(self._source, "rb") as file:
                yield OpenUpload(file)
        else:
            yield OpenUpload(self._source)


class OpenUpload:
    """The pieces of it, for either kind of client."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def size_bytes(self) -> int | None:
        """What is still to be read; None of what does not say so, such as a pipe."""
        try:
            status = os.fstat(self._file.fileno())
        except OSError:  # io.UnsupportedOperation is one: it is in memory only.
            return None
        return status.st_size - self._file.tell() if stat.S_ISREG(status.st_mode) else None

    def pieces(self) -> Iterator[bytes]:
        while piece := self._file.read(_PIECE_BYTES):
            yield piece

    async def pieces_on_loop(self) -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(self._file.read, _PIECE_BYTES):
            yield piece
