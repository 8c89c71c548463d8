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

from sandboxd.errors import HostNotReady
from sandboxd.store import migrate, schema
from sandboxd.store.tables import REVISION, metadata
from sandboxd.store.upgrade import upgrade

ROOT = Path(__file__).parents[2]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "100% odd name.db"


def tables_of(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {name for (name,) in rows} - {"alembic_version"}


def pragmas_of(database: Path) -> tuple[object, ...]:
    """What is kept in the file besides its tables."""
    names = (
        "auto_vacuum",
        "journal_mode",
        "encoding",
        "page_size",
        "user_version",
        "application_id",
    )
    with closing(sqlite3.connect(database)) as connection:
        return tuple(connection.execute(f"PRAGMA {name}").fetchone() for name in names)


def test_a_new_database_gets_the_newest_schema(database: Path) -> None:
    url = migrate.sqlite_url(database)
    assert schema.current(database) is None

    migrate.upgrade(url)

    assert schema.current(database) == migrate.head() == REVISION


def test_a_new_database_is_for_its_owner_only(database: Path) -> None:
    former = os.umask(0)
    try:
        upgrade(database)
    finally:
        os.umask(former)

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
    assert schema.current(database) is None
    migrate.upgrade(url)

    assert tables_of(database) == whole


def test_a_new_database_is_made_at_once_as_the_migrations_would_make_it(database: Path) -> None:
    """If this fails after a new migration: `python tests/store/schema_file.py`."""
    migrated = database.with_name("migrated.db")
    migrate.upgrade(migrate.sqlite_url(migrated))
    upgrade(database)

    wanted = schema.written_down(migrated)
    assert (schema.script_directory() / schema.FILE).read_text() == wanted
    assert schema.written_down(database) == wanted
    assert pragmas_of(database) == pragmas_of(migrated)


def test_an_older_database_is_migrated(database: Path) -> None:
    url = migrate.sqlite_url(database)
    migrate.upgrade(url, "0003")

    upgrade(database)

    assert schema.current(database) == REVISION
    migrate.check(url)


def test_a_start_at_the_newest_schema_does_without_alembic(database: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sandboxd.store.upgrade import upgrade;"
        "upgrade(Path(sys.argv[1])); upgrade(Path(sys.argv[1])); print('alembic' in sys.modules)"
    )

    run = subprocess.run(
        [sys.executable, "-c", script, str(database)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout == "False\n"


def test_what_is_no_database_is_said_and_left_alone(database: Path) -> None:
    database.write_bytes(b"a letter to a friend" * 100)

    with pytest.raises(HostNotReady, match="not a database"):
        upgrade(database)

    assert database.read_bytes() == b"a letter to a friend" * 100


def test_the_database_of_another_program_is_refused_and_left_alone(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE recipe (name TEXT)")

    with pytest.raises(HostNotReady, match="another program"):
        upgrade(database)

    assert tables_of(database) == {"recipe"}


def test_the_database_of_a_newer_release_is_refused_and_left_alone(database: Path) -> None:
    upgrade(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(HostNotReady, match="9999, of a newer release"):
        upgrade(database)

    assert schema.current(database) == "9999"


def test_upgrading_twice_changes_nothing(database: Path) -> None:
    upgrade(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE job_total SET value = 5 WHERE name = 'accepted'")

    upgrade(database)

    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT value FROM job_total WHERE name = 'accepted'"
        assert connection.execute(query).fetchone() == (5,)


@pytest.mark.parametrize("found", ["nothing", "an older schema"])
def test_upgrades_at_once_wait_for_one_another(database: Path, found: str) -> None:
    if found == "an older schema":
        migrate.upgrade(migrate.sqlite_url(database), "0003")
    script = (
        "import sys; from pathlib import Path; from sandboxd.store.upgrade import upgrade;"
        "upgrade(Path(sys.argv[1]))"
    )
    words = [sys.executable, "-c", script, str(database)]
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
        "import sys; from pathlib import Path; from sandboxd.store import migrate, schema, upgrade;"
        "upgrade.upgrade(Path(sys.argv[1])); url = migrate.sqlite_url(Path(sys.argv[1]));"
        "migrate.downgrade(url, 'base'); migrate.upgrade(url); migrate.check(url);"
        "print(schema.script_directory())"
    )

    run = subprocess.run(
        [sys.executable, "-c", script, str(database)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.splitlines()[-1] == str(installed / "sandboxd" / "migrations")
    assert schema.current(database) == REVISION
