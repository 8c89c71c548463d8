"""The log of a job: kept in order, cut exactly, read alike while it grows and afterwards."""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.ids import new_id
from sandboxd.jobs import Stream
from sandboxd.store import log_index
from sandboxd.store.logs import JobLog, StoredLog, index_path, log_path, reopen_log

OUT, ERR = Stream.STDOUT, Stream.STDERR
JOB = new_id("job")


def a_job_log(directory: Path, *, limit_bytes: int = 2**20, inline_bytes: int = 64) -> JobLog:
    return JobLog(directory, JOB, limit_bytes=limit_bytes, inline_bytes=inline_bytes)


def everything(log: JobLog | StoredLog) -> bytes:
    return log.read(0, log.size() + 1)


def test_both_streams_are_kept_in_order_of_arrival_and_apart(tmp_path: Path) -> None:
    log = a_job_log(tmp_path)
    for number in range(100):
        assert log.append(OUT, b"o%d " % number, 10.0)
        assert log.append(ERR, b"e%d " % number, 10.0)

    assert log.read_stream(OUT, 0, 10_000) == b"".join(b"o%d " % n for n in range(100))
    assert log.read_stream(ERR, 0, 10_000) == b"".join(b"e%d " % n for n in range(100))
    assert everything(log) == b"".join(b"o%d e%d " % (n, n) for n in range(100))
    assert log.size() == log.size(OUT) + log.size(ERR)
    log.close()


def test_bytes_that_come_together_are_one_chunk(tmp_path: Path) -> None:
    log = a_job_log(tmp_path)
    for stream, time in [(OUT, 1.0), (OUT, 1.9), (OUT, 2.0), (ERR, 2.0), (OUT, 2.0), (OUT, 1.0)]:
        log.append(stream, b"12345", time)

    assert list(log.chunks()) == [
        (OUT, 1.0, 0, 10),
        (OUT, 2.0, 10, 5),
        (ERR, 2.0, 15, 5),
        (OUT, 2.0, 20, 5),
        (OUT, 1.0, 25, 5),
    ]
    assert [chunk.offset for chunk in log.chunks(15)] == [15, 20, 25]
    assert [chunk.offset for chunk in log.chunks(14)] == [10, 15, 20, 25]
    assert list(log.chunks(30)) == []


@pytest.mark.parametrize("inline_bytes", [0, 5, 1000])
def test_the_log_is_cut_exactly_at_its_limit(tmp_path: Path, inline_bytes: int) -> None:
    log = a_job_log(tmp_path, limit_bytes=10, inline_bytes=inline_bytes)

    assert log.append(OUT, b"123456", 1.0)
    assert not log.truncated(OUT)
    assert not log.append(ERR, b"abcdefgh", 1.0)
    assert not log.append(OUT, b"7", 1.0)
    assert log.append(OUT, b"", 1.0)

    stored = log.close()
    assert everything(stored) == b"123456abcd"
    assert stored.read_stream(ERR, 0, 10) == b"abcd"
    assert stored.truncated(OUT)
    assert stored.truncated(ERR)


def test_output_that_just_fits_is_not_truncated(tmp_path: Path) -> None:
    log = a_job_log(tmp_path, limit_bytes=10)

    assert log.append(OUT, b"1234567890", 1.0)

    assert not log.truncated(OUT)


def test_no_output_is_allowed_where_the_limit_is_zero(tmp_path: Path) -> None:
    log = a_job_log(tmp_path, limit_bytes=0)

    assert not log.append(OUT, b"1", 1.0)

    assert log.truncated(OUT)
    assert everything(log) == b""


def test_a_short_log_makes_no_file_and_a_long_one_does(tmp_path: Path) -> None:
    log = a_job_log(tmp_path / "logs", inline_bytes=64)

    log.append(OUT, b"x" * 64, 1.0)
    assert not (tmp_path / "logs").exists()
    log.append(ERR, b"y", 1.0)

    path = log_path(tmp_path / "logs", JOB)
    assert path.read_bytes() == b"x" * 64 + b"y"
    assert path.stat().st_mode & 0o777 == 0o600
    assert everything(log) == b"x" * 64 + b"y"
    stored = log.close()
    assert stored.path == path
    assert stored.body is None


@pytest.mark.attack(33)
def test_a_link_that_waits_where_the_log_will_be_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep")
    log_path(tmp_path, JOB).symlink_to(target)
    log = a_job_log(tmp_path, inline_bytes=0)

    with pytest.raises(OSError, match="symbolic link"):
        log.append(OUT, b"gone", 1.0)

    assert target.read_text() == "keep"
    assert log.size() == 0


