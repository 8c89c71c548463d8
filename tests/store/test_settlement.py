"""An attempt's end is written down: also when the store is away for a moment, and never by who lost the lease."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from store_examples import a_job, no_log, opened, success

from sandboxd.errors import Unavailable
from sandboxd.jobs import Job, JobError, Reason, Result, Retry, State
from sandboxd.metrics import Metrics
from sandboxd.quotas.tenants import TenantQuotas
from sandboxd.scheduling.settlement import Settlement, may_retry
from sandboxd.store.sqlite import SqliteStore
from sandboxd.tenants import Tenants

LOST = Result(
    state=State.ERROR,
    reason=Reason.SANDBOX_FAILED,
    error=JobError(component=None, code="sandbox_failed", message="no"),
)


class Desk:
    """A store with one claimed job, and who settles it."""

    def __init__(self, store: SqliteStore, job: Job, path: Path) -> None:
        self.store = store
        self.job = job
        self.path = path
        self.settlement = Settlement(
            store, Metrics({}, lambda: None), Tenants(store, TenantQuotas()), path.parent / "logs"
        )

    def take_database_away(self) -> None:
        self.path.rename(self.path.with_suffix(".away"))

    def bring_database_back(self) -> None:
        self.path.with_suffix(".away").rename(self.path)


def at_desk(scenario: Callable[[Desk], Awaitable[None]]) -> Callable[[Path], None]:
    """A test that is a coroutine on a new store with one claimed job."""

    def test(tmp_path: Path) -> None:
        async def main() -> None:
            path = tmp_path / "sandboxd.db"
            async with opened(path) as store:
                job = a_job(retry=Retry(max_attempts=2))
                submitted = await store.submit(job, claim_owner="me")
                await scenario(Desk(store, submitted.job, path))

        asyncio.run(main())

    return test


async def tried_once(work: "asyncio.Task[object]") -> None:
    """Let the first try fail: it needs the store's thread, so not only one turn of the loop."""
    done, _ = await asyncio.wait([work], timeout=0.3)
    assert not done


@at_desk
async def test_an_end_is_held_while_the_store_is_away_and_written_when_it_is_back(
    desk: Desk,
) -> None:
    desk.take_database_away()
    work = asyncio.ensure_future(desk.settlement.end(desk.job, success(), no_log()))
    await tried_once(work)
    desk.bring_database_back()

    ended = await work
    assert ended is not None
    assert (await desk.store.get("ada", desk.job.id)).state is State.SUCCEEDED


@at_desk
async def test_another_attempt_is_written_as_stubbornly_as_an_end(desk: Desk) -> None:
    desk.take_database_away()
    work = asyncio.ensure_future(desk.settlement.retry(desk.job, LOST))
    await tried_once(work)
    desk.bring_database_back()

    assert await work
    assert (await desk.store.get("ada", desk.job.id)).state is State.RETRYING


@at_desk
async def test_who_gives_up_is_told_at_once_that_nothing_was_written(desk: Desk) -> None:
    desk.take_database_away()
    work = asyncio.ensure_future(desk.settlement.end(desk.job, success(), no_log()))
    await tried_once(work)
    desk.settlement.give_up()

    with pytest.raises(Unavailable):
        await work
    desk.bring_database_back()
    assert (await desk.store.get("ada", desk.job.id)).state is State.STARTING


@at_desk
async def test_who_lost_the_lease_writes_nothing(desk: Desk) -> None:
    stale = msgspec.structs.replace(desk.job, lease_token=desk.job.lease_token + 1)

    assert await desk.settlement.end(stale, success(), no_log()) is None
    assert not await desk.settlement.retry(stale, LOST)
    assert (await desk.store.get("ada", desk.job.id)).state is State.STARTING


@pytest.mark.parametrize(
    ("attempt", "cancelled", "allowed"), [(1, False, True), (2, False, False), (1, True, False)]
)
def test_the_platforms_faults_are_repeated_as_often_as_the_client_allows(
    attempt: int, cancelled: bool, allowed: bool
) -> None:
    job = msgspec.structs.replace(
        a_job(retry=Retry(max_attempts=2)), attempt=attempt, cancel_requested=cancelled
    )

    assert may_retry(job, LOST) == allowed
    assert not may_retry(job, success())
