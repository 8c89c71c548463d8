"""The log of a job that has ended: complete when the record says so, in the database or beside it."""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from store_examples import INLINE_LOG_BYTES, a_job, a_log, no_log, opened, success

from sandboxd.errors import NotFound, Unavailable
from sandboxd.ids import new_id
from sandboxd.isolation import syscalls
from sandboxd.jobs import State, Stream
from sandboxd.store.logs import SYNCED_BYTES, JobLog, StoredLog, remove_log
from sandboxd.store.sqlite import SqliteStore

OUT, ERR = Stream.STDOUT, Stream.STDERR


async def finished(store: SqliteStore, directory: Path, *parts: tuple[Stream, bytes]) -> str:
    job = (await store.submit(a_job(), claim_owner="me")).job
    log = a_log(directory, job.id, *parts, limit_bytes=50_000)
    assert await store.finish(job.id, 1, success(), log, 1002.0) is not None
    return job.id


async def log_of(store: SqliteStore, job_id: str) -> StoredLog:
    log = await store.log("ada", job_id)
    assert log is not None
    return log


@pytest.mark.parametrize("size", [1, INLINE_LOG_BYTES, INLINE_LOG_BYTES + 1, 60_000])
def test_a_stored_log_reads_as_it_was_written(tmp_path: Path, size: int) -> None:
    directory = tmp_path / "logs"

    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            written = [(OUT, b"o" * size), (ERR, b"e\x00\xff"), (OUT, b"last")]
            job_id = await finished(store, directory, *written)

            log = await log_of(store, job_id)

            merged = b"".join(data for _, data in written)[:50_000]
            assert log.read(0, 100_000) == merged
            assert log.read(size - 1, 3) == merged[size - 1 : size + 2]
            expected = (b"o" * size + b"last")[:50_000]
            assert log.read_stream(OUT, 0, 100_000)[:50_000] == expected
            assert log.truncated(ERR) == (size == 60_000)
            assert [chunk.time for chunk in log.chunks()][:1] == [1000.0]
            assert directory.exists() == (log.path is not None) == (size > 900)

    asyncio.run(scenario())


def test_a_long_log_moves_with_the_whole_data_directory(tmp_path: Path) -> None:
    async def write(data: Path) -> str:
        async with opened(data / "sandboxd.db") as store:
            return await finished(store, data / "logs", (OUT, b"x" * 5000))

    async def read(data: Path, job_id: str) -> bytes:
        async with opened(data / "sandboxd.db") as store:
            return (await log_of(store, job_id)).read(0, 10_000)

    (tmp_path / "old").mkdir()
    job_id = asyncio.run(write(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")

    assert asyncio.run(read(tmp_path / "new", job_id)) == b"x" * 5000


def test_a_short_log_that_was_spilled_moves_into_the_database(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            job = (await store.submit(a_job(), claim_owner="me")).job
            spool = JobLog(tmp_path / "logs", job.id, limit_bytes=1000, inline_bytes=1000)
            spool.append(ERR, b"short", 1000.0)
            spool.spill()

            await store.finish(job.id, 1, success(), spool.close(), 1002.0)

            assert list((tmp_path / "logs").iterdir()) == []
            assert (await log_of(store, job.id)).read_stream(ERR, 0, 10) == b"short"

    asyncio.run(scenario())


def test_a_silent_job_has_an_empty_log_and_one_that_runs_has_none_yet(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            job = (await store.submit(a_job(), claim_owner="me")).job
            assert await store.log("ada", job.id) is None

            await store.finish(job.id, 1, success(), no_log(), 1002.0)

            log = await log_of(store, job.id)
            assert log.empty
            assert log.read(0, 10) == b""
            assert list(log.chunks()) == []

    asyncio.run(scenario())


def test_a_silent_job_remembers_that_its_output_was_cut(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            job = (await store.submit(a_job(), claim_owner="me")).job
            log = a_log(tmp_path, job.id, (ERR, b"too much"), limit_bytes=0)

            await store.finish(job.id, 1, success(), log, 1002.0)

            assert (await log_of(store, job.id)).truncated(ERR)
            assert not (await log_of(store, job.id)).truncated(OUT)

    asyncio.run(scenario())


def test_a_deleted_job_names_its_log_file_for_removal(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            job_id = await finished(store, tmp_path / "logs", (OUT, b"x" * 5000))

            path = await store.delete("ada", job_id)

            assert path is not None
            remove_log(path)
            assert list((tmp_path / "logs").iterdir()) == []

    asyncio.run(scenario())


def test_a_log_file_that_somebody_removed_is_not_found(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            job_id = await finished(store, tmp_path / "logs", (OUT, b"x" * 5000))
            remove_log((await log_of(store, job_id)).path or tmp_path)

            with pytest.raises(NotFound) as refused:
                await store.log("ada", job_id)

            assert refused.value.code == "log_gone"

    asyncio.run(scenario())


def test_a_job_does_not_end_before_its_log_is_safe(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "sandboxd.db") as store:
            job = (await store.submit(a_job(), claim_owner="me")).job
            log = a_log(tmp_path / "logs", job.id, (OUT, b"x" * 5000))
            remove_log(tmp_path / "logs" / f"{job.id}.log")

            with pytest.raises(Unavailable):
                await store.finish(job.id, 1, success(), log, 1002.0)

            assert (await store.get("ada", job.id)).state is State.STARTING

    asyncio.run(scenario())


def test_a_long_log_goes_to_the_disk_in_pieces_that_others_need_not_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fsync of all of it holds up the commits of all other jobs until it is there."""
    size = 2 * SYNCED_BYTES + 1
    log = JobLog(tmp_path, new_id("job"), limit_bytes=2 * size, inline_bytes=1)
    log.append(OUT, bytes(size), 1000.0)
    stored = log.close()
    assert stored.path is not None
    inode = stored.path.stat().st_ino
    done: list[int | str] = []
    in_turns, at_once = syscalls.sync_file_range, os.fsync

    def sync_file_range(descriptor: int, offset: int, size_bytes: int, flags: int) -> None:
        if os.fstat(descriptor).st_ino == inode:
            assert (size_bytes, flags) == (SYNCED_BYTES, 7)
            done.append(offset)
        in_turns(descriptor, offset, size_bytes, flags)

    def fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == inode:
            done.append("all")
        at_once(descriptor)

    monkeypatch.setattr(syscalls, "sync_file_range", sync_file_range)
    monkeypatch.setattr(os, "fsync", fsync)
    stored.sync()

    assert done == [0, SYNCED_BYTES, 2 * SYNCED_BYTES, "all"]


def test_a_log_of_which_a_piece_cannot_be_written_is_not_said_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was told of it by sync_file_range is not told again by fsync."""

    def broken(*_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    log = JobLog(tmp_path, new_id("job"), limit_bytes=5000, inline_bytes=1)
    log.append(OUT, bytes(5000), 1000.0)
    stored = log.close()
    monkeypatch.setattr(syscalls, "sync_file_range", broken)

    with pytest.raises(OSError, match="Input/output"):
        stored.sync()
