"""Sandboxes for attacks, as they are and with walls taken away; jobs of the real service, which leave nothing behind."""

from benches import bench, either, unfiltered
from neighbour import neighbour, nothing_is_left

__all__ = ["bench", "either", "neighbour", "nothing_is_left", "unfiltered"]
