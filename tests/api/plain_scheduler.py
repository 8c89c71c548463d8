"""A second, plain implementation of what the API asks of a scheduler, and of how far jobs are: commands run as ordinary processes, no walls.

It lets the API be tested with real jobs, a real store and real logs on any host. It isolates nothing and is no part of
the product.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from sandboxd.admission import in_turn
from sandboxd.errors import NotFound
from sandboxd.images.resolved import ResolvedImage
from sandboxd.jobs import (
    ACTIVE,
    TERMINAL,
    WAITING,
    ExitStatus,
    Image,
    Job,
    LogSummary,
    Reason,
    Result,
    RunResult,
    State,
    Stream,
    Usage,
)
from sandboxd.scheduling.scheduler import Waits
from sandboxd.store.logs import JobLog, StoredLog
from sandboxd.store.records import Idempotency, Submitted
from sandboxd.store.sqlite import SqliteStore

PIPE_BYTES = 64 * 2**10


class PlainScheduler:
    """Runs up to `slots` jobs at once."""

    def __init__(self, store: SqliteStore, log_dir: Path, *, slots: int) -> None:
        self._store = store
        self._log_dir = log_dir
        self._slots = slots
        self._logs: dict[str, JobLog] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._cancelled: dict[str, Reason] = {}
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(
        self, job: Job, *, idempotency: Idempotency | None, client_waits: bool
    ) -> Submitted:
        submitted = await self._store.submit(job, idempotency=idempotency)
        await self._fill_slots()
        return submitted

    async def waits(self, job: Job) -> Waits:
        return Waits("slot", await self._store.waiting_before(job, time.time()), None)

    def runs(self, job: Job) -> tuple[RunResult, ...]:
        return ()  # This one knows nothing of steps.

    async def cancel(
        self,
        tenant: str,
        job_id: str,
        *,
        grace_seconds: float,
        message: str | None,
        reason: Reason = Reason.CANCELLED_BY_CLIENT,
    ) -> Job:
        job = await self._store.request_cancel(tenant, job_id, time.time(), message, reason)
        if job.state in ACTIVE:
            self._cancelled.setdefault(job_id, reason)
            if job_id in self._processes:
                _kill(self._processes[job_id])
        await self._tell()
        return job

    async def wait(self, tenant: str, job_id: str, timeout_seconds: float) -> Job:
        return await self._wait_for(tenant, job_id, frozenset(TERMINAL), timeout_seconds)

    async def wait_started(self, tenant: str, job_id: str, timeout_seconds: float) -> Job:
        return await self._wait_for(tenant, job_id, frozenset(State) - WAITING, timeout_seconds)

    async def log(self, tenant: str, job_id: str) -> JobLog | StoredLog:
        stored = await self._store.log(tenant, job_id)  # first: it knows the tenant
        if stored is not None:
            return stored
        if job_id in self._logs:
            return self._logs[job_id]
        raise NotFound("There is no log.")

    async def close(self) -> None:
        self._slots = 0
        for process in self._processes.values():
            _kill(process)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _wait_for(
        self, tenant: str, job_id: str, states: frozenset[State], timeout_seconds: float
    ) -> Job:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds), self._changed:
                while (await self._store.get(tenant, job_id)).state not in states:
                    await self._changed.wait()
        return await self._store.get(tenant, job_id)

    async def _fill_slots(self) -> None:
        free = self._slots - len(self._tasks)
        if free <= 0:
            return
        for job in await self._store.claim("plain", in_turn(free), time.time()):
            self._logs[job.id] = JobLog(
                self._log_dir,
                job.id,
                limit_bytes=job.spec.limits.output_bytes,
                inline_bytes=PIPE_BYTES,
            )
            task = asyncio.create_task(self._run(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, job: Job) -> None:
        log = self._logs[job.id]
        result = await self._execute(job, log)
        await self._store.finish(job.id, job.lease_token, result, log.close(), time.time())
        del self._logs[job.id]
        await self._tell()
        asyncio.get_running_loop().call_soon(
            lambda: self._tasks.add(asyncio.create_task(self._next()))
        )

    async def _next(self) -> None:
        self._tasks.discard(asyncio.current_task())  # type: ignore[arg-type]
        await self._fill_slots()

    async def _execute(self, job: Job, log: JobLog) -> Result:
        process = await asyncio.create_subprocess_exec(
            *job.spec.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=job.spec.env,
            cwd=job.spec.workdir,
            start_new_session=True,
        )
        started_at = time.time()
        self._processes[job.id] = process
        if job.id in self._cancelled:
            _kill(process)
        await self._store.mark_running(job.id, job.lease_token, started_at)
        await self._tell()
        timed_out = False
        async with asyncio.TaskGroup() as group:
            group.create_task(_feed(process, job.spec.stdin))
            group.create_task(_drain(process.stdout, Stream.STDOUT, log))
            group.create_task(_drain(process.stderr, Stream.STDERR, log))
            try:
                async with asyncio.timeout(job.spec.limits.wall_seconds):
                    await process.wait()
            except TimeoutError:
                timed_out = True
                _kill(process)
        code = await process.wait()
        del self._processes[job.id]
        state, reason = _judge(code, timed_out, self._cancelled.get(job.id))
        return Result(
            state=state,
            reason=reason,
            exit=ExitStatus(
                code=code if code >= 0 else None,
                signal=signal.Signals(-code).name if code < 0 else None,
                timed_out=timed_out,
            ),
            usage=Usage(wall_seconds=time.time() - started_at),
            enforcement={"walls": "none: a test runs it"},
            image_digest="sha256:" + "0" * 64,
            started_at=started_at,
            logs={
                stream: LogSummary(size_bytes=log.size(stream), truncated=log.truncated(stream))
                for stream in Stream
            },
        )

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class PlainImages:
    """One image, `host`."""

    digest = "sha256:" + "0" * 64

    async def resolve(self, name: str, tenant: str | None = None) -> ResolvedImage:
        if name != "host":
            raise NotFound(f'There is no image "{name}".', code="image_not_found")
        return ResolvedImage(name=name, digest=self.digest, rootfs="/", env={})

    def command_of(
        self, name: str, args: Sequence[str], tenant: str | None = None
    ) -> tuple[str, ...]:
        return ()

    async def list(self, tenant: str | None = None) -> list[Image]:
        return [Image(name="host", digest=self.digest, size_bytes=0, created_at=0.0, source="host")]


def _kill(process: asyncio.subprocess.Process) -> None:
    """The command and its children, as long as they stayed in its session."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


def _judge(code: int, timed_out: bool, cancelled: Reason | None) -> tuple[State, Reason]:
    if timed_out:
        return State.TIMED_OUT, Reason.WALL_SECONDS
    if cancelled is not None:
        return State.CANCELLED, cancelled
    if code < 0:
        return State.FAILED, Reason.SIGNALLED
    return (State.FAILED if code else State.SUCCEEDED), Reason.EXITED


async def _feed(process: asyncio.subprocess.Process, stdin: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(stdin)
        await process.stdin.drain()
    process.stdin.close()


async def _drain(pipe: asyncio.StreamReader | None, stream: Stream, log: JobLog) -> None:
    assert pipe is not None
    while piece := await pipe.read(PIPE_BYTES):
        log.append(stream, piece, time.time())