@pytest.mark.attack(33, 38)
def test_a_log_of_something_that_is_no_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the id of a job"):
        JobLog(tmp_path, "../../etc/passwd", limit_bytes=1, inline_bytes=1)


def test_a_spilled_log_is_read_as_far_as_it_was_written_after_a_crash(tmp_path: Path) -> None:
    log = a_job_log(tmp_path, inline_bytes=1000)
    log.append(OUT, b"before ", 1.0)
    log.spill()
    log.append(ERR, b"after ", 5.0)
    log.append(OUT, b"last", 9.0)

    found = reopen_log(tmp_path, JOB)  # the first one is still open, as after a kill

    assert found is not None
    assert everything(found) == b"before after last"
    assert found.read_stream(OUT, 0, 100) == b"before last"
    assert list(found.chunks()) == list(log.chunks())
    assert reopen_log(tmp_path, new_id("job")) is None
    log.close()


def test_an_index_that_was_cut_in_a_record_still_reads_every_byte(tmp_path: Path) -> None:
    log = a_job_log(tmp_path, inline_bytes=0)
    log.append(OUT, b"one", 1.0)
    log.append(ERR, b"two", 1.0)
    path = log.close().path
    assert path is not None
    os.truncate(index_path(path), log_index.RECORD.size + 3)

    found = reopen_log(tmp_path, JOB)

    assert found is not None
    assert everything(found) == b"onetwo"


def test_a_discarded_log_leaves_nothing(tmp_path: Path) -> None:
    log = a_job_log(tmp_path, inline_bytes=0)
    log.append(OUT, b"x", 1.0)
    assert len(list(tmp_path.iterdir())) == 2

    log.discard()

    assert list(tmp_path.iterdir()) == []


def test_a_closed_log_takes_nothing_more(tmp_path: Path) -> None:
    log = a_job_log(tmp_path)
    log.append(OUT, b"x", 1.0)
    stored = log.close()

    with pytest.raises(ValueError, match="closed"):
        log.append(OUT, b"y", 1.0)

    assert log.closed
    assert everything(log) == everything(stored) == b"x"
    assert log.close() is stored


def test_who_holds_on_to_a_short_log_reads_it_when_its_file_has_moved_into_the_record(
    tmp_path: Path,
) -> None:
    """The store removes the file at the end of the job, while readers and the scheduler still have the log."""
    log = a_job_log(tmp_path)
    log.append(OUT, b"one", 1.0)
    log.spill()
    log.append(ERR, b"two", 1.0)
    path = log.close().path
    assert path is not None
    path.unlink()

    assert everything(log) == b"onetwo"
    assert log.read_stream(ERR, 0, 10) == b"two"


