"""Sandboxes built ahead of need, per shape: taking one costs no set-up. A shape that is not parked is built on demand.

Bounded three ways: so many per shape, so many shapes (the least recently used is dropped), and a shape that nobody asked
for during a while is dropped too. A shape is parked from its second use within that while on: who gives each job a shape of
its own neither makes the pool build for nobody nor drives out what others use. A sandbox leaves the pool once and never
comes back.

For shapes that are not parked there are `blanks`.
"""

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic

from sandboxd.errors import SandboxdError, SandboxFailed
from sandboxd.isolation.blanks import Blanks
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.places import P, Taken
from sandboxd.isolation.spec import SandboxSpec
from sandboxd.isolation.workshop import Workshop

_CLOSE_SECONDS = 15.0
"""Longer than the removal of a place is tried."""
_MOST_SEEN = 256
_SETTLED_SECONDS = 0.06
"""From when a sandbox stands until its init does nothing more: it has rehearsed by then, and its memory stays as it is."""
_ANSWER_SECONDS = 0.005
"""From a sandbox's end until its job is on the disk and its client has the answer, mostly."""


class _Shape(Generic[P]):
    """The parked sandboxes of one spec."""

    def __init__(self) -> None:
        self.parked: deque[Taken[P]] = deque()
        self.building = 0
        self.drop_at: asyncio.TimerHandle | None = None


class Pool(Generic[P]):
    """Parks sandboxes and hands them out."""

    def __init__(
        self,
        launcher: Launcher,
        make_place: Callable[[], P],
        *,
        make_ready: Callable[[Taken[P]], None] = lambda _: None,
        per_shape: int,
        shapes: int,
        idle_seconds: float,
        blanks: int = 0,
    ) -> None:
        """`make_ready` does to a sandbox that is parked for a moment what its job would wait for otherwise. May raise SandboxFailed."""
        self._workshop = Workshop(launcher, make_place)
        self._blanks = Blanks(self._workshop, most=blanks, idle_seconds=idle_seconds)
        self._make_ready = make_ready
        self._per_shape = per_shape
        self._most_shapes = shapes
        self._idle_seconds = idle_seconds
        self._shapes: OrderedDict[SandboxSpec, _Shape[P]] = OrderedDict()
        self._seen: OrderedDict[SandboxSpec, float] = OrderedDict()
        """Shapes that were used once, and when (the loop's time): another use soon, and they are parked."""
        self._closed = False
        self.hits = 0
        self.misses = 0

    @property
    def parked(self) -> int:
        """How many sandboxes wait for a command."""
        return sum(len(shape.parked) for shape in self._shapes.values())

    @property
    def blank(self) -> int:
        """How many sandboxes wait for a shape."""
        return len(self._blanks)

    @property
    def blanks_used(self) -> int:
        """How many of the misses got a blank."""
        return self._blanks.used

    async def take(self, spec: SandboxSpec) -> Taken[P]:
        """A sandbox of this shape: a parked one if there is any, else a blank that becomes one, or one built now. Raises SandboxdError."""
        wanted = spec in self._shapes or self._seen_before(spec)
        shape = self._use(spec) if wanted else None
        while shape is not None and shape.parked:
            taken = shape.parked.popleft()
            if taken.sandbox.alive:
                self.hits += 1
                if len(shape.parked) <= self._per_shape // 2:
                    self._refill(spec, shape)
                return taken
            self.discard(taken)
        self.misses += 1
        taken = await self._blanks.become(spec) or await self._workshop.build(spec, warm=False)
        if shape is not None:
            self._refill(spec, shape)
        return taken

    def prepare(self, spec: SandboxSpec) -> None:
        """Park sandboxes of this shape before anybody asks."""
        shape = self._use(spec)
        if shape is not None:
            self._refill(spec, shape)
        self._blanks.refill()

    def discard(self, taken: Taken[P], *, quiet: bool = False) -> None:
        """End a sandbox that is not (or no longer) needed and remove its place once it is empty.

        `quiet`: nothing runs in it any more, so that it can wait until its job's client has its answer.
        """
        later = quiet and self._per_shape > 0 and not self._closed
        self._workshop.discard(
            taken,
            gone=lambda: self._make_up_for(taken),
            after_seconds=_ANSWER_SECONDS if later else 0.0,
        )

    async def settled(self) -> None:
        """Wait until everything that was begun in the background is done."""
        await self._workshop.background.settled()

    async def close(self, timeout_seconds: float = _CLOSE_SECONDS) -> None:
        """End every parked sandbox and wait until their places are gone, but not for ever.

        A process that is stuck in the kernel (state D) ends when the kernel lets it go: nobody here can hasten that.
        """
        self._closed = True
        for spec in list(self._shapes):
            self._drop(spec)
        self._blanks.close()
        await self._workshop.close(timeout_seconds)

    def _seen_before(self, spec: SandboxSpec) -> bool:
        """Whether this is the second use within the idle time. Remembers the first."""
        now = asyncio.get_running_loop().time()
        if now - self._seen.pop(spec, -math.inf) <= self._idle_seconds:
            return True
        self._seen[spec] = now
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return False

    def _use(self, spec: SandboxSpec) -> _Shape[P] | None:
        """The shape, now the most recently used; None where nothing is to be parked."""
        if self._per_shape == 0 or self._closed:
            return None
        shape = self._shapes.get(spec)
        if shape is None:
            while len(self._shapes) >= self._most_shapes:
                self._drop(next(iter(self._shapes)))
            shape = self._shapes[spec] = _Shape()
        self._shapes.move_to_end(spec)
        if shape.drop_at is not None:
            shape.drop_at.cancel()
        loop = asyncio.get_running_loop()
        shape.drop_at = loop.call_later(self._idle_seconds, self._drop, spec)
        return shape

    def _drop(self, spec: SandboxSpec) -> None:
        shape = self._shapes.pop(spec, None)
        if shape is None:
            return
        if shape.drop_at is not None:
            shape.drop_at.cancel()
        while shape.parked:
            self.discard(shape.parked.popleft())

    def _refill(self, spec: SandboxSpec, shape: _Shape[P]) -> None:
        while len(shape.parked) + shape.building < self._per_shape:
            shape.building += 1
            self._workshop.background.spawn(self._park(spec, shape))

    async def _park(self, spec: SandboxSpec, shape: _Shape[P]) -> None:
        try:
            async with self._workshop.one_at_a_time:
                if self._shapes.get(spec) is not shape:
                    return
                taken = await self._workshop.build(spec, warm=True)
        except SandboxdError:
            return  # The next job of this shape builds its own and is told what is wrong.
        finally:
            shape.building -= 1
        if self._shapes.get(spec) is not shape:
            self.discard(taken)
            return
        shape.parked.append(taken)
        loop = asyncio.get_running_loop()
        loop.call_later(_SETTLED_SECONDS, self._get_ready, shape, taken)

    def _get_ready(self, shape: _Shape[P], taken: Taken[P]) -> None:
        """One that is taken before has a job that cannot wait for this, and does all of it by itself."""
        if taken not in shape.parked:
            return
        try:
            self._make_ready(taken)
        except SandboxFailed:
            # No other is built in its place: that would fail as well, again and again.
            shape.parked.remove(taken)
            self._workshop.discard(taken)

    def _make_up_for(self, gone: Taken[P]) -> None:
        """Only now another is built: until here the job, and the answer to who waits for it, had the processors."""
        shape = self._shapes.get(gone.sandbox.spec)
        if shape is not None:
            self._refill(gone.sandbox.spec, shape)
        self._blanks.refill()
