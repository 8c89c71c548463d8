"""Reading tar archives strictly, one header after the other. Whoever unpacks or looks into one of a stranger's uses this.

The headers of v7, ustar, PAX and GNU tar are read as Go's archive/tar reads them, with which most images are made and unpacked: where
two readers differ, an archive is one thing to who looked at it and another to who unpacks it. What is no header is BadArchive
and ends the reading; nothing is guessed, skipped or repaired. Work and memory grow with what is read, never faster.

`tarfile` is not used: it takes a bad header for the end of the archive, reads a chain of extension headers by recursion, and up to
Python 3.11.9 a header of a megabyte can keep it busy for minutes (CVE-2024-6232).

https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html and https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

import os
import re
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from typing import NamedTuple, Protocol

BLOCK_BYTES = 512
_CHUNK_BYTES = 256 * 2**10
_LARGEST_EXTENSION = 2**20
_MOST_EXTENSIONS = 100
_MOST_PIECES = 20_000
_MOST_BYTES = 2**63 - 1
_OF_ONE = frozenset({b"path", b"linkpath", b"size"})
"""What can be true of one entry only."""
_ATTRIBUTE = b"SCHILY.xattr."
_TIME = re.compile(rb"(-?[0-9]{1,20})(?:\.[0-9]*)?")
_LATEST = 2**33
_EMPTY_BLOCK = bytes(BLOCK_BYTES)


class BadArchive(Exception):
    """The archive is not one, or more than was allowed; the message is for the user."""


class Source(Protocol):
    """What an archive is read from."""

    def read(self, size: int) -> bytes:
        """So many bytes, and fewer only at its end."""

    def skip(self, size: int) -> bool:
        """Pass over so many bytes. False: it ends before."""


class Kind(Enum):
    DIRECTORY = "directory"
    FILE = "file"
    LINK = "symbolic link"
    HARD_LINK = "hard link"
    DEVICE = "device or a FIFO"
    OTHER = "kind of entry that is not known"


class Piece(NamedTuple):
    """A part of a file that is in the archive. Between pieces are holes."""

    offset: int
    size: int


class Entry(NamedTuple):
    """One entry. Names are as the archive has them; bytes that are no UTF-8 are surrogates (`os.fsdecode`)."""

    name: str
    kind: Kind
    target: str
    """Of a link."""
    mode: int
    uid: int
    gid: int
    modified_at: int
    """Unix time in seconds, not before 1970 and not later than any file system has."""
    size: int
    """Of the file that it is to be."""
    position: int
    """Where its content begins in the archive."""
    stored_bytes: int
    """Of its content."""
    pieces: tuple[Piece, ...] | None
    """None: all of it is in the archive."""
    attributes: tuple[tuple[str, bytes], ...] = ()
    """Extended attributes of the namespace `user`, as star and then all others have them in headers of PAX."""


class _Announced(NamedTuple):
    """What extension headers say about the entry that follows."""

    records: dict[bytes, bytes]
    """Of PAX."""
    name: bytes | None
    """Of GNU tar."""
    target: bytes | None


_KINDS = {
    **dict.fromkeys((b"0", b"\0", b"7", b"S"), Kind.FILE),
    b"1": Kind.HARD_LINK,
    b"2": Kind.LINK,
    **dict.fromkeys((b"3", b"4", b"6"), Kind.DEVICE),
    b"5": Kind.DIRECTORY,
}
_HEADER_ONLY = frozenset({Kind.HARD_LINK, Kind.LINK, Kind.DEVICE, Kind.DIRECTORY})


class TarReader:
    """An archive on its way in. Iterating gives one entry after the other; the content of one can be read before the next."""

    def __init__(self, source: Source) -> None:
        self.has_end = False
        """Its end was marked: it was not cut between two entries."""
        self._source = source
        self._position = 0
        self._unread = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        """Raises BadArchive."""
        while (entry := self._next()) is not None:
            yield entry
            self._skip(self._unread)
            # `umoci insert` does not fill the last block, nor mark the end. To Go's reader the archive ends there, too.
            if self._padding and not self._source.skip(self._padding):
                return
            self._position += self._padding
            self._unread = self._padding = 0

    def content(self, entry: Entry) -> Iterator[tuple[int, bytes]]:
        """Of the entry that was given last: where in the file, and what. Raises BadArchive."""
        pieces = (Piece(0, entry.size),) if entry.pieces is None else entry.pieces
        for offset, left in pieces:
            while left:
                chunk = self._read(min(left, _CHUNK_BYTES))
                self._unread -= len(chunk)
                yield offset, chunk
                offset += len(chunk)
                left -= len(chunk)

    def _next(self) -> Entry | None:
        announced = _Announced({}, None, None)
        for number in range(_MOST_EXTENSIONS):
            block = self._header()
            if block is None:
                if number:
                    raise BadArchive("the archive ends after the extension header of an entry")
                return None
            match block[156:157]:
                case b"x":
                    announced = announced._replace(records=_records(self._extension(block)))
                case b"g":
                    # What it says of all entries is heeded by some programs and by others, Go's among them, not.
                    if _records(self._extension(block)).keys() & _OF_ONE:
                        raise BadArchive("one header says the name or the size of all entries")
                case b"L":
                    announced = announced._replace(name=_text(self._extension(block)))
                case b"K":
                    announced = announced._replace(target=_text(self._extension(block)))
                case _:
                    return self._entry(block, announced)
        raise BadArchive(f"an entry has more than {_MOST_EXTENSIONS - 1} extension headers")

    def _header(self) -> bytes | None:
        """The next header. None: the archive ends here."""
        block = self._source.read(BLOCK_BYTES)
        if not block:
            return None
        self._position += len(block)
        if len(block) < BLOCK_BYTES:
            raise BadArchive("not a tar archive that can be read: it is cut in a header")
        if block == _EMPTY_BLOCK:
            if self._source.read(BLOCK_BYTES).strip(b"\0"):
                raise BadArchive("not a tar archive that can be read: something follows its end")
            self.has_end = True
            return None
        expected = _number(block[148:156])
        unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        # Some programs of old took bytes for signed numbers.
        if expected != unsigned and expected != unsigned - 256 * _high_bytes(block):
            raise BadArchive("not a tar archive that can be read: a header has a wrong checksum")
        return block

    def _extension(self, block: bytes) -> bytes:
        size = _size(_number(block[124:136]))
        if size > _LARGEST_EXTENSION:
            raise BadArchive(f"an extension header is too large: {size} bytes")
        content = self._read(size)
        self._skip(-size % BLOCK_BYTES)
        return content

    def _entry(self, block: bytes, announced: _Announced) -> Entry:
        records = announced.records
        name = announced.name
        if name is None:
            sparse_name = records.get(b"GNU.sparse.name") if _sparse_version(records) else None
            name = sparse_name or records.get(b"path") or _name(block)
        target = announced.target
        if target is None:
            target = records.get(b"linkpath") or _text(block[157:257])
        kind = _KINDS.get(block[156:157], Kind.OTHER)
        if block[156:157] == b"\0" and name.endswith(b"/"):
            kind = Kind.DIRECTORY
        stored = _size(_decimal(records, b"size", _number(block[124:136])))
        if kind in _HEADER_ONLY:
            stored = 0
        self._unread, self._padding = stored, -stored % BLOCK_BYTES
        size, pieces = self._sparse(block, records, kind, stored)
        return Entry(
            name=os.fsdecode(name),
            kind=kind,
            target=os.fsdecode(target),
            mode=_number(block[100:108]),
            uid=_decimal(records, b"uid", _number(block[108:116])),
            gid=_decimal(records, b"gid", _number(block[116:124])),
            modified_at=_time(records.get(b"mtime"), _number(block[136:148])),
            size=size,
            position=self._position,
            stored_bytes=self._unread,
            pieces=pieces,
            attributes=_attributes(records),
        )

    def _sparse(
        self, block: bytes, records: dict[bytes, bytes], kind: Kind, stored: int
    ) -> tuple[int, tuple[Piece, ...] | None]:
        """Size and pieces of a file, which may be sparse in one of four ways."""
        version = _sparse_version(records)
        if kind is not Kind.FILE:
            return stored, None
        if block[156:157] == b"S":
            size = _number(block[483:495])
            numbers = self._numbers_of_old(block)
        elif version:
            size = _decimal(records, b"GNU.sparse.realsize", stored)
            size = _decimal(records, b"GNU.sparse.size", size)
            words = records.get(b"GNU.sparse.map", b"").split(b",")
            numbers = (
                self._numbers_in_content(stored)
                if version == (b"1", b"0")
                else [_digits(word) for word in words if word]
            )
        else:
            return stored, None
        return _size(size), _pieces(numbers, size, self._unread)

    def _numbers_of_old(self, block: bytes) -> list[int]:
        """Of a sparse file as GNU tar has it in its own format: in the header, and in blocks that follow it."""
        if block[257:265] != b"ustar  \0":
            raise BadArchive("an entry has absurd numbers: a sparse file in a foreign format")
        numbers: list[int] = []
        part, more = block[386:482], block[482]
        while True:
            for start in range(0, len(part), 24):
                if part[start] == 0:
                    break
                numbers += [
                    _number(part[start : start + 12]),
                    _number(part[start + 12 : start + 24]),
                ]
            if not more or len(numbers) > 2 * _MOST_PIECES:
                return numbers
            part, more = (following := self._read(BLOCK_BYTES))[:504], following[504]

    def _numbers_in_content(self, stored: int) -> list[int]:
        """Of a sparse file in format 1.0: decimal numbers in lines before the content, the first saying how many pieces there are."""
        blocks: list[bytes] = []
        lines = 0
        needed = 1
        while lines < needed:
            if len(blocks) * BLOCK_BYTES >= min(stored, _LARGEST_EXTENSION):
                raise BadArchive("an entry has absurd numbers: the map of a sparse file is cut")
            blocks.append(self._read(BLOCK_BYTES))
            lines += blocks[-1].count(b"\n")
            if needed == 1 and lines:
                first = _digits(b"".join(blocks).split(b"\n", 1)[0])
                needed = 1 + 2 * min(first, _MOST_PIECES + 1)
        self._unread -= len(blocks) * BLOCK_BYTES
        if self._unread < 0:
            raise BadArchive("an entry has absurd numbers: the map of a sparse file is cut")
        return [_digits(line) for line in b"".join(blocks).split(b"\n")[1:needed]]

    def _read(self, size: int) -> bytes:
        content = self._source.read(size)
        self._position += len(content)
        if len(content) < size:
            raise BadArchive("not a tar archive that can be read: it is cut short")
        return content

    def _skip(self, size: int) -> None:
        self._position += size
        if size and not self._source.skip(size):
            raise BadArchive("not a tar archive that can be read: it is cut short")


def _attributes(records: dict[bytes, bytes]) -> tuple[tuple[str, bytes], ...]:
    return tuple(
        (os.fsdecode(name.removeprefix(_ATTRIBUTE)), value)
        for name, value in records.items()
        if name.startswith(_ATTRIBUTE + b"user.")
    )


def _name(block: bytes) -> bytes:
    """Of a header: in ustar with a prefix. So it is in archives of Go before 1.8 that say they are of GNU, which has times there."""
    name, magic = _text(block[:100]), block[257:265]
    prefix = b""
    if magic.startswith(b"ustar\0"):
        star = block[508:512] == b"tar\0"
        prefix = _text(block[345:476] if star else block[345:500])
    elif magic == b"ustar  \0" and not (_is_time(block[345:357]) and _is_time(block[357:369])):
        prefix = _text(block[345:500])
        prefix = prefix if prefix.isascii() else b""
    return prefix + b"/" + name if prefix else name


def _is_time(field: bytes) -> bool:
    return field[0] == 0 or field[0] & 0x80 != 0 or not _octal(field).strip(b"01234567")


def _text(field: bytes) -> bytes:
    """Up to the first NUL."""
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Octal digits, or in GNU's way a large or negative number in two's complement."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        number = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return number - (1 << bits) if field[0] & 0x40 else number
    digits = _octal(field)
    if digits.strip(b"01234567"):
        raise BadArchive("not a tar archive that can be read: a number in a header is none")
    return int(digits or b"0", 8)


def _octal(field: bytes) -> bytes:
    return _text(field.strip(b" \0"))


def _digits(word: bytes) -> int:
    if not word.isdigit() or len(word) > 20:
        raise BadArchive(f"an entry has absurd numbers: {word[:40]!a}")
    return int(word)


def _decimal(records: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
    """A number of PAX."""
    return _digits(records[key]) if records.get(key) else otherwise


def _time(word: bytes | None, otherwise: int) -> int:
    """What is no time in PAX says nothing: nobody depends on it."""
    match = _TIME.fullmatch(word or b"")
    return min(max(0, int(match[1]) if match else otherwise), _LATEST)


def _size(number: int) -> int:
    if not 0 <= number <= _MOST_BYTES:
        raise BadArchive(f"an entry has absurd numbers: a size of {number} bytes")
    return number


def _high_bytes(block: bytes) -> int:
    """How many bytes of a header are negative numbers to who takes them for signed."""
    return sum(byte >= 0x80 for byte in block[:148] + block[156:])


def _records(content: bytes) -> dict[bytes, bytes]:
    """PAX: `LENGTH KEY=VALUE\\n`, the length counting itself. An empty value takes back what was said."""
    records: dict[bytes, bytes] = {}
    numbers: list[bytes] = []
    start = 0
    while start < len(content):
        space = content.find(b" ", start, start + 8)
        length = content[start : max(space, start)]
        end = start + int(length) if length.isdigit() else 0
        if not space < end <= len(content) or content[end - 1 : end] != b"\n":
            raise BadArchive("not a tar archive that can be read: an extension header is none")
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if not key or not equals:
            raise BadArchive("not a tar archive that can be read: an extension header is none")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            numbers.append(value)
        records[key] = value
        start = end
    if numbers:
        # The first format of sparse files: the same keys again and again.
        records[b"GNU.sparse.map"] = b",".join(numbers)
    return records


def _sparse_version(records: dict[bytes, bytes]) -> tuple[bytes, bytes] | None:
    """Of the file that these are about. None: it is not sparse, or in no version that there is."""
    said = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if said == (None, None) and records.get(b"GNU.sparse.map"):
        return b"0", b"1"
    known = ((b"0", b"0"), (b"0", b"1"), (b"1", b"0"))
    return next((version for version in known if version == said), None)


def _pieces(numbers: list[int], size: int, stored: int) -> tuple[Piece, ...]:
    """The pieces of a sparse file, which must follow each other and be all that is stored of it."""
    pieces = tuple(map(Piece, numbers[::2], numbers[1::2]))
    if len(numbers) % 2 or len(pieces) > _MOST_PIECES:
        raise BadArchive("an entry has absurd numbers: the map of a sparse file is cut or too long")
    in_order = all(piece.offset >= 0 and piece.size >= 0 for piece in pieces) and all(
        before.offset + before.size <= after.offset for before, after in pairwise(pieces)
    )
    inside = not pieces or pieces[-1].offset + pieces[-1].size <= size
    if not in_order or not inside or sum(piece.size for piece in pieces) != stored:
        raise BadArchive("an entry has absurd numbers: the pieces of a sparse file do not fit it")
    return pieces
