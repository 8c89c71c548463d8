"""How much images may fill of a file system that they share with the service's own files."""

import shutil
from pathlib import Path

_SHARE = 0.9
"""An archive of a few kilobytes can hold any size: the service's own files need what is left."""


def room_in(directory: Path) -> int:
    """Bytes that may be written there now."""
    return int(shutil.disk_usage(directory).free * _SHARE)