@pytest.mark.attack(46)
def test_changing_streams_too_often_counts_as_too_much_output(tmp_path: Path) -> None:
    log = a_job_log(tmp_path, inline_bytes=2**20)
    for _ in range(log_index.MAX_ENTRIES // 2):
        log.append(OUT, b"o", 1.0)
        log.append(ERR, b"e", 1.0)

    assert log.append(ERR, b"e", 1.0)
    assert not log.append(OUT, b"o", 1.0)

    assert log.truncated(OUT)
    assert not log.truncated(ERR)
    assert everything(log) == b"oe" * (log_index.MAX_ENTRIES // 2) + b"e"


@pytest.mark.attack(46)
def test_a_full_index_takes_little_memory(tmp_path: Path) -> None:
    index = log_index.LogIndex()
    for number in range(log_index.MAX_ENTRIES):
        index.add((OUT, ERR)[number % 2], 1.0, 1)

    assert len(index.encode()) < 5 * 2**20
    assert [piece.offset for piece in index.pieces(ERR, 100_000, 2)] == [200_001, 200_003]


def test_whoever_waits_wakes_when_there_is_more_or_the_log_ends(tmp_path: Path) -> None:
    async def follow(log: JobLog) -> bytes:
        seen = b""
        while not (log.closed and len(seen) == log.size()):
            await log.wait_changed(len(seen))
            seen += log.read(len(seen), 2**20)
        return seen

    async def scenario() -> None:
        log = a_job_log(tmp_path)
        followers = [asyncio.create_task(follow(log)) for _ in range(20)]
        await asyncio.sleep(0)
        for number in range(10):
            log.append(OUT, b"%d " % number, 1.0)
            await asyncio.sleep(0)
        gone = followers.pop()
        gone.cancel()
        stored = log.close()

        assert set(await asyncio.gather(*followers)) == {b"0 1 2 3 4 5 6 7 8 9 "}
        await log.wait_changed(1000)
        await stored.wait_changed(1000)

    asyncio.run(scenario())


parts = st.lists(
    st.tuples(
        st.sampled_from(Stream), st.binary(max_size=20), st.floats(min_value=0, max_value=0.6)
    ),
    max_size=30,
)


@settings(deadline=None, database=None)
@given(
    parts=parts,
    limit_bytes=st.integers(0, 300),
    inline_bytes=st.integers(0, 300),
    spill_after=st.integers(0, 30),
    offset=st.integers(0, 320),
    size=st.integers(0, 320),
)
def test_a_log_reads_like_the_bytes_that_fit(
    parts: list[tuple[Stream, bytes, float]],
    limit_bytes: int,
    inline_bytes: int,
    spill_after: int,
    offset: int,
    size: int,
) -> None:
    kept: list[tuple[Stream, int]] = []
    cut: set[Stream] = set()
    now = 100.0
    with tempfile.TemporaryDirectory() as directory:
        log = a_job_log(Path(directory), limit_bytes=limit_bytes, inline_bytes=inline_bytes)
        for number, (stream, data, step) in enumerate(parts):
            now += step
            room = limit_bytes - len(kept)
            assert log.append(stream, data, now) == (len(data) <= room)
            kept += [(stream, byte) for byte in data[:room]]
            if len(data) > room:
                cut.add(stream)
            if number == spill_after:
                log.spill()
        stored = log.close()
        for view in (log, stored, stored.in_memory(), reopen_log(Path(directory), JOB) or stored):
            merged = bytes(byte for _, byte in kept)
            assert view.read(offset, size) == merged[offset : offset + size]
            for stream in Stream:
                own = bytes(byte for of, byte in kept if of is stream)
                assert view.size(stream) == len(own)
                assert view.read_stream(stream, offset, size) == own[offset : offset + size]
            shown = [chunk.stream for chunk in view.chunks() for _ in range(chunk.size)]
            assert shown == [stream for stream, _ in kept]
        assert {stream for stream in Stream if stored.truncated(stream)} == cut


@settings(max_examples=100, deadline=None, database=None)
@given(
    writes=st.lists(st.tuples(st.sampled_from(Stream), st.integers(1, 2000)), max_size=40),
    offset=st.integers(0, 5000),
    most_pieces=st.integers(1, 4),
)
def test_an_index_places_every_byte_alike_before_and_after_it_was_stored(
    writes: list[tuple[Stream, int]], offset: int, most_pieces: int
) -> None:
    live = log_index.LogIndex()
    owners: list[Stream] = []
    for number, (stream, size) in enumerate(writes):
        live.add(stream, float(number), size)
        owners += [stream] * size
    stored = log_index.LogIndex.decode(live.encode(), len(owners))

    for index in (live, stored):
        assert index.encode() == live.encode()
        assert list(index.chunks()) == list(live.chunks())
        for stream in Stream:
            places = [place for place, owner in enumerate(owners) if owner is stream]
            own = sum(place < offset for place in places)
            start = index.start_before(stream, own, 1000, most_pieces)
            assert index.size(stream) == len(places)
            assert index.own_offset(stream, offset) == own
            assert index.merged_offset(stream, own) == [*places[own:], len(owners)][0]
            assert own - 1000 <= start <= own
            assert len(list(index.pieces(stream, start, own - start))) <= most_pieces
            assert [chunk.offset for chunk in index.chunks(offset, stream)] == [
                chunk.offset for chunk in live.chunks(offset) if chunk.stream is stream
            ]


def test_a_stream_in_single_bytes_reads_as_a_whole_and_by_pieces(tmp_path: Path) -> None:
    log = a_job_log(tmp_path)
    for number in range(3000):
        log.append(OUT, bytes([number % 251]), 1.0)
        log.append(ERR, b"x" * (1 + number % 1500 * (number % 7 == 0)), 1.0)
    own = bytes(number % 251 for number in range(log.size(OUT)))

    for readable in (log, log.close(), log):
        assert readable.read_stream(OUT, 0, 4000) == own
        assert readable.read_stream(OUT, 100, 4000, most_pieces=7) == own[100:107]
    assert log.size(OUT) > 2000
