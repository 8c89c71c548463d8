"""Makes sandboxes, each in a place of its own, and takes them away."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Generic

from sandboxd.background import Background
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
        self.background = Background()
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
            self.background.spawn(self._discard_later(taken, gone, after_seconds))
        else:
            taken.sandbox.kill()
            self.background.spawn(_see_off(taken, gone))

    async def close(self, timeout_seconds: float) -> None:
        """Wait until everything is done, but not for ever: what is not by then is cancelled."""
        await self.background.settled(timeout_seconds)
        await self.background.cancel(_CANCEL_SECONDS)

    async def _make(self, make: Callable[..., Awaitable[Sandbox]]) -> tuple[Sandbox, P]:
        place = self._make_place()
        try:
            sandbox = await make(join_files=place.join_files(), cgroup_fd=place.directory_fd())
        except BaseException:
            self.background.spawn(remove_place(place))
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
