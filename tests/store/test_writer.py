"""Commits are shared, failures are not."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, exc
from sqlalchemy.pool import StaticPool

from sandboxd.errors import Conflict, Unavailable
from sandboxd.store.writer import MAX_GROUP, Writer


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(
            tmp_path / "numbers.db", isolation_level=None, check_same_thread=False
        ),
        poolclass=StaticPool,
    )
    # As in the product: the driver commits each statement, unless the writer began a transaction.
    with engine.connect() as made:
        made.exec_driver_sql("CREATE TABLE number (value INTEGER UNIQUE)")
        yield made
    engine.dispose()


def insert(connection: Connection, value: int) -> int:
    connection.exec_driver_sql("INSERT INTO number VALUES (?)", (value,))
    return value


def stored(connection: Connection) -> list[int]:
    rows = connection.exec_driver_sql("SELECT value FROM number ORDER BY value").scalars().all()
    return list(rows)


class Gate:
    """Holds the writer inside one operation, so that others gather behind it."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def __call__(self, _: Connection) -> None:
        self._open.wait()

    def open(self) -> None:
        self._open.set()


async def in_one_group(writer: Writer, operations: list) -> list:  # type: ignore[type-arg]
    """The answers of operations that were all waiting when the writer became free."""
    gate = Gate()
    held = asyncio.create_task(writer.run(gate))
    tasks = [asyncio.create_task(writer.run(operation)) for operation in operations]
    await asyncio.sleep(0)  # let each task put its operation
    gate.open()
    await held
    return await asyncio.gather(*tasks, return_exceptions=True)


def commits_of(connection: Connection) -> list[str]:
    """What the database is told to commit from here on, as it is told."""
    seen: list[str] = []

    def note(statement: str) -> None:
        if statement == "COMMIT":
            seen.append(statement)

    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.set_trace_callback(note)
    return seen


def test_operations_that_wait_together_share_one_commit(connection: Connection) -> None:
    async def scenario() -> None:
        writer = Writer(connection, lambda: None)
        commits = commits_of(connection)
        answers = await in_one_group(
            writer, [lambda c, n=n: insert(c, n) for n in range(MAX_GROUP)]
        )
        await writer.close()

        assert answers == list(range(MAX_GROUP))
        assert 1 <= len(commits) <= 3

    asyncio.run(scenario())

    assert stored(connection) == list(range(MAX_GROUP))


def test_more_operations_than_one_commit_takes_are_all_done(connection: Connection) -> None:
    async def scenario() -> None:
        writer = Writer(connection, lambda: None)
        count = 2 * MAX_GROUP + 5
        answers = await in_one_group(writer, [lambda c, n=n: insert(c, n) for n in range(count)])
        await writer.close()
        assert answers == list(range(count))

    asyncio.run(scenario())

    assert stored(connection) == list(range(2 * MAX_GROUP + 5))


def test_a_patient_operation_shares_the_commit_of_the_next_that_is_not(
    connection: Connection,
) -> None:
    async def scenario() -> None:
        writer = Writer(connection, lambda: None)
        commits = commits_of(connection)
        patient = asyncio.create_task(writer.run(lambda c: insert(c, 1), patience_seconds=600))
        also = asyncio.create_task(writer.run(lambda c: insert(c, 2), patience_seconds=600))
        await asyncio.sleep(0.05)
        assert not patient.done()
        assert await writer.run(lambda c: insert(c, 3)) == 3
        assert (await patient, await also) == (1, 2)
        assert len(commits) == 1
        await writer.close()

    asyncio.run(scenario())

    assert stored(connection) == [1, 2, 3]


def test_the_patience_of_an_operation_ends(connection: Connection) -> None:
    async def scenario() -> float:
        writer = Writer(connection, lambda: None)
        begun = time.monotonic()
        await writer.run(lambda c: insert(c, 1), patience_seconds=0.05)
        ended = time.monotonic()
        await writer.close()
        return ended - begun

    assert asyncio.run(scenario()) >= 0.05
    assert stored(connection) == [1]


def test_who_shares_a_commit_with_a_patient_operation_that_fails_is_not_harmed(
    connection: Connection,
) -> None:
    def fails(c: Connection) -> None:
        insert(c, 1000)
        raise ValueError("no")

    async def scenario() -> None:
        writer = Writer(connection, lambda: None)
        kept = asyncio.create_task(writer.run(lambda c: insert(c, 1), patience_seconds=600))
        failing = asyncio.create_task(writer.run(fails, patience_seconds=600))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="no"):
            await failing
        assert await kept == 1
        assert await writer.run(lambda c: insert(c, 2)) == 2
        await writer.close()

    asyncio.run(scenario())

    assert stored(connection) == [1, 2]


