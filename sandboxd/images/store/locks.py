"""Locks of files, by which several processes share the trees and blobs of one data directory. See flock(2)."""

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from sandboxd.errors import Conflict

_PAUSE_SECONDS = 0.05


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


@contextlib.asynccontextmanager
async def in_turn(lock: Path, waiting: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
    """One after the other: who comes while somebody is within waits, and calls `waiting` now and then.

    The lock file is there while somebody is within, or was when a process died. (No event tells a loop of a lock that is free
    again, and a thread that waits for one cannot be cancelled: so it is tried again and again.)
    """
    while (descriptor := make_locked(lock)) is None:
        waiting()
        await asyncio.sleep(_PAUSE_SECONDS)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def remove_unused(lock: Path) -> None:
    """Remove a file that somebody made and left who does not live any more."""
    descriptor = make_locked(lock)
    if descriptor is not None:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def make_locked(path: Path) -> int | None:
    """A file that is made and locked, open to be written; None: somebody has it, or had it a moment ago."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        return _locked_descriptor(descriptor, path, fcntl.LOCK_EX)
    except (Conflict, FileNotFoundError):
        return None


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
    return _locked_descriptor(os.open(lock, os.O_RDONLY | os.O_CLOEXEC), lock, kind)


def _locked_descriptor(descriptor: int, path: Path, kind: int) -> int:
    """The descriptor itself, or it is closed. Raises Conflict, FileNotFoundError."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        # Removed or replaced between the two calls: what is locked is no longer what is there.
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(errno.ENOENT, "replaced", str(path))
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict("the image is in use by another process") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
