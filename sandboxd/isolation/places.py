"""Where sandboxes are accounted, and how both go: first all processes, then the place."""

import asyncio
import contextlib
from typing import Generic, NamedTuple, Protocol, TypeVar

from sandboxd.errors import SandboxFailed
from sandboxd.isolation.sandbox import Sandbox

_DEATH_SECONDS = 5.0
"""A sandbox whose init was killed is gone in milliseconds; what is left after this has not heard of it, or is stuck."""
_REMOVAL_PAUSE_SECONDS = 0.05
_REMOVAL_TRIES = 200
_TRIES_BEFORE_KILL = 100


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


async def see_gone(sandbox: Sandbox, place: Place) -> None:
    """Wait until a sandbox that was killed is gone, however long a process of it is stuck in the kernel."""
    if not await see_dead(sandbox, place):
        await sandbox.dead()


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
