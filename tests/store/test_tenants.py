"""What tenants used and may use: reserved while a job waits or runs, and what it did use from its end on."""

import asyncio

import msgspec
import pytest
from store_examples import a_job, in_store, no_log, success

from sandboxd.errors import QuotaExceeded
from sandboxd.jobs import Result, Usage
from sandboxd.quotas.tenants import HourOfUse, TenantQuotas
from sandboxd.store.records import Idempotency
from sandboxd.store.sqlite import SqliteStore

NOW = 1_700_000_000.0
HOUR = int(NOW // 3600)


def quotas(**values: float) -> TenantQuotas:
    return TenantQuotas(**values)


def used(**usage: float) -> Result:
    return msgspec.structs.replace(success(), usage=Usage(**usage))


async def fits(
    store: SqliteStore, mine: TenantQuotas, *, tenant: str = "ada", **spec: object
) -> bool:
    try:
        await store.submit(a_job(tenant=tenant, now=NOW, **spec), quotas=mine)
    except QuotaExceeded:
        return False
    return True


@in_store
async def test_a_tenant_has_the_quotas_that_it_was_given_last(store: SqliteStore) -> None:
    await store.put_quotas("ada", quotas(max_queued=1))
    await store.put_quotas("ada", quotas(max_concurrency=2))
    await store.put_quotas("eve", quotas(max_queued=3))
    await store.put_quotas("eve", None)
    assert await store.all_quotas() == {"ada": quotas(max_concurrency=2)}


@in_store
async def test_so_many_may_wait_and_others_are_not_counted(store: SqliteStore) -> None:
    two = quotas(max_queued=2)
    answers = [await fits(store, two) for _ in range(3)]
    assert answers == [True, True, False]
    assert await fits(store, two, tenant="eve")


@in_store
async def test_a_job_that_starts_at_once_does_not_wait(store: SqliteStore) -> None:
    one = quotas(max_queued=1)
    await store.submit(a_job(), quotas=one)
    await store.submit(a_job(), claim_owner="me", quotas=one)


@in_store
async def test_what_a_job_may_use_is_reserved_until_it_ends(store: SqliteStore) -> None:
    # Each may use a minute of CPU time (see LIMITS).
    hour = quotas(cpu_seconds_per_hour=150.0)
    first = (await store.submit(a_job(now=NOW), claim_owner="me", quotas=hour)).job
    assert await fits(store, hour)
    assert not await fits(store, hour)

    await store.finish(first.id, 1, used(cpu_seconds=5.0, wall_seconds=2.0), no_log(), NOW)

    assert await fits(store, hour)
    assert not await fits(store, hour)
    table = await store.used_and_reserved("ada", NOW)
    assert table["cpu_seconds"] == {"hour": 125.0, "day": 125.0, "month": 125.0}
    assert await store.uses("ada", HOUR, HOUR + 1) == [HourOfUse(HOUR, 1, 5.0, 2.0 * 2**28)]


@in_store
async def test_an_hour_counts_for_its_day_and_its_month_and_no_longer(store: SqliteStore) -> None:
    for hours_ago in (0, 1, 30, 24 * 40):
        ended = NOW - 3600 * hours_ago
        job = (await store.submit(a_job(), claim_owner="me")).job
        result = used(cpu_seconds=10.0, wall_seconds=1.0)
        await store.finish(job.id, 1, result, no_log(), ended)

    # It is the 14th of November 2023, 22:13 UTC.
    table = await store.used_and_reserved("ada", NOW)
    assert table["cpu_seconds"] == {"hour": 10.0, "day": 20.0, "month": 30.0}
    assert table["memory_byte_seconds"]["month"] == 3 * 2**28
    assert len(await store.uses("ada", 0, HOUR + 1)) == 4
    assert await store.uses("eve", 0, HOUR + 1) == []


@in_store
async def test_a_bound_on_memory_over_time_holds_too(store: SqliteStore) -> None:
    # Each may use 256 MiB for a minute.
    assert await fits(store, quotas(memory_byte_seconds_per_day=61.0 * 2**28))
    assert not await fits(store, quotas(memory_byte_seconds_per_day=61.0 * 2**28))


@in_store
async def test_jobs_at_once_never_use_more_than_there_is(store: SqliteStore) -> None:
    five = quotas(cpu_seconds_per_month=5 * 60.0)
    answers = await asyncio.gather(*(fits(store, five) for _ in range(40)))
    assert sum(answers) == 5


@in_store
async def test_a_repeated_request_is_not_refused_for_what_it_was_granted(
    store: SqliteStore,
) -> None:
    one = quotas(cpu_seconds_per_hour=60.0)
    key = Idempotency("again", b"x" * 32)
    first = await store.submit(a_job(now=NOW), idempotency=key, quotas=one)
    again = await store.submit(a_job(now=NOW), idempotency=key, quotas=one)
    assert again.replayed
    assert again.job.id == first.job.id
    with pytest.raises(QuotaExceeded):
        await store.submit(a_job(now=NOW), quotas=one)


@in_store
async def test_a_refused_request_leaves_its_key_unused(store: SqliteStore) -> None:
    none = quotas(cpu_seconds_per_hour=1.0)
    key = Idempotency("again", b"x" * 32)
    with pytest.raises(QuotaExceeded):
        await store.submit(a_job(now=NOW), idempotency=key, quotas=none)
    later = await store.submit(a_job(now=NOW), idempotency=key)
    assert not later.replayed
