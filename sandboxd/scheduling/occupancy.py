"""Who has room on this host, who waits for some, and what is free: nothing is given to two.

Everything happens in the event loop, and each step is whole before anybody else has a turn.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from sandboxd.admission import NOTHING, Occupant, Room

_MOST_KEPT_FREE = 0.5
"""Of the host, for somebody who waits for room: for more nobody else is held up."""


class Occupancy:
    """The room of one host."""

    def __init__(self, whole: Room) -> None:
        self.whole = whole
        """All that may be in use at once."""
        self.in_use = NOTHING
        self._occupants: set[Occupant] = set()
        self._promised = NOTHING
        self._wanting: deque[tuple[Occupant, asyncio.Future[None]]] = deque()

    @property
    def occupants(self) -> Sequence[Occupant]:
        """Who has room."""
        return tuple(self._occupants)

    @property
    def free(self) -> Room:
        """What may be given to somebody who comes now: those that wait come first."""
        free = self._unused
        for waiting, _ in self._wanting:
            if waiting.need.share_of(self.whole) <= _MOST_KEPT_FREE:
                free = free.minus(waiting.need)
        return free

    @property
    def _unused(self) -> Room:
        return self.whole.minus(self.in_use).minus(self._promised)

    def count(self, tenant: str) -> int:
        """How many of a tenant's have room, or wait for some."""
        return sum(each.tenant == tenant for each in self._everybody)

    def count_of_key(self, key_id: str) -> int:
        """How many that came with a key have room, or wait for some."""
        return sum(each.key_id == key_id for each in self._everybody)

    @property
    def _everybody(self) -> Sequence[Occupant]:
        return (*self._occupants, *(waiting for waiting, _ in self._wanting))

    def enter(
        self, tenant: str, need: Room, until: float, *, key_id: str | None = None
    ) -> Occupant:
        """Room, until `leave`, whether it is free or not: that is for the caller to see. `until`: see Occupant."""
        occupant = Occupant(tenant, need.within(self.whole), until, key_id)
        self._add(occupant)
        return occupant

    def leave(self, occupant: Occupant) -> None:
        """Give it back: who waits for it gets it."""
        self._occupants.remove(occupant)
        self.in_use = self.in_use.minus(occupant.need)
        self.hand_out()

    async def wait(
        self, tenant: str, need: Room, until: float, *, key_id: str | None = None
    ) -> Occupant:
        """As `enter`, when it is free, in the order of those that wait. Cancelled, it has and wants nothing."""
        occupant = Occupant(tenant, need.within(self.whole), until, key_id)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanting.append((occupant, turn))
        self.hand_out()
        try:
            await turn
        except BaseException:
            if (occupant, turn) in self._wanting:
                self._wanting.remove((occupant, turn))
            elif turn.done() and not turn.cancelled():
                self.leave(occupant)
            raise
        return occupant

    def promise(self) -> Room:
        """Keep all that is free for somebody who does not know yet how much it needs, until `take_back`."""
        free = self.free
        self._promised = self._promised.plus(free)
        return free

    def take_back(self, promised: Room) -> None:
        """It is known now. Who needed some of it enters in the same step, then `hand_out`."""
        self._promised = self._promised.minus(promised)

    def hand_out(self) -> None:
        """Give what is free to those that wait, in their order."""
        while self._wanting:
            occupant, turn = self._wanting[0]
            if not turn.done():
                if self._unused.lacks(occupant.need) is not None:
                    return
                self._add(occupant)
                turn.set_result(None)
            self._wanting.popleft()

    def _add(self, occupant: Occupant) -> None:
        self._occupants.add(occupant)
        self.in_use = self.in_use.plus(occupant.need)
