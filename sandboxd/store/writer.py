"""One thread that writes: operations that wait together share one commit, and so one wait for the disk.

An operation may be patient: it is carried out at once, but its commit waits a little for one that is not (as with
PostgreSQL's `commit_delay`). So what belongs together and follows closely costs one wait for the disk, too.
"""

import asyncio
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import Connection

from sandboxd.errors import Refused, Unavailable

T = TypeVar("T")
Operation = Callable[[Connection], Any]

MAX_GROUP = 256
"""A commit of so many operations takes in no more that come."""


class _Waiting(NamedTuple):
    operation: Operation
    future: asyncio.Future[Any]
    until: float
    """The monotonic time until which its commit may wait for others; long past where it may not."""


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
        self._coming: list[_Waiting] = []
        """Those of this turn of the loop: they are handed over together, which wakes the thread once."""
        self._waiting: queue.SimpleQueue[list[_Waiting] | None] = queue.SimpleQueue()
        self._closing = False
        self._ended = False
        """For the thread: nothing comes any more."""
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    async def run(
        self, operation: Callable[[Connection], T], *, patience_seconds: float = 0.0
    ) -> T:
        """The value of `operation`, once it is committed. What it raises is raised here, and nothing is kept of it.

        Its commit waits up to `patience_seconds` for an operation that does not wait. A caller that is cancelled does
        not take its operation back.
        """
        if self._closing:
            raise Unavailable("the store is closed", code="store_closed")
        future: asyncio.Future[T] = self._loop.create_future()
        until = time.monotonic() + patience_seconds if patience_seconds else 0.0
        if not self._coming:
            self._loop.call_soon(self._hand_over)
        self._coming.append(_Waiting(operation, future, until))
        return await future

    async def close(self) -> None:
        """Finish what was asked for, then end the thread. Twice is harmless."""
        if not self._closing:
            self._closing = True
            self._hand_over()
            self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _hand_over(self) -> None:
        if self._coming:
            coming, self._coming = self._coming, []
            self._waiting.put(coming)

    def _work(self) -> None:
        while not self._ended:
            first = self._waiting.get()
            if first is not None:
                self._deliver(self._commit(first))
            else:
                self._ended = True

    def _commit(self, group: list[_Waiting]) -> list[_Outcome]:
        """Try all that comes in one transaction; where that fails, one by one, so that only the guilty suffer."""
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001 it would be the same for each
            return [_Outcome(waiting.future, None, error) for waiting in group]
        try:
            return self._commit_together(self._arriving(group))
        except Exception as error:  # noqa: BLE001 whatever it is, it belongs to who waits
            if len(group) == 1:
                return [_Outcome(group[0].future, None, error)]
        return [outcome for waiting in group for outcome in self._commit_alone(waiting)]

    def _commit_alone(self, waiting: _Waiting) -> list[_Outcome]:
        try:
            self._begin()
            return self._commit_together([waiting])
        except Exception as error:  # noqa: BLE001 as above
            return [_Outcome(waiting.future, None, error)]

    def _arriving(self, group: list[_Waiting]) -> Iterator[_Waiting]:
        """Those of the group, then those that wait now, and those that come while all are patient.

        Each is in `group` before it is reached: whoever was taken out is answered, whatever becomes of the others.
        """
        coming: list[_Waiting] | None = list(group)
        until = math.inf
        while coming is not None:
            yield from coming
            if len(group) >= MAX_GROUP:
                return
            until = min(until, *(waiting.until for waiting in coming))
            patience = max(0.0, until - time.monotonic())
            try:
                coming = self._waiting.get(patience > 0, patience)
            except queue.Empty:
                return
            group += coming or []
        self._ended = True

    def _begin(self) -> None:
        """By the driver itself, which takes a quarter of the time that SQLAlchemy's own takes.

        Immediate: begun late, at the first change, it might find that somebody else writes.
        """
        self._check()
        self._driver.execute("BEGIN IMMEDIATE")

    def _commit_together(self, group: Iterable[_Waiting]) -> list[_Outcome]:
        """The outcomes, after the commit of the transaction that was begun.

        Raises what the commit or an operation raised, but for a refusal before anything was changed: that is an
        answer like any other, and clients that are refused must not slow their neighbours down.
        """
        outcomes = []
        try:
            for operation, future, _ in group:
                changes = self._driver.total_changes
                try:
                    outcomes.append(_Outcome(future, operation(self._connection), None))
                except Refused as error:
                    if self._driver.total_changes != changes:
                        raise
                    outcomes.append(_Outcome(future, None, error))
            self._driver.execute("COMMIT")
        except BaseException:
            if self._driver.in_transaction:
                self._driver.execute("ROLLBACK")
            raise
        return outcomes

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