def test_a_close_waits_for_no_patience(connection: Connection) -> None:
    async def scenario() -> None:
        writer = Writer(connection, lambda: None)
        patient = asyncio.create_task(writer.run(lambda c: insert(c, 1), patience_seconds=600))
        await asyncio.sleep(0)
        await asyncio.wait_for(writer.close(), 30)
        assert await patient == 1

    asyncio.run(scenario())

    assert stored(connection) == [1]


def test_an_operation_that_fails_takes_nothing_of_its_group_with_it(connection: Connection) -> None:
    def fails_half_way(c: Connection) -> None:
        insert(c, 1000)
        raise ValueError("half way")

    async def scenario() -> list[object]:
        writer = Writer(connection, lambda: None)
        answers = await in_one_group(
            writer,
            [
                lambda c: insert(c, 1),
                fails_half_way,
                lambda c: insert(c, 2),
                lambda c: insert(c, 2),
                lambda c: insert(c, 3),
            ],
        )
        await writer.close()
        return answers

    first, half, second, double, third = asyncio.run(scenario())

    assert (first, second, third) == (1, 2, 3)
    assert isinstance(half, ValueError)
    assert isinstance(double, exc.IntegrityError)
    assert stored(connection) == [1, 2, 3]


def test_all_of_a_turn_are_answered_while_the_database_cannot_be_used(
    connection: Connection,
) -> None:
    tries = []

    def cannot_be_used() -> None:
        tries.append(1)
        raise OSError("No such file or directory")

    async def scenario() -> list[object]:
        writer = Writer(connection, cannot_be_used)
        asked = [writer.run(lambda c, n=n: insert(c, n)) for n in range(3)]
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
        await writer.close()
        return answers

    answers = asyncio.run(scenario())

    assert [type(answer) for answer in answers] == [OSError] * 3
    assert len(tries) == 1  # It may have taken its time, which nobody is to wait for again.
    assert stored(connection) == []


def test_a_refusal_before_any_change_does_not_split_the_group(connection: Connection) -> None:
    def refuses(_: Connection) -> None:
        raise Conflict("no")

    async def scenario() -> tuple[list[object], int]:
        writer = Writer(connection, lambda: None)
        commits = commits_of(connection)
        operations = [refuses, *(lambda c, n=n: insert(c, n) for n in range(20)), refuses]
        answers = await in_one_group(writer, operations)
        await writer.close()
        return answers, len(commits)

    answers, commits = asyncio.run(scenario())

    assert isinstance(answers[0], Conflict)
    assert isinstance(answers[-1], Conflict)
    assert 1 <= commits <= 3
    assert stored(connection) == list(range(20))


def test_a_refusal_after_a_change_leaves_nothing_of_it(connection: Connection) -> None:
    def refuses_late(c: Connection) -> None:
        insert(c, 7)
        raise Conflict("no")

    async def scenario() -> list[object]:
        writer = Writer(connection, lambda: None)
        answers = await in_one_group(writer, [refuses_late, lambda c: insert(c, 1)])
        await writer.close()
        return answers

    refused, inserted = asyncio.run(scenario())

    assert isinstance(refused, Conflict)
    assert inserted == 1
    assert stored(connection) == [1]


def test_what_was_asked_for_before_the_close_is_done_and_nothing_after(
    connection: Connection,
) -> None:
    async def scenario() -> None:
        writer = Writer(connection, lambda: None)
        tasks = [asyncio.create_task(writer.run(lambda c, n=n: insert(c, n))) for n in range(10)]
        await asyncio.sleep(0)
        await writer.close()
        await writer.close()

        assert await asyncio.gather(*tasks) == list(range(10))
        with pytest.raises(Unavailable):
            await writer.run(lambda c: insert(c, 99))

    asyncio.run(scenario())

    assert stored(connection) == list(range(10))


def test_a_caller_that_is_cancelled_disturbs_nobody(connection: Connection) -> None:
    async def scenario() -> None:
        writer = Writer(connection, lambda: None)
        gate = Gate()
        held = asyncio.create_task(writer.run(gate))
        gone = asyncio.create_task(writer.run(lambda c: insert(c, 1)))
        stays = asyncio.create_task(writer.run(lambda c: insert(c, 2)))
        await asyncio.sleep(0)
        gone.cancel()
        gate.open()

        assert await stays == 2
        await held
        await writer.close()

    asyncio.run(scenario())

    assert stored(connection) == [1, 2]
