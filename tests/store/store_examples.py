"""Values and stores that the tests of the store work on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from sandboxd.ids import new_id
from sandboxd.jobs import ExitStatus, Job, JobSpec, LogSummary, Reason, Result, State, Stream, Usage
from sandboxd.quotas.limits import Limits
from sandboxd.store.logs import JobLog, StoredLog
from sandboxd.store.sqlite import SqliteStore
from sandboxd.store.upgrade import upgrade

INLINE_LOG_BYTES = 1000
LIMITS = Limits(
    cpus=1.0,
    memory_bytes=2**28,
    pids=64,
    disk_bytes=2**26,
    wall_seconds=60.0,
    cpu_seconds=60.0,
    output_bytes=2**24,
    open_files=1024,
)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """The store in the file `path`, which is made if there is none."""
    upgrade(path)
    store = await SqliteStore.open(path, inline_log_bytes=INLINE_LOG_BYTES)
    try:
        yield store
    finally:
        await store.close()


def in_store(scenario: Callable[[SqliteStore], Awaitable[None]]) -> Callable[[Path], None]:
    """A test that is a coroutine on a new, empty store."""

    def test(tmp_path: Path) -> None:
        async def main() -> None:
            async with opened(tmp_path / "sandboxd.db") as store:
                await scenario(store)

        asyncio.run(main())

    test.__doc__ = scenario.__doc__
    return test


_last_ids = [""]


def next_id() -> str:
    """A job id above all former ones; those of one millisecond are otherwise in no order."""
    while (job_id := new_id("job")) <= _last_ids[-1]:
        pass
    _last_ids.append(job_id)
    return job_id


def a_job(
    *,
    tenant: str = "ada",
    key_id: str | None = None,
    now: float = 1000.0,
    request_id: str | None = None,
    **spec: Any,
) -> Job:
    asked = {"image": "host", "command": ("/bin/true",), "limits": LIMITS} | spec
    return Job(
        id=next_id(),
        tenant=tenant,
        key_id=key_id,
        spec=JobSpec(**asked),
        state=State.QUEUED,
        reason=Reason.SUBMITTED,
        created_at=now,
        queued_at=now,
        request_id=request_id,
    )


def success(started_at: float | None = 1001.0) -> Result:
    return Result(
        state=State.SUCCEEDED,
        reason=Reason.EXITED,
        exit=ExitStatus(code=0),
        usage=Usage(cpu_seconds=0.25, memory_peak_bytes=2**20, wall_seconds=1.0, warm=True),
        enforcement={"memory": "cgroup1", "walls": {"network": "none"}},
        image_digest="sha256:00",
        started_at=started_at,
        logs={Stream.STDOUT: LogSummary(size_bytes=5)},
    )


def a_log(
    directory: Path, job_id: str, *parts: tuple[Stream, bytes], limit_bytes: int = 2**20
) -> StoredLog:
    log = JobLog(directory, job_id, limit_bytes=limit_bytes, inline_bytes=INLINE_LOG_BYTES)
    for number, (stream, data) in enumerate(parts):
        log.append(stream, data, 1000.0 + number)
    return log.close()


def no_log() -> StoredLog:
    return a_log(Path("/nowhere"), new_id("job"))


async def ended(store: SqliteStore, *, finished_at: float = 1002.0, **job: Any) -> Job:
    """A job that was submitted, claimed and finished."""
    submitted = await store.submit(a_job(**job), claim_owner="me")
    finished = await store.finish(submitted.job.id, 1, success(), no_log(), finished_at)
    assert finished is not None
    return finished


def without_input(job: Job) -> Job:
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, stdin=b""))
