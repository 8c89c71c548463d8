"""Which waiting job runs next, and writing down how it ended.

The record in the store is the truth. What is kept here is who is at work on a job right now, so that its log can be read, its end
awaited, and its command stopped.
"""

import asyncio
import contextlib
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from sandboxd import admission
from sandboxd.admission import NOTHING, Blocked, Choice, Occupant, Room, need_of, room_for
from sandboxd.errors import NotFound, QuotaExceeded, SandboxdError, Unavailable
from sandboxd.files.content import Contents
from sandboxd.isolation.spec import NetworkMode
from sandboxd.jobs import (
    TERMINAL,
    Candidate,
    Component,
    Job,
    JobError,
    JobSpec,
    Reason,
    Result,
    RunResult,
    Sample,
    State,
    Stream,
)
from sandboxd.metrics import Metrics
from sandboxd.occupancy import Occupancy
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.pressure import FREE_DISK, Pressure
from sandboxd.quotas.tenants import Holder
from sandboxd.running.commands import Stop
from sandboxd.running.fetching import Meanwhile
from sandboxd.running.runner import NotAccepted, Runner
from sandboxd.running.sampling import Samples
from sandboxd.settlement import Settlement, may_retry
from sandboxd.store.logs import JobLog, StoredLog, remove_log
from sandboxd.store.records import Deleted, Idempotency, Submitted, claimed_at_once, taken_in
from sandboxd.store.sqlite import SqliteStore
from sandboxd.tenants import Tenants
from sandboxd.watchers import Watchers

logger = structlog.get_logger(__name__)

_SHOW_RUNNING_SECONDS = 0.1
"""A job that runs longer is shown as running in the record; a shorter one goes from starting to its end."""
_SPILL_SECONDS = 1.0
"""The log of a job that runs longer goes to a file, so that a crash keeps what there was."""
_PATIENCE_SECONDS = 0.01
"""A job that runs before it is on the disk is there after so long, or with its end."""
_RECENT_LOGS = 64
_MAINTENANCE_SECONDS = 5.0
_PRESSURE_SECONDS = 1.0
"""Until a host that had too little of something is looked at again."""
_AWAY_PER_SLOT = 4
"""Of jobs that wait for their images without room. More than that keep their room while they wait."""
_NEW_PART = 0.1
"""Of the mean duration."""
_EXPIRE_BATCH = 1000


class _Active:
    """A job that this process works on."""

    def __init__(self, job: Job, log: JobLog, occupant: Occupant) -> None:
        self.job = job
        self.log = log
        self.occupant = occupant
        """The room that it has."""
        self.stop = Stop()
        self.task: asyncio.Task[None] | None = None
        self.started_at: float | None = None
        self.samples = Samples()
        self.handed_in = asyncio.Event()
        """It is in the store, or in the store's queue: what is written of it comes after that."""
        self.runs: list[RunResult] = []
        """Of a job of steps: those that have ended."""


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
    """One of WORDS, of `quotas.pressure`, `tenant`, `key`, `image` or `retry`."""
    position: int
    """How many are before it."""
    expected_at: float | None
    """When it should start, as the last ones went (Unix time); None where nothing is known."""


WORDS = {"slots": "slot", "memory_bytes": "memory", "millicpus": "cpus"}
"""A field of `Room` in the words of the API."""


