"""Who waits for something to happen to a job."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Watchers(Generic[T]):
    """Futures by job: any number may wait for one, and all are told once."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[T]]] = {}

    @contextlib.contextmanager
    def watching(self, job_id: str) -> Iterator["asyncio.Future[T]"]:
        """A future for the length of the block. Look at the job inside it: what happens from here on is told."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(job_id, set())
        waiting.add(future)
        try:
            yield future
        finally:
            waiting.discard(future)
            if not waiting and self._waiting.get(job_id) is waiting:
                del self._waiting[job_id]

    def tell(self, job_id: str, value: T) -> None:
        """It has happened."""
        for future in self._waiting.pop(job_id, set()):
            if not future.done():
                future.set_result(value)
