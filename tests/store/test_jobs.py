"""What the store promises about jobs."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from store_examples import (
    a_job,
    a_log,
    ended,
    in_store,
    no_log,
    opened,
    success,
    without_input,
)

from sandboxd.admission import in_turn
from sandboxd.errors import Conflict, NotFound
from sandboxd.ids import new_id
from sandboxd.jobs import (
    TERMINAL,
    Component,
    JobError,
    Reason,
    Result,
    Retry,
    State,
    Stream,
)
from sandboxd.store.sqlite import SqliteStore


async def story(store: SqliteStore, job_id: str) -> list[tuple[State, Reason]]:
    return [(event.state, event.reason) for event in await store.events("ada", job_id)]


@in_store
async def test_a_submitted_job_reads_back_with_everything_that_was_asked_for(
    store: SqliteStore,
) -> None:
    job = a_job(
        command=("python3", "-c", "print('ä\\x00')"),
        stdin=bytes(range(256)),
        env={"A": "1"},
        workdir="/work",
        user=(1000, 100),
        queue_seconds=5.5,
        require={"memory": "cgroup"},
        priority=3,
        labels={"team": "ünï", "empty": ""},
        retry=Retry(max_attempts=2),
        ttl_seconds=60.0,
        request_id="request-1",
    )

    submitted = await store.submit(job)

    assert submitted.job == msgspec.structs.replace(job, sequence=1)
    assert not submitted.replayed
    assert await store.get("ada", job.id) == submitted.job


@in_store
async def test_input_is_read_only_where_it_is_wanted(store: SqliteStore) -> None:
    job = (await store.submit(a_job(stdin=b"x" * 100_000))).job

    assert (await store.get("ada", job.id, with_stdin=False)) == without_input(job)
    assert (await store.list_jobs("ada", limit=1)).items == [without_input(job)]
    assert (await store.claim("me", in_turn(1), 2000.0))[0].spec.stdin == job.spec.stdin


@in_store
async def test_a_job_submitted_with_an_owner_is_claimed_already(store: SqliteStore) -> None:
    job = (await store.submit(a_job(), claim_owner="me")).job

    assert (job.state, job.reason) == (State.STARTING, Reason.CLAIMED)
    assert (job.attempt, job.lease_token, job.sequence) == (1, 1, 2)
    assert await store.get("ada", job.id) == job
    assert await store.claim("another", in_turn(10), 2000.0) == []
    assert await story(store, job.id) == [
        (State.QUEUED, Reason.SUBMITTED),
        (State.STARTING, Reason.CLAIMED),
    ]


@in_store
async def test_claims_take_the_highest_priority_and_then_the_oldest(store: SqliteStore) -> None:
    first, second = [(await store.submit(a_job())).job for _ in range(2)]
    urgent = (await store.submit(a_job(priority=5))).job
    idle = (await store.submit(a_job(priority=-5))).job

    claimed = await store.claim("me", in_turn(3), 2000.0)
    rest = await store.claim("me", in_turn(3), 2000.0)

    assert [job.id for job in claimed] == [urgent.id, first.id, second.id]
    assert [job.id for job in rest] == [idle.id]
    assert {(job.state, job.attempt, job.lease_token) for job in claimed} == {
        (State.STARTING, 1, 1)
    }


@in_store
async def test_a_waiting_job_knows_how_many_are_claimed_before_it(store: SqliteStore) -> None:
    first, second = [(await store.submit(a_job(tenant=name))).job for name in ("ada", "eve")]
    idle = (await store.submit(a_job(priority=-5))).job
    urgent = (await store.submit(a_job(priority=5))).job
    later = (await store.submit(a_job(priority=9), claim_owner="me")).job
    await store.retry(later.id, 1, Reason.SANDBOX_FAILED, None, run_at=3000.0, now=1001.0)

    before = [await store.waiting_before(job, 2000.0) for job in (urgent, first, second, idle)]
    claimed = await store.claim("me", in_turn(10), 2000.0)

    assert before == [0, 1, 2, 3]
    assert [job.id for job in claimed] == [urgent.id, first.id, second.id, idle.id]
    assert await store.waiting_before(idle, 3000.0) == 1


@in_store
async def test_claims_at_once_never_give_a_job_twice(store: SqliteStore) -> None:
    jobs = [(await store.submit(a_job())).job.id for _ in range(50)]

    claims = await asyncio.gather(
        *(store.claim(f"worker {n}", in_turn(7), 2000.0) for n in range(20))
    )

    assert sorted(job.id for claimed in claims for job in claimed) == sorted(jobs)


@in_store
async def test_a_finished_job_has_its_result_its_events_and_its_end(store: SqliteStore) -> None:
    job = (await store.submit(a_job(ttl_seconds=60.0, stdin=b"in"), claim_owner="me")).job
    await store.mark_running(job.id, 1, 1001.0)

    finished = await store.finish(job.id, 1, success(), no_log(), 1002.0)

    assert finished is not None
    assert (finished.state, finished.reason) == (State.SUCCEEDED, Reason.EXITED)
    assert (finished.started_at, finished.finished_at) == (1001.0, 1002.0)
    assert finished.expires_at == 1062.0
    assert finished.result == success()
    assert finished == await store.get("ada", job.id, with_stdin=False)
    assert [(event.seq, event.at) for event in await store.events("ada", job.id)] == [
        (1, 1000.0),
        (2, 1000.0),
        (3, 1001.0),
        (4, 1002.0),
    ]


@in_store
async def test_the_story_of_a_short_job_is_the_same_without_a_commit_for_its_start(
    store: SqliteStore,
) -> None:
    marked, unmarked = [(await store.submit(a_job(), claim_owner="me")).job for _ in range(2)]
    await store.mark_running(marked.id, 1, 1001.0)

    for job in (marked, unmarked):
        await store.finish(job.id, 1, success(), no_log(), 1002.0)

    events = await store.events("ada", unmarked.id)
    assert events == await store.events("ada", marked.id)
    assert (await store.get("ada", unmarked.id)).sequence == len(events) == 4


@in_store
async def test_the_last_event_says_why_a_job_failed(store: SqliteStore) -> None:
    job = (await store.submit(a_job(), claim_owner="me")).job
    error = JobError(component=Component.ISOLATION, code="sandbox_failed", message="mount: EPERM")
    result = Result(state=State.ERROR, reason=Reason.SANDBOX_FAILED, error=error)

    await store.finish(job.id, 1, result, no_log(), 1002.0)

    events = await store.events("ada", job.id)
    assert [event.state for event in events] == [State.QUEUED, State.STARTING, State.ERROR]
    assert events[-1].message == "mount: EPERM"


@in_store
@pytest.mark.attack(55)
async def test_a_stale_lease_never_settles_a_job(store: SqliteStore) -> None:
    job = (await store.submit(a_job(), claim_owner="me")).job
    (recovered,) = await store.recover("my successor")

    await store.mark_running(job.id, 1, 1001.0)
    assert await store.finish(job.id, 1, success(), no_log(), 1002.0) is None
    assert not await store.retry(job.id, 1, Reason.SANDBOX_FAILED, None, 1002.0)

    assert await store.get("ada", job.id) == recovered
    assert len(await store.events("ada", job.id)) == 2
    assert (await store.conservation()).drift == 0


@in_store
@pytest.mark.attack(55)
async def test_a_job_that_has_ended_is_not_ended_again(store: SqliteStore) -> None:
    job = await ended(store)

    assert await store.finish(job.id, 1, success(), no_log(), 1003.0) is None
    assert not await store.retry(job.id, 1, Reason.SANDBOX_FAILED, None, 1003.0)
    assert await store.get("ada", job.id) == job


@in_store
async def test_a_retried_job_waits_until_its_time_and_gets_a_new_lease(store: SqliteStore) -> None:
    job = (await store.submit(a_job(queue_seconds=10.0), claim_owner="me")).job
    await store.mark_running(job.id, 1, 1001.0)

    assert await store.retry(job.id, 1, Reason.SANDBOX_FAILED, "no luck", 1010.0, now=1002.0)

    waiting = await store.get("ada", job.id)
    assert (waiting.state, waiting.started_at, waiting.queued_at) == (State.RETRYING, None, 1010.0)
    assert await store.next_due(1002.0) == 1010.0
    assert await store.claim("me", in_turn(1), 1009.0) == []
    assert await store.expire_waiting(1019.0) == []
    (again,) = await store.claim("me", in_turn(1), 1010.0)
    assert (again.attempt, again.lease_token) == (2, 2)
    last = (await store.events("ada", job.id))[-2]
    assert (last.state, last.at, last.message) == (State.RETRYING, 1002.0, "no luck")


@in_store
async def test_cancelling_a_waiting_job_ends_it_at_once(store: SqliteStore) -> None:
    job = (await store.submit(a_job(ttl_seconds=10.0))).job

    cancelled = await store.request_cancel("ada", job.id, 1003.0, "changed my mind")

    assert (cancelled.state, cancelled.reason) == (State.CANCELLED, Reason.CANCELLED_BY_CLIENT)
    assert (cancelled.finished_at, cancelled.expires_at) == (1003.0, 1013.0)
    assert cancelled.result is not None
    assert cancelled.result.error is not None
    assert cancelled.result.error.message == "changed my mind"
    assert cancelled.result.usage.queue_seconds == 3.0
    assert await store.claim("me", in_turn(1), 2000.0) == []
    assert await store.request_cancel("ada", job.id, 1004.0, "again") == cancelled


@in_store
async def test_a_cancelled_job_keeps_the_reason_that_was_given(store: SqliteStore) -> None:
    job = (await store.submit(a_job())).job
    running = (await store.submit(a_job(), claim_owner="me")).job

    ended = await store.request_cancel("ada", job.id, 1003.0, "hung up", Reason.CLIENT_GONE)
    await store.request_cancel("ada", running.id, 1003.0, "hung up", Reason.CLIENT_GONE)

    assert ended.reason == Reason.CLIENT_GONE
    assert ended.result is not None
    assert ended.result.error is not None
    assert ended.result.error.code == Reason.CLIENT_GONE
    assert (await store.events("ada", running.id))[-1].reason == Reason.CLIENT_GONE


@in_store
async def test_cancelling_an_active_job_asks_whoever_runs_it(store: SqliteStore) -> None:
    job = (await store.submit(a_job(), claim_owner="me")).job

    asked = await store.request_cancel("ada", job.id, 1003.0, "enough")
    again = await store.request_cancel("ada", job.id, 1004.0, None)

    assert (asked.state, asked.cancel_requested) == (State.STARTING, True)
    assert again == asked == await store.get("ada", job.id)
    event = (await store.events("ada", job.id))[-1]
    assert (event.state, event.reason) == (State.STARTING, Reason.CANCELLED_BY_CLIENT)
    assert (event.seq, event.message) == (asked.sequence, "enough")
    assert await store.finish(job.id, 1, success(), no_log(), 1005.0) is not None


@in_store
async def test_a_job_that_waited_too_long_expires_with_figures(store: SqliteStore) -> None:
    late = (await store.submit(a_job(queue_seconds=2.5))).job
    patient = (await store.submit(a_job(queue_seconds=60.0))).job
    started = (await store.submit(a_job(queue_seconds=2.5), claim_owner="me")).job
    assert await store.next_due(1000.0) == 1002.5

    (expired,) = await store.expire_waiting(1003.0)

    assert (expired.id, expired.state, expired.reason) == (
        late.id,
        State.EXPIRED,
        Reason.QUEUE_SECONDS,
    )
    assert expired.result is not None
    assert expired.result.error == JobError(
        component=Component.QUEUE,
        code="queue_seconds",
        message="waited 3.0 s for a free slot, of at most 2.5 s",
    )
    assert (await store.get("ada", patient.id)).state is State.QUEUED
    assert (await store.get("ada", started.id)).state is State.STARTING


@in_store
async def test_the_sequence_grows_with_every_change(store: SqliteStore) -> None:
    job = (await store.submit(a_job())).job
    seen = [job.sequence]
    await store.claim("me", in_turn(1), 2000.0)
    seen.append((await store.get("ada", job.id)).sequence)
    await store.mark_running(job.id, 1, 1001.0)
    seen.append((await store.get("ada", job.id)).sequence)
    await store.request_cancel("ada", job.id, 1001.0, None)
    seen.append((await store.get("ada", job.id)).sequence)
    await store.finish(job.id, 1, success(), no_log(), 1002.0)
    seen.append((await store.get("ada", job.id)).sequence)

    assert seen == sorted(set(seen))


@in_store
async def test_what_belongs_to_another_tenant_does_not_exist(store: SqliteStore) -> None:
    job = await ended(store)

    for question in (
        store.get("eve", job.id),
        store.events("eve", job.id),
        store.log("eve", job.id),
        store.request_cancel("eve", job.id, 1003.0, None),
        store.delete("eve", job.id),
        store.get("ada", new_id("job")),
    ):
        with pytest.raises(NotFound):
            await question
    assert (await store.list_jobs("eve", limit=10)).items == []
    assert await store.get("ada", job.id) == job


@in_store
async def test_a_deleted_job_is_gone_with_all_its_parts(store: SqliteStore) -> None:
    job = await ended(store, stdin=b"in", labels={"a": "b"})

    assert await store.delete("ada", job.id) is None

    for question in (
        store.get("ada", job.id),
        store.events("ada", job.id),
        store.log("ada", job.id),
    ):
        with pytest.raises(NotFound):
            await question
    assert (await store.list_jobs("ada", labels={"a": "b"}, limit=10)).items == []


@in_store
async def test_only_a_job_that_has_ended_can_be_deleted(store: SqliteStore) -> None:
    waiting = (await store.submit(a_job())).job
    active = (await store.submit(a_job(), claim_owner="me")).job

    for job in (waiting, active):
        with pytest.raises(Conflict, match="only a job that has ended"):
            await store.delete("ada", job.id)


def test_expired_records_are_deleted_in_batches_and_their_log_files_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            for _ in range(7):
                await ended(store, ttl_seconds=10.0)
            long = (await store.submit(a_job(ttl_seconds=10.0), claim_owner="me")).job
            log = a_log(tmp_path / "logs", long.id, (Stream.STDOUT, b"x" * 5000))
            await store.finish(long.id, 1, success(), log, 1002.0)
            kept = await ended(store)
            later = await ended(store, ttl_seconds=100.0)

            deleted = await store.delete_expired(1012.0, 3)

            assert len(deleted.job_ids) == 8
            assert deleted.logs == [tmp_path / "logs" / f"{long.id}.log"]
            left = (await store.list_jobs("ada", limit=100)).items
            assert [job.id for job in left] == [later.id, kept.id]

    asyncio.run(scenario())


def test_deletion_gives_the_space_back(tmp_path: Path) -> None:
    path = tmp_path / "sandboxd.db"

    async def scenario() -> None:
        async with opened(path) as store:
            for _ in range(20):
                await ended(store, ttl_seconds=1.0, stdin=b"x" * 200_000)

    async def cleaning() -> None:
        async with opened(path) as store:
            await store.delete_expired(2000.0, 5)

    asyncio.run(scenario())
    full = path.stat().st_size
    asyncio.run(cleaning())

    assert path.stat().st_size < full / 4


@in_store
async def test_every_accepted_job_is_counted_once(store: SqliteStore) -> None:
    waiting = [(await store.submit(a_job())).job for _ in range(3)]
    active = (await store.submit(a_job(), claim_owner="me")).job
    await ended(store)
    gone = await ended(store)
    await store.delete("ada", gone.id)
    await store.request_cancel("ada", waiting[0].id, 1003.0, None)

    counts = await store.counts()
    figures = await store.conservation()

    assert set(counts) == set(State)
    assert {state: count for state, count in counts.items() if count} == {
        State.QUEUED: 2,
        State.STARTING: 1,
        State.SUCCEEDED: 2,
        State.CANCELLED: 1,
    }
    assert figures == (6, 2, 1, 3)
    assert figures.drift == 0
    assert figures.terminal_total == sum(counts[state] for state in TERMINAL)
    assert (await store.get("ada", active.id)).state is State.STARTING


@in_store
async def test_the_oldest_waiting_job_sets_the_age_of_the_queue(store: SqliteStore) -> None:
    assert await store.oldest_waiting() is None
    await store.submit(a_job(now=900.0), claim_owner="me")
    await store.submit(a_job(now=1010.0, priority=9))
    await store.submit(a_job(now=1005.0))

    assert await store.oldest_waiting() == 1005.0
    assert await store.next_due(1010.0) is None


def test_queued_jobs_survive_a_restart_and_active_ones_are_recovered(tmp_path: Path) -> None:
    path = tmp_path / "sandboxd.db"

    async def before() -> tuple[str, str, str]:
        async with opened(path) as store:
            queued = (await store.submit(a_job(stdin=b"keep me"))).job
            starting = (await store.submit(a_job(), claim_owner="first")).job
            running = (await store.submit(a_job(), claim_owner="first")).job
            await store.mark_running(running.id, 1, 1001.0)
            await ended(store)
            return queued.id, starting.id, running.id

    async def after(queued_id: str, starting_id: str, running_id: str) -> None:
        async with opened(path) as store:
            recovered = await store.recover("second")

            assert [job.id for job in recovered] == [starting_id, running_id]
            assert [job.lease_token for job in recovered] == [2, 2]
            lost = Result(state=State.ERROR, reason=Reason.SERVICE_LOST)
            assert await store.finish(starting_id, 2, lost, no_log(), 1005.0) is not None
            assert await store.retry(running_id, 2, Reason.SERVICE_LOST, None, 1005.0, now=1005.0)
            claimed = await store.claim("second", in_turn(10), 1006.0)
            assert [job.id for job in claimed] == [queued_id, running_id]
            assert claimed[0].spec.stdin == b"keep me"
            assert (await store.conservation()).drift == 0

    asyncio.run(after(*asyncio.run(before())))


@in_store
async def test_what_happens_while_a_job_starts_is_an_event_each(store: SqliteStore) -> None:
    job = (await store.submit(a_job(), claim_owner="me")).job
    await store.note_start(job.id, 1, Reason.IMAGE_PULL_STARTED, "an image", 1001.0)
    await store.note_start(job.id, 9, Reason.IMAGE_PULLED, "by a stale lease", 1002.0)
    now = await store.get("ada", job.id)
    await store.mark_running(job.id, 1, 1003.0)
    await store.note_start(job.id, 1, Reason.IMAGE_PULLED, "too late", 1004.0)

    events = await store.events("ada", job.id)
    assert (now.state, now.reason) == (State.STARTING, Reason.IMAGE_PULL_STARTED)
    assert [(event.seq, event.reason, event.message) for event in events[2:]] == [
        (3, Reason.IMAGE_PULL_STARTED, "an image"),
        (4, Reason.STARTED, None),
    ]


@in_store
async def test_a_claim_passes_over_jobs_of_an_image_that_is_crowded(store: SqliteStore) -> None:
    spec = msgspec.structs.replace(a_job().spec, image="docker.io/library/slow:1")
    slow = [
        (await store.submit(msgspec.structs.replace(a_job(), spec=spec))).job for _ in range(40)
    ]
    ready = (await store.submit(a_job())).job
    anothers = msgspec.structs.replace(a_job(), spec=spec, tenant="other")
    others = (await store.submit(anothers)).job

    crowded = [(slow[0].tenant, spec.image)]
    claimed = await store.claim("me", in_turn(50), 2000.0, of_images=crowded)
    rest = await store.claim("me", in_turn(50), 2000.0)

    assert {job.id for job in claimed} == {ready.id, others.id}
    assert {job.id for job in rest} < {job.id for job in slow}
