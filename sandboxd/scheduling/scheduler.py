"""Taking jobs in, and which of those that wait runs next.

The record in the store is the truth; it is asked only where there may be somebody to find.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from sandboxd import admission
from sandboxd.admission import Blocked, Choice, Occupant, Room, need_of
from sandboxd.background import Background
from sandboxd.errors import SandboxdError, Unavailable
from sandboxd.files.content import Contents
from sandboxd.isolation.spec import NetworkMode
from sandboxd.jobs import TERMINAL, Candidate, Job, JobSpec, Reason, State
from sandboxd.metrics import Metrics
from sandboxd.quotas.pressure import FREE_DISK, Pressure
from sandboxd.running.runner import NotAccepted, Runner
from sandboxd.scheduling.active import Active
from sandboxd.scheduling.job_files import JobFiles
from sandboxd.scheduling.progress import Progress
from sandboxd.scheduling.rooms import WORDS, Rooms
from sandboxd.scheduling.settlement import Settlement
from sandboxd.scheduling.working import Working
from sandboxd.store.records import Idempotency, Submitted, claimed_at_once, taken_in
from sandboxd.store.sqlite import SqliteStore
from sandboxd.tenants import Tenants

logger = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 0.01
"""A job that runs before it is on the disk is there after so long, or with its end."""
_MAINTENANCE_SECONDS = 5.0
_PRESSURE_SECONDS = 1.0
"""Until a host that had too little of something is looked at again."""
_NEW_PART = 0.1
"""Of the mean duration."""
_EXPIRE_BATCH = 1000


class Capacity(NamedTuple):
    """What may be in use at once and what is."""

    room: Room
    in_use: Room
    busy: int
    """Slots of jobs."""
    pulling: int
    """Jobs that wait for their images, and have no slot meanwhile."""
    held: int
    """Slots of live sandboxes, and of jobs that are being stored."""
    queued: int


class Waits(NamedTuple):
    """What a job waits for."""

    reason: str
    """One of `rooms.WORDS`, of `quotas.pressure`, `tenant`, `key`, `image` or `retry`."""
    position: int
    """How many are before it."""
    expected_at: float | None
    """When it should start, as the last ones went (Unix time); None where nothing is known."""


class Scheduler:
    """Takes jobs in, and has as many run at once as there is room for."""

    def __init__(
        self,
        store: SqliteStore,
        runner: Runner,
        metrics: Metrics,
        *,
        owner: str,
        rooms: Rooms,
        progress: Progress,
        pressure: Pressure,
        tenants: Tenants,
        max_queued: int,
        uploads: Contents,
        artifacts: Contents,
        log_directory: Path,
        inline_log_bytes: int,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._owner = owner
        self._rooms = rooms
        self._progress = progress
        self._pressure = pressure
        self._tenants = tenants
        self._max_queued = max_queued
        self._files = JobFiles(uploads, artifacts)
        self._settlement = Settlement(store, metrics, tenants, log_directory)
        self._working = Working(
            store,
            runner,
            self._settlement,
            tenants,
            rooms=rooms,
            progress=progress,
            files=self._files,
            log_directory=log_directory,
            inline_log_bytes=inline_log_bytes,
            on_begin=self._note_turn,
            on_retry=self._wait_again,
            on_end=self._note_seconds,
        )
        self._queued = 0
        self._may_wait = True
        """Whether the store may hold jobs that wait: only then is it asked."""
        self._wake = asyncio.Event()
        self._look_again = asyncio.Event()
        """There is something new that time will change: a job that waits no longer than so long."""
        self._held_back = False
        """Jobs wait that may start when something of their tenant or their key ends, or leaves a crowd that waits for an image."""
        self._claiming = asyncio.Lock()
        self._lacking: str | None = None
        """Why jobs wait although there may be room: what the host has too little of."""
        self._blocked: Blocked | None = None
        """The first of the jobs that wait, when it was last looked for."""
        self._turns: dict[str, int] = {}
        """Tenant to a number that is higher the later its last job began."""
        self._turn = 0
        self._mean_seconds: float | None = None
        """Of a job, lately."""
        self._background = Background()
        rooms.on_free = self._look_if_held_back
        tenants.on_change = self._look_at_waiting

    # Life

    async def start(self) -> None:
        """Settle what a dead process left, then go on with what waits."""
        for job in await self._store.recover(self._owner):
            await self._settlement.lost(job)
        await self._files.sweep(
            unfinished=await self._store.unfinished_jobs(),
            with_artifacts=await self._store.jobs_with_artifacts(),
        )
        counts = await self._store.counts()
        self._queued = counts.get(State.QUEUED, 0) + counts.get(State.RETRYING, 0)
        self._background.spawn(self._claim_for_ever())
        self._background.spawn(self._maintain())

    async def drain(self, grace_seconds: float) -> None:
        """Take no more jobs from now on, and give the running ones so long to end."""
        self._rooms.drain()
        await self._working.drain(grace_seconds)

    async def close(self, grace_seconds: float) -> None:
        """Take no more jobs, give the running ones so long to end, then end them."""
        await self.drain(grace_seconds)
        async with self._claiming:
            pass  # What was just being claimed is begun, or the record would say so for ever.
        await self._working.close()
        await self._background.cancel()

    # What the API asks

    async def submit(
        self, job: Job, *, idempotency: Idempotency | None = None, client_waits: bool = False
    ) -> Submitted:
        """Accept a job; it is on the disk when this returns.

        Where a slot is free and nobody waits, it is claimed in the same commit. Where its client waits for its end anyway
        (`client_waits`), one commit may do for its acceptance and its end: then it has ended when this returns.
        Raises Unavailable, Invalid.
        """
        rooms = self._rooms
        rooms.check_not_draining()
        lacking = self._pressure.lacking()
        if lacking == FREE_DISK:
            detail = "the host has too little free disk space for another record"
            raise Unavailable(detail, code="disk_low", retry_after_seconds=10)
        bounds = self._tenants.bounds(job.tenant, job.key_id)
        has_enough = rooms.who_has_enough(job.tenant, job.key_id) is not None
        has_enough |= rooms.is_crowded(job.tenant, job.spec.image)
        need = need_of(job.spec).within(rooms.whole)
        fits = rooms.occupancy.free.lacks(need) is None and not has_enough
        at_once = not self._may_wait and lacking is None and fits
        if not at_once and self._queued >= self._max_queued:
            raise Unavailable(
                f"{self._queued} jobs wait already", code="queue_full", retry_after_seconds=1
            )
        # In this turn of the loop: whoever comes in the same turn finds the room taken. And what follows is shielded: a client
        # that goes away while its job is stored must not leave one that is claimed and never run.
        occupant = rooms.enter(job) if at_once else None
        if occupant is not None and idempotency is None and not bounds.need_the_record:
            early = client_waits and _shows_only_in_its_answer(job.spec)
            accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            claimed = claimed_at_once(taken_in(job))
            active = self._working.begin(claimed, occupant, accepted, early=early)
            return await asyncio.shield(self._accept_begun(job, active, accepted))
        self._queued += occupant is None
        return await asyncio.shield(self._accept(job, idempotency, occupant))

    async def _accept(
        self, job: Job, idempotency: Idempotency | None, occupant: Occupant | None
    ) -> Submitted:
        """Write the job down; where it has room, it is claimed in the same step."""
        new = False
        try:
            submitted = await self._store.submit(
                job,
                idempotency=idempotency,
                claim_owner=None if occupant is None else self._owner,
                bounds=self._tenants.bounds(job.tenant, job.key_id),
            )
            new = not submitted.replayed
        finally:
            if not new and occupant is not None:
                self._rooms.release(occupant)
            elif not new:
                self._queued -= 1
        if not new:
            return submitted
        self._metrics.submitted(job.spec)
        if occupant is not None:
            self._working.begin(submitted.job, occupant)
            return submitted
        self._progress.accepted(submitted.job)
        self._look_at_waiting()
        if job.spec.queue_seconds is not None:
            self._look_again.set()
        return submitted

    async def _accept_begun(
        self, job: Job, active: Active, accepted: "asyncio.Future[None]"
    ) -> Submitted:
        """Write the job down while its sandbox is made ready. Its command starts when it is on the disk, unless it is `early`.

        Early: nobody can tell whether it runs before that, for nobody hears of it. If the host dies meanwhile, it never was.
        """
        with self._progress.ending(job.id) as ended:
            if active.early:
                # The command is on its way before the writer's thread takes processor time.
                await asyncio.sleep(0)
            active.handed_in.set()  # What comes next is put into the store's queue in this very step.
            try:
                submitted = await self._store.submit(
                    job,
                    claim_owner=self._owner,
                    patience_seconds=_PATIENCE_SECONDS if active.early else 0.0,
                    bounds=self._tenants.bounds(job.tenant, job.key_id),
                )
            except BaseException:
                accepted.set_exception(NotAccepted)
                accepted.exception()  # Nobody may be waiting for it any more.
                active.stop(Reason.SHUTDOWN)
                raise
            accepted.set_result(None)
            self._metrics.submitted(job.spec)
            if active.early:
                await asyncio.sleep(0)  # An end that shared its commit is told in this turn.
            return Submitted(ended.result(), replayed=False) if ended.done() else submitted

    async def cancel(
        self,
        tenant: str,
        job_id: str,
        *,
        grace_seconds: float,
        message: str | None,
        reason: Reason = Reason.CANCELLED_BY_CLIENT,
    ) -> Job:
        """End a job: at once if it waits, after TERM and the grace if it runs. Any number of calls is fine."""
        now = time.time()
        job = await self._store.request_cancel(tenant, job_id, now, message, reason)
        active = self._progress.find(tenant, job_id)
        if job.state in TERMINAL:
            if job.finished_at == now:  # It was this call that ended it, while it waited.
                await self._end_waiting(job)
            self._progress.ended(job)
        elif active is not None:
            active.stop(
                reason,
                grace_seconds=grace_seconds,
                message=message or "cancelled by the client",
            )
        return job

    def capacity(self) -> Capacity:
        """What may be in use at once and what is, and how many jobs wait."""
        in_use, pulling = self._rooms.occupancy.in_use, self._rooms.away
        busy = self._progress.active_count - pulling
        return Capacity(
            room=self._rooms.whole,
            in_use=in_use,
            busy=busy,
            pulling=pulling,
            held=in_use.slots - busy,
            queued=self._queued,
        )

    async def waits(self, job: Job) -> Waits:
        """What a job that waits is waiting for, and when it should start."""
        now = time.time()
        position = await self._store.waiting_before(job, now)
        if job.state is State.RETRYING:
            return Waits("retry", position, None)
        holder = self._rooms.who_has_enough(job.tenant, job.key_id)
        if holder is not None:
            return Waits(holder, position, None)
        if self._rooms.is_crowded(job.tenant, job.spec.image):
            return Waits("image", position, None)
        blocked = self._blocked
        reason = self._lacking or WORDS[blocked.lacks if blocked else "slots"]
        expected = None
        if self._mean_seconds is not None:
            slots = max(1, self._rooms.whole.slots)
            expected = now + self._mean_seconds * (position + 1) / slots
        if blocked is not None and blocked.job_id == job.id and blocked.starts_by != math.inf:
            latest = max(now, blocked.starts_by)
            expected = latest if expected is None else min(expected, latest)
        return Waits(reason, position, expected)

    def _note_seconds(self, job: Job) -> None:
        """A mean that forgets: the last ten or so count."""
        if job.result is None or job.result.started_at is None:
            return
        seconds = max(0.0, time.time() - job.result.started_at)
        mean = self._mean_seconds
        self._mean_seconds = seconds if mean is None else mean + _NEW_PART * (seconds - mean)

    # Those that wait

    def _look_at_waiting(self) -> None:
        """Jobs may wait that may start now."""
        self._may_wait = True
        self._wake.set()

    def _look_if_held_back(self) -> None:
        """There is room: the store is asked only if somebody may wait for it."""
        if self._may_wait or self._held_back:
            self._look_at_waiting()

    def _wait_again(self) -> None:
        self._queued += 1
        self._look_again.set()

    async def _claim_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            no_room = self._rooms.occupancy.free.slots <= 0
            if no_room or not self._may_wait or self._rooms.draining:
                continue
            try:
                self._lacking = self._pressure.lacking()
                if self._lacking is None:
                    async with self._claiming:
                        await self._claim()
                    continue
            except Exception:
                # Whatever it is: what waits must be looked at again.
                logger.exception("waiting jobs not looked at")
                self._may_wait = True
            asyncio.get_running_loop().call_later(_PRESSURE_SECONDS, self._wake.set)

    async def _claim(self) -> None:
        occupancy = self._rooms.occupancy
        now, whole, occupants = time.time(), occupancy.whole, occupancy.occupants
        choice, turns = Choice(), dict(self._turns)
        passed_over = self._rooms.keys_that_have_enough()
        of_images = self._rooms.crowded()
        free = occupancy.promise()

        def choose(waiting: Sequence[Candidate]) -> Sequence[str]:
            nonlocal choice
            choice = admission.choose(
                waiting,
                occupants,
                whole,
                free,
                now,
                turns,
                self._tenants.most_at_once,
                self._tenants.most_of_key,
            )
            return choice.job_ids

        self._may_wait = False
        self._held_back = True  # As long as it is not known: what gives room back meanwhile counts.
        jobs: list[Job] = []
        try:
            jobs = await self._store.claim(
                self._owner, choose, now, passed_over=passed_over, of_images=of_images
            )
        except SandboxdError as error:
            # The maintenance asks again: until then nothing is lost but time.
            logger.warning("claim failed", error=str(error))
            self._may_wait = True
            return
        finally:
            occupancy.take_back(free)
            for job in jobs:
                self._working.begin(job, self._rooms.enter(job))
            occupancy.hand_out()  # Only now: what is left.
        self._blocked = choice.blocked
        self._held_back = choice.held_back or bool(passed_over) or bool(of_images)
        self._queued = max(0, self._queued - len(jobs))
        if choice.blocked is not None:
            self._may_wait = True  # Until something ends there is nothing to do.
        elif jobs:
            self._look_at_waiting()  # Not all that wait were looked at.

    def _note_turn(self, job: Job) -> None:
        self._turn += 1
        self._turns[job.tenant] = self._turn

    async def _end_waiting(self, job: Job) -> None:
        await self._files.remove_upload(job)
        self._queued = max(0, self._queued - 1)
        if job.result is not None:
            self._metrics.finished(job.result)

    async def _maintain(self) -> None:
        """What time does to jobs: waiting ones expire, retries come due, records get too old."""
        while True:
            try:
                await self._expire_waiting()
                deleted = await self._store.delete_expired(time.time(), _EXPIRE_BATCH)
                await self._files.remove_deleted(deleted)
                self._look_at_waiting()
                due = await self._store.next_due(time.time())
            except SandboxdError as error:
                logger.warning("maintenance failed", error=str(error))
                due = None
            pause = _MAINTENANCE_SECONDS if due is None else due - time.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(pause, 0.01), _MAINTENANCE_SECONDS)):
                    await self._look_again.wait()
            self._look_again.clear()

    async def _expire_waiting(self) -> None:
        for job in await self._store.expire_waiting(time.time()):
            await self._end_waiting(job)
            self._progress.ended(job)


def _shows_only_in_its_answer(spec: JobSpec) -> bool:
    """Whether nothing of what the job does is seen outside its sandbox before its record says that there is a job."""
    return (
        spec.network.mode is NetworkMode.NONE
        and not spec.outputs
        and spec.keep_on_failure_seconds is None
    )
