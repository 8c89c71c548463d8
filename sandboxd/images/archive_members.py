"""What an archive of images has in it: a tar file's members by name, read strictly, none of them written anywhere by its name.

Nothing is extracted. Names that the archive's own index mentions are looked up here and nowhere else, so that `../../etc/passwd`
or a link leads to nothing. What readers of tar disagree about (a name twice, sparse files, hard links, numbers that are none) is refused
for the whole archive: what one tool sees in it another must see, too. (pax(1), tar(5))
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from sandboxd.errors import Invalid

CHUNK_BYTES = 2**20
_BLOCK = 512
_MOST_MEMBERS = 20_000
_LONGEST_NAME = 1024
_LONGEST_EXTENSION = 64 * 2**10
_REGULAR, _LINK, _DIRECTORY = frozenset({b"0", b"\0", b"7"}), b"2", b"5"
_PAX, _PAX_OF_ALL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_KINDS = {
    b"1": "a hard link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


class _Place(NamedTuple):
    """Where the content of a file lies in the archive."""

    offset: int
    size_bytes: int


class _Header(NamedTuple):
    kind: bytes
    name: str
    target: str
    """Of a link."""
    size_bytes: int


class Members:
    """The files of a tar archive that lies in an open file, uncompressed."""

    def __init__(self, descriptor: int) -> None:
        """Read all headers; the descriptor stays the caller's. Blocks: for a thread. Raises Invalid."""
        self._descriptor = descriptor
        self._end = os.fstat(descriptor).st_size
        self._files: dict[str, _Place] = {}
        self._links: dict[str, str] = {}
        self._directories: set[str] = set()
        for place, header in self._headers():
            self._add(place, header)
        if not self._files:
            raise _bad("holds no files")
        for name, target in self._links.items():
            if target not in self._files:
                raise _bad(f"has a link at {name[:100]!r} that leads to none of its files")

    def __iter__(self) -> Iterator[str]:
        """The names of all files."""
        return iter(self._files)

    def size_bytes(self, name: str) -> int | None:
        """Of a file, or of the one that a link leads to. None: there is none."""
        place = self._files.get(self.resolve(name))
        return None if place is None else place.size_bytes

    def resolve(self, name: str) -> str:
        """The file that a link leads to; any other name itself."""
        return self._links.get(name, name)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content of a file that is there. Blocks."""
        offset, left = self._files[self.resolve(name)]
        while left:
            piece = os.pread(self._descriptor, min(left, CHUNK_BYTES), offset)
            if not piece:
                raise _bad("became shorter while it was read")
            yield piece
            offset += len(piece)
            left -= len(piece)

    def close(self) -> None:
        """Nothing here is ours to close."""

    def _add(self, place: _Place, header: _Header) -> None:
        name = _plain(header.name)
        if header.kind == _DIRECTORY:
            if name in self._files or name in self._links:
                raise _bad(f"has {name[:100]!r} twice")
            self._directories.add(name)
            return
        if not name or name in self._files or name in self._links or name in self._directories:
            raise _bad(f"has {name[:100]!r} twice")
        if header.kind == _LINK:
            self._links[name] = _target(name, header.target)
        else:
            self._files[name] = place

    def _headers(self) -> Iterator[tuple[_Place, _Header]]:
        offset = 0
        extensions: dict[str, str] = {}
        for _ in range(_MOST_MEMBERS):
            block = os.pread(self._descriptor, _BLOCK, offset)
            if block == bytes(_BLOCK):
                return
            header = _parse(block)
            offset += _BLOCK
            if header.kind in (_PAX, _PAX_OF_ALL, _LONG_NAME, _LONG_LINK):
                extensions |= self._extension(header, offset)
            else:
                header = _extended(header, extensions)
                extensions = {}
                size = header.size_bytes if header.kind in _REGULAR else 0
                if offset + size > self._end:
                    raise _bad(f"ends in the middle of {header.name[:100]!r}")
                yield _Place(offset, size), header
                header = header._replace(size_bytes=size)
            offset += -(-header.size_bytes // _BLOCK) * _BLOCK
        raise _bad(f"has more than {_MOST_MEMBERS} members")

    def _extension(self, header: _Header, offset: int) -> dict[str, str]:
        """What a header says of the next one, by its name in pax."""
        if header.size_bytes > _LONGEST_EXTENSION:
            raise _bad("has a header that is too large")
        content = os.pread(self._descriptor, header.size_bytes, offset)
        if len(content) != header.size_bytes:
            raise _bad("ends in the middle of a header")
        if header.kind in (_PAX, _PAX_OF_ALL):
            records = _pax_records(content)
            if header.kind == _PAX_OF_ALL:
                if records.keys() & {"path", "linkpath", "size"}:
                    raise _bad("says the name or the size of all its files at once")
                return {}
            return records
        key = "path" if header.kind == _LONG_NAME else "linkpath"
        return {key: _text(content.rstrip(b"\0"))}


def _parse(block: bytes) -> _Header:
    if len(block) < _BLOCK:
        raise _bad("ends too early, or is no tar archive")
    checksum = sum(block) - sum(block[148:156]) + 8 * 0x20
    if _number(block[148:156]) != checksum:
        raise _bad("is no tar archive: a header has a wrong checksum")
    kind = block[156:157]
    if kind in _KINDS:
        raise _bad(f"has {_KINDS[kind]} in it")
    if kind not in _REGULAR | {
        _LINK,
        _DIRECTORY,
        _PAX,
        _PAX_OF_ALL,
        _LONG_NAME,
        _LONG_LINK,
    }:
        raise _bad(f"has a member of unknown kind {kind!r}")
    name = _text(block[:100].partition(b"\0")[0])
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = f"{_text(prefix)}/{name}"
    # In old archives a file is a directory if its name says so.
    if kind in _REGULAR and name.endswith("/"):
        kind = _DIRECTORY
    target = _text(block[157:257].partition(b"\0")[0])
    return _Header(kind, name, target, _number(block[124:136]))


def _extended(header: _Header, extensions: dict[str, str]) -> _Header:
    if any(key.startswith("GNU.sparse.") for key in extensions):
        raise _bad("has a sparse file in it")
    size = extensions.get("size")
    if size is not None and not (size.isascii() and size.isdigit() and len(size) < 19):
        raise _bad("has a size that is no number")
    return header._replace(
        name=extensions.get("path", header.name),
        target=extensions.get("linkpath", header.target),
        size_bytes=header.size_bytes if size is None else int(size),
    )


def _pax_records(content: bytes) -> dict[str, str]:
    """`LENGTH KEY=VALUE\\n`, as often as there are; only what is of use is looked at."""
    records: dict[str, str] = {}
    rest = content
    while rest:
        digits, _, _ = rest.partition(b" ")
        if not digits.isdigit() or len(digits) > 6:
            raise _bad("has a header that makes no sense")
        length = int(digits)
        record = rest[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(rest):
            raise _bad("has a header that makes no sense")
        word = key.decode("ascii", "replace")
        if word in ("path", "linkpath", "size") or word.startswith("GNU.sparse."):
            records[word] = _text(value[:-1])
        rest = rest[length:]
    return records


def _number(field: bytes) -> int:
    """Octal, or what GNU tar writes where that is too short."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
        if number >= 2**60:
            raise _bad("has an absurd number in a header")
        return number
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise _bad("is no tar archive, or has a number in a header that is none")
    return int(digits, 8)


def _text(name: bytes) -> str:
    if len(name) > _LONGEST_NAME or b"\0" in name:
        raise _bad("has a name that is too long, or holds NUL")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad("has a name that is not UTF-8") from None


def _plain(name: str) -> str:
    """A name without what means nothing in it; empty: the directory that all is in."""
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ".." in parts:
        raise _bad(f"has {name[:100]!r} in it, which leads out of it")
    return "/".join(part for part in parts if part not in ("", "."))


def _target(name: str, target: str) -> str:
    """The member that a link leads to. Looked at as text alone: there is no file system here."""
    parts = name.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            if not parts:
                raise _bad(f"has a link at {name[:100]!r} that leads out of it")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if target.startswith("/"):
        raise _bad(f"has a link at {name[:100]!r} that leads out of it")
    return "/".join(parts)


def _bad(fact: str) -> Invalid:
    return Invalid(f"the archive {fact}", code="bad_archive")