class Scheduler:
    """Takes jobs in, runs as many at once as there are slots, settles them."""

    def __init__(
        self,
        store: SqliteStore,
        runner: Runner,
        metrics: Metrics,
        *,
        owner: str,
        room: Room,
        pressure: Pressure,
        tenants: Tenants,
        max_queued: int,
        uploads: Contents,
        artifacts: Contents,
        log_directory: Path,
        inline_log_bytes: int,
    ) -> None:
        self._store = store
        self._runner = runner
        self._metrics = metrics
        self._owner = owner
        self._occupancy = Occupancy(room)
        self._pressure = pressure
        self._tenants = tenants
        self._max_queued = max_queued
        self._uploads = uploads
        self._artifacts = artifacts
        self._log_directory = log_directory
        self._inline_log_bytes = inline_log_bytes
        self._active: dict[str, _Active] = {}
        self._queued = 0
        self._waiting: dict[str, str] = {}
        """Job to tenant, of those that were accepted here and have not begun since: that they have not ended is known without the store."""
        self._may_wait = True
        """Whether the store may hold jobs that wait: only then is it asked."""
        self._wake = asyncio.Event()
        self._look_again = asyncio.Event()
        """There is something new that time will change: a job that waits no longer than so long."""
        self._recent: OrderedDict[str, tuple[str, StoredLog]] = OrderedDict()
        """Tenant and log of the jobs that ended last: who waited for a job reads its output at once."""
        self._ends: Watchers[Job] = Watchers()
        self._starts: Watchers[None] = Watchers()
        self._run_ends: Watchers[None] = Watchers()
        self._settlement = Settlement(store, metrics, tenants, log_directory)
        self._away: Counter[tuple[str, str]] = Counter()
        """Tenant and image to how many jobs wait for it without room."""
        self._held_back = False
        """Jobs wait only because as many of their tenants' or their keys' run as may."""
        self._lacking: str | None = None
        """Why jobs wait although there may be room: what the host has too little of."""
        self._blocked: Blocked | None = None
        """The first of the jobs that wait, when it was last looked for."""
        self._turns: dict[str, int] = {}
        """Tenant to a number that is higher the later its last job began."""
        self._turn = 0
        self._mean_seconds: float | None = None
        """Of a job, lately."""
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    # Life

    async def start(self) -> None:
        """Settle what a dead process left, then go on with what waits."""
        for job in await self._store.recover(self._owner):
            await self._settlement.lost(job)
        await self._sweep()
        counts = await self._store.counts()
        self._queued = counts.get(State.QUEUED, 0) + counts.get(State.RETRYING, 0)
        self._spawn(self._claim_for_ever())
        self._spawn(self._maintain())

    async def _sweep(self) -> None:
        """Remove what a process that was killed left of files, for no job."""
        waiting, ended = (
            await self._store.unfinished_jobs(),
            await self._store.jobs_with_artifacts(),
        )
        for contents, keep in ((self._uploads, waiting), (self._artifacts, ended)):
            with _told("leftover files not removed"):
                await asyncio.to_thread(contents.sweep, keep)

    @property
    def draining(self) -> bool:
        """Whether no more jobs are taken."""
        return self._draining

    async def drain(self, grace_seconds: float) -> None:
        """Take no more jobs from now on, and give the running ones so long to end."""
        self._draining = True
        running = [active.task for active in self._active.values() if active.task is not None]
        if running and grace_seconds > 0:
            await asyncio.wait(running, timeout=grace_seconds)

    async def close(self, grace_seconds: float) -> None:
        """Take no more jobs, give the running ones so long to end, then end them."""
        await self.drain(grace_seconds)
        self._settlement.give_up()
        for active in list(self._active.values()):
            active.stop(Reason.SHUTDOWN)
        while remaining := [a.task for a in self._active.values() if a.task is not None]:
            await asyncio.wait(remaining)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What the API asks

    async def submit(
        self, job: Job, *, idempotency: Idempotency | None = None, client_waits: bool = False
    ) -> Submitted:
        """Accept a job; it is on the disk when this returns.

        Where a slot is free and nobody waits, it is claimed in the same commit. Where its client waits for its end anyway
        (`client_waits`), one commit may do for its acceptance and its end: then it has ended when this returns.
        Raises Unavailable, Invalid.
        """
        self._check_not_draining()
        need = need_of(job.spec).within(self._occupancy.whole)
        lacking = self._pressure.lacking()
        if lacking == FREE_DISK:
            detail = "the host has too little free disk space for another record"
            raise Unavailable(detail, code="disk_low", retry_after_seconds=10)
        bounds = self._tenants.bounds(job.tenant, job.key_id)
        has_enough = self._who_has_enough(job.tenant, job.key_id) is not None
        has_enough |= self._is_crowded(job.tenant, job.spec.image)
        fits = self._occupancy.free.lacks(need) is None and not has_enough
        at_once = not self._may_wait and lacking is None and fits
        if not at_once and self._queued >= self._max_queued:
            raise Unavailable(
                f"{self._queued} jobs wait already", code="queue_full", retry_after_seconds=1
            )
        # In this turn of the loop: whoever comes in the same turn finds the room taken. And what follows is shielded: a client
        # that goes away while its job is stored must not leave one that is claimed and never run.
        occupant = self._enter(job, need) if at_once else None
        if occupant is not None and idempotency is None and not bounds.need_the_record:
            early = client_waits and _shows_only_in_its_answer(job.spec)
            accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            claimed = claimed_at_once(taken_in(job))
            active = self._begin(claimed, occupant, accepted, early=early)
            return await asyncio.shield(self._accept_begun(job, active, accepted, early))
        self._queued += occupant is None
        return await asyncio.shield(self._accept(job, idempotency, occupant))

    def _check_not_draining(self) -> None:
        """Raises Unavailable."""
        if self._draining:
            raise Unavailable(
                "the service is shutting down", code="draining", retry_after_seconds=5
            )

    def _enter(self, job: Job, need: Room) -> Occupant:
        """Room for a job from now on."""
        until = time.time() + job.spec.limits.wall_seconds
        return self._occupancy.enter(job.tenant, need, until, key_id=job.key_id)

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
                self._occupancy.leave(occupant)
                if self._queued:
                    self.look_at_waiting()
            elif not new:
                self._queued -= 1
        if not new:
            return submitted
        self._metrics.submitted(job.spec)
        if occupant is not None:
            self._begin(submitted.job, occupant)
            return submitted
        self._waiting[submitted.job.id] = submitted.job.tenant
        self.look_at_waiting()
        if job.spec.queue_seconds is not None:
            self._look_again.set()
        return submitted

    async def _accept_begun(
        self, job: Job, active: _Active, accepted: "asyncio.Future[None]", early: bool
    ) -> Submitted:
        """Write the job down while its sandbox is made ready. Its command starts when it is on the disk, unless `early`.

        Early: nobody can tell whether it runs before that, for nobody hears of it. If the host dies meanwhile, it never was.
        """
        with self._ends.watching(job.id) as ended:
            if early:
                # The command is on its way before the writer's thread takes processor time.
                await asyncio.sleep(0)
            active.handed_in.set()  # What comes next is put into the store's queue in this very step.
            try:
                submitted = await self._store.submit(
                    job,
                    claim_owner=self._owner,
                    patience_seconds=_PATIENCE_SECONDS if early else 0.0,
                    bounds=self._tenants.bounds(job.tenant, job.key_id),
                )
            except BaseException:
                accepted.set_exception(NotAccepted)
                accepted.exception()  # Nobody may be waiting for it any more.
                active.stop(Reason.SHUTDOWN)
                raise
            accepted.set_result(None)
            self._metrics.submitted(job.spec)
            if early:
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
        active = self._active.get(job_id)
        if job.state in TERMINAL:
            if job.finished_at == now:  # It was this call that ended it, while it waited.
                await self._end_waiting(job)
            self._ends.tell(job.id, job)
        elif active is not None and active.job.tenant == tenant:
            active.stop(
                reason,
                grace_seconds=grace_seconds,
                message=message or "cancelled by the client",
            )
        return job

    async def wait(self, tenant: str, job_id: str, timeout_seconds: float) -> Job:
        """The job when it has ended, or as it is after so long. Raises NotFound."""
        with self._ends.watching(job_id) as ended:
            active = self._active.get(job_id)
            goes_on = active is not None and active.job.tenant == tenant
            if not goes_on and self._waiting.get(job_id) != tenant:
                job = await self._store.get(tenant, job_id)
                if job.state in TERMINAL:
                    return job
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    return await ended
        return await self._store.get(tenant, job_id)

    async def wait_started(self, tenant: str, job_id: str, timeout_seconds: float) -> Job:
        """The job when it waits no more, or as it is after so long. Raises NotFound."""
        with self._starts.watching(job_id) as started:
            job = await self._store.get(tenant, job_id)
            if job_id in self._active or job.state in TERMINAL:
                return job
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await started
        return await self._store.get(tenant, job_id)

    async def log(self, tenant: str, job_id: str) -> JobLog | StoredLog:
        """The log of a job, live or stored. Raises NotFound where there is none yet."""
        active = self._active.get(job_id)
        if active is not None and active.job.tenant == tenant:
            return active.log
        owner, ended = self._recent.get(job_id, (None, None))
        if ended is not None and owner == tenant:
            return ended
        log = await self._store.log(tenant, job_id)
        if log is None:
            raise NotFound("the job has no log yet", code="no_log")
        return log

    async def samples(self, tenant: str, job_id: str) -> tuple[Sample, ...]:
        """What a job used so far, or in all, moment by moment. Raises NotFound."""
        active = self._active.get(job_id)
        if active is not None and active.job.tenant == tenant:
            return tuple(active.samples.taken)
        return await self._store.samples(tenant, job_id)

    def runs(self, job: Job) -> tuple[RunResult, ...]:
        """The runs of a job of steps that have ended so far."""
        if job.result is not None:
            return job.result.runs
        active = self._active.get(job.id)
        return () if active is None else tuple(active.runs)

    async def wait_run(self, tenant: str, job_id: str, seen: int, timeout_seconds: float) -> Job:
        """The job when more than `seen` of its runs have ended, or all of it, or as it is after so long. Raises NotFound."""
        with self._run_ends.watching(job_id) as another, self._ends.watching(job_id) as end:
            job = await self._store.get(tenant, job_id)
            if job.state not in TERMINAL and len(self.runs(job)) <= seen:
                await asyncio.wait(
                    (another, end), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                job = await self._store.get(tenant, job_id)
        return job

    def capacity(self) -> Capacity:
        """What may be in use at once and what is, and how many jobs wait."""
        pulling = self._away.total()
        busy = len(self._active) - pulling
        return Capacity(
            room=self._occupancy.whole,
            in_use=self._occupancy.in_use,
            busy=busy,
            pulling=pulling,
            held=self._occupancy.in_use.slots - busy,
            queued=self._queued,
        )

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
        self._check_not_draining()
        holder = self._who_has_enough(tenant, key_id)
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
                return await self._occupancy.wait(tenant, need, until, key_id=key_id)
        except BaseException as error:
            self._wake.set()
            if isinstance(error, TimeoutError):
                raise self._no_room(need) from None
            raise

    def _no_room(self, need: Room) -> Unavailable:
        whole = self._occupancy.whole
        lacks = whole.minus(self._occupancy.in_use).lacks(need.within(whole)) or "slots"
        if lacks == "slots":
            detail, code = f"all {whole.slots} slots are busy", "no_slot"
        else:
            detail, code = f"too much of the {WORDS[lacks]} is in use", "no_room"
        return Unavailable(detail, code=code, retry_after_seconds=1)

    def keep(self, job: Job, *, until: float) -> Occupant:
        """Hold the room of a job that is about to give it back."""
        return self._occupancy.enter(job.tenant, need_of(job.spec), until, key_id=job.key_id)

    def change(
        self, held: Occupant, limits: Limits, *, until: float, in_any_case: bool = False
    ) -> Occupant:
        """Hold other room in its place. Raises Unavailable, and nothing has changed."""
        need = room_for(limits)
        more = need.within(self._occupancy.whole).minus(held.need).positive()
        if not in_any_case and more != NOTHING and self._occupancy.free.lacks(more) is not None:
            raise self._no_room(need)
        other = self._occupancy.enter(held.tenant, need, until, key_id=held.key_id)
        self.release(held)
        return other

    def release(self, occupant: Occupant) -> None:
        """Give back room: that was held, or that a job had."""
        self._occupancy.leave(occupant)
        if self._may_wait or self._held_back:
            self.look_at_waiting()

    async def waits(self, job: Job) -> Waits:
        """What a job that waits is waiting for, and when it should start."""
        now = time.time()
        position = await self._store.waiting_before(job, now)
        if job.state is State.RETRYING:
            return Waits("retry", position, None)
        holder = self._who_has_enough(job.tenant, job.key_id)
        if holder is not None:
            return Waits(holder, position, None)
        if self._is_crowded(job.tenant, job.spec.image):
            return Waits("image", position, None)
        blocked = self._blocked
        reason = self._lacking or WORDS[blocked.lacks if blocked else "slots"]
        expected = None
        if self._mean_seconds is not None:
            slots = max(1, self._occupancy.whole.slots)
            expected = now + self._mean_seconds * (position + 1) / slots
        if blocked is not None and blocked.job_id == job.id and blocked.starts_by != math.inf:
            latest = max(now, blocked.starts_by)
            expected = latest if expected is None else min(expected, latest)
        return Waits(reason, position, expected)

    def _who_has_enough(self, tenant: str, key_id: str | None) -> Holder | None:
        """Of whom as many run as may; None: one more of this tenant and this key may."""
        if 0 < self._tenants.most_at_once(tenant) <= self._occupancy.count(tenant):
            return Holder.TENANT
        return Holder.KEY if key_id is not None and self._key_has_enough(key_id) else None

    def _key_has_enough(self, key_id: str) -> bool:
        return 0 < self._tenants.most_of_key(key_id) <= self._occupancy.count_of_key(key_id)

    def _note_seconds(self, job: Job) -> None:
        """A mean that forgets: the last ten or so count."""
        if job.result is None or job.result.started_at is None:
            return
        seconds = max(0.0, time.time() - job.result.started_at)
        mean = self._mean_seconds
        self._mean_seconds = seconds if mean is None else mean + _NEW_PART * (seconds - mean)

    # Running

    def look_at_waiting(self) -> None:
        """Jobs may wait that may start now."""
        self._may_wait = True
        self._wake.set()

    async def _claim_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._occupancy.free.slots <= 0 or not self._may_wait or self._draining:
                continue
            try:
                self._lacking = self._pressure.lacking()
                if self._lacking is None:
                    await self._claim()
                    continue
            except Exception:
                # Whatever it is: what waits must be looked at again.
                logger.exception("waiting jobs not looked at")
                self._may_wait = True
            asyncio.get_running_loop().call_later(_PRESSURE_SECONDS, self._wake.set)

    async def _claim(self) -> None:
        now, whole, occupants = time.time(), self._occupancy.whole, self._occupancy.occupants
        choice, turns = Choice(), dict(self._turns)
        keys = {occupant.key_id for occupant in occupants if occupant.key_id is not None}
        passed_over = [key_id for key_id in keys if self._key_has_enough(key_id)]
        of_images = [each for each in self._away if self._is_crowded(*each)]
        free = self._occupancy.promise()

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
            self._occupancy.take_back(free)
            for job in jobs:
                self._begin(job, self._enter(job, need_of(job.spec)))
            self._occupancy.hand_out()  # Only now: what is left.
        self._blocked = choice.blocked
        self._held_back = choice.held_back or bool(passed_over) or bool(of_images)
        self._queued = max(0, self._queued - len(jobs))
        if choice.blocked is not None:
            self._may_wait = True  # Until something ends there is nothing to do.
        elif jobs:
            self.look_at_waiting()  # Not all that wait were looked at.

    def _begin(
        self,
        job: Job,
        occupant: Occupant,
        accepted: "asyncio.Future[None] | None" = None,
        *,
        early: bool = False,
    ) -> _Active:
        log = JobLog(
            self._log_directory,
            job.id,
            limit_bytes=job.spec.limits.output_bytes,
            inline_bytes=self._inline_log_bytes,
        )
        active = self._active[job.id] = _Active(job, log, occupant)
        self._waiting.pop(job.id, None)
        self._turn += 1
        self._turns[job.tenant] = self._turn
        if job.cancel_requested:
            active.stop(Reason.CANCELLED_BY_CLIENT, message="cancelled by the client")
        active.task = asyncio.get_running_loop().create_task(self._work(active, accepted, early))
        self._starts.tell(job.id, None)
        return active

    async def _work(
        self, active: _Active, accepted: "asyncio.Future[None] | None", early: bool
    ) -> None:
        """One attempt, from claim to settlement. Whatever goes wrong, the slot is freed."""
        try:
            result = await self._attempt(active, accepted, early)
            # Also while the acceptance is being written: the store keeps the order, and one commit may do for both.
            if accepted is not None:
                await active.handed_in.wait()

            async def check() -> None:
                if accepted is not None:
                    await asyncio.shield(accepted)

            await self._settle(active, result, check)
        except NotAccepted:
            active.log.discard()  # Who sent it is told by its own call.
        except Exception:
            logger.exception("job not settled", job_id=active.job.id)
        finally:
            del self._active[active.job.id]
            self.release(active.occupant)

    async def _attempt(
        self, active: _Active, accepted: "asyncio.Future[None] | None", early: bool
    ) -> Result:
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_later(_SHOW_RUNNING_SECONDS, self._show_running, active),
            loop.call_later(_SPILL_SECONDS, self._spill, active),
        ]
        begun = loop.time()

        def receive(stream: Stream, piece: bytes) -> bool:
            try:
                return active.log.append(stream, piece, time.time())
            except OSError as error:
                active.stop(Reason.LOG_FAILED, message=f"its output could not be kept: {error}")
                return True

        def on_start(started_at: float) -> None:
            active.started_at = started_at
            if loop.time() > begun + _SHOW_RUNNING_SECONDS:
                timers.append(loop.call_later(_SHOW_RUNNING_SECONDS, self._show_running, active))

        def on_run(run: RunResult) -> None:
            active.runs.append(run)
            self._run_ends.tell(active.job.id, None)

        try:
            return await self._runner.run(
                active.job,
                active.stop,
                receive,
                accepted=None if early else accepted,
                samples=active.samples,
                on_start=on_start,
                on_run=on_run,
                meanwhile=Meanwhile(
                    away=lambda: self._without_room(active),
                    note=lambda reason, message: self._note(active, accepted, reason, message),
                ),
            )
        except NotAccepted:
            raise
        except Exception:
            logger.exception("job failed inside the service", job_id=active.job.id)
            return _internal_error()
        finally:
            for timer in timers:
                timer.cancel()

    @contextlib.asynccontextmanager
    async def _without_room(self, active: _Active) -> AsyncIterator[None]:
        """Within, a job that waits for its image leaves its room to others, and has some again when the image is there.

        It still counts as one of its tenant's. Not where too many do so already: what they have in memory is bounded.
        """
        job = active.job
        wanted = (job.tenant, job.spec.image)
        if self._away.total() >= _AWAY_PER_SLOT * self._occupancy.whole.slots:
            yield
            return
        need, until = active.occupant.need, active.occupant.until

        def go_away() -> None:
            active.occupant = self._occupancy.enter(job.tenant, NOTHING, until, key_id=job.key_id)

        left = active.occupant
        go_away()
        self._away[wanted] += 1
        self.release(left)
        try:
            yield
            # It was chosen before: it goes before those that still wait to be.
            self._occupancy.leave(active.occupant)
            try:
                until = time.time() + job.spec.limits.wall_seconds
                active.occupant = await self._occupancy.wait(
                    job.tenant, need, until, key_id=job.key_id
                )
            except BaseException:
                go_away()
                raise
        finally:
            self._away[wanted] -= 1
            self._away += Counter()  # Without those that are 0.
            self.look_at_waiting()

    async def _note(
        self,
        active: _Active,
        accepted: "asyncio.Future[None] | None",
        reason: Reason,
        message: str,
    ) -> None:
        """Write down what happened to a job that starts. Raises NotAccepted."""
        if accepted is not None:
            await asyncio.shield(accepted)
        job = active.job
        with contextlib.suppress(Unavailable):  # It is for the reader only.
            await self._store.note_start(job.id, job.lease_token, reason, message, time.time())

    def _is_crowded(self, tenant: str, image: str) -> bool:
        """Whether as many jobs of a tenant wait for an image as could start at once when it is there: others wait in the queue.

        What another tenant's jobs wait for may be here for this one, or come sooner.
        """
        return self._away[tenant, image] >= self._occupancy.whole.slots

    async def _settle(
        self, active: _Active, result: Result, check: Callable[[], Awaitable[None]]
    ) -> None:
        """Write down the end, or that there will be another attempt; tell who waits.

        `check` raises NotAccepted where there is no job to settle; asked where the store does not take the end.
        """
        job = active.job
        if may_retry(job, result):
            active.log.discard()
            await self._remove(self._artifacts, job, of=result.artifact_count > 0)
            if await self._settlement.retry(job, result, check):
                self._queued += 1
                self._look_again.set()
            return
        log = active.log.close()
        if active.samples.taken:
            result = msgspec.structs.replace(result, samples=tuple(active.samples.taken))
        ended = await self._settlement.end(job, result, log, check)
        if ended is None:
            return
        await self._remove(self._uploads, job, of=job.spec.has_upload)
        await self._drop_artifacts(ended, of=result.artifact_count)
        if log.path is None and not self._tenants.of(job.tenant).storage_bytes:
            # With a bound on storage, the record may have less of it.
            self._recent[job.id] = (job.tenant, log)
            if len(self._recent) > _RECENT_LOGS:
                self._recent.popitem(last=False)
        self._note_seconds(ended)
        if not await active.stop.gone():
            logger.error("a process is stuck in the kernel", job_id=job.id)
        self._ends.tell(job.id, ended)

    async def _drop_artifacts(self, job: Job, *, of: int) -> None:
        """Remove the content of those, of so many, that the record did not take."""
        if job.result is not None and job.result.artifact_count < of:
            kept_bytes = sum(artifact.size_bytes for artifact in job.result.artifacts)
            with _told("files not removed", job_id=job.id):
                await asyncio.to_thread(self._artifacts.cut, job.id, kept_bytes)

    async def _remove(self, contents: Contents, job: Job, *, of: bool) -> None:
        """Remove a job's content, if it has any."""
        if of:
            with _told("files not removed", job_id=job.id):
                await asyncio.to_thread(contents.remove, [job.id])

    async def _end_waiting(self, job: Job) -> None:
        self._waiting.pop(job.id, None)
        await self._remove(self._uploads, job, of=job.spec.has_upload)
        self._queued = max(0, self._queued - 1)
        if job.result is not None:
            self._metrics.finished(job.result)

    def _show_running(self, active: _Active) -> None:
        if active.started_at is not None:
            self._spawn(self._mark_running(active, active.started_at))

    async def _mark_running(self, active: _Active, started_at: float) -> None:
        # It is for the reader only; the end says it again.
        with contextlib.suppress(Unavailable):
            job = active.job
            await self._store.mark_running(job.id, job.lease_token, started_at)

    def _spill(self, active: _Active) -> None:
        with contextlib.suppress(OSError):
            active.log.spill()

    async def _maintain(self) -> None:
        """What time does to jobs: waiting ones expire, retries come due, records get too old."""
        while True:
            try:
                await self._expire_waiting()
                deleted = await self._store.delete_expired(time.time(), _EXPIRE_BATCH)
                with _told("files not removed"):
                    await asyncio.to_thread(self._remove_files_of, deleted)
                self.look_at_waiting()
                due = await self._store.next_due(time.time())
            except SandboxdError as error:
                logger.warning("maintenance failed", error=str(error))
                due = None
            pause = _MAINTENANCE_SECONDS if due is None else due - time.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(pause, 0.01), _MAINTENANCE_SECONDS)):
                    await self._look_again.wait()
            self._look_again.clear()

    def _remove_files_of(self, deleted: Deleted) -> None:
        for path in deleted.logs:
            remove_log(path)
        self._artifacts.remove(deleted.job_ids)

    async def _expire_waiting(self) -> None:
        for job in await self._store.expire_waiting(time.time()):
            await self._end_waiting(job)
            self._ends.tell(job.id, job)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _shows_only_in_its_answer(spec: JobSpec) -> bool:
    """Whether nothing of what the job does is seen outside its sandbox before its record says that there is a job."""
    return (
        spec.network.mode is NetworkMode.NONE
        and not spec.outputs
        and spec.keep_on_failure_seconds is None
    )


@contextlib.contextmanager
def _told(event: str, **facts: str) -> Iterator[None]:
    """What the disk does not do now is told; the next start sweeps it up."""
    try:
        yield
    except OSError as error:
        logger.warning(event, error=str(error), **facts)


def _internal_error() -> Result:
    return Result(
        state=State.ERROR,
        reason=Reason.INTERNAL,
        error=JobError(
            component=Component.QUEUE,
            code=Reason.INTERNAL,
            message="the service failed while it ran the job; its log says why",
        ),
    )
