"""Makes sandboxes, each in a place of its own, and takes them away."""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Generic

from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.places import P, Taken, remove_place, see_gone
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import SandboxSpec

_CANCEL_SECONDS = 1.0


def _nothing() -> None:
    pass


class Workshop(Generic[P]):
    """What is done for the pool, much of it in the background."""

    def __init__(self, launcher: Launcher, make_place: Callable[[], P]) -> None:
        self._launcher = launcher
        self._make_place = make_place
        self._tasks: set[asyncio.Task[None]] = set()
        self.one_at_a_time = asyncio.Lock()
        """For what nobody waits for yet: jobs that run now come before jobs that may come."""

    async def build(self, spec: SandboxSpec, *, warm: bool) -> Taken[P]:
        """A sandbox that stands. Raises SandboxdError."""
        create = functools.partial(self._launcher.create, spec)
        taken = Taken(*await self._make(create), warm=warm)
        taken.place.watch(taken.sandbox.pid)
        return taken

    async def begin(self) -> Taken[P]:
        """One that waits for its shape. Raises SandboxdError."""
        return Taken(*await self._make(self._launcher.begin), warm=False)

    def can_finish(self, begun: Taken[P]) -> bool:
        """Whether that one can still be given a shape."""
        return self._launcher.can_finish(begun.sandbox)

    async def finish(self, begun: Taken[P], spec: SandboxSpec) -> None:
        """Give it this shape: it stands then. Raises SandboxdError, and the sandbox is as good as dead."""
        await self._launcher.finish(begun.sandbox, spec)
        begun.place.watch(begun.sandbox.pid)

    def discard(
        self, taken: Taken[P], *, gone: Callable[[], None] = _nothing, after_seconds: float = 0.0
    ) -> None:
        """End a sandbox, at once or after so long, and remove its place once it is empty. `gone` is called in between."""
        if after_seconds:
            self.spawn(self._discard_later(taken, gone, after_seconds))
        else:
            taken.sandbox.kill()
            self.spawn(_see_off(taken, gone))

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Do it in the background."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait until everything that was begun in the background is done."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def close(self, timeout_seconds: float) -> None:
        """Wait until everything is done, but not for ever: what is not by then is cancelled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self.settled()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_CANCEL_SECONDS)

    async def _make(self, make: Callable[..., Awaitable[Sandbox]]) -> tuple[Sandbox, P]:
        place = self._make_place()
        try:
            sandbox = await make(join_files=place.join_files(), cgroup_fd=place.directory_fd())
        except BaseException:
            self.spawn(remove_place(place))
            raise
        return sandbox, place

    async def _discard_later(
        self, taken: Taken[P], gone: Callable[[], None], after_seconds: float
    ) -> None:
        try:
            await asyncio.sleep(after_seconds)
        finally:
            taken.sandbox.kill()
        await _see_off(taken, gone)


async def _see_off(taken: Taken[P], gone: Callable[[], None]) -> None:
    await see_gone(taken.sandbox, taken.place)
    gone()
    await remove_place(taken.place)
