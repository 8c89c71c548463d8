"""What tenants used and may use: reserved while a job waits or runs, and what it did use from its end on."""

import asyncio

import msgspec
import pytest
from store_examples import a_job, in_store, no_log, success

from sandboxd.admission import in_turn
from sandboxd.errors import QuotaExceeded
from sandboxd.jobs import Result, Usage
from sandboxd.quotas.tenants import Bounds, Holder, HourOfUse, Quotas, TenantQuotas, Whose
from sandboxd.store.records import Idempotency
from sandboxd.store.sqlite import SqliteStore

NOW = 1_700_000_000.0
HOUR = int(NOW // 3600)
ADA = Whose(Holder.TENANT, "ada")


def quotas(**values: float) -> TenantQuotas:
    return TenantQuotas(**values)


def used(**usage: float) -> Result:
    return msgspec.structs.replace(success(), usage=Usage(**usage))


async def fits(
    store: SqliteStore, mine: TenantQuotas, *, tenant: str = "ada", **spec: object
) -> bool:
    try:
        await store.submit(a_job(tenant=tenant, now=NOW, **spec), bounds=Bounds(mine))
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
    await store.submit(a_job(), bounds=Bounds(one))
    await store.submit(a_job(), claim_owner="me", bounds=Bounds(one))


@in_store
async def test_what_a_job_may_use_is_reserved_until_it_ends(store: SqliteStore) -> None:
    # Each may use a minute of CPU time (see LIMITS).
    hour = quotas(cpu_seconds_per_hour=150.0)
    first = (await store.submit(a_job(now=NOW), claim_owner="me", bounds=Bounds(hour))).job
    assert await fits(store, hour)
    assert not await fits(store, hour)

    await store.finish(first.id, 1, used(cpu_seconds=5.0, wall_seconds=2.0), no_log(), NOW)

    assert await fits(store, hour)
    assert not await fits(store, hour)
    table = await store.used_and_reserved(ADA, NOW)
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
    table = await store.used_and_reserved(ADA, NOW)
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
    first = await store.submit(a_job(now=NOW), idempotency=key, bounds=Bounds(one))
    again = await store.submit(a_job(now=NOW), idempotency=key, bounds=Bounds(one))
    assert again.replayed
    assert again.job.id == first.job.id
    with pytest.raises(QuotaExceeded):
        await store.submit(a_job(now=NOW), bounds=Bounds(one))


@in_store
async def test_a_refused_request_leaves_its_key_unused(store: SqliteStore) -> None:
    none = quotas(cpu_seconds_per_hour=1.0)
    key = Idempotency("again", b"x" * 32)
    with pytest.raises(QuotaExceeded):
        await store.submit(a_job(now=NOW), idempotency=key, bounds=Bounds(none))
    later = await store.submit(a_job(now=NOW), idempotency=key)
    assert not later.replayed


def with_key(**of_key: float) -> Bounds:
    return Bounds(TenantQuotas(), Quotas(**of_key))


@in_store
async def test_a_key_is_bounded_by_its_own_quotas_and_other_keys_are_not(
    store: SqliteStore,
) -> None:
    one_waits = with_key(max_queued=1)
    await store.submit(a_job(key_id="key_1"), bounds=one_waits)
    with pytest.raises(QuotaExceeded) as refused:
        await store.submit(a_job(key_id="key_1"), bounds=one_waits)
    await store.submit(a_job(key_id="key_2"), bounds=one_waits)
    await store.submit(a_job(), bounds=Bounds(TenantQuotas()))

    assert (refused.value.policy, refused.value.of) == ("max_queued", "key")
    assert "1 jobs of this key wait already" in str(refused.value)


@in_store
async def test_what_a_keys_jobs_used_is_counted_for_it_and_for_its_tenant(
    store: SqliteStore,
) -> None:
    bounds = with_key(cpu_seconds_per_hour=100.0)
    for key_id in ("key_1", "key_2"):
        job = (await store.submit(a_job(now=NOW, key_id=key_id), claim_owner="me")).job
        result = used(cpu_seconds=45.0, wall_seconds=1.0)
        await store.finish(job.id, 1, result, no_log(), NOW, bounds=bounds)

    of_key = await store.used_and_reserved(Whose(Holder.KEY, "key_1"), NOW)
    of_tenant = await store.used_and_reserved(ADA, NOW)
    with pytest.raises(QuotaExceeded) as refused:
        await store.submit(a_job(now=NOW, key_id="key_1"), bounds=bounds)

    assert of_key["cpu_seconds"]["hour"] == 45.0
    assert of_tenant["cpu_seconds"]["hour"] == 90.0
    assert (refused.value.policy, refused.value.of) == ("cpu_seconds_per_hour", "key")


@in_store
async def test_a_key_without_quotas_is_not_counted_apart(store: SqliteStore) -> None:
    job = (await store.submit(a_job(now=NOW, key_id="key_1"), claim_owner="me")).job
    result = used(cpu_seconds=45.0, wall_seconds=1.0)
    await store.finish(job.id, 1, result, no_log(), NOW, bounds=Bounds(TenantQuotas()))

    of_key = await store.used_and_reserved(Whose(Holder.KEY, "key_1"), NOW)
    assert of_key["cpu_seconds"]["hour"] == 0.0


@in_store
async def test_jobs_of_a_key_that_has_enough_do_not_hide_others(store: SqliteStore) -> None:
    for _ in range(100):
        await store.submit(a_job(key_id="key_1"))
    other = (await store.submit(a_job(key_id="key_2"))).job
    keyless = (await store.submit(a_job())).job

    claimed = await store.claim("me", in_turn(1000), 2000.0, passed_over=["key_1"])

    assert [job.id for job in claimed] == [other.id, keyless.id]
    assert claimed[0].key_id == "key_2"
