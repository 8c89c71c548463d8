"""What is free is given to one, whoever comes at the same moment, and nothing that waits is forgotten."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from sandboxd.admission import Room
from sandboxd.errors import QuotaExceeded, SandboxFailed, Unavailable
from sandboxd.files.content import Contents
from sandboxd.ids import new_id
from sandboxd.jobs import ExitStatus, Job, JobSpec, Reason, Result, State
from sandboxd.metrics import Metrics
from sandboxd.quotas.pressure import Pressure
from sandboxd.quotas.tenants import TenantQuotas
from sandboxd.running.commands import Stop
from sandboxd.running.fetching import Meanwhile
from sandboxd.scheduling.progress import Progress
from sandboxd.scheduling.rooms import Rooms
from sandboxd.scheduling.scheduler import Scheduler
from sandboxd.settings import DEFAULT_LIMITS
from sandboxd.store.records import Idempotency
from sandboxd.store.sqlite import SqliteStore
from sandboxd.store.upgrade import upgrade
from sandboxd.tenants import Tenants

DONE = Result(state=State.SUCCEEDED, reason=Reason.EXITED, exit=ExitStatus(code=0))
SHUT_DOWN = Result(state=State.ERROR, reason=Reason.SHUTDOWN)
MEMORY_BYTES = 2**40
BEFORE_THE_MAINTENANCE = 4.0
"""Which looks at all again every five seconds."""


class GatedRunner:
    """Runs nothing: each job is at work until the gate opens, or it is stopped. It counts how many are at once."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.image_comes: asyncio.Event | None = None
        """Where there is one, each job waits for its image first."""
        self.now = self.most = 0
        self.fails: Callable[[], None] = lambda: None

    async def most_of(self, expected: int) -> int:
        """How many were at once when there were as many as expected, a moment later."""
        await until(lambda: self.most >= expected)
        await asyncio.sleep(0.1)
        return self.most

    async def run(self, job: Job, stop: Stop, *_: Any, meanwhile: Meanwhile, **__: Any) -> Result:
        self.fails()
        if self.image_comes is not None:
            async with meanwhile.away():
                await self.image_comes.wait()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return DONE if await stop.unless_stopped(self.gate.wait()) else SHUT_DOWN
        finally:
            self.now -= 1


def a_job(tenant: str = "ada") -> Job:
    now = time.time()
    spec = JobSpec(image="host", command=("true",), limits=DEFAULT_LIMITS)
    return Job(
        id=new_id("job"),
        tenant=tenant,
        spec=spec,
        state=State.QUEUED,
        reason=Reason.SUBMITTED,
        created_at=now,
        queued_at=now,
    )


class Ground(NamedTuple):
    """A scheduler, what it works with, and what tells of it."""

    scheduler: Scheduler
    rooms: Rooms
    progress: Progress
    runner: GatedRunner
    store: SqliteStore


