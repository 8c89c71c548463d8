"""What counts for one command of several in a sandbox: its own cgroup where there is one, else what all have more than before."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from sandboxd.errors import SandboxFailed
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.quotas.leaves import Leaf
from sandboxd.quotas.usage import CgroupUsage
from sandboxd.running.commands import Counted


class Meter(Counted, Protocol):
    """The figures of one command."""

    @property
    def only_its_own(self) -> bool:
        """Whether no other command can be in them."""

    def end(self) -> CgroupUsage:
        """The command is over: what it used. Nothing is asked later. Raises SandboxFailed."""


class Counting:
    """The meters of one sandbox's commands."""

    def __init__(self, place: Cgroup, *, alone: bool) -> None:
        """`alone`: its commands run one after the other."""
        self._place = place
        self._alone = alone
        self._leaves = place.leaves()
        self._next: asyncio.Task[Leaf] | None = None
        self._starting = asyncio.Lock()

    def prepare(self) -> None:
        """Begin to make what the next command is to be counted in, if anything has to be made: it takes some milliseconds."""
        if self._leaves is not None and self._next is None:
            self._next = asyncio.create_task(asyncio.to_thread(self._leaves.advance))
            # Where it is not asked for any more, nobody is to be told of its failure: the sandbox has ended.
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())

    @contextlib.asynccontextmanager
    async def start(self) -> AsyncIterator[Meter]:
        """A command starts within, and is counted by this from then on. Raises SandboxFailed."""
        if self._leaves is None:
            yield Totals(self._place, alone=self._alone)
            return
        # One at a time: whatever starts is counted where init is.
        async with self._starting:
            leaf = await self._prepared()
            try:
                leaf.begin()
                yield leaf
            finally:
                self.prepare()

    async def settled(self) -> None:
        """Wait until nothing is moved any more."""
        if self._next is not None:
            await asyncio.wait([self._next])

    async def _prepared(self) -> Leaf:
        self.prepare()
        assert self._next is not None  # noqa: S101 (for the type checker)
        try:
            leaf = await asyncio.shield(self._next)
        except (SandboxFailed, OSError):
            self._next = None
            raise
        self._next = None
        return leaf


class Totals:
    """The sandbox's figures since the command began: those of commands beside it count as well."""

    def __init__(self, place: Cgroup, *, alone: bool) -> None:
        """`alone`: no other command is there, whose peak of memory would be forgotten. Raises SandboxFailed."""
        self._place = place
        self._alone = alone
        self._peak_is_own = alone and place.restart_memory_peak()
        self._before = place.read()
        self._kills_before = self._before.oom_kills or 0

    def cpu_seconds(self) -> float | None:
        now = self._place.cpu_seconds()
        return None if now is None else now - (self._before.cpu_seconds or 0.0)

    def oom_kills(self) -> int:
        return self._place.oom_kills() - self._kills_before

    @property
    def only_its_own(self) -> bool:
        return self._alone

    def end(self) -> CgroupUsage:
        """With the peaks of the sandbox since its start, where commands run beside each other."""
        now = self._place.read()
        used = now.since(self._before, peak=self._peak_is_own)
        if self._alone:
            return used
        return used._replace(memory_peak_bytes=now.memory_peak_bytes, pids_peak=now.pids_peak)
