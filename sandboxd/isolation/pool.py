"""Sandboxes built ahead of need, per shape: taking one costs no set-up. A shape that is not parked is built on demand.

Bounded three ways: so many per shape, so many shapes (the least recently used is dropped), and a shape that nobody asked
for during a while is dropped too. A shape is parked from its second use within that while on: who gives each job a shape of
its own neither makes the pool build for nobody nor drives out what others use. A sandbox leaves the pool once and never
comes back.

For shapes that are not parked there are a few blanks, of which all is built that does not depend on a shape. One that nobody
needed for a while is replaced: what a command sees of its sandbox's age is no older.
"""

import asyncio
import contextlib
import functools
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Generic, NamedTuple, Protocol, TypeVar

from sandboxd.errors import SandboxdError, SandboxFailed
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import SandboxSpec

_DEATH_SECONDS = 5.0
"""A sandbox whose init was killed is gone in milliseconds; what is left after this has not heard of it, or is stuck."""
_REMOVAL_PAUSE_SECONDS = 0.05
_REMOVAL_TRIES = 200
_TRIES_BEFORE_KILL = 100
_CLOSE_SECONDS = 15.0
"""Longer than the removal of a place is tried."""
_CANCEL_SECONDS = 1.0
_MOST_SEEN = 256


class Place(Protocol):
    """Where a sandbox is accounted: a cgroup, as `quotas` makes it."""

    def join_files(self) -> tuple[str, ...]: ...
    def directory_fd(self) -> int | None: ...
    def watch(self, init_pid: int) -> None: ...
    def kill(self) -> None: ...
    def remove(self) -> bool: ...


P = TypeVar("P", bound=Place)


class Taken(NamedTuple, Generic[P]):
    """A sandbox that is now the caller's, with its place."""

    sandbox: Sandbox
    place: P
    warm: bool
    """Whether it was parked."""


class _Shape(Generic[P]):
    """The parked sandboxes of one spec."""

    def __init__(self) -> None:
        self.parked: deque[Taken[P]] = deque()
        self.building = 0
        self.drop_at: asyncio.TimerHandle | None = None


