"""The schema goes up, down and up again, from the source tree and from an installed wheel."""

import os
import sqlite3
import subprocess
import sys
import threading
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from alembic.util import CommandError
from hatchling.builders.wheel import WheelBuilder
from sqlalchemy import create_engine

from sandboxd.store import migrate
from sandboxd.store.tables import REVISION, metadata

ROOT = Path(__file__).parents[2]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "100% odd name.db"


def tables_of(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {name for (name,) in rows} - {"alembic_version"}


def test_a_new_database_gets_the_newest_schema(database: Path) -> None:
    url = migrate.sqlite_url(database)
    assert migrate.current(url) is None

    migrate.upgrade(url)

    assert migrate.current(url) == migrate.head() == REVISION


def test_a_new_database_is_for_its_owner_only(database: Path) -> None:
    migrate.upgrade(migrate.sqlite_url(database))

    assert database.stat().st_mode & 0o777 == 0o600


def test_the_migrations_and_the_tables_agree(database: Path) -> None:
    url = migrate.sqlite_url(database)
    migrate.upgrade(url)

    migrate.check(url)

    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP INDEX ix_job_list")
    with pytest.raises(CommandError, match="ix_job_list"):
        migrate.check(url)


def test_partial_indexes_are_those_of_the_tables(database: Path) -> None:
    """What `check` does not compare: the conditions."""
    migrate.upgrade(migrate.sqlite_url(database))
    made_at_once = database.with_name("once.db")
    engine = create_engine(migrate.sqlite_url(made_at_once))
    metadata.create_all(engine)
    engine.dispose()

    def indexes(path: Path) -> set[str]:
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index'")
            return {sql for (sql,) in rows if sql}

    assert indexes(database) == indexes(made_at_once)


def test_down_to_nothing_and_up_again(database: Path) -> None:
    url = migrate.sqlite_url(database)
    migrate.upgrade(url)
    whole = tables_of(database)

    migrate.downgrade(url, "base")
    assert tables_of(database) == set()
    assert migrate.current(url) is None
    migrate.upgrade(url)

    assert tables_of(database) == whole


def test_upgrading_twice_changes_nothing(database: Path) -> None:
    url = migrate.sqlite_url(database)
    migrate.upgrade(url)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE job_total SET value = 5 WHERE name = 'accepted'")

    migrate.upgrade(url)

    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT value FROM job_total WHERE name = 'accepted'"
        assert connection.execute(query).fetchone() == (5,)


def test_upgrades_at_once_wait_for_one_another(database: Path) -> None:
    script = "import sys; from sandboxd.store import migrate; migrate.upgrade(sys.argv[1])"
    words = [sys.executable, "-c", script, migrate.sqlite_url(database)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    codes: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: codes.append(
                subprocess.run(words, env=environment, check=False).returncode
            )
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert codes == [0, 0, 0]
    migrate.check(migrate.sqlite_url(database))


def test_an_installed_wheel_carries_its_migrations(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path / "dist"))
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    database = tmp_path / "sandboxd.db"
    script = (
        "import sys; from sandboxd.store import migrate; migrate.upgrade(sys.argv[1]);"
        "migrate.check(sys.argv[1]); print(migrate.script_directory())"
    )

    run = subprocess.run(
        [sys.executable, "-c", script, migrate.sqlite_url(database)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.splitlines()[-1] == str(installed / "sandboxd" / "migrations")
    assert migrate.current(migrate.sqlite_url(database)) == REVISION
