"""Sandboxes that are begun before anybody knows their shape, for jobs of shapes that are not parked.

All is built of them that does not depend on a shape. One that nobody needed for a while is replaced: what a command sees of its
sandbox's age is no older.
"""

import asyncio
from collections import OrderedDict
from typing import Generic

from sandboxd.errors import SandboxdError
from sandboxd.isolation.places import P, Taken
from sandboxd.isolation.sandbox import InitEnded
from sandboxd.isolation.spec import SandboxSpec
from sandboxd.isolation.workshop import Workshop

_SHORT_SECONDS = 0.1
"""Most jobs are over by then."""


class Blanks(Generic[P]):
    """So many of them, as long as there are any wished for."""

    def __init__(self, workshop: Workshop[P], *, most: int, idle_seconds: float) -> None:
        self._workshop = workshop
        self._most = most
        self._idle_seconds = idle_seconds
        self._waiting: OrderedDict[Taken[P], asyncio.TimerHandle] = OrderedDict()
        """The oldest first, and what replaces each."""
        self._beginning = 0
        self.used = 0

    def __len__(self) -> int:
        """How many wait for a shape."""
        return len(self._waiting)

    def refill(self) -> None:
        """Begin as many as are missing."""
        self._trim()
        while len(self) + self._beginning < self._most:
            self._beginning += 1
            self._workshop.background.spawn(self._begin())

    async def become(self, spec: SandboxSpec) -> Taken[P] | None:
        """The oldest, which is of this shape now; None: there is none, or it does not fit, or it has just died. Raises SandboxFailed."""
        self._trim()
        if not self._waiting or not spec.fits_blank:
            return None
        blank, renewal = self._waiting.popitem(last=False)
        renewal.cancel()
        # Another is begun when a job is over, which the pool tells, after this long at the latest: until then the job has the processors.
        asyncio.get_running_loop().call_later(_SHORT_SECONDS, self.refill)
        try:
            await self._workshop.finish(blank, spec)
        except InitEnded:
            # Its launcher has just died, mostly. A wall that cannot be built is told instead.
            self._discard(blank)
            return None
        except BaseException:
            self._discard(blank)
            raise
        self.used += 1
        return blank

    def close(self) -> None:
        """No more are wished for."""
        self._most = 0
        self._trim()

    async def _begin(self) -> None:
        try:
            async with self._workshop.one_at_a_time:
                if not self._most:
                    return
                blank = await self._workshop.begin()
        except SandboxdError:
            return  # The next job builds its own sandbox and is told what is wrong.
        finally:
            self._beginning -= 1
        loop = asyncio.get_running_loop()
        self._waiting[blank] = loop.call_later(self._idle_seconds, self._renew, blank)
        self._trim()

    def _trim(self) -> None:
        """Discard those that have died, and those that are too many."""
        for blank in list(self._waiting):
            if not self._workshop.can_finish(blank) or len(self) > self._most:
                self._waiting.pop(blank).cancel()
                self._discard(blank)

    def _renew(self, blank: Taken[P]) -> None:
        del self._waiting[blank]
        self._discard(blank)
        self.refill()

    def _discard(self, blank: Taken[P]) -> None:
        self._workshop.discard(blank, gone=self.refill)
