"""The pipes between the service and a command: read and fed by the event loop, never blocking the command.

A pipe is drained as fast as it fills, whoever reads the log. A command that does not read its input costs nothing but the
memory that the input already has.
"""

import asyncio
import os
from collections.abc import Callable

READ_BYTES = 256 * 2**10


class Drain:
    """Reads one pipe to its end and hands on what comes."""

    def __init__(self, descriptor: int, receive: Callable[[bytes], None]) -> None:
        """Takes over `descriptor` (the reading end)."""
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._receive = receive
        self._ended: asyncio.Future[None] = self._loop.create_future()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read)

    async def ended(self) -> None:
        """Wait for the end of the stream: every process that could write is gone."""
        await asyncio.shield(self._ended)

    def close(self) -> None:
        """Stop reading."""
        if not self._ended.done():
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._ended.set_result(None)

    def _read(self) -> None:
        try:
            piece = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return
        if piece:
            self._receive(piece)
        else:
            self.close()


class Feed:
    """Writes bytes into one pipe and closes it."""

    def __init__(self, descriptor: int, content: bytes) -> None:
        """Takes over `descriptor` (the writing end)."""
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._rest = memoryview(content)
        self._closed = False
        os.set_blocking(descriptor, False)
        self._write()
        if not self._closed:
            self._loop.add_writer(descriptor, self._write)

    def close(self) -> None:
        """Stop writing: the command sees the end of its input."""
        if not self._closed:
            self._closed = True
            self._loop.remove_writer(self._descriptor)
            os.close(self._descriptor)
            self._rest.release()

    def _write(self) -> None:
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass  # The command has closed its input; it need not read all of it.
        self.close()


class PassThrough:
    """Copies one descriptor of this process into the command's input, piece by piece."""

    def __init__(self, source: int, descriptor: int) -> None:
        """Takes over `descriptor` (the writing end), not `source`."""
        self._task = asyncio.get_running_loop().create_task(self._copy(source, descriptor))

    async def _copy(self, source: int, descriptor: int) -> None:
        try:
            # A file cannot be waited for (epoll refuses it), and a terminal must not become non-blocking: read in a thread.
            while piece := await asyncio.to_thread(os.read, source, READ_BYTES):
                await asyncio.to_thread(_write_all, descriptor, piece)
        except (BrokenPipeError, ConnectionError):
            pass
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Stop copying."""
        self._task.cancel()


def _write_all(descriptor: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
