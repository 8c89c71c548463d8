"""The service's end of a command's streams, for somebody who is connected: read and written only as fast as they are taken.

A terminal's master comes out of a sandbox. Whoever has broken into that may have kept a copy, and could make it a blocking
one at any moment: so it is waited for by the event loop, but read and written in threads of its own.
"""

import asyncio
import fcntl
import os
import select
import struct
import termios
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sandboxd.isolation.spec import TerminalSize

PIECE_BYTES = 32 * 2**10
_TWO_WAYS = 2

T = TypeVar("T")


class Line:
    """One descriptor: read by one task, written by one, closed when neither is at it any more."""

    def __init__(self, descriptor: int, *, in_threads: bool) -> None:
        """Takes over `descriptor`."""
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._threads = ThreadPoolExecutor(_TWO_WAYS) if in_threads else None
        self._busy = 0
        self._closed = asyncio.Event()
        self._finishing = asyncio.Event()
        os.set_blocking(descriptor, False)

    async def read(self) -> bytes:
        """The next piece; empty at the end, or when the line is closed."""
        while await self._ready(self._loop.add_reader, self._loop.remove_reader):
            try:
                return await self._do(lambda: os.read(self._descriptor, PIECE_BYTES))
            except BlockingIOError:
                continue
            except OSError:
                return b""  # EIO: nobody has the other end of the terminal any more
        return b""

    async def write(self, content: bytes) -> bool:
        """Write all of it. False: nobody reads it any more, or the line is closed."""
        rest = memoryview(content)
        while rest:
            if not await self._ready(self._loop.add_writer, self._loop.remove_writer):
                return False
            piece = rest[:PIECE_BYTES]
            try:
                rest = rest[await self._do(lambda piece=piece: os.write(self._descriptor, piece)) :]  # type: ignore[misc]
            except BlockingIOError:
                continue
            except OSError:
                return False
        return True

    def resize(self, size: TerminalSize) -> None:
        """Tell the terminal, and by SIGWINCH what is in front of it, how large it is (ioctl_tty(2))."""
        if not self._closed.is_set():
            packed = struct.pack("4H", *size, 0, 0)
            fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, packed)

    def finish(self) -> None:
        """What is there now is the rest: reading does not wait for more."""
        self._finishing.set()

    def close(self) -> None:
        """No more of it. What runs in a terminal is told by SIGHUP."""
        if not self._closed.is_set():
            self._closed.set()
            if not self._busy:
                self._release()

    async def _ready(self, watch: Callable[..., object], unwatch: Callable[[int], object]) -> bool:
        """Wait until the descriptor can be used. False: it is closed."""
        if self._closed.is_set():
            return False
        ready = asyncio.Event()
        watch(self._descriptor, ready.set)
        events = (ready, self._closed, self._finishing)
        waits = [asyncio.ensure_future(each.wait()) for each in events]
        self._busy += 1
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unwatch(self._descriptor)
            for wait in waits:
                wait.cancel()
            self._leave()
        if self._closed.is_set():
            return False
        return ready.is_set() or self._has_more()

    def _has_more(self) -> bool:
        poll = select.poll()  # select(2) knows no descriptors above 1023.
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    async def _do(self, operation: Callable[[], T]) -> T:
        if self._threads is None:
            return operation()
        self._busy += 1
        done = self._loop.run_in_executor(self._threads, operation)
        done.add_done_callback(lambda _: self._leave())
        return await asyncio.shield(done)

    def _leave(self) -> None:
        self._busy -= 1
        if self._closed.is_set() and not self._busy:
            self._release()

    def _release(self) -> None:
        os.close(self._descriptor)
        if self._threads is not None:
            self._threads.shutdown(wait=False)
