"""Which CPUs a job runs on: as many as its rate takes, rounded up.

Where a cgroup limits the rate this is for the truth: programs count the CPUs that they may use (sched_getaffinity(2)) to
choose how many threads they start. Where none does, it is the limit, and the filter keeps commands from changing it.
"""

import math
import os
import threading
from collections import Counter
from collections.abc import Iterator

from sandboxd.quotas.processes import descendants

_PASSES = 16
"""Who is made while all are moved is found by the next pass, if it was not made by one that had been moved."""


class CpuShares:
    """How many jobs are on each CPU: the next goes where there are fewest. From any thread."""

    def __init__(self) -> None:
        self._jobs: Counter[int] = Counter()
        self._counting = threading.Lock()

    def take(self, count: int, among: tuple[int, ...] = ()) -> tuple[int, ...]:
        """So many CPUs, those with the fewest jobs; all of them where there are no more. `among`: only these come into question."""
        with self._counting:
            chosen = sorted(sorted(among or own_cpus(), key=self._jobs.__getitem__)[:count])
            self._jobs.update(chosen)
        return tuple(chosen)

    def give_back(self, cpus: tuple[int, ...]) -> None:
        """The job is over."""
        with self._counting:
            self._jobs.subtract(cpus)


class Affinity:
    """Of the processes below one init. From any thread."""

    def __init__(self, shares: CpuShares, *, binding: bool) -> None:
        """`binding`: nothing else limits the CPU rate."""
        self._shares = shares
        self._binding = binding
        self._init: int | None = None
        self._cpus: tuple[int, ...] = ()
        """On which they run; empty before any command does."""
        self._pinned: tuple[int, ...] = ()
        """On which they are to run, whatever their rate; empty: nobody said."""
        self._changing = threading.Lock()
        self._closed = False

    def watch(self, init_pid: int) -> None:
        """Everything that it starts from then on is on the same CPUs."""
        self._init = init_pid

    def pin(self, cpus: tuple[int, ...]) -> None:
        """From the next `use` on they run on just these."""
        self._pinned = cpus

    def use(self, rate: float) -> tuple[int, ...]:
        """Let them run on as many CPUs as this rate takes, if they do not already. Returns which. Raises OSError."""
        wanted = self._pinned
        count = len(wanted) or min(math.ceil(rate), len(own_cpus()))
        with self._changing:
            if self._closed or self._init is None or count == len(self._cpus):
                return self._cpus
            # Before its first command there is only init: no need to look for more.
            is_alone = not self._cpus
            self._shares.give_back(self._cpus)
            self._cpus = self._shares.take(count, wanted)
            if is_alone:
                self._move(self._init)
            else:
                self._move_all(self._init)
            return self._cpus

    def close(self) -> None:
        """They are gone. Twice is harmless."""
        with self._changing:
            self._closed = True
            self._shares.give_back(self._cpus)
            self._cpus = ()

    def _move_all(self, init_pid: int) -> None:
        moved: set[int] = set()
        for _ in range(_PASSES):
            others = set(_threads_below(init_pid)) - moved
            if not others:
                return
            for thread in others:
                self._move(thread)
            moved |= others

    def _move(self, thread: int) -> None:
        try:
            os.sched_setaffinity(thread, self._cpus)
        except ProcessLookupError:
            return
        except OSError:  # A CPU has just been taken from us, or from the machine.
            if self._binding:
                raise


def own_cpus() -> tuple[int, ...]:
    """Those that this service may use at this moment: whoever placed it may change that."""
    return tuple(sorted(os.sched_getaffinity(0)))


def _threads_below(init_pid: int) -> Iterator[int]:
    """Each thread has CPUs of its own."""
    for pid in descendants(init_pid):
        try:
            yield from map(int, os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue  # It has just ended.
