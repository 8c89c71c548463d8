"""The driver where no cgroup is delegated: what the processes of a sandbox have is looked at again and again.

Theory of operation. Every process of a sandbox is a descendant of its init, whatever it forks or detaches: orphans become
init's children (pid_namespaces(7)). So a walk down from init finds all of them, without looking at any other process of the
host. Memory is the sum of what each has resident, in which shared pages count for each; files in the scratch are not in
it, and have their own limit. CPU time is that of the living, and of the dead that somebody has waited for; of a process that
nobody waits for (SIGCHLD ignored: wait(2)) what it used since the last look is lost.

A sample is late by the time between two looks: a job can have more for that long. Processes are limited by
RLIMIT_NPROC, which the kernel counts for each user namespace, and CPU rates by `affinity` alone. The filter
refuses system calls that take memory which no process has resident (`seccomp.UNCOUNTED`); what pipes and sockets hold is
bounded by the limits on open files and processes alone.
Sources: proc(5), getrlimit(2), user_namespaces(7).
"""

import os
import threading

import psutil

from sandboxd.quotas.limits import Limits
from sandboxd.quotas.processes import descendants
from sandboxd.quotas.usage import CgroupNow, CgroupUsage

_TICKS = os.sysconf("SC_CLK_TCK")
_UTIME = 11
"""Index of utime in /proc/PID/stat after the name; stime, cutime and cstime follow."""


class SampledGroup:
    """The processes below one init."""

    can_freeze = False

    def __init__(self) -> None:
        self._init: int | None = None
        self._own_memory_bytes = 0
        self._own_cpu_seconds = self._cpu_seconds = 0.0
        self._memory_peak_bytes = 0
        self._pids_peak = 0
        self._memory_bytes: int | None = None
        """The limit; None before there is one."""
        self._raw_cpu_seconds = 0.0
        self._looking = threading.Lock()

    def watch(self, init_pid: int) -> None:
        """Look at this process and its descendants. It is the caller's child's child, and alive or a zombie as long as that lives."""
        self._init = init_pid

    def apply(self, limits: Limits, *, started: int = 0) -> None:
        """Set the limits, and count from here on. `started` is for cgroups, where more than init may be there."""
        del started
        self.change(limits)
        now = self._look()
        self._own_memory_bytes, self._own_cpu_seconds = (
            now.memory_bytes or 0,
            now.cpu_seconds or 0.0,
        )
        self._memory_peak_bytes = self._pids_peak = 0

    def change(self, limits: Limits) -> None:
        """Set other limits, and go on counting."""
        self._memory_bytes = limits.memory_bytes

    def over_memory(self) -> bool:
        """Whether its processes have more than they may, at this moment."""
        now = self.now()
        return self._memory_bytes is not None and (now.memory_bytes or 0) > self._memory_bytes

    def now(self) -> CgroupNow:
        """What the job has at this moment."""
        seen = self._look()
        memory = max(0, (seen.memory_bytes or 0) - self._own_memory_bytes)
        pids = max(0, (seen.pids or 0) - 1)
        self._memory_peak_bytes = max(self._memory_peak_bytes, memory)
        self._pids_peak = max(self._pids_peak, pids)
        return CgroupNow((seen.cpu_seconds or 0.0) - self._own_cpu_seconds, memory, pids)

    def cpu_seconds(self) -> float:
        return self.now().cpu_seconds or 0.0

    def restart_memory_peak(self) -> bool:
        self._memory_peak_bytes = 0
        return True

    def oom_kills(self) -> int:
        """None by the kernel: it does not know of the limit."""
        return 0

    def read(self) -> CgroupUsage:
        """All figures; peaks are those that were seen."""
        cpu = self.cpu_seconds()
        return CgroupUsage(
            cpu_seconds=cpu,
            memory_peak_bytes=self._memory_peak_bytes,
            pids_peak=self._pids_peak,
            oom_kills=self.oom_kills(),
        )

    def kill(self) -> None:
        """Nothing: init's death takes all of them along."""

    def remove(self) -> bool:
        """Nothing was made."""
        return True

    def _look(self) -> CgroupNow:
        """From any thread."""
        with self._looking:
            now = self._look_once()
            if (now.cpu_seconds or 0.0) < self._raw_cpu_seconds:
                now = (
                    self._look_once()
                )  # A child may just have been on its way from itself to its parent.
            raw = now.cpu_seconds or 0.0
            # What was seen once was used. If it is gone, nobody waited for who used it: it counts from here on.
            self._cpu_seconds += max(0.0, raw - self._raw_cpu_seconds)
            self._raw_cpu_seconds = raw
            return now._replace(cpu_seconds=self._cpu_seconds)

    def _look_once(self) -> CgroupNow:
        cpu, memory, pids = 0.0, 0, 0
        if self._init is not None:
            for pid in descendants(self._init):
                try:
                    user, system, of_dead_user, of_dead_system = _cpu_ticks(pid)
                    memory += psutil.Process(pid).memory_info().rss
                except (OSError, psutil.Error):
                    continue  # It ended while we looked; init has its time then.
                cpu += (user + system + of_dead_user + of_dead_system) / _TICKS
                pids += 1
        return CgroupNow(cpu, memory, pids)


def _cpu_ticks(pid: int) -> tuple[int, int, int, int]:
    """utime, stime, cutime and cstime. Raises OSError."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        # The name is in brackets, and may have brackets and spaces in it.
        fields = file.read().rpartition(")")[2].split()
    user, system, of_dead_user, of_dead_system = map(int, fields[_UTIME : _UTIME + 4])
    return user, system, of_dead_user, of_dead_system
