"""Room on this host: for jobs, for live sandboxes, and none for a job while its image comes.

Who may have some is a matter of what is free (`occupancy`) and of how many of a tenant's and a key's may run at once.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from sandboxd.admission import NOTHING, Occupant, Room, need_of, room_for
from sandboxd.errors import QuotaExceeded, Unavailable
from sandboxd.jobs import Job
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.tenants import Holder
from sandboxd.scheduling.occupancy import Occupancy
from sandboxd.tenants import Tenants

WORDS = {"slots": "slot", "memory_bytes": "memory", "millicpus": "cpus"}
"""A field of `Room` in the words of the API."""

_AWAY_PER_SLOT = 4
"""Of jobs that wait for their images without room. More than that keep their room while they wait."""


class Lodger(Protocol):
    """A job that has room."""

    job: Job
    occupant: Occupant


class Rooms:
    """The room of this host and who has it."""

    def __init__(self, whole: Room, tenants: Tenants) -> None:
        self.occupancy = Occupancy(whole)
        self.on_free: Callable[[], None] = lambda: None
        """Called when somebody who waits may have room now."""
        self._draining = False
        self._tenants = tenants
        self._away: Counter[tuple[str, str]] = Counter()
        """Tenant and image to how many jobs wait for it without room."""

    @property
    def whole(self) -> Room:
        """All that may be in use at once."""
        return self.occupancy.whole

    @property
    def away(self) -> int:
        """How many jobs wait for their images without room."""
        return self._away.total()

    @property
    def draining(self) -> bool:
        """Whether nobody new gets room, for the service is about to end."""
        return self._draining

    def drain(self) -> None:
        """Nobody new gets room from now on."""
        self._draining = True

    def check_not_draining(self) -> None:
        """Raises Unavailable."""
        if self._draining:
            raise Unavailable(
                "the service is shutting down", code="draining", retry_after_seconds=5
            )

    # Jobs

    def enter(self, job: Job, *, until: float | None = None) -> Occupant:
        """Room for a job from now on, whether it is free or not. `until`: see Occupant; else as long as the job may run."""
        if until is None:
            until = time.time() + job.spec.limits.wall_seconds
        return self.occupancy.enter(job.tenant, need_of(job.spec), until, key_id=job.key_id)

    def release(self, occupant: Occupant) -> None:
        """Give back room: that was held, or that a job had."""
        self.occupancy.leave(occupant)
        self.on_free()

    @contextlib.asynccontextmanager
    async def without(self, lodger: Lodger) -> AsyncIterator[None]:
        """Within, a job that waits for its image leaves its room to others, and has some again when the image is there.

        It still counts as one of its tenant's. Not where too many do so already: what they have in memory is bounded.
        """
        job = lodger.job
        wanted = (job.tenant, job.spec.image)
        if self.away >= _AWAY_PER_SLOT * self.whole.slots:
            yield
            return
        left = lodger.occupant

        def go_away() -> None:
            lodger.occupant = self.occupancy.enter(
                job.tenant, NOTHING, left.until, key_id=job.key_id
            )

        go_away()
        self._away[wanted] += 1
        self.release(left)
        try:
            yield
            # It was chosen before: it goes before those that still wait to be.
            self.occupancy.leave(lodger.occupant)
            try:
                until = time.time() + job.spec.limits.wall_seconds
                lodger.occupant = await self.occupancy.wait(
                    job.tenant, left.need, until, key_id=job.key_id
                )
            except BaseException:
                go_away()
                raise
        finally:
            self._away[wanted] -= 1
            self._away += Counter()  # Without those that are 0.
            self.on_free()

    # Whose turn it is not

    def who_has_enough(self, tenant: str, key_id: str | None) -> Holder | None:
        """Of whom as many run as may; None: one more of this tenant and this key may."""
        if 0 < self._tenants.most_at_once(tenant) <= self.occupancy.count(tenant):
            return Holder.TENANT
        return Holder.KEY if key_id is not None and self._key_has_enough(key_id) else None

    def keys_that_have_enough(self) -> Sequence[str]:
        """With which as many run as may."""
        keys = {each.key_id for each in self.occupancy.occupants if each.key_id is not None}
        return [key_id for key_id in keys if self._key_has_enough(key_id)]

    def _key_has_enough(self, key_id: str) -> bool:
        return 0 < self._tenants.most_of_key(key_id) <= self.occupancy.count_of_key(key_id)

    def is_crowded(self, tenant: str, image: str) -> bool:
        """Whether as many jobs of a tenant wait for an image as could start at once when it is there: others wait in the queue.

        What another tenant's jobs wait for may be here for this one, or come sooner.
        """
        return self._away[tenant, image] >= self.whole.slots

    def crowded(self) -> Sequence[tuple[str, str]]:
        """Tenants and images for which that is so."""
        return [each for each in self._away if self.is_crowded(*each)]

    # Live sandboxes

    async def hold(
        self,
        tenant: str,
        limits: Limits,
        *,
        until: float,
        timeout_seconds: float,
        key_id: str | None = None,
    ) -> Occupant:
        """Take room for what is no job, until `release`. It goes before the jobs that wait. Raises Unavailable, QuotaExceeded.

        `until`: when it is given back at the latest (Unix time).
        """
        self.check_not_draining()
        holder = self.who_has_enough(tenant, key_id)
        if holder is not None:
            whose = "this key" if holder is Holder.KEY else "yours"
            raise QuotaExceeded(
                f"as many jobs and sandboxes of {whose} run as may at once",
                policy="max_concurrency",
                of=holder,
                retry_after_seconds=1,
            )
        need = room_for(limits)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self.occupancy.wait(tenant, need, until, key_id=key_id)
        except BaseException as error:
            self.on_free()
            if isinstance(error, TimeoutError):
                raise self._none_left(need) from None
            raise

    def change(
        self, held: Occupant, limits: Limits, *, until: float, in_any_case: bool = False
    ) -> Occupant:
        """Hold other room in its place. Raises Unavailable, and nothing has changed."""
        need = room_for(limits)
        more = need.within(self.whole).minus(held.need).positive()
        if not in_any_case and more != NOTHING and self.occupancy.free.lacks(more) is not None:
            raise self._none_left(need)
        other = self.occupancy.enter(held.tenant, need, until, key_id=held.key_id)
        self.release(held)
        return other

    def _none_left(self, need: Room) -> Unavailable:
        whole = self.whole
        lacks = whole.minus(self.occupancy.in_use).lacks(need.within(whole)) or "slots"
        if lacks == "slots":
            detail, code = f"all {whole.slots} slots are busy", "no_slot"
        else:
            detail, code = f"too much of the {WORDS[lacks]} is in use", "no_room"
        return Unavailable(detail, code=code, retry_after_seconds=1)
