"""What has to outlast a power cut is brought to the disk before it counts."""

import os
from collections.abc import Callable
from pathlib import Path

from sandboxd.isolation import syscalls


def sync_directory(directory: Path) -> None:
    """The names in it: that of a file that was renamed, say. May take long. Raises OSError."""
    _sync(directory, os.fsync)


def sync_file_system(directory: Path) -> None:
    """All that was written to the file system that it is on. May take long. Raises OSError."""
    _sync(directory, syscalls.syncfs)


def _sync(directory: Path, call: Callable[[int], None]) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call(descriptor)
    finally:
        os.close(descriptor)
