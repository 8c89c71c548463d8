"""Where `sandboxd run` writes what a job left: below one directory and never outside of it, whatever the paths say."""

import contextlib
import os
from collections.abc import Iterator

from sandboxd.errors import SandboxdError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class BadPath(SandboxdError):
    """A path that leads, or would lead, out of the directory."""


@contextlib.contextmanager
def new_file(directory: str, path: str, mode: int) -> Iterator[int]:
    """A descriptor to write the file `path` below `directory`, which is made; it is there as a whole or not at all.

    No link below `directory` is followed. An absolute path is taken below it, too. Raises BadPath, OSError.
    """
    parts = path.lstrip("/").split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise BadPath(f"the service speaks of a file {path!r}")
    os.makedirs(directory, exist_ok=True)
    parent = _open_parent(directory, parts[:-1])
    unfinished = f".{os.urandom(8).hex()}.unfinished"
    try:
        descriptor = os.open(unfinished, _NEW, 0o777 if mode & 0o100 else 0o666, dir_fd=parent)
        try:
            yield descriptor
            os.rename(unfinished, parts[-1], src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(unfinished, dir_fd=parent)
            raise
        finally:
            os.close(descriptor)
    finally:
        os.close(parent)


def _open_parent(directory: str, parts: list[str]) -> int:
    current = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=current)
            below = os.open(part, _DIRECTORY, dir_fd=current)
        except OSError as error:
            raise BadPath(f"{directory}: {part!r} is no directory: {error.strerror}") from error
        finally:
            os.close(current)
        current = below
    return current
