"""Which CPUs a job runs on: as many as its rate takes, rounded up.

Where a cgroup limits the rate this is for the truth: programs count the CPUs that they may use (sched_getaffinity(2)) to
choose how many threads they start. Where none does, it is the limit, and the filter keeps commands from changing it.
"""

import math
import os
import threading
from collections import Counter
from contextlib import suppress

from sandboxd.quotas.processes import descendants


class CpuShares:
    """How many jobs are on each CPU: the next goes where there are fewest. From any thread."""

    def __init__(self, cpus: tuple[int, ...]) -> None:
        self.cpus = cpus
        self._jobs = Counter(dict.fromkeys(cpus, 0))
        self._counting = threading.Lock()

    def take(self, count: int) -> tuple[int, ...]:
        """So many CPUs, those with the fewest jobs; all of them where there are no more."""
        with self._counting:
            chosen = sorted(sorted(self.cpus, key=self._jobs.__getitem__)[:count])
            self._jobs.update(chosen)
        return tuple(chosen)

    def give_back(self, cpus: tuple[int, ...]) -> None:
        """The job is over."""
        with self._counting:
            self._jobs.subtract(cpus)


class Affinity:
    """Of the processes below one init."""

    def __init__(self, shares: CpuShares) -> None:
        self._shares = shares
        self._init: int | None = None
        self.cpus: tuple[int, ...] = ()
        """On which they run; empty before any command does."""

    def watch(self, init_pid: int) -> None:
        """Everything that it starts from then on is on the same CPUs."""
        self._init = init_pid

    def use(self, rate: float) -> tuple[int, ...]:
        """Let them run on as many CPUs as this rate takes, if they do not already. Returns which."""
        count = min(math.ceil(rate), len(self._shares.cpus))
        if self._init is not None and count != len(self.cpus):
            # Before its first command there is only init: no need to look for more.
            processes = descendants(self._init) if self.cpus else [self._init]
            self.give_back()
            self.cpus = self._shares.take(count)
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(pid, self.cpus)
        return self.cpus

    def give_back(self) -> None:
        """They are gone. Twice is harmless."""
        self._shares.give_back(self.cpus)
        self.cpus = ()
