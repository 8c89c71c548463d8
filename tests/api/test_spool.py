"""A body on its way from the connection to a thread."""

import asyncio
import collections
import functools
import threading
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.types import Message

from sandboxd.api import uploads
from sandboxd.api.problems import HttpRefused
from sandboxd.api.uploads import spool
from sandboxd.errors import TooLarge

BLOCK_BYTES = 2**20
PLENTY_BYTES = 2**30


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Body:
    """Pieces that come one after the other, and how many of them were asked for."""

    def __init__(self, *pieces: bytes) -> None:
        self._left = collections.deque(pieces)
        self.asked = 0
        self.was_asked_again = asyncio.Event()

    async def receive(self) -> Message:
        self.asked += 1
        if self.asked == 2:
            self.was_asked_again.set()
        piece = self._left.popleft()
        return {"type": "http.request", "body": piece, "more_body": bool(self._left)}


class Disk:
    """Takes nothing until it is let, if it is slow."""

    def __init__(self, *, slow: bool = False) -> None:
        self.blocks: list[bytes] = []
        self._began = threading.Event()
        self.may_go_on = threading.Event()
        if not slow:
            self.may_go_on.set()

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self._began.wait, 30)

    def take(self, block: bytes) -> None:
        self._began.set()
        assert self.may_go_on.wait(30)
        self.blocks.append(block)


async def settled() -> None:
    """Everything that can go on without the disk has gone on."""
    for _ in range(1000):
        await asyncio.sleep(0)


@on_a_loop
async def test_all_of_it_is_handed_on_in_its_order() -> None:
    sizes = (1, 0, 70_000, 2, 3, 2**20, 3, 2**21, 5000, 7)
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    disk = Disk()

    await spool(Body(*pieces).receive, disk.take, PLENTY_BYTES)

    assert b"".join(disk.blocks) == b"".join(pieces)


@on_a_loop
async def test_a_body_in_the_smallest_pieces_takes_no_more_memory_than_its_bytes() -> None:
    body, disk = Body(*[b"ab"] * 50_000, bytes(5000), b"ab"), Disk()
    tracemalloc.start()

    await spool(body.receive, disk.take, PLENTY_BYTES)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert disk.blocks == [b"ab" * 50_000 + bytes(5000) + b"ab"]
    assert most_bytes < 4 * len(disk.blocks[0])


@on_a_loop
async def test_nothing_is_handed_on_of_a_body_that_is_empty() -> None:
    disk = Disk()

    await spool(Body(b"").receive, disk.take, PLENTY_BYTES)

    assert disk.blocks == []


@on_a_loop
async def test_of_a_slow_disk_one_block_is_waited_for_and_one_more_is_read() -> None:
    body, disk = Body(*[bytes(BLOCK_BYTES)] * 5), Disk(slow=True)

    spooling = asyncio.ensure_future(spool(body.receive, disk.take, PLENTY_BYTES))
    await body.was_asked_again.wait()
    await disk.has_begun()
    await settled()
    asked = body.asked
    disk.may_go_on.set()
    await spooling

    assert asked == 2
    assert len(disk.blocks) == 5


@on_a_loop
async def test_what_the_disk_says_ends_it() -> None:
    def refuse(block: bytes) -> None:
        raise OSError(28, "No space left on device")

    body = Body(*[bytes(BLOCK_BYTES)] * 5)

    with pytest.raises(OSError, match="No space left"):
        await spool(body.receive, refuse, PLENTY_BYTES)

    assert body.asked == 2


@on_a_loop
async def test_a_body_that_is_too_large_is_refused_once_the_thread_is_done() -> None:
    body, disk = Body(*[bytes(BLOCK_BYTES)] * 5), Disk(slow=True)

    spooling = asyncio.ensure_future(spool(body.receive, disk.take, BLOCK_BYTES))
    await body.was_asked_again.wait()
    await disk.has_begun()
    await settled()
    was_over = spooling.done()
    disk.may_go_on.set()

    with pytest.raises(TooLarge):
        await spooling
    assert not was_over
    assert len(disk.blocks) == 1


def test_a_body_of_which_nothing_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_GRACE_SECONDS", 0.01)
    disk = Disk()

    @on_a_loop
    async def wait() -> None:
        first: list[Message] = [
            {"type": "http.request", "body": bytes(BLOCK_BYTES // 64), "more_body": True}
        ]

        async def receive() -> Message:
            return first.pop() if first else await asyncio.Future()

        await spool(receive, disk.take, PLENTY_BYTES)

    with pytest.raises(HttpRefused, match="too slowly: 16384 bytes in") as refused:
        wait()

    assert refused.value.status == 408
    assert disk.blocks == []


@on_a_loop
async def test_who_cancels_waits_until_the_thread_has_left_the_file() -> None:
    body, disk = Body(*[bytes(BLOCK_BYTES)] * 5), Disk(slow=True)

    spooling = asyncio.ensure_future(spool(body.receive, disk.take, PLENTY_BYTES))
    await disk.has_begun()
    for _ in range(2):
        spooling.cancel()
        await settled()
    was_over = spooling.done()
    disk.may_go_on.set()

    with pytest.raises(asyncio.CancelledError):
        await spooling
    assert not was_over
    assert len(disk.blocks) == 1
