"""What an archive of images has in it: a tar file's members by name, read strictly, none of them written anywhere by its name.

Nothing is extracted. Names that the archive's own index mentions are looked up here and nowhere else, so that `../../etc/passwd`
or a link leads to nothing. What readers of tar disagree about (a name twice, sparse files, hard links, numbers that are none) is refused
for the whole archive: what one tool sees in it another must see, too. (pax(1), tar(5))
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from sandboxd.errors import Invalid
from sandboxd.isolation.tar import BadArchive, Entry, Kind, TarReader

CHUNK_BYTES = 2**20
_MOST_MEMBERS = 20_000
_LONGEST_NAME = 1024
_TAKEN = frozenset({Kind.FILE, Kind.LINK, Kind.DIRECTORY})


class _Place(NamedTuple):
    """Where the content of a file lies in the archive."""

    offset: int
    size_bytes: int


class Members:
    """The files of a tar archive that lies in an open file, uncompressed."""

    def __init__(self, descriptor: int) -> None:
        """Read all headers; the descriptor stays the caller's. Blocks: for a thread. Raises Invalid."""
        self._descriptor = descriptor
        self._files: dict[str, _Place] = {}
        self._links: dict[str, str] = {}
        self._directories: set[str] = set()
        archive = TarReader(_File(descriptor))
        try:
            for number, entry in enumerate(archive):
                if number == _MOST_MEMBERS:
                    raise _bad(f"has more than {_MOST_MEMBERS} members")
                self._add(entry)
        except BadArchive as error:
            raise _bad(f"cannot be used: {error}") from error
        if not archive.has_end:
            raise _bad("is cut short, or is no tar archive")
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

    def _add(self, entry: Entry) -> None:
        if entry.kind not in _TAKEN or entry.pieces is not None:
            what = "sparse file" if entry.pieces is not None else entry.kind.value
            raise _bad(f"has a {what} in it")
        # In old archives a file is a directory if its name says so.
        is_directory = entry.kind is Kind.DIRECTORY or entry.name.endswith("/")
        name = _plain(entry.name)
        if is_directory:
            if name in self._files or name in self._links:
                raise _bad(f"has {name[:100]!r} twice")
            self._directories.add(name)
            return
        if not name or name in self._files or name in self._links or name in self._directories:
            raise _bad(f"has {name[:100]!r} twice")
        if entry.kind is Kind.LINK:
            self._links[name] = _target(name, entry.target)
        else:
            self._files[name] = _Place(entry.position, entry.size)


class _File:
    """An open file as an archive's source, of which only headers are read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._end = os.fstat(descriptor).st_size
        self._position = 0

    def read(self, size: int) -> bytes:
        piece = os.pread(self._descriptor, size, self._position)
        self._position += len(piece)
        return piece

    def skip(self, size: int) -> bool:
        self._position += size
        return self._position <= self._end


def _plain(name: str) -> str:
    """A name without what means nothing in it; empty: the directory that all is in."""
    _check_name(name)
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ".." in parts:
        raise _bad(f"has {name[:100]!r} in it, which leads out of it")
    return "/".join(part for part in parts if part not in ("", "."))


def _target(name: str, target: str) -> str:
    """The member that a link leads to. Looked at as text alone: there is no file system here."""
    _check_name(target)
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


def _check_name(name: str) -> None:
    if len(name) > _LONGEST_NAME or "\0" in name:
        raise _bad("has a name that is too long, or holds NUL")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _bad("has a name that is not UTF-8") from None


def _bad(fact: str) -> Invalid:
    return Invalid(f"the archive {fact}", code="bad_archive")
