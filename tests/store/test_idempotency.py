"""A request that is sent twice makes one job."""

import asyncio

import pytest
from store_examples import a_job, ended, in_store, no_log, success

from sandboxd.errors import Conflict, Invalid
from sandboxd.store.records import Idempotency
from sandboxd.store.sqlite import SqliteStore

KEY = Idempotency("key-1", b"\x01" * 32)
DAY = 86_400.0


@in_store
async def test_the_same_request_again_answers_with_the_first_job(store: SqliteStore) -> None:
    first = await store.submit(a_job(), idempotency=KEY, claim_owner="me")
    finished = await store.finish(first.job.id, 1, success(), no_log(), 1002.0)

    again = await store.submit(a_job(now=1003.0), idempotency=KEY, claim_owner="me")

    assert again.replayed
    assert again.job == finished
    assert len((await store.list_jobs("ada", limit=10)).items) == 1
    assert (await store.conservation()).accepted_total == 1


@in_store
async def test_a_key_that_stands_for_another_request_is_refused(store: SqliteStore) -> None:
    await store.submit(a_job(), idempotency=KEY)

    with pytest.raises(Invalid) as refused:
        await store.submit(a_job(), idempotency=Idempotency(KEY.key, b"\x02" * 32))

    assert refused.value.code == "idempotency_key_reused"
    assert len((await store.list_jobs("ada", limit=10)).items) == 1


@in_store
async def test_the_same_request_many_times_at_once_makes_one_job(store: SqliteStore) -> None:
    answers = await asyncio.gather(*(store.submit(a_job(), idempotency=KEY) for _ in range(50)))

    assert len({answer.job.id for answer in answers}) == 1
    assert [answer.replayed for answer in answers].count(False) == 1
    assert len((await store.list_jobs("ada", limit=10)).items) == 1


@in_store
async def test_tenants_do_not_share_keys(store: SqliteStore) -> None:
    mine = await store.submit(a_job(), idempotency=KEY)
    theirs = await store.submit(a_job(tenant="eve"), idempotency=KEY._replace(request_sha256=b"x"))

    assert not theirs.replayed
    assert theirs.job.id != mine.job.id


@in_store
async def test_a_key_is_forgotten_after_a_day(store: SqliteStore) -> None:
    first = await store.submit(a_job(now=1000.0), idempotency=KEY)

    shortly = await store.submit(a_job(now=999.0 + DAY), idempotency=KEY)
    later = await store.submit(a_job(now=1000.0 + DAY), idempotency=KEY)

    assert shortly.job.id == first.job.id
    assert not later.replayed
    assert later.job.id != first.job.id


@in_store
async def test_a_repeated_request_never_runs_again_although_its_record_is_gone(
    store: SqliteStore,
) -> None:
    await ended(store)
    job = (await store.submit(a_job(ttl_seconds=1.0), idempotency=KEY, claim_owner="me")).job
    await store.finish(job.id, 1, success(), no_log(), 1002.0)
    await store.delete_expired(1010.0, 10)

    with pytest.raises(Conflict) as refused:
        await store.submit(a_job(now=1011.0), idempotency=KEY)

    assert refused.value.code == "idempotency_job_deleted"
    await store.delete_expired(1000.0 + DAY, 10)
    assert not (await store.submit(a_job(now=1012.0), idempotency=KEY)).replayed
