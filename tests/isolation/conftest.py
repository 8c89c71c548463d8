"""One launcher for each way to map ids, shared by the tests of this directory."""

from benches import bench, either, unfiltered
from compiled_probe import probe

__all__ = ["bench", "either", "probe", "unfiltered"]
