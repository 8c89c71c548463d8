"""Lists: newest first, by pages that new jobs do not shift."""

import pytest
from store_examples import a_job, ended, in_store

from sandboxd.errors import Invalid
from sandboxd.jobs import State
from sandboxd.store.sqlite import SqliteStore


@in_store
async def test_pages_show_each_job_once_while_others_are_submitted(store: SqliteStore) -> None:
    jobs = [(await store.submit(a_job())).job.id for _ in range(10)]
    seen: list[str] = []
    sizes: list[int] = []
    cursor = None

    while True:
        page = await store.list_jobs("ada", limit=4, cursor=cursor)
        seen += [job.id for job in page.items]
        sizes.append(len(page.items))
        await store.submit(a_job())
        cursor = page.next_cursor
        if cursor is None:
            break

    assert seen == jobs[::-1]
    assert sizes == [4, 4, 2]


@in_store
async def test_a_last_page_that_is_full_has_no_next_one(store: SqliteStore) -> None:
    for _ in range(4):
        await store.submit(a_job())

    page = await store.list_jobs("ada", limit=2)
    last = await store.list_jobs("ada", limit=2, cursor=page.next_cursor)

    assert page.next_cursor is not None
    assert len(last.items) == 2
    assert last.next_cursor is None


@in_store
async def test_a_page_ends_before_it_is_too_large(store: SqliteStore) -> None:
    words = ("x" * 3000, "é" * 3000, "never shown")
    jobs = [a_job(command=words, env={"A": "a" * 10_000}) for _ in range(300)]
    for job in jobs:
        await store.submit(job)

    page = await store.list_jobs("ada", limit=300)
    rest = await store.list_jobs("ada", limit=300, cursor=page.next_cursor)

    assert 100 < len(page.items) < 300
    assert page.next_cursor is not None
    assert [job.id for job in [*page.items, *rest.items]] == [job.id for job in jobs[::-1]]
    assert page.items[0].spec.env == {}
    assert page.items[0].spec.command == ("x" * 3000, "é" * 547)
    assert page.shortened == {job.id for job in page.items}


@in_store
async def test_a_list_keeps_to_its_conditions(store: SqliteStore) -> None:
    queued = (await store.submit(a_job(now=1000.0, labels={"team": "red", "kind": "a"}))).job
    active = (await store.submit(a_job(now=1001.0, labels={"team": "red"}), claim_owner="me")).job
    done = await ended(store, now=1002.0, labels={"team": "blue", "kind": "a"})

    async def found(**conditions: object) -> list[str]:
        page = await store.list_jobs("ada", limit=10, **conditions)  # type: ignore[arg-type]
        return [job.id for job in page.items]

    assert await found() == [done.id, active.id, queued.id]
    assert await found(states=[State.QUEUED]) == [queued.id]
    assert await found(states=[State.QUEUED, State.SUCCEEDED]) == [done.id, queued.id]
    assert await found(labels={"team": "red"}) == [active.id, queued.id]
    assert await found(labels={"team": "red", "kind": "a"}) == [queued.id]
    assert await found(labels={"team": "green"}) == []
    assert await found(since=1001.0) == [done.id, active.id]
    assert await found(until=1001.0) == [queued.id]
    assert await found(since=1001.0, until=1002.0, labels={"team": "red"}) == [active.id]


@pytest.mark.parametrize("cursor", ["", "x", "!", "é", "am9iXzEyMw", "A" * 5000, "am9i\n"])
def test_a_cursor_that_no_page_gave_is_refused(cursor: str, tmp_path: object) -> None:
    @in_store
    async def scenario(store: SqliteStore) -> None:
        with pytest.raises(Invalid) as refused:
            await store.list_jobs("ada", limit=2, cursor=cursor)

        assert refused.value.faults[0].pointer == ""

    scenario(tmp_path)  # type: ignore[arg-type]
