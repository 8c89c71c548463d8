"""An SQLite file that is ours alone: its lock, its connections, and whether it is still the file at its path."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, exc
from sqlalchemy.pool import QueuePool, StaticPool

from sandboxd.errors import HostNotReady
from sandboxd.store.ownership import owned
from sandboxd.store.tables import REVISION

READERS = 4
"""Threads that read, each with a connection."""
_PRAGMAS = (
    "PRAGMA busy_timeout = 5000",
    "PRAGMA foreign_keys = ON",
)
_WRITER_PRAGMAS = (
    *_PRAGMAS,
    "PRAGMA journal_mode = WAL",
    # A commit is on the disk before it is answered: WAL alone would survive a crash of ours, not one of the host.
    "PRAGMA synchronous = FULL",
    f"PRAGMA journal_size_limit = {64 * 2**20}",
)
_LOG_BYTES = 1100 * (4096 + 24) + 32
"""A header and somewhat more frames than SQLite's usual 1000 pages between checkpoints."""
_READER_PRAGMAS = (*_PRAGMAS, "PRAGMA query_only = ON")


def opened(path: Path, resources: ExitStack) -> tuple[Connection, Engine]:
    """The connection that writes and the engine that reads; `resources` ends them and the ownership.

    Raises HostNotReady if another process owns the file or if its schema is not that of this release.
    """
    resources.enter_context(owned(path))
    if not path.exists():
        raise HostNotReady(f"there is no schema in {path}: run `sandboxd migrate`")
    connection = resources.enter_context(_writing(path))
    _check_revision(path, connection)
    _fill_log(path.with_name(f"{path.name}-wal"))
    return connection, resources.enter_context(_reading(path))


@contextmanager
def _writing(path: Path) -> Iterator[Connection]:
    engine = create_engine(
        "sqlite://", creator=lambda: _connect(path, "rw", _WRITER_PRAGMAS), poolclass=StaticPool
    )
    # SQLAlchemy neither begins nor ends transactions here: the writer does (`Writer._transaction`).
    with _disposed(engine), engine.connect() as connection:
        yield connection


@contextmanager
def _reading(path: Path) -> Iterator[Engine]:
    engine = create_engine(
        "sqlite://",
        creator=lambda: _connect(path, "ro", _READER_PRAGMAS),
        poolclass=QueuePool,
        pool_size=READERS,
        max_overflow=0,
    )
    with _disposed(engine):
        yield engine


@contextmanager
def _disposed(engine: Engine) -> Iterator[None]:
    try:
        yield
    finally:
        engine.dispose()


def _connect(path: Path, mode: str, pragmas: tuple[str, ...]) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for pragma in pragmas:
            connection.execute(pragma)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _fill_log(log: Path) -> None:
    """Bring the write-ahead log to the size that it has between checkpoints, with zeros, which are no frames to SQLite.

    A commit that makes the file longer has to wait for its new size to be on the disk too: measured, that takes several
    times as long as writing over what is there. SQLite writes from the start again after each checkpoint.
    """
    with log.open("ab") as file:
        missing = _LOG_BYTES - file.tell()
        if missing > 0:
            file.write(bytes(missing))
            file.flush()
            os.fsync(file.fileno())


def _check_revision(path: Path, connection: Connection) -> None:
    """Raises HostNotReady unless the schema is the one that this release works with."""
    try:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    except exc.DatabaseError as error:
        raise HostNotReady(
            f"{path} has no schema of ours ({error.orig}): run `sandboxd migrate`"
        ) from error
    if found != REVISION:
        raise HostNotReady(
            f"the schema of {path} is {found}, and this release works with {REVISION}: "
            "run `sandboxd migrate`"
        )


def same_file(path: Path) -> Callable[[], None]:
    """A check that raises OSError once the database is no longer the file at `path`.

    SQLite goes on writing into a file that was removed or replaced, and would have us promise what nobody can read.
    """
    opened = os.stat(path)

    def check() -> None:
        now = os.stat(path)
        if (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino):
            raise FileNotFoundError(2, f"{path} was replaced")

    return check
