"""The pipes of a command, from the service's side."""

import asyncio
import os
from collections.abc import Iterator

import pytest

from sandboxd.isolation.streams import Drain, Feed

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
