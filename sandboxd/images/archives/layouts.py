"""An OCI image layout in a directory (https://github.com/opencontainers/image-spec, image-layout.md), read by no link out of it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sandboxd.errors import Invalid
from sandboxd.images.archives.members import CHUNK_BYTES
from sandboxd.isolation import syscalls

_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC


class Layout:
    """The files of a directory by their names, as `Members` has those of an archive."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        self._root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def size_bytes(self, name: str) -> int | None:
        """Of a regular file. None: there is none."""
        try:
            descriptor = self._open(name)
        except (OSError, ValueError):  # ValueError: a NUL in the name.
            return None
        try:
            status = os.fstat(descriptor)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        finally:
            os.close(descriptor)

    def resolve(self, name: str) -> str:
        """The name itself: a link is not there at all."""
        return name

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content of a file that is there. Blocks. Raises Invalid, OSError."""
        descriptor = self._open(name)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Invalid(f"{name[:100]} is not a file", code="bad_archive")
            while piece := os.read(descriptor, CHUNK_BYTES):
                yield piece
        finally:
            os.close(descriptor)

    def close(self) -> None:
        os.close(self._root)

    def _open(self, name: str) -> int:
        return syscalls.openat2(self._root, name, _READ, _RESOLVE)
