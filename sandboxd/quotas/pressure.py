"""Whether the host has room for anything new: free memory and free disk, above floors that are never given to jobs.

Limits and admission keep jobs from each other; what else runs on the host is neither limited nor admitted.
"""

import os
import time
from pathlib import Path

import psutil

FREE_MEMORY = "free_memory"
FREE_DISK = "free_disk"

_GOOD_FOR_SECONDS = 0.25


class Pressure:
    """Looks at most four times a second."""

    def __init__(
        self,
        directory: Path,
        *,
        min_free_memory_bytes: int,
        min_free_disk_bytes: int,
    ) -> None:
        """`directory` is on the file system that must not become full. A floor of 0 is none."""
        self._directory = directory
        self._min_free_memory_bytes = min_free_memory_bytes
        self._min_free_disk_bytes = min_free_disk_bytes
        self._seen: str | None = None
        self._look_at = time.monotonic()

    def lacking(self) -> str | None:
        """What there is too little of: FREE_DISK or FREE_MEMORY; None: nothing. Where it cannot be told: FREE_DISK."""
        now = time.monotonic()
        if now >= self._look_at:
            try:
                self._seen = self._look()
            except OSError:
                self._seen = FREE_DISK
            self._look_at = now + _GOOD_FOR_SECONDS
        return self._seen

    def _look(self) -> str | None:
        if free_disk_bytes(self._directory) < self._min_free_disk_bytes:
            return FREE_DISK
        # Also what the kernel can take back at once from caches (proc(5), MemAvailable).
        if psutil.virtual_memory().available < self._min_free_memory_bytes:
            return FREE_MEMORY
        return None


def free_disk_bytes(directory: Path) -> int:
    """What an ordinary user may still write there. Raises OSError."""
    figures = os.statvfs(directory)
    return figures.f_bavail * figures.f_frsize
