"""What a tar archive that was uploaded has in it. Only headers are read; the contents stay where they lie.

Links, devices, sparse files and set-id bits are refused: what is kept of an archive are directories, and files with a mode.
Blocks: for a thread.
"""

from sandboxd.files.content import Reader
from sandboxd.isolation import tar
from sandboxd.isolation.tar import Entry, Kind, TarReader
from sandboxd.jobs import InputFile

_MOST_READS = 50_000
_MOST_READ_BYTES = 64 * 2**20


class BadArchive(Exception):
    """It cannot be used; the message is for who sent it."""


def files_in(upload: Reader, size_bytes: int, *, most: int) -> list[InputFile]:
    """The files and directories of an archive, each with where its content lies in the upload.

    Raises BadArchive, also if there are more than `most`.
    """
    found: list[InputFile] = []
    try:
        for entry in TarReader(_Headers(upload, size_bytes)):
            file = _file_of(entry)
            if file is not None:
                found.append(file)
            if len(found) > most:
                raise BadArchive(f"there are more than {most} files and directories")
    except tar.BadArchive as error:
        raise BadArchive(f"it is no tar archive that can be read as it is: {error}") from error
    return found


def _file_of(entry: Entry) -> InputFile | None:
    """None for the directory that everything else is in. Raises BadArchive."""
    name = entry.name.rstrip("/") if entry.kind is Kind.DIRECTORY else entry.name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise BadArchive(f"a name is not UTF-8: {ascii(name)[:200]}") from None
    shown = name[:200]
    if entry.kind not in (Kind.FILE, Kind.DIRECTORY) or entry.pieces is not None:
        what = "sparse file" if entry.pieces is not None else entry.kind.value
        raise BadArchive(f"{shown} is a {what}: only files and directories are taken")
    if entry.mode & 0o6000:
        raise BadArchive(f"{shown} has a set-id bit")
    mode = entry.mode & 0o777
    if entry.kind is Kind.DIRECTORY:
        return None if name.strip("./") == "" else InputFile(path=name, mode=mode, offset=0)
    return InputFile(path=name, mode=mode, size_bytes=entry.size, offset=entry.position)


class _Headers:
    """The upload as an archive's source, for headers only: they are not without end."""

    def __init__(self, upload: Reader, size_bytes: int) -> None:
        self._upload = upload
        self._size_bytes = size_bytes
        self._position = 0
        self._reads = 0
        self._read_bytes = 0

    def read(self, size: int) -> bytes:
        self._reads += 1
        self._read_bytes += size
        if self._reads > _MOST_READS or self._read_bytes > _MOST_READ_BYTES:
            raise BadArchive("its headers are too large")
        size = min(size, self._size_bytes - self._position)
        piece = self._upload.read(self._position, size) if size else b""
        self._position += len(piece)
        return piece

    def skip(self, size: int) -> bool:
        if size > self._size_bytes - self._position:
            return False
        self._position += size
        return True
