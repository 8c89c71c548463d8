"""Schema changes: alembic, called from the program, with the scripts that the package carries."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from sandboxd.store.schema import PRAGMAS, make_private, script_directory


def sqlite_url(path: Path) -> str:
    """The database URL of an SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`. An SQLite file is made if there is none. Doing it twice is harmless."""
    with _connect(database_url) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Take the schema back to `revision` (`base`: to nothing)."""
    with _connect(database_url) as connection:
        command.downgrade(_config(connection), revision)


def check(database_url: str) -> None:
    """Compare the schema with `tables.py`.

    Raises alembic.util.CommandError if a migration is missing.
    """
    with _connect(database_url) as connection:
        command.check(_config(connection))


def head() -> str | None:
    """The newest revision that this release carries."""
    return ScriptDirectory(str(script_directory())).get_current_head()


def revisions() -> set[str]:
    """All that this release carries."""
    scripts = ScriptDirectory(str(script_directory())).walk_revisions()
    return {script.revision for script in scripts}


def _config(connection: Connection) -> Config:
    config = Config()
    # A path may hold a percent sign, which the configuration's parser would take for a variable.
    config.set_main_option("script_location", str(script_directory()).replace("%", "%%"))
    config.set_main_option("file_template", "%%(year)d%%(month).2d%%(day).2d_%%(slug)s")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _connect(database_url: str) -> Iterator[Connection]:
    engine = create_engine(database_url, poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            make_private(Path(engine.url.database))
        _make_transactions_whole(engine)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _make_transactions_whole(engine: Engine) -> None:
    """Let SQLite take each change of the schema wholly or not at all, and one process after the other.

    Python's driver begins no transaction before CREATE or DROP, so we begin it ourselves. Foreign keys stay unenforced
    here: alembic changes a table by making it anew, and the DROP of the old one would delete what refers to it.
    """

    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
