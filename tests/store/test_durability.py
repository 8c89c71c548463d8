"""What is promised is on the disk, whatever happens to the process, the disk or the file."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from store_examples import INLINE_LOG_BYTES, a_job, opened

from sandboxd.errors import HostNotReady, Unavailable
from sandboxd.store.sqlite import SqliteStore
from sandboxd.store.upgrade import upgrade

HERE = Path(__file__).parent


def writing_process(database: Path, *words: str) -> subprocess.Popen[str]:
    paths = [str(HERE), *(path for path in sys.path if path)]
    return subprocess.Popen(
        [sys.executable, str(HERE / "writing_process.py"), str(database), *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


async def ids_in(database: Path) -> set[str]:
    async with opened(database) as store:
        page = await store.list_jobs("ada", limit=1_000_000)
        return {job.id for job in page.items}


@pytest.mark.parametrize("acknowledged", [1, 50, 500])
@pytest.mark.attack(57)
def test_every_acknowledged_job_survives_the_death_of_the_process(
    tmp_path: Path, acknowledged: int
) -> None:
    database = tmp_path / "sandboxd.db"
    with writing_process(database) as process:
        assert process.stdout is not None
        promised = {process.stdout.readline().strip() for _ in range(acknowledged)}
        process.send_signal(signal.SIGKILL)
        promised |= {line.strip() for line in process.stdout if line.endswith("\n")}

    assert promised <= asyncio.run(ids_in(database))
    assert asyncio.run(drift_of(database)) == 0


async def drift_of(database: Path) -> int:
    async with opened(database) as store:
        return (await store.conservation()).drift


@pytest.mark.attack(57)
def test_a_full_disk_is_unavailable_until_there_is_room_and_keeps_what_was_promised(
    tmp_path: Path,
) -> None:
    database = tmp_path / "sandboxd.db"
    with writing_process(database, str(2**20)) as process:
        assert process.stdout is not None
        lines = process.stdout.read().split("\n")

    assert lines[-3] == "unavailable store_down"
    assert lines[-2].startswith("job_")
    promised = {line for line in lines if line.startswith("job_")}
    assert promised
    assert promised <= asyncio.run(ids_in(database))
    assert asyncio.run(drift_of(database)) == 0


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.attack(57)
def test_a_database_that_is_gone_promises_nothing(tmp_path: Path, replaced: bool) -> None:
    database = tmp_path / "sandboxd.db"

    async def scenario() -> None:
        async with opened(database) as store:
            job = (await store.submit(a_job())).job
            database.rename(tmp_path / "elsewhere.db")
            if replaced:
                database.touch()

            with pytest.raises(Unavailable):
                await store.submit(a_job())
            with pytest.raises(Unavailable):
                await store.get("ada", job.id)

            (tmp_path / "elsewhere.db").rename(database)
            assert await store.get("ada", job.id) == job
            await store.submit(a_job())

    asyncio.run(scenario())


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    database = tmp_path / "sandboxd.db"

    async def scenario() -> None:
        async with opened(database):
            with pytest.raises(HostNotReady, match="another process owns"):
                await SqliteStore.open(database, inline_log_bytes=INLINE_LOG_BYTES)
            with writing_process(database) as process:
                assert process.stdout is not None
                assert process.stdout.read() == ""
                assert process.wait() != 0
        async with opened(database):
            pass

    asyncio.run(scenario())


@pytest.mark.parametrize("found", ["nothing", "no schema", "another revision"])
def test_a_wrong_schema_is_refused_with_the_command_that_mends_it(
    tmp_path: Path, found: str
) -> None:
    database = tmp_path / "sandboxd.db"
    if found == "no schema":
        database.touch()
    if found == "another revision":
        upgrade(database)
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = 'from the future'")

    for _ in range(2):  # a refusal leaves no lock behind
        with pytest.raises(HostNotReady, match="run `sandboxd migrate`"):
            asyncio.run(SqliteStore.open(database, inline_log_bytes=INLINE_LOG_BYTES))  # type: ignore[arg-type]


def test_a_closed_store_answers_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            await store.close()
            await store.close()

            for question in (store.submit(a_job()), store.get("ada", "job_1"), store.counts()):
                with pytest.raises(Unavailable, match="closed"):
                    await question

    asyncio.run(scenario())


def test_whether_it_can_be_written_is_found_out_by_writing(tmp_path: Path) -> None:
    database = tmp_path / "sandboxd.db"
    written = tmp_path / "sandboxd.db-wal"

    async def scenario() -> tuple[bytes, bytes]:
        async with opened(database) as store:
            before = written.read_bytes()
            await store.check_writable()
            after = written.read_bytes()
            database.rename(tmp_path / "elsewhere.db")
            with pytest.raises(Unavailable):
                await store.check_writable()
            return before, after

    before, after = asyncio.run(scenario())

    assert before != after
