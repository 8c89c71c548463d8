"""What a job created, changed and deleted: the entries of its writable layer, next to what its image has."""

import os

from sandboxd.isolation import syscalls
from sandboxd.isolation.entries import Entries
from sandboxd.jobs import Changes

MOST_PATHS = 1000
MOST_BYTES = 256 * 2**10
"""Of all paths together."""
_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS


def changes_of(entries: Entries, rootfs: str) -> Changes:
    """Sort them. `rootfs`: the image's tree, in which a path is looked up without following any link.

    Blocks: for a thread. Raises BadEntries, OSError.
    """
    created: list[str] = []
    modified: list[str] = []
    deleted: list[str] = []
    left_paths, left_bytes, truncated = MOST_PATHS, MOST_BYTES, False
    image = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, _, _, note in entries:
            if note in ("too_many", "too_deep"):
                truncated = True
                continue
            there = _is_there(image, path)
            if note == "directory" and there:
                continue  # Only something in it was changed.
            left_paths -= 1
            left_bytes -= len(path)
            if left_paths < 0 or left_bytes < 0:
                truncated = True
                continue
            (deleted if note == "deleted" else modified if there else created).append(path)
    finally:
        os.close(image)
    return Changes(
        created=tuple(created),
        modified=tuple(modified),
        deleted=tuple(deleted),
        truncated=truncated,
    )


def _is_there(image: int, path: str) -> bool:
    """Whether the image has it; also where it has something there that we may not look into."""
    try:
        os.close(syscalls.openat2(image, path.lstrip("/"), os.O_PATH | os.O_NOFOLLOW, _RESOLVE))
    except PermissionError:
        return True
    except OSError:
        return False
    return True
