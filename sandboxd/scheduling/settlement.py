"""Writing down how an attempt ended: for good, or that there will be another one.

While the store cannot be written, the result is held and tried again: a job that ran reaches its terminal state.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog

from sandboxd.errors import Unavailable
from sandboxd.jobs import Component, Job, JobError, Reason, Result, State, Stream
from sandboxd.metrics import Metrics
from sandboxd.store.logs import JobLog, StoredLog, reopen_log
from sandboxd.store.sqlite import SqliteStore
from sandboxd.tenants import Tenants

logger = structlog.get_logger(__name__)

T = TypeVar("T")

_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 10.0


async def _anyway() -> None:
    """Nothing stands against it."""


class Settlement:
    """Settles attempts in the store."""

    def __init__(
        self, store: SqliteStore, metrics: Metrics, tenants: Tenants, log_directory: Path
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._tenants = tenants
        self._log_directory = log_directory
        self._giving_up = asyncio.Event()

    def give_up(self) -> None:
        """The service ends: what cannot be written now is settled by its successor, as lost."""
        self._giving_up.set()

    async def end(
        self,
        job: Job,
        result: Result,
        log: StoredLog,
        check: Callable[[], Awaitable[None]] = _anyway,
    ) -> Job | None:
        """Write the end. None: the lease was lost, and nothing was written. Raises Unavailable (given up).

        What `check` raises where it could not be written is raised here.
        """

        bounds = self._tenants.bounds(job.tenant, job.key_id)

        async def finish() -> Job | None:
            return await self._store.finish(
                job.id, job.lease_token, result, log, time.time(), bounds=bounds
            )

        ended = await self._persist(job, finish, check)
        if ended is None:
            await check()
            self._metrics.lease_lost()
            logger.warning("lease lost", job_id=job.id)
            return None
        if bounds.tells:
            self._tenants.on_told()
        # Counted in the loop's next turn: who waits for the job comes first.
        asyncio.get_running_loop().call_soon(self._count, result, log)
        return ended

    def _count(self, result: Result, log: StoredLog) -> None:
        self._metrics.finished(result)
        for stream in Stream:
            self._metrics.logged(stream, log.size(stream), truncated=log.truncated(stream))

    async def retry(
        self, job: Job, result: Result, check: Callable[[], Awaitable[None]] = _anyway
    ) -> bool:
        """Write that the job waits for another attempt. False: the lease was lost. Raises as `end`."""
        pause = min(_RETRY_SECONDS * 2 ** (job.attempt - 1), _LONGEST_RETRY_SECONDS)
        message = result.error.message if result.error else None

        async def wait_again() -> bool:
            run_at = time.time() + pause
            return await self._store.retry(job.id, job.lease_token, result.reason, message, run_at)

        if not await self._persist(job, wait_again, check):
            await check()
            self._metrics.lease_lost()
            logger.warning("lease lost", job_id=job.id)
            return False
        self._metrics.retried(result.reason)
        return True

    async def lost(self, job: Job) -> None:
        """A job that was running when a former process died: end it, or let it wait again if it may be repeated."""
        self._metrics.reaped()
        message = "the service died while the job ran; whether the command finished is not known"
        if job.reason is Reason.IMAGE_PULL_STARTED:
            message = "the service died while the job's image was pulled; the command did not run"
        result = Result(
            state=State.ERROR,
            reason=Reason.SERVICE_LOST,
            started_at=job.started_at,
            error=JobError(
                component=Component.QUEUE,
                code=Reason.SERVICE_LOST,
                message=message,
                remediation="submit it again, or set retry.max_attempts if it may be repeated",
            ),
        )
        if may_retry(job, result):
            await self.retry(job, result)
            return
        kept = reopen_log(self._log_directory, job.id)
        await self.end(job, result, kept or self._empty_log(job))

    def _empty_log(self, job: Job) -> StoredLog:
        return JobLog(self._log_directory, job.id, limit_bytes=0, inline_bytes=0).close()

    async def _persist(
        self, job: Job, write: Callable[[], Awaitable[T]], check: Callable[[], Awaitable[None]]
    ) -> T:
        pause = _RETRY_SECONDS
        while True:
            try:
                return await write()
            except Unavailable as error:
                await check()
                if self._giving_up.is_set():
                    raise
                logger.warning("end of job not written yet", job_id=job.id, error=str(error))
            try:
                async with asyncio.timeout(pause):
                    await self._giving_up.wait()
            except TimeoutError:
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


_PASSING = frozenset({"registry_failed", "registry_settings", "image_pull_timeout"})
"""What can be wrong with an image and be right the next time."""


def may_retry(job: Job, result: Result) -> bool:
    """Only the platform's own faults are repeated, and only if the client allowed it."""
    return (
        result.state is State.ERROR
        and result.error is not None
        and (result.error.component is not Component.IMAGE or result.error.code in _PASSING)
        and not job.cancel_requested
        and job.attempt < job.spec.retry.max_attempts
    )
