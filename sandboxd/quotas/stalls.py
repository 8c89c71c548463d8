"""For how long the processes of a cgroup (v2) waited for CPU, memory or disks: the kernel's pressure stall information.

It says what CPU time and a rate do not: whether a job was slow because others were in its way. Source: Documentation/accounting/psi.rst
of the kernel. A kernel without CONFIG_PSI has no such files; one that was booted with psi=0 refuses to open or to read them.
"""

from typing import NamedTuple

from sandboxd.errors import SandboxFailed
from sandboxd.quotas.kernel_files import read_file

_FILES = ("cpu.pressure", "memory.pressure", "io.pressure")


class Stalls(NamedTuple):
    """Seconds. None: not counted here."""

    cpu_pressure_seconds: float | None = None
    """In which at least one process waited, as the next two."""
    memory_pressure_seconds: float | None = None
    io_pressure_seconds: float | None = None
    cpu_full_pressure_seconds: float | None = None
    """In which all of them that were not asleep waited, as the next two."""
    memory_full_pressure_seconds: float | None = None
    io_full_pressure_seconds: float | None = None

    def since(self, before: "Stalls") -> "Stalls":
        """What was added to `before`."""
        return Stalls._make(
            None if now is None or then is None else now - then
            for now, then in zip(self, before, strict=True)
        )


def is_counted(directory_fd: int) -> bool:
    """Whether the kernel counts it for this cgroup."""
    try:
        return read_stalls(directory_fd) != Stalls()
    except (SandboxFailed, ValueError):
        return False


def read_stalls(directory_fd: int, below: str = ".") -> Stalls:
    """Since the cgroup was made, which is the directory or the one of this name in it. Raises SandboxFailed."""
    totals = [parse_stalls(read_file(directory_fd, f"{below}/{name}")) for name in _FILES]
    return Stalls._make(
        [total.get("some") for total in totals] + [total.get("full") for total in totals]
    )


def parse_stalls(text: str) -> dict[str, float]:
    """Seconds by `some` and `full`. Before Linux 5.13 the CPU's has no `full`."""
    seconds = {}
    for line in text.splitlines():
        kind, _, values = line.partition(" ")
        _, _, total = values.rpartition("total=")
        seconds[kind] = int(total) / 1e6
    return seconds