_SETTLED_SECONDS = 0.06
"""From when a sandbox stands until its init does nothing more: it has rehearsed by then, and its memory stays as it is."""
_SHORT_SECONDS = 0.1
"""Most jobs are over by then."""
_ANSWER_SECONDS = 0.005
"""From a sandbox's end until its job is on the disk and its client has the answer, mostly."""


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
        self._launcher = launcher
        self._make_place = make_place
        self._make_ready = make_ready
        self._per_shape = per_shape
        self._most_shapes = shapes
        self._idle_seconds = idle_seconds
        self._shapes: OrderedDict[SandboxSpec, _Shape[P]] = OrderedDict()
        self._seen: OrderedDict[SandboxSpec, float] = OrderedDict()
        """Shapes that were used once, and when (the loop's time): another use soon, and they are parked."""
        self._blanks: OrderedDict[Taken[P], asyncio.TimerHandle] = OrderedDict()
        """The oldest first, and what replaces each."""
        self._most_blanks = blanks
        self._beginning = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._closed = False
        self.hits = 0
        self.misses = 0
        self.blanks_used = 0

    @property
    def parked(self) -> int:
        """How many sandboxes wait for a command."""
        return sum(len(shape.parked) for shape in self._shapes.values())

    @property
    def blank(self) -> int:
        """How many sandboxes wait for a shape."""
        return len(self._blanks)

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
        taken = await self._finish_blank(spec) or Taken(*await self._build(spec), warm=False)
        if shape is not None:
            self._refill(spec, shape)
        return taken

    def prepare(self, spec: SandboxSpec) -> None:
        """Park sandboxes of this shape before anybody asks."""
        shape = self._use(spec)
        if shape is not None:
            self._refill(spec, shape)
        self._refill_blanks()

    def discard(self, taken: Taken[P], *, quiet: bool = False) -> None:
        """End a sandbox that is not (or no longer) needed and remove its place once it is empty.

        `quiet`: nothing runs in it any more, so that it can wait until its job's client has its answer.
        """
        if quiet and self._per_shape and not self._closed:
            self._spawn(self._replace_later(taken))
        else:
            taken.sandbox.kill()
            self._spawn(self._replace(taken))

    async def settled(self) -> None:
        """Wait until everything that was begun in the background is done."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def close(self, timeout_seconds: float = _CLOSE_SECONDS) -> None:
        """End every parked sandbox and wait until their places are gone, but not for ever.

        A process that is stuck in the kernel (state D) ends when the kernel lets it go: nobody here can hasten that.
        """
        self._closed = True
        for spec in list(self._shapes):
            self._drop(spec)
        self._most_blanks = 0
        self._trim_blanks()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self.settled()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_CANCEL_SECONDS)

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
            self._spawn(self._park(spec, shape))

    async def _park(self, spec: SandboxSpec, shape: _Shape[P]) -> None:
        try:
            # One at a time: jobs that run now come before jobs that may come.
            async with self._one_at_a_time:
                if self._shapes.get(spec) is not shape:
                    return
                taken = Taken(*await self._build(spec), warm=True)
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

    def _refill_blanks(self) -> None:
        self._trim_blanks()
        while len(self._blanks) + self._beginning < self._most_blanks:
            self._beginning += 1
            self._spawn(self._begin_blank())

    def _trim_blanks(self) -> None:
        """Discard those that have died, and those that are too many."""
        for blank in list(self._blanks):
            usable = self._launcher.can_finish(blank.sandbox)
            if not usable or len(self._blanks) > self._most_blanks:
                self._blanks.pop(blank).cancel()
                self.discard(blank)

    async def _begin_blank(self) -> None:
        try:
            async with self._one_at_a_time:
                if not self._most_blanks:
                    return
                blank = Taken(*await self._make(self._launcher.begin), warm=False)
        except SandboxdError:
            return  # As in `_park`.
        finally:
            self._beginning -= 1
        loop = asyncio.get_running_loop()
        self._blanks[blank] = loop.call_later(self._idle_seconds, self._renew_blank, blank)
        self._trim_blanks()

    def _renew_blank(self, blank: Taken[P]) -> None:
        del self._blanks[blank]
        self.discard(blank)
        self._refill_blanks()

    async def _finish_blank(self, spec: SandboxSpec) -> Taken[P] | None:
        """A blank that becomes this; None: there is none, or it does not fit. Raises SandboxFailed."""
        self._trim_blanks()
        if not self._blanks or not spec.fits_blank:
            return None
        blank, renewal = self._blanks.popitem(last=False)
        renewal.cancel()
        # Another is begun when a job is over (see `_replace`), after this long at the latest: until then the job has the processors.
        asyncio.get_running_loop().call_later(_SHORT_SECONDS, self._refill_blanks)
        try:
            await self._launcher.finish(blank.sandbox, spec)
        except BaseException:
            self.discard(blank)
            raise
        self.blanks_used += 1
        blank.place.watch(blank.sandbox.pid)
        return blank

    async def _build(self, spec: SandboxSpec) -> tuple[Sandbox, P]:
        sandbox, place = await self._make(functools.partial(self._launcher.create, spec))
        place.watch(sandbox.pid)
        return sandbox, place

    async def _make(self, make: Callable[..., Awaitable[Sandbox]]) -> tuple[Sandbox, P]:
        """A sandbox in a place of its own. Raises SandboxdError."""
        place = self._make_place()
        try:
            sandbox = await make(join_files=place.join_files(), cgroup_fd=place.directory_fd())
        except BaseException:
            self._spawn(remove_place(place))
            raise
        return sandbox, place

    def _get_ready(self, shape: _Shape[P], taken: Taken[P]) -> None:
        """One that is taken before has a job that cannot wait for this, and does all of it by itself."""
        if taken not in shape.parked:
            return
        try:
            self._make_ready(taken)
        except SandboxFailed:
            # No other is built in its place: that would fail as well, again and again.
            shape.parked.remove(taken)
            taken.sandbox.kill()
            self._spawn(self._remove(taken))

    async def _replace_later(self, taken: Taken[P]) -> None:
        try:
            await asyncio.sleep(_ANSWER_SECONDS)
        finally:
            taken.sandbox.kill()
        await self._replace(taken)

    async def _replace(self, taken: Taken[P]) -> None:
        await _see_gone(taken)
        # Only now another is built: until here the job, and the answer to who waits for it, had the processors.
        shape = self._shapes.get(taken.sandbox.spec)
        if shape is not None:
            self._refill(taken.sandbox.spec, shape)
        self._refill_blanks()
        await remove_place(taken.place)

    async def _remove(self, taken: Taken[P]) -> None:
        await _see_gone(taken)
        await remove_place(taken.place)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _see_gone(taken: Taken[P]) -> None:
    """Wait until a sandbox that was killed is gone, however long a process of it is stuck in the kernel."""
    if not await see_dead(taken.sandbox, taken.place):
        await taken.sandbox.dead()


async def see_dead(sandbox: Sandbox, place: Place) -> bool:
    """Wait until a sandbox that was killed is gone. False: a process of it is stuck in the kernel.

    Where init's death does not take everything along in time, what is in the place is killed by name.
    """
    if await _dead_in_time(sandbox):
        return True
    await _kill_place(place)
    return await _dead_in_time(sandbox)


async def _kill_place(place: Place) -> None:
    with contextlib.suppress(SandboxFailed):  # It is the second line: the first may still hold.
        await asyncio.to_thread(place.kill)


async def _dead_in_time(sandbox: Sandbox) -> bool:
    try:
        async with asyncio.timeout(_DEATH_SECONDS):
            await sandbox.dead()
    except TimeoutError:
        return False
    return True


async def remove_place(place: Place) -> None:
    """Remove a cgroup, in a thread: the kernel may take its time.

    For a moment after a process is gone the kernel may still count it (cgroup v1 sends no event). What is in it for longer
    is killed: of a sandbox that was not ready in time nobody knows the processes.
    """
    for tried in range(_REMOVAL_TRIES):
        if await asyncio.to_thread(place.remove):
            return
        if tried == _TRIES_BEFORE_KILL:
            await _kill_place(place)
        await asyncio.sleep(_REMOVAL_PAUSE_SECONDS)
