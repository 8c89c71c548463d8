"""Limits that tests of cgroups set."""

import subprocess
from collections.abc import Callable

from sandboxd.quotas.limits import Limits

MIB = 2**20
HALF_A_CPU = Limits(
    cpus=0.5,
    memory_bytes=64 * MIB,
    pids=16,
    disk_bytes=MIB,
    wall_seconds=10.0,
    cpu_seconds=10.0,
    output_bytes=MIB,
    open_files=64,
)

Spawn = Callable[..., "subprocess.Popen[str]"]
"""Starts Python code in a cgroup: the fixture `spawn`."""
