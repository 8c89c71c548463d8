"""What a tar archive that was uploaded has in it. Only headers are read; the contents stay where they lie.

`tarfile` only reads here, from a file on the disk and within bounds of its own. Links, devices, sparse files and set-id bits are
refused: what is kept of an archive are directories, and files with a mode. Blocks: for a thread.
"""

import struct
import tarfile
from typing import IO, cast

from sandboxd.files.content import Reader
from sandboxd.jobs import InputFile

_LARGEST_READ = 2**20
_MOST_READS = 50_000
_READING_ERRORS = (
    tarfile.TarError,
    EOFError,
    OSError,
    # What tarfile lets out when the numbers in a header make no sense.
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    struct.error,
    # A chain of extension headers is read by recursion.
    RecursionError,
)


class BadArchive(Exception):
    """It cannot be used; the message is for who sent it."""


def files_in(upload: Reader, size_bytes: int, *, most: int) -> list[InputFile]:
    """The files and directories of an archive, each with where its content lies in the upload.

    Raises BadArchive, also if there are more than `most`.
    """
    found: list[InputFile] = []
    try:
        with tarfile.open(fileobj=_headers(upload, size_bytes), mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise.
                file = _file_of(member, size_bytes)
                if file is not None:
                    found.append(file)
                if len(found) > most:
                    raise BadArchive(f"there are more than {most} files and directories")
    except _READING_ERRORS as error:
        raise BadArchive(f"it is no tar archive that can be read as it is: {error}") from error
    return found


def _file_of(member: tarfile.TarInfo, size_bytes: int) -> InputFile | None:
    """None for the directory that everything else is in. Raises BadArchive."""
    name = member.name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise BadArchive(f"a name is not UTF-8: {ascii(name)[:200]}") from None
    shown = name[:200]
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise BadArchive(f"{shown} is {_kind(member)}: only files and directories are taken")
    if member.mode & 0o6000:
        raise BadArchive(f"{shown} has a set-id bit")
    mode = member.mode & 0o777
    if member.isdir():
        return None if name.strip("./") == "" else InputFile(path=name, mode=mode, offset=0)
    if member.size < 0 or member.offset_data + member.size > size_bytes:
        raise BadArchive(f"{shown} is not there as a whole")
    return InputFile(path=name, mode=mode, size_bytes=member.size, offset=member.offset_data)


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym():
        return "a symbolic link"
    if member.islnk():
        return "a hard link"
    if member.isdev():
        return "a device or a FIFO"
    return "a sparse file or something else"


def _headers(upload: Reader, size_bytes: int) -> IO[bytes]:
    return cast(IO[bytes], _Headers(upload, size_bytes))


class _Headers:
    """The upload as the file that `tarfile` wants, for headers only: small reads, and not without end."""

    def __init__(self, upload: Reader, size_bytes: int) -> None:
        self._upload = upload
        self._size_bytes = size_bytes
        self._position = 0
        self._reads = 0

    def read(self, size: int) -> bytes:
        self._reads += 1
        if size > _LARGEST_READ or self._reads > _MOST_READS:
            raise BadArchive("its headers are too large")
        left = max(0, self._size_bytes - self._position)
        piece = self._upload.read(self._position, min(size, left)) if left else b""
        self._position += len(piece)
        return piece

    def seek(self, position: int) -> int:
        if not 0 <= position <= self._size_bytes + tarfile.RECORDSIZE:
            raise BadArchive("an entry is not there as a whole")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        """It is not ours to close."""
