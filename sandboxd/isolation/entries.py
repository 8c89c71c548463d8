"""What a sandbox hands out, read entry by entry: the service's side of `files`.

All of it may come from a sandbox that has been broken into: every length is bounded before anything of it is read, and
nothing is believed but that the bytes are those of this sandbox.
"""

import math
import os
import select
import time
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec

_LENGTH_BYTES = 4
_LONGEST_HEADER = 64 * 2**10
_LONGEST_CHUNK = 2**20
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]
_Header = tuple[
    _Path,
    Literal["file", "directory", "passed_over"],
    Annotated[int, msgspec.Meta(ge=0, le=0o7777)],
    Annotated[str, msgspec.Meta(max_length=32, pattern="^[A-Za-z0-9_]*$")],
]


_Kind = Literal["file", "directory", "symlink", "fifo", "socket", "device"]
_Listed = tuple[
    Annotated[str, msgspec.Meta(min_length=1, max_length=1024)],
    _Kind,
    Annotated[int, msgspec.Meta(ge=0, le=0o7777)],
    Annotated[int, msgspec.Meta(ge=0, le=2**62)],
    Annotated[float, msgspec.Meta(ge=0, le=1e11)],
]


class BadEntries(Exception):
    """What came is not what init writes, or more than it was asked for."""


class TooLate(BadEntries):
    """Nothing came any more until the deadline."""


class Entry(NamedTuple):
    """A file, a directory, or what was passed over and why."""

    path: str
    """Absolute, as inside the sandbox."""
    kind: Literal["file", "directory", "passed_over"]
    mode: int
    note: str
    """Why it was passed over: `symlink`, `fifo`, `socket`, `device`, `too_large`, `too_many`, `too_deep`, `not_utf8`,
    `proc`, `changed`, or an errno's name."""


class Listed(NamedTuple):
    """One entry of a directory."""

    name: str
    kind: _Kind
    mode: int
    size_bytes: int
    modified_at: float
    """Unix time in seconds."""


class Entries:
    """The entries that arrive at a descriptor, in order. Reading blocks: for a thread, until a deadline.

    Raises BadEntries, OSError.
    """

    def __init__(
        self, descriptor: int, *, most_bytes: int, most_entries: int, deadline: float = math.inf
    ) -> None:
        """`deadline`: time.monotonic() after which nothing is waited for."""
        self._descriptor = descriptor
        self._deadline = deadline
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._left_bytes = most_bytes
        self._left_entries = most_entries + 1  # That there are too many is an entry of its own.
        self._in_file = False

    def __iter__(self) -> Iterator[Entry]:
        while (encoded := self._counted(_LONGEST_HEADER)) is not None:
            self._left_entries -= 1
            if self._left_entries < 0:
                raise BadEntries("more entries than were asked for")
            entry = _entry(encoded)
            self._in_file = entry.kind == "file"
            yield entry
            for _ in self.content():
                pass

    def listed(self) -> Iterator[Listed]:
        """The entries of a directory, where that is what was asked for."""
        while (encoded := self._counted(_LONGEST_HEADER)) is not None:
            self._left_entries -= 1
            if self._left_entries <= 0:
                raise BadEntries("more entries than were asked for")
            try:
                yield Listed(*msgspec.json.decode(encoded, type=_Listed))
            except msgspec.MsgspecError as error:
                raise BadEntries(str(error)) from error

    def content(self) -> Iterator[bytes]:
        """What the entry at hand has in it, if it is a file: piece by piece, once."""
        while self._in_file:
            piece = self._counted(_LONGEST_CHUNK)
            if piece is None:
                self._in_file = False
                return
            self._left_bytes -= len(piece)
            if self._left_bytes < 0:
                raise BadEntries("more bytes than were asked for")
            yield piece

    def _counted(self, longest: int) -> bytes | None:
        length = int.from_bytes(self._exactly(_LENGTH_BYTES), "big")
        if length > longest:
            raise BadEntries(f"a part of {length} bytes")
        return self._exactly(length) if length else None

    def _exactly(self, size: int) -> bytes:
        read = bytearray()
        while len(read) < size:
            self._await_more()
            piece = os.read(self._descriptor, size - len(read))
            if not piece:
                raise BadEntries("ended too early")
            read += piece
        return bytes(read)

    def _await_more(self) -> None:
        left = self._deadline - time.monotonic()
        if not self._poll.poll(None if left == math.inf else max(0.0, left) * 1000):
            raise TooLate("nothing came any more")


def _entry(encoded: bytes) -> Entry:
    try:
        entry = Entry(*msgspec.json.decode(encoded, type=_Header))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadEntries(str(error)) from error
    if any(part in ("", ".", "..") for part in entry.path[1:].split("/")):
        raise BadEntries("a path that is not plain")
    return entry
