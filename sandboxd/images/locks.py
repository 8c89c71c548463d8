"""Locks of files, by which several processes share the trees and blobs of one data directory. See flock(2)."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from sandboxd.errors import Conflict


@contextlib.contextmanager
def locked_alone(lock: Path) -> Iterator[None]:
    """Nobody else uses what the lock file stands for. Raises Conflict, FileNotFoundError."""
    with _locked(lock, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Others may use it too, but nobody has it alone. Raises Conflict, FileNotFoundError."""
    with _locked(lock, fcntl.LOCK_SH):
        yield


def hold(lock: Path) -> int:
    """As `locked`, for as long as the descriptor that comes back is open. Raises Conflict, FileNotFoundError."""
    return _lock(lock, fcntl.LOCK_SH)


@contextlib.contextmanager
def _locked(lock: Path, kind: int) -> Iterator[None]:
    descriptor = _lock(lock, kind)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(lock: Path, kind: int) -> int:
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        # Removed or replaced between the two calls: what is locked is no longer what is there.
        if not os.path.samestat(os.fstat(descriptor), os.stat(lock)):
            raise FileNotFoundError(errno.ENOENT, "replaced", str(lock))
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict("the image is in use by another process") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
