"""The pipes of a command, from the service's side."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_for

from sandboxd.isolation.streams import Drain, Feed, PassThrough

MIB = 2**20


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_64_mib_go_through_unharmed_and_nothing_stays_open(runner: asyncio.Runner) -> None:
    content = os.urandom(MIB) * 64
    received = bytearray()

    async def pump() -> None:
        output, feed = os.pipe()
        Feed(feed, content)
        await Drain(output, received.extend).ended()

    runner.run(pump())
    before = open_descriptors()
    received.clear()
    runner.run(pump())

    assert received == content
    assert open_descriptors() == before


def test_nothing_to_feed_closes_at_once(runner: asyncio.Runner) -> None:
    async def feed() -> bytes:
        output, end = os.pipe()
        Feed(end, b"")
        piece = os.read(output, 10)
        os.close(output)
        return piece

    assert runner.run(feed()) == b""


@pytest.mark.attack(48)
def test_input_that_nobody_reads_is_given_up(runner: asyncio.Runner) -> None:
    """The command closes its input before, or while, it is written."""

    async def feed(read_first: int) -> None:
        output, end = os.pipe()
        if read_first == 0:
            os.close(output)
        feeding = Feed(end, b"x" * MIB)
        if read_first:
            await asyncio.sleep(0)
            os.read(output, read_first)
            os.close(output)
            for _ in range(10):
                await asyncio.sleep(0)
            assert feeding._closed
        feeding.close()

    before = open_descriptors()
    runner.run(feed(0))
    runner.run(feed(1000))

    assert open_descriptors() <= before + 4  # the loop's own


def test_a_closed_feed_ends_the_input_in_the_middle(runner: asyncio.Runner) -> None:
    async def feed() -> int:
        output, end = os.pipe()
        feeding = Feed(end, b"x" * MIB)
        feeding.close()
        feeding.close()
        size = 0
        while piece := os.read(output, MIB):
            size += len(piece)
        os.close(output)
        return size

    assert 0 < runner.run(feed()) < MIB


def test_a_drain_goes_on_until_the_last_writer_is_gone(runner: asyncio.Runner) -> None:
    received: list[bytes] = []

    async def drain() -> None:
        output, end = os.pipe()
        second = os.dup(end)
        draining = Drain(output, received.append)
        os.write(end, b"first")
        os.close(end)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not draining._ended.done()
        os.write(second, b"last")
        os.close(second)
        await draining.ended()

    runner.run(drain())
    assert b"".join(received) == b"firstlast"


def test_a_closed_drain_is_ended_for_everybody_who_waits(runner: asyncio.Runner) -> None:
    async def drain() -> None:
        output, end = os.pipe()
        draining = Drain(output, lambda _: None)
        waiting = [asyncio.ensure_future(draining.ended()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        draining.close()
        draining.close()
        await asyncio.gather(*waiting[1:])
        with pytest.raises(BrokenPipeError):
            os.write(end, b"x")
        os.close(end)

    runner.run(drain())


def other_threads() -> int:
    return threading.active_count() - 1


def test_what_is_passed_through_arrives_and_ends(runner: asyncio.Runner, tmp_path: Path) -> None:
    """From a file, which no event loop can wait for, and from a pipe."""
    content = os.urandom(3 * MIB)
    (tmp_path / "input").write_bytes(content)
    received = bytearray()

    async def from_file() -> None:
        with open(tmp_path / "input", "rb") as file:  # noqa: ASYNC230 (it is a test)
            output, end = os.pipe()
            PassThrough(file.fileno(), end)
            await Drain(output, received.extend).ended()

    async def from_pipe() -> None:
        source, writing = os.pipe()
        output, end = os.pipe()
        PassThrough(source, end)
        os.close(source)
        os.write(writing, b"first")
        os.write(writing, b"last")
        os.close(writing)
        await Drain(output, received.extend).ended()

    runner.run(from_file())
    assert received == content
    received.clear()
    runner.run(from_pipe())
    assert received == b"firstlast"


def test_input_that_never_comes_keeps_nobody_waiting_once_the_command_is_gone() -> None:
    """`sandboxd run` in a terminal: nobody types, and the command is over."""
    source, writing = os.pipe()
    threads, descriptors = other_threads(), open_descriptors()

    async def run() -> None:
        output, end = os.pipe()
        passing = PassThrough(source, end)
        await asyncio.sleep(0)
        os.close(output)
        passing.close()

    asyncio.run(run())

    wait_for(lambda: other_threads() <= threads, "the thread is over")
    assert open_descriptors() == descriptors
    os.close(source)
    os.close(writing)


def test_a_command_that_does_not_read_is_let_go(runner: asyncio.Runner) -> None:
    """The pipe is full when the command ends."""
    threads = other_threads()

    async def run() -> None:
        with open("/dev/zero", "rb") as zeros:  # noqa: ASYNC230 (it is a test)
            output, end = os.pipe()
            PassThrough(zeros.fileno(), end)
            os.read(output, 10)
            os.close(output)

    runner.run(run())
    wait_for(lambda: other_threads() <= threads, "the thread is over")
