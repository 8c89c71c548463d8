"""One thread that writes: operations that wait together share one commit, and so one wait for the disk."""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import Connection

from sandboxd.errors import Refused, Unavailable

T = TypeVar("T")
Operation = Callable[[Connection], Any]

MAX_GROUP = 256
"""Operations per commit."""


class _Waiting(NamedTuple):
    operation: Operation
    future: asyncio.Future[Any]


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class Writer:
    """Runs operations in order, each wholly or not at all, and answers only after they are on the disk."""

    def __init__(self, connection: Connection, check: Callable[[], None]) -> None:
        """Owns `connection` until `close`. `check` raises where the database cannot be written; called per commit."""
        self._connection = connection
        self._driver = cast(sqlite3.Connection, connection.connection.driver_connection)
        self._check = check
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    async def run(self, operation: Callable[[Connection], T]) -> T:
        """The value of `operation`, once it is committed. What it raises is raised here, and nothing is kept of it.

        A caller that is cancelled does not take its operation back.
        """
        if self._closing:
            raise Unavailable("the store is closed", code="store_closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put(_Waiting(operation, future))
        return await future

    async def close(self) -> None:
        """Finish what was asked for, then end the thread. Twice is harmless."""
        if not self._closing:
            self._closing = True
            self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        closing = False
        while not closing:
            group, closing = self._next_group()
            if group:
                self._deliver(self._commit(group))

    def _next_group(self) -> tuple[list[_Waiting], bool]:
        """Wait for an operation, then take those that wait with it. True: it is the last group."""
        group: list[_Waiting] = []
        try:
            waiting = self._waiting.get()
            while waiting is not None:
                group.append(waiting)
                if len(group) == MAX_GROUP:
                    return group, False
                waiting = self._waiting.get_nowait()
        except queue.Empty:
            return group, False
        return group, True

    def _commit(self, group: list[_Waiting]) -> list[_Outcome]:
        """Try all in one transaction; where that fails, one by one, so that only the guilty suffer."""
        try:
            return self._commit_together(group)
        except Exception as error:  # noqa: BLE001 whatever it is, it belongs to who waits
            if len(group) == 1:
                return [_Outcome(group[0].future, None, error)]
        return [outcome for waiting in group for outcome in self._commit([waiting])]

    def _commit_together(self, group: list[_Waiting]) -> list[_Outcome]:
        """The outcomes, after the commit.

        Raises what the commit or an operation raised, but for a refusal before anything was changed: that is an
        answer like any other, and clients that are refused must not slow their neighbours down.
        """
        self._check()
        outcomes = []
        with self._transaction():
            for operation, future in group:
                changes = self._driver.total_changes
                try:
                    outcomes.append(_Outcome(future, operation(self._connection), None))
                except Refused as error:
                    if self._driver.total_changes != changes:
                        raise
                    outcomes.append(_Outcome(future, None, error))
        return outcomes

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """By the driver itself, which takes a quarter of the time that SQLAlchemy's own takes.

        Immediate: begun late, at the first change, it might find that somebody else writes.
        """
        self._driver.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._driver.execute("COMMIT")
        except BaseException:
            if self._driver.in_transaction:
                self._driver.execute("ROLLBACK")
            raise

    def _deliver(self, outcomes: list[_Outcome]) -> None:
        try:
            self._loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:
            # The loop is closed: nobody waits any more, and what was committed stands.
            return


def _resolve(outcomes: list[_Outcome]) -> None:
    for future, value, error in outcomes:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
