"""What is kept of a tenant's jobs is known at any time, is given back, and is never more than it may be."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from store_examples import a_job, a_log, in_store, no_log, opened, success

from sandboxd.errors import QuotaExceeded
from sandboxd.files.keeping import MOST_TOLD
from sandboxd.jobs import Artifact, InputFile, Job, PassedOver, Result, Sample, Stream
from sandboxd.quotas.tenants import Bounds, TenantQuotas
from sandboxd.store import migrate
from sandboxd.store.log_index import RECORD
from sandboxd.store.logs import index_path
from sandboxd.store.records import encode_result, encode_spec
from sandboxd.store.sqlite import SqliteStore

UPLOAD = InputFile(path="in", mode=0o644, size_bytes=500, offset=0)
SAMPLE = Sample(
    at=1.0, cpu_seconds=0.5, memory_bytes=2**20, pids=1, io_read_bytes=None, io_write_bytes=None
)


def at_most(storage_bytes: int) -> Bounds:
    return Bounds(TenantQuotas(storage_bytes=storage_bytes))


def leaving(*sizes: int) -> Result:
    """The end of a job that left files of these sizes."""
    artifacts = tuple(
        Artifact(path=f"f{n}", size_bytes=size, mode=0o644, sha256="", offset=sum(sizes[:n]))
        for n, size in enumerate(sizes)
    )
    return msgspec.structs.replace(success(), artifacts=artifacts, artifact_count=len(artifacts))


def request_bytes(job: Job) -> int:
    """What is kept of the request for a job, without its inputs."""
    return len(encode_spec(job.spec))


REQUEST_BYTES = request_bytes(a_job())


def end_bytes(result: Result) -> int:
    return len(encode_result(result))


async def claimed(store: SqliteStore, **spec: object) -> Job:
    return (await store.submit(a_job(**spec), claim_owner="me")).job


@in_store
async def test_inputs_logs_and_artifacts_count_until_the_job_is_deleted(store: SqliteStore) -> None:
    job = await claimed(store, stdin=b"x" * 7, files=(UPLOAD,))
    at_first = await store.stored_bytes("ada")
    log = a_log(Path("/nowhere"), job.id, (Stream.STDOUT, b"y" * 30))
    result = leaving(100, 200)
    await store.finish(job.id, 1, result, log, 2000.0)
    at_the_end = await store.stored_bytes("ada")
    await store.delete("ada", job.id)

    assert at_first == request_bytes(job) + 507
    assert at_the_end == request_bytes(job) + 7 + 30 + RECORD.size + 300 + end_bytes(result)
    assert await store.stored_bytes("ada") == 0
    assert await store.stored_bytes("eve") == 0


@in_store
async def test_what_a_request_says_counts_also_where_it_has_no_input(store: SqliteStore) -> None:
    env = {"LONG": "ü" * 400_000}
    with pytest.raises(QuotaExceeded):
        await store.submit(a_job(env=env), bounds=at_most(800_000))
    await store.submit(a_job(env=env), bounds=at_most(801_000))

    assert 800_000 < await store.stored_bytes("ada") < 801_000


@in_store
async def test_samples_of_a_job_count(store: SqliteStore) -> None:
    job = await claimed(store)
    samples = (SAMPLE,) * 100
    result = msgspec.structs.replace(success(), samples=samples)
    await store.finish(job.id, 1, result, no_log(), 2000.0)

    told = await store.samples("ada", job.id)
    own_bytes = await store.stored_bytes("ada") - REQUEST_BYTES - end_bytes(result)
    assert own_bytes == len(msgspec.json.encode(told)) > 1000


@in_store
async def test_what_time_takes_away_is_given_back_to_each(store: SqliteStore) -> None:
    for tenant, size in (("ada", 10), ("ada", 20), ("eve", 40)):
        job = await claimed(store, tenant=tenant, ttl_seconds=5.0)
        await store.finish(job.id, 1, leaving(size), no_log(), 1000.0)
    stays = await claimed(store, stdin=b"stays")
    await store.delete_expired(1006.0, 2)

    assert await store.stored_bytes("ada") == request_bytes(stays) + 5
    assert await store.stored_bytes("eve") == 0


@in_store
async def test_uploads_of_a_job_that_never_ran_are_given_back(store: SqliteStore) -> None:
    waits = (await store.submit(a_job(files=(UPLOAD,), stdin=b"abc"))).job
    late = (await store.submit(a_job(files=(UPLOAD,), queue_seconds=1.0))).job
    await store.request_cancel("ada", waits.id, 1001.0, None)
    await store.expire_waiting(late.queued_at + 2)

    ends = [(await store.get("ada", job.id)).result for job in (waits, late)]
    of_ends = sum(end_bytes(end) for end in ends if end is not None)
    assert (
        await store.stored_bytes("ada") == request_bytes(waits) + request_bytes(late) + 3 + of_ends
    )


@in_store
async def test_who_has_all_that_they_may_is_refused_and_told_what_helps(
    store: SqliteStore,
) -> None:
    most = 2 * REQUEST_BYTES + 100
    await store.submit(a_job(stdin=b"x" * 60), bounds=at_most(most))
    with pytest.raises(QuotaExceeded) as too_much:
        await store.submit(a_job(stdin=b"x" * 41), bounds=at_most(most))
    await store.submit(a_job(stdin=b"x" * 40), bounds=at_most(most))
    with pytest.raises(QuotaExceeded) as full:
        await store.submit(a_job(), bounds=at_most(most))
    await store.submit(a_job(tenant="eve"), bounds=at_most(most))

    assert (full.value.policy, full.value.of) == ("storage_bytes", "tenant")
    assert f"{REQUEST_BYTES + 60} of {most} bytes are kept" in too_much.value.detail
    assert f"{REQUEST_BYTES + 41} would come with this one: delete" in too_much.value.detail
    assert f"{most} of {most} bytes are kept of your jobs" in full.value.detail


@in_store
async def test_artifacts_that_do_not_fit_are_passed_over(store: SqliteStore) -> None:
    job = await claimed(store, stdin=b"x" * 10)
    result = leaving(50, 30, 1)
    bounds = at_most(request_bytes(job) + 10 + end_bytes(result) + 79)
    ended = await store.finish(job.id, 1, result, no_log(), 2000.0, bounds=bounds)
    shown = (await store.get("ada", job.id)).result

    assert ended is not None
    assert shown is not None
    assert [artifact.path for artifact in shown.artifacts] == ["f0"]
    assert shown.artifact_count == 1
    assert shown.artifacts_passed_over == (
        PassedOver(path="f1", reason="storage_quota"),
        PassedOver(path="f2", reason="storage_quota"),
    )
    assert ended.result is not None
    assert ended.result.artifacts == shown.artifacts
    assert await store.stored_bytes("ada") == request_bytes(job) + 10 + end_bytes(shown) + 50


@in_store
async def test_only_so_many_of_those_passed_over_are_told(store: SqliteStore) -> None:
    job = await claimed(store)
    result = leaving(*[1] * (MOST_TOLD + 5))
    bounds = at_most(request_bytes(job) + end_bytes(result) + 2)
    ended = await store.finish(job.id, 1, result, no_log(), 2000.0, bounds=bounds)

    assert ended is not None
    assert ended.result is not None
    told = ended.result.artifacts_passed_over
    assert len(told) == MOST_TOLD + 1
    assert told[-1] == PassedOver(path="", reason="and_3_more")


def test_a_log_that_does_not_fit_is_cut_and_says_so(tmp_path: Path) -> None:
    """A short one, and one that is a file."""

    async def keep(store: SqliteStore, size: int) -> None:
        job = await claimed(store)
        parts = ((Stream.STDOUT, b"o" * size), (Stream.STDERR, b"e" * size))
        log = a_log(tmp_path / "logs", job.id, *parts)
        before = await store.stored_bytes("ada")
        bounds = at_most(before + end_bytes(success()) + size + 5 + 2 * RECORD.size)
        await store.finish(job.id, 1, success(), log, 2000.0, bounds=bounds)
        kept = await store.log("ada", job.id)

        assert kept is not None
        assert kept.size() == size + 5
        assert kept.read(0, 10**6) == b"o" * size + b"e" * 5
        assert [kept.truncated(stream) for stream in (Stream.STDOUT, Stream.STDERR)] == [
            False,
            True,
        ]
        if kept.path is not None:
            assert kept.path.stat().st_size == size + 5
            assert index_path(kept.path).stat().st_size == 2 * RECORD.size

    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            await keep(store, 100)
            await keep(store, 5000)

    asyncio.run(scenario())


def test_the_index_of_a_log_counts_and_is_cut_with_it(tmp_path: Path) -> None:
    """Streams that alternate byte by byte need seventeen times as much for their index."""

    async def keep(store: SqliteStore, most: int) -> tuple[int, list[int]]:
        job = await claimed(store)
        parts = [(stream, b"x") for stream in (Stream.STDOUT, Stream.STDERR)] * 2000
        log = a_log(tmp_path / "logs", job.id, *parts)
        before = await store.stored_bytes("ada")
        bounds = at_most(before + end_bytes(success()) + most)
        await store.finish(job.id, 1, success(), log, 2000.0, bounds=bounds)
        kept = await store.log("ada", job.id)
        assert kept is not None
        files = sorted((tmp_path / "logs").glob(f"{job.id}.*"))
        return kept.size(), [path.stat().st_size for path in files]

    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            assert await keep(store, 2000 * (1 + RECORD.size) - 1) == (
                1999,
                [1999 * RECORD.size, 1999],
            )
            assert await keep(store, RECORD.size) == (0, [])

    asyncio.run(scenario())


def test_what_was_kept_before_it_was_counted_is_counted_by_the_migration(tmp_path: Path) -> None:
    database = tmp_path / "sandboxd.db"
    url = migrate.sqlite_url(database)

    async def fill() -> None:
        async with opened(database) as store:
            done = await claimed(store, stdin=b"x" * 7, files=(UPLOAD,), env={"NAME": "Zoë"})
            log = a_log(tmp_path, done.id, (Stream.STDOUT, b"short"))
            result = msgspec.structs.replace(leaving(100), samples=(SAMPLE,))
            await store.finish(done.id, 1, result, log, 2000.0)
            await store.submit(a_job(tenant="eve", files=(UPLOAD,)))

    asyncio.run(fill())
    sums = "SELECT tenant, used_bytes FROM tenant_storage ORDER BY tenant"
    with closing(sqlite3.connect(database)) as connection:
        before = connection.execute(sums).fetchall()

    migrate.downgrade(url, "0004")
    migrate.upgrade(url)

    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute(sums).fetchall() == before
    assert [tenant for tenant, _ in before] == ["ada", "eve"]