async def until(condition: Callable[[], bool]) -> None:
    """What another task does, which tells nobody."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def a_scheduler(tmp_path: Path, *, slots: int, **quotas: Any) -> AsyncIterator[Ground]:
    database = tmp_path / "sandboxd.sqlite3"
    await asyncio.to_thread(upgrade, database)
    store = await SqliteStore.open(database, inline_log_bytes=2**16)
    runner, tenants = GatedRunner(), Tenants(store, TenantQuotas(**quotas))
    rooms, progress = Rooms(Room(slots, MEMORY_BYTES, 10**6), tenants), Progress(store)
    scheduler = Scheduler(
        store,
        runner,  # type: ignore[arg-type]
        Metrics({}, lambda: None),
        owner="me",
        rooms=rooms,
        progress=progress,
        pressure=Pressure(tmp_path, min_free_memory_bytes=0, min_free_disk_bytes=0),
        tenants=tenants,
        max_queued=1000,
        uploads=Contents(tmp_path / "uploads", min_free_bytes=0),
        artifacts=Contents(tmp_path / "artifacts", min_free_bytes=0),
        log_directory=tmp_path / "logs",
        inline_log_bytes=2**16,
    )
    await scheduler.start()
    await until(lambda: not scheduler._may_wait)  # It has found that nobody waits.
    try:
        yield Ground(scheduler, rooms, progress, runner, store)
    finally:
        runner.gate.set()
        await scheduler.close(10)
        await store.close()


def test_jobs_that_come_in_one_moment_get_no_slot_twice(tmp_path: Path) -> None:
    async def scenario() -> int:
        async with a_scheduler(tmp_path, slots=2) as here:
            await asyncio.gather(*(here.scheduler.submit(a_job()) for _ in range(10)))
            return await here.runner.most_of(2)

    assert asyncio.run(scenario()) == 2


@pytest.mark.parametrize("keyed", [True, False])
def test_no_more_jobs_of_a_tenant_run_at_once_than_may(tmp_path: Path, keyed: bool) -> None:
    async def scenario() -> int:
        async with a_scheduler(tmp_path, slots=8, max_concurrency=1) as here:
            keys = [Idempotency(str(n), b"x" * 32) if keyed else None for n in range(8)]
            await asyncio.gather(*(here.scheduler.submit(a_job(), idempotency=key) for key in keys))
            return await here.runner.most_of(1)

    assert asyncio.run(scenario()) == 1


def test_sandboxes_that_wait_for_room_count_as_well(tmp_path: Path) -> None:
    async def scenario() -> list[object]:
        async with a_scheduler(tmp_path, slots=1, max_concurrency=1) as here:
            await here.scheduler.submit(a_job("eve"))
            holds = (
                here.rooms.hold("ada", DEFAULT_LIMITS, until=time.time() + 60, timeout_seconds=0.2)
                for _ in range(4)
            )
            return await asyncio.gather(*holds, return_exceptions=True)

    answers = asyncio.run(scenario())
    assert [type(answer) for answer in answers] == [Unavailable, *[QuotaExceeded] * 3]


def test_what_is_claimed_is_not_held_by_another(tmp_path: Path) -> None:
    async def scenario() -> int:
        async with a_scheduler(tmp_path, slots=1) as here:
            first = await here.scheduler.submit(a_job())
            waiting = await here.scheduler.submit(a_job())
            here.runner.gate.set()
            await here.progress.wait("ada", first.job.id, 5)
            here.runner.gate.clear()
            held = asyncio.create_task(
                here.rooms.hold("eve", DEFAULT_LIMITS, until=time.time() + 9, timeout_seconds=5)
            )
            most = 0
            for _ in range(50):
                most = max(most, here.scheduler.capacity().in_use.slots)
                await asyncio.sleep(0.002)
            here.runner.gate.set()
            await here.progress.wait("ada", waiting.job.id, 5)
            here.rooms.release(await held)
            return most

    assert asyncio.run(scenario()) == 1


def test_a_job_that_fails_before_it_is_handed_in_is_settled(tmp_path: Path) -> None:
    def fail() -> None:
        raise SandboxFailed("cgroup memory.max", "no")

    async def scenario() -> Job:
        async with a_scheduler(tmp_path, slots=2) as here:
            here.runner.fails = fail
            submitted = await here.scheduler.submit(a_job(), client_waits=True)
            job = await here.progress.wait("ada", submitted.job.id, 5)
            assert here.scheduler.capacity().busy == 0
            return await here.store.get("ada", job.id)

    job = asyncio.run(scenario())
    assert (job.state, job.reason) == (State.ERROR, Reason.INTERNAL)


def test_a_job_waits_no_longer_than_the_sandbox_that_held_it_up(tmp_path: Path) -> None:
    async def scenario() -> float:
        async with a_scheduler(tmp_path, slots=4, max_concurrency=1) as here:
            here.runner.gate.set()
            until = time.time() + 60
            held = await here.rooms.hold("ada", DEFAULT_LIMITS, until=until, timeout_seconds=1)
            job = (await here.scheduler.submit(a_job())).job
            await asyncio.sleep(0.3)
            here.rooms.release(held)
            begun = time.monotonic()
            assert (await here.progress.wait("ada", job.id, 10)).state is State.SUCCEEDED
            return time.monotonic() - begun

    assert asyncio.run(scenario()) < BEFORE_THE_MAINTENANCE


def test_a_sandbox_that_gives_up_waiting_holds_nobody_up_any_more(tmp_path: Path) -> None:
    async def scenario() -> float:
        async with a_scheduler(tmp_path, slots=4, max_concurrency=2) as here:
            here.runner.gate.set()
            until = time.time() + 60
            await here.rooms.hold("ada", DEFAULT_LIMITS, until=until, timeout_seconds=1)
            all_of_it = msgspec.structs.replace(DEFAULT_LIMITS, memory_bytes=MEMORY_BYTES)
            wanting = asyncio.create_task(
                here.rooms.hold("ada", all_of_it, until=until, timeout_seconds=0.5)
            )
            await asyncio.sleep(0)
            job = (await here.scheduler.submit(a_job())).job
            await asyncio.sleep(0.1)
            assert (await here.scheduler.waits(job)).reason == "tenant"
            with pytest.raises(Unavailable):
                await wanting
            begun = time.monotonic()
            assert (await here.progress.wait("ada", job.id, 10)).state is State.SUCCEEDED
            return time.monotonic() - begun

    assert asyncio.run(scenario()) < BEFORE_THE_MAINTENANCE


def test_who_waits_behind_a_crowd_for_an_image_starts_when_it_has_come(tmp_path: Path) -> None:
    async def scenario() -> float:
        async with a_scheduler(tmp_path, slots=1) as here:
            here.runner.gate.set()
            here.runner.image_comes = asyncio.Event()
            first = (await here.scheduler.submit(a_job())).job
            await until(lambda: here.rooms.away == 1)
            assert here.scheduler.capacity().busy == 0
            behind = (await here.scheduler.submit(a_job())).job
            await asyncio.sleep(0.1)
            assert (await here.scheduler.waits(behind)).reason == "image"
            begun = time.monotonic()
            here.runner.image_comes.set()
            for job in (first, behind):
                assert (await here.progress.wait("ada", job.id, 10)).state is State.SUCCEEDED
            assert here.scheduler.capacity().in_use.slots == 0
            return time.monotonic() - begun

    assert asyncio.run(scenario()) < BEFORE_THE_MAINTENANCE


def test_a_job_that_is_just_being_claimed_when_the_service_ends_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> list[State]:
        async with a_scheduler(tmp_path, slots=1) as here:
            first = (await here.scheduler.submit(a_job())).job
            await until(lambda: here.progress.active_count == 1)
            waiting = (await here.scheduler.submit(a_job())).job
            claim, claimed = here.store.claim, asyncio.Event()

            async def claim_slowly(*words: Any, **more: Any) -> list[Job]:
                jobs = await claim(*words, **more)
                claimed.set()
                await asyncio.sleep(0.3)
                return jobs

            monkeypatch.setattr(here.store, "claim", claim_slowly)
            await here.scheduler.cancel("ada", first.id, grace_seconds=0, message=None)
            await claimed.wait()
            async with asyncio.timeout(20):
                await here.scheduler.close(0)
            return [(await here.store.get("ada", job.id)).state for job in (first, waiting)]

    assert asyncio.run(scenario()) == [State.ERROR] * 2


def test_limits_that_do_not_grow_need_no_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with a_scheduler(tmp_path, slots=1) as here:
            until = time.time() + 60
            held = await here.rooms.hold("ada", DEFAULT_LIMITS, until=until, timeout_seconds=1)
            waiting = asyncio.create_task(
                here.rooms.hold("eve", DEFAULT_LIMITS, until=until, timeout_seconds=1)
            )
            await asyncio.sleep(0)
            same = here.rooms.change(held, DEFAULT_LIMITS, until=until + 60)
            assert same.until == until + 60
            waiting.cancel()
            here.rooms.release(same)

    asyncio.run(scenario())
