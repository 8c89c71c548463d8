"""Files on their way to a job and back: how they are sent, and how what comes is checked."""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sandboxd.client.types import IncompleteFile

LARGEST_INLINE_BYTES = 8 * 2**20
"""More than this together is sent in a form and not in the JSON."""

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
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def end(self) -> None:
        """Raises IncompleteFile if what came is not what the service has."""
        if self._digest.hexdigest() != self._expected:
            raise IncompleteFile("what came of the file is not what the service has")
