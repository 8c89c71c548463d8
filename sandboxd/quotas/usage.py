"""What the processes of one cgroup have used."""

from typing import NamedTuple

from sandboxd.quotas.stalls import Stalls


class CgroupUsage(NamedTuple):
    """Figures since the limits were applied. None: nothing on this host counts it."""

    cpu_seconds: float | None = None
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    cpu_throttled_seconds: float | None = None
    memory_peak_bytes: int | None = None
    pids_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    forks_refused: int | None = None
    """How often a process or thread was not made because of the limit."""
    oom_kills: int | None = None
    """How many processes the kernel killed because of the memory limit."""
    cpu_pressure_seconds: float | None = None
    """In which at least one process waited for a CPU, as the next two (`quotas.stalls`)."""
    memory_pressure_seconds: float | None = None
    io_pressure_seconds: float | None = None

    def filled_from(self, other: "CgroupUsage") -> "CgroupUsage":
        """This, with what is unknown here taken from `other` (the rest of a hybrid host)."""
        pairs = zip(self, other, strict=True)
        return CgroupUsage._make(theirs if mine is None else mine for mine, theirs in pairs)

    def with_stalls(self, stalls: Stalls) -> "CgroupUsage":
        """With how long its processes waited."""
        return self._replace(
            cpu_pressure_seconds=stalls.cpu_pressure_seconds,
            memory_pressure_seconds=stalls.memory_pressure_seconds,
            io_pressure_seconds=stalls.io_pressure_seconds,
        )

    def plus_cpu(self, seconds: float) -> "CgroupUsage":
        """With CPU time that was used elsewhere for the same job."""
        if not seconds:
            return self
        return self._replace(cpu_seconds=(self.cpu_seconds or 0.0) + seconds)

    def since(self, before: "CgroupUsage", *, peak: bool) -> "CgroupUsage":
        """What was used since `before`. `peak`: the peak of memory is from then on; else it is not known."""
        counted = {
            name: _difference(getattr(self, name), getattr(before, name))
            for name in self._fields
            if not name.endswith(("peak", "peak_bytes"))
        }
        counted["forks_refused"] = _difference(self.forks_refused, before.forks_refused or 0)
        memory_peak = self.memory_peak_bytes if peak else None
        return CgroupUsage(**counted, memory_peak_bytes=memory_peak)  # type: ignore[arg-type]


class CgroupNow(NamedTuple):
    """What the processes of one cgroup have at this moment, and have used since the limits were applied. None: not counted."""

    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    stalls: Stalls = Stalls()

    def filled_from(self, other: "CgroupNow") -> "CgroupNow":
        """This, with what is unknown here taken from `other`."""
        pairs = zip(self, other, strict=True)
        return CgroupNow._make(
            theirs if mine in (None, Stalls()) else mine for mine, theirs in pairs
        )


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else max(0, now - before)


def split_cpu(total: float, user: float, system: float) -> tuple[float, float]:
    """Divide the exact CPU time in the ratio of the figures that were sampled by clock ticks.

    The kernel does the same for `cpu.stat` and times(2): cputime_adjust() in kernel/sched/cputime.c.
    """
    if user + system == 0:
        return total, 0.0
    share = user / (user + system)
    return total * share, total * (1 - share)


def peak_since(before: int, peak: int, own: int) -> int | None:
    """The job's part of a peak that the kernel cannot be told to forget; `own` is not the job's.

    `before` is what an OCI runtime had reached when the job began, 0 if there was none. None: the job used less than that, so
    how much is not known.
    """
    return max(0, peak - own) if peak > before else None
