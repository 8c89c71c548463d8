"""How far jobs are: read, and waited for.

The record in the store is the truth. What is kept here is who is at work on a job right now, so that its log can be read while it is
written, and its end awaited.
"""

import asyncio
import contextlib
from collections import OrderedDict
from contextlib import AbstractContextManager

from sandboxd.errors import NotFound
from sandboxd.jobs import TERMINAL, Job, RunResult, Sample
from sandboxd.scheduling.active import Active
from sandboxd.scheduling.watchers import Watchers
from sandboxd.store.logs import JobLog, StoredLog
from sandboxd.store.sqlite import SqliteStore

_RECENT_LOGS = 64


class Progress:
    """Which jobs are under way here, and who waits to hear of them."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._active: dict[str, Active] = {}
        self._waiting: dict[str, str] = {}
        """Job to tenant, of those that were accepted here and have not begun since: that they have not ended is known without the store."""
        self._recent: OrderedDict[str, tuple[str, StoredLog]] = OrderedDict()
        """Tenant and log of the jobs that ended last: who waited for a job reads its output at once."""
        self._ends: Watchers[Job] = Watchers()
        self._starts: Watchers[None] = Watchers()
        self._run_ends: Watchers[None] = Watchers()

    # What happens

    def accepted(self, job: Job) -> None:
        """It waits from now on."""
        self._waiting[job.id] = job.tenant

    def begun(self, active: Active) -> None:
        """It waits no more."""
        self._waiting.pop(active.job.id, None)
        self._active[active.job.id] = active
        self._starts.tell(active.job.id, None)

    def run_ended(self, active: Active, run: RunResult) -> None:
        """One run of a job of steps has ended."""
        active.runs.append(run)
        self._run_ends.tell(active.job.id, None)

    def ended(self, job: Job, log: StoredLog | None = None) -> None:
        """It is on the record that the job has ended. With its log, that is at hand for those who read it next."""
        if log is not None:
            self._recent[job.id] = (job.tenant, log)
            if len(self._recent) > _RECENT_LOGS:
                self._recent.popitem(last=False)
        self._waiting.pop(job.id, None)
        self._ends.tell(job.id, job)

    def left(self, active: Active) -> None:
        """Nobody is at work on it any more."""
        del self._active[active.job.id]

    # What is known

    @property
    def active(self) -> tuple[Active, ...]:
        """Those that this process works on."""
        return tuple(self._active.values())

    @property
    def active_count(self) -> int:
        return len(self._active)

    def find(self, tenant: str, job_id: str) -> Active | None:
        """A tenant's job, if this process works on it."""
        active = self._active.get(job_id)
        return active if active is not None and active.job.tenant == tenant else None

    def ending(self, job_id: str) -> AbstractContextManager["asyncio.Future[Job]"]:
        """A future of the job at its end, for the length of the block. Look at the job inside it."""
        return self._ends.watching(job_id)

    async def wait(self, tenant: str, job_id: str, timeout_seconds: float) -> Job:
        """The job when it has ended, or as it is after so long. Raises NotFound."""
        with self.ending(job_id) as ended:
            if self.find(tenant, job_id) is None and self._waiting.get(job_id) != tenant:
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

    async def wait_run(self, tenant: str, job_id: str, seen: int, timeout_seconds: float) -> Job:
        """The job when more than `seen` of its runs have ended, or all of it, or as it is after so long. Raises NotFound."""
        with self._run_ends.watching(job_id) as another, self.ending(job_id) as end:
            job = await self._store.get(tenant, job_id)
            if job.state not in TERMINAL and len(self.runs(job)) <= seen:
                await asyncio.wait(
                    (another, end), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                job = await self._store.get(tenant, job_id)
        return job

    async def log(self, tenant: str, job_id: str) -> JobLog | StoredLog:
        """The log of a job, live or stored. Raises NotFound where there is none yet."""
        active = self.find(tenant, job_id)
        if active is not None:
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
        active = self.find(tenant, job_id)
        if active is not None:
            return tuple(active.samples.taken)
        return await self._store.samples(tenant, job_id)

    def runs(self, job: Job) -> tuple[RunResult, ...]:
        """The runs of a job of steps that have ended so far."""
        if job.result is not None:
            return job.result.runs
        active = self._active.get(job.id)
        return () if active is None else tuple(active.runs)
