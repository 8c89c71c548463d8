"""Tasks that nobody waits for, or not at once."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """What goes on beside. It is kept here: the event loop itself would let go of it (asyncio.create_task)."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def tasks(self) -> tuple["asyncio.Task[Any]", ...]:
        """Those that are not done."""
        return tuple(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Begin."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self, timeout_seconds: float | None = None) -> None:
        """Wait until all is done, also what is begun meanwhile, but no longer than so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._tasks:
                    await asyncio.wait(self.tasks)

    async def cancel(self, timeout_seconds: float | None = None) -> None:
        """End what is not done, and wait for that, but no longer than so long."""
        for task in self.tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self.tasks, timeout=timeout_seconds)
