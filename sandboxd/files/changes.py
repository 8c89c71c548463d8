"""What a job created, changed and deleted: the entries of its writable layer, next to what its image has."""

import contextlib
import os
import stat
from collections.abc import Sequence

from sandboxd.isolation import syscalls
from sandboxd.isolation.entries import Entries
from sandboxd.jobs import Changes

MOST_PATHS = 1000
MOST_BYTES = 256 * 2**10
"""Of all paths together."""
_OPAQUE = "user.overlay.opaque"
_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS


def changes_of(entries: Entries, trees: Sequence[str]) -> Changes:
    """Sort them. `trees`: those of the image, the uppermost first, in which a path is looked up without following any link.

    Blocks: for a thread. Raises BadEntries, OSError.
    """
    created: list[str] = []
    modified: list[str] = []
    deleted: list[str] = []
    left_paths, left_bytes, truncated = MOST_PATHS, MOST_BYTES, False
    with contextlib.closing(_Image(trees)) as image:
        for path, _, _, note in entries:
            if note in ("too_many", "too_deep"):
                truncated = True
                continue
            there = image.has(path)
            if note == "directory" and there:
                continue  # Only something in it was changed.
            left_paths -= 1
            left_bytes -= len(path)
            if left_paths < 0 or left_bytes < 0:
                truncated = True
                continue
            (deleted if note == "deleted" else modified if there else created).append(path)
    return Changes(
        created=tuple(created),
        modified=tuple(modified),
        deleted=tuple(deleted),
        truncated=truncated,
    )


class _Image:
    """The trees of an image, seen through each other as overlay does it: whiteouts and opaque directories hide what is below.

    The directory that was looked into last stays open in all of them: the next path is mostly in the same.
    """

    def __init__(self, trees: Sequence[str]) -> None:
        self._top: list[int] = []
        self._path = ""
        self._directories = self._top
        try:
            for tree in trees:
                self._top.append(os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all."""
        self._leave()
        _close(self._top)

    def has(self, path: str) -> bool:
        """Whether it is there; also where there is something that we may not look into."""
        parent, _, name = path.rpartition("/")
        try:
            if parent != self._path:
                self._enter(parent)
            return _is_there(self._directories, name)
        except PermissionError:
            return True

    def _enter(self, path: str) -> None:
        """Raises PermissionError."""
        self._leave()
        for name in path.split("/")[1:]:
            merged = _merged(self._directories, name)
            self._leave()
            self._directories = merged
        self._path = path

    def _leave(self) -> None:
        """Back to the top."""
        if self._directories is not self._top:
            _close(self._directories)
        self._path, self._directories = "", self._top


def _is_there(directories: list[int], name: str) -> bool:
    """Whether the uppermost directory that has something of that name has more than a whiteout. Raises PermissionError."""
    for directory in directories:
        found = _open(directory, name)
        if found is not None:
            status = os.fstat(found)
            os.close(found)
            return not _is_whiteout(status)
    return False


def _merged(directories: list[int], name: str) -> list[int]:
    """The directories of that name that are seen as one, the uppermost first. Raises PermissionError."""
    merged: list[int] = []
    try:
        for directory in directories:
            found = _open(directory, name)
            if found is None:
                continue
            if not stat.S_ISDIR(os.fstat(found).st_mode):
                os.close(found)
                break
            merged.append(found)
            if _is_opaque(found):
                break
    except BaseException:
        _close(merged)
        raise
    return merged


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()


def _open(directory: int, name: str) -> int | None:
    """None: it is not there. Raises PermissionError."""
    try:
        return syscalls.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, _RESOLVE)
    except PermissionError:
        raise
    except OSError:
        return None


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(directory: int) -> bool:
    """One that we may not read is taken for one that is not: what is in it we may not see either, or it is no secret."""
    try:
        return os.getxattr(f"/proc/self/fd/{directory}", _OPAQUE) == b"y"
    except OSError:
        return False
