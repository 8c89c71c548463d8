"""How much images may fill of a file system that they share with the service's own files."""

import os
from pathlib import Path

_SHARE = 0.9
"""An archive of a few kilobytes can hold any size, and others come at the same time."""
_KEPT_PART = 50
"""One part of so many of the disk stays free, however often somebody takes most of what there is: jobs need some."""


def room_in(directory: Path) -> int:
    """Bytes that may be written there now; 0: there is no room. Raises OSError."""
    figures = os.statvfs(directory)
    free, total = (count * figures.f_frsize for count in (figures.f_bavail, figures.f_blocks))
    return max(0, min(int(free * _SHARE), free - total // _KEPT_PART))
