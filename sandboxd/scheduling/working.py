"""One attempt at a job that has room: run, logged, settled. Whatever goes wrong, its room is given back."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from sandboxd.admission import Occupant
from sandboxd.background import Background
from sandboxd.errors import Unavailable
from sandboxd.jobs import Component, Job, JobError, Reason, Result, RunResult, State, Stream
from sandboxd.running.fetching import Meanwhile
from sandboxd.running.runner import NotAccepted, Runner
from sandboxd.scheduling.active import Active
from sandboxd.scheduling.job_files import JobFiles
from sandboxd.scheduling.progress import Progress
from sandboxd.scheduling.rooms import Rooms
from sandboxd.scheduling.settlement import Settlement, may_retry
from sandboxd.store.logs import JobLog
from sandboxd.store.sqlite import SqliteStore
from sandboxd.tenants import Tenants

logger = structlog.get_logger(__name__)

_SHOW_RUNNING_SECONDS = 0.1
"""A job that runs longer is shown as running in the record; a shorter one goes from starting to its end."""
_SPILL_SECONDS = 1.0
"""The log of a job that runs longer goes to a file, so that a crash keeps what there was."""


class Working:
    """The jobs that run, each in a task of its own."""

    def __init__(
        self,
        store: SqliteStore,
        runner: Runner,
        settlement: Settlement,
        tenants: Tenants,
        *,
        rooms: Rooms,
        progress: Progress,
        files: JobFiles,
        log_directory: Path,
        inline_log_bytes: int,
        on_begin: Callable[[Job], None],
        on_retry: Callable[[], None],
        on_end: Callable[[Job], None],
    ) -> None:
        """`on_begin` is called when a job begins, `on_retry` when one waits for another attempt, `on_end` when its end is on the record."""
        self._store = store
        self._runner = runner
        self._settlement = settlement
        self._tenants = tenants
        self._rooms = rooms
        self._progress = progress
        self._files = files
        self._log_directory = log_directory
        self._inline_log_bytes = inline_log_bytes
        self._on_begin = on_begin
        self._on_retry = on_retry
        self._on_end = on_end
        self._jobs = Background()
        self._notes = Background()
        """What is being written down beside the jobs."""
        self._closing = False

    def begin(
        self,
        job: Job,
        occupant: Occupant,
        accepted: "asyncio.Future[None] | None" = None,
        *,
        early: bool = False,
    ) -> Active:
        """Have a job run that was claimed. For `accepted` and `early` see Active; the room is given back at the end."""
        log = JobLog(
            self._log_directory,
            job.id,
            limit_bytes=job.spec.limits.output_bytes,
            inline_bytes=self._inline_log_bytes,
        )
        active = Active(job, log, occupant, accepted, early=early)
        if job.cancel_requested:
            active.stop(Reason.CANCELLED_BY_CLIENT, message="cancelled by the client")
        if self._closing:
            active.stop(Reason.SHUTDOWN)
        self._jobs.spawn(self._work(active))
        self._on_begin(job)
        self._progress.begun(active)
        return active

    async def drain(self, grace_seconds: float) -> None:
        """Give what runs so long to end."""
        if grace_seconds > 0:
            await self._jobs.settled(grace_seconds)

    async def close(self) -> None:
        """End what runs, and what is still begun."""
        self._closing = True
        self._settlement.give_up()
        for active in self._progress.active:
            active.stop(Reason.SHUTDOWN)
        await self._jobs.settled()
        await self._notes.cancel()

    async def _work(self, active: Active) -> None:
        """One attempt, from claim to settlement."""
        try:
            result = await self._attempt(active)
            # Also while the acceptance is being written: the store keeps the order, and one commit may do for both.
            if active.accepted is not None:
                await active.handed_in.wait()
            await self._settle(active, result)
        except NotAccepted:
            active.log.discard()  # Who sent it is told by its own call.
        except Exception:
            logger.exception("job not settled", job_id=active.job.id)
        finally:
            self._progress.left(active)
            self._rooms.release(active.occupant)

    async def _attempt(self, active: Active) -> Result:
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_later(_SHOW_RUNNING_SECONDS, self._show_running, active),
            loop.call_later(_SPILL_SECONDS, _spill, active),
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
            self._progress.run_ended(active, run)

        try:
            return await self._runner.run(
                active.job,
                active.stop,
                receive,
                accepted=None if active.early else active.accepted,
                samples=active.samples,
                on_start=on_start,
                on_run=on_run,
                meanwhile=Meanwhile(
                    away=lambda: self._rooms.without(active),
                    note=lambda reason, message: self._note(active, reason, message),
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

    async def _note(self, active: Active, reason: Reason, message: str) -> None:
        """Write down what happened to a job that starts. Raises NotAccepted."""
        await active.check_accepted()
        job = active.job
        with contextlib.suppress(Unavailable):  # It is for the reader only.
            await self._store.note_start(job.id, job.lease_token, reason, message, time.time())

    async def _settle(self, active: Active, result: Result) -> None:
        """Write down the end, or that there will be another attempt; tell who waits.

        Raises NotAccepted where there is no job to settle, which is asked where the store does not take the end.
        """
        job, check = active.job, active.check_accepted
        if may_retry(job, result):
            active.log.discard()
            await self._files.remove_artifacts(job, of=result.artifact_count)
            if await self._settlement.retry(job, result, check):
                self._on_retry()
            return
        log = active.log.close()
        if active.samples.taken:
            result = msgspec.structs.replace(result, samples=tuple(active.samples.taken))
        ended = await self._settlement.end(job, result, log, check)
        if ended is None:
            return
        await self._files.remove_upload(job)
        await self._files.drop_artifacts(ended, of=result.artifact_count)
        self._on_end(ended)
        if not await active.stop.gone():
            logger.error("a process is stuck in the kernel", job_id=job.id)
        # With a bound on storage, the record may have less of the log.
        whole = log.path is None and not self._tenants.of(job.tenant).storage_bytes
        self._progress.ended(ended, log if whole else None)

    def _show_running(self, active: Active) -> None:
        if active.started_at is not None:
            self._notes.spawn(self._mark_running(active.job, active.started_at))

    async def _mark_running(self, job: Job, started_at: float) -> None:
        # It is for the reader only; the end says it again.
        with contextlib.suppress(Unavailable):
            await self._store.mark_running(job.id, job.lease_token, started_at)


def _spill(active: Active) -> None:
    with contextlib.suppress(OSError):
        active.log.spill()


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
