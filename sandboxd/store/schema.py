"""The schema that this release works with, as a new database gets it: at once.

`migrations/schema.sql` is what all migrations make of nothing, as SQLite writes it down; a test makes it anew and compares. So a start
needs alembic only where there is something to migrate: to import it and to go from migration to migration takes a tenth of a first start.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sandboxd
from sandboxd.errors import HostNotReady

FILE = "schema.sql"
PRAGMAS = (
    "PRAGMA busy_timeout = 5000",
    # Both are kept in the file; the first has no effect once there is a table.
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
)
"""Of a connection that may change the schema."""


def create(database: Path) -> str | None:
    """Make the schema in a new database, for our eyes only. Gives its revision, or that of what there was before.

    Raises HostNotReady if the file is no database, or another program's.
    """
    with _opened(database) as connection:
        connection.execute("BEGIN IMMEDIATE")  # Whoever comes at the same time waits here.
        if not _has(connection, "%"):
            for statement in statements((script_directory() / FILE).read_text()):
                connection.execute(statement)
        elif not _has(connection, "alembic_version"):
            raise HostNotReady(f"{database} is the database of another program")
        connection.execute("COMMIT")
        return _revision(connection)


def make_private(database: Path) -> None:
    """Make a new file for our eyes only; what SQLite puts beside it gets the same mode."""
    os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def current(database: Path) -> str | None:
    """The revision of a database, None before the first. Raises HostNotReady if the file is no database."""
    with _opened(database) as connection:
        return _revision(connection)


def script_directory() -> Path:
    """Where the migrations are: inside the installed package, or at the top of the source tree."""
    package = Path(sandboxd.__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def written_down(database: Path) -> str:
    """What is in a database, as statements that make it: the text of `FILE`."""
    with _opened(database) as connection:
        lines = list(connection.iterdump())
    return "\n".join(lines[1:-1]) + "\n"  # Without its BEGIN and COMMIT.


def statements(script: str) -> Iterator[str]:
    """Each statement of a script; that of a trigger has others inside."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    try:
        make_private(database)
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            for pragma in PRAGMAS:
                connection.execute(pragma)
            yield connection
    except (OSError, sqlite3.DatabaseError) as error:
        raise HostNotReady(f"{database} cannot be used as a database: {error}") from error


def _has(connection: sqlite3.Connection, name: str) -> bool:
    """Whether there is a table (or anything) whose name is like this."""
    query = "SELECT 1 FROM sqlite_master WHERE name LIKE ?"
    return connection.execute(query, (name,)).fetchone() is not None


def _revision(connection: sqlite3.Connection) -> str | None:
    if not _has(connection, "alembic_version"):
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])
