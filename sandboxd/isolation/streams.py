"""The pipes between the service and a command: read and fed by the event loop, never blocking the command.

A pipe is drained as fast as it fills, whoever reads the log. A command that does not read its input costs nothing but the
memory that the input already has.
"""

import asyncio
import os
import select
import threading
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

    def take_rest(self) -> None:
        """Hand on what is there now: once more than a pipe holds (pipe(7)), for who writes on has no end."""
        for _ in range(2):
            if not self._ended.done():
                self._read()

    @property
    def at_end(self) -> bool:
        """Whether nothing more will come."""
        return self._ended.done()

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
    """Copies one descriptor of this process into the command's input, piece by piece.

    In a thread: a file cannot be waited for (epoll refuses it), and a terminal must not become non-blocking. The thread
    ends by itself as soon as the source ends or nobody can read any more; nobody waits for it.
    """

    def __init__(self, source: int, descriptor: int) -> None:
        """Takes over `descriptor` (the writing end), not `source`."""
        # The thread's own: the number may be closed, and be another file's, while it still reads.
        own_source = os.dup(source)
        threading.Thread(target=_copy, args=(own_source, descriptor), daemon=True).start()

    def close(self) -> None:
        """Nothing to do: that the command's end of the pipe is closed is enough."""


def _copy(source: int, descriptor: int) -> None:
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(descriptor, 0)  # POLLERR comes unasked, when the last reader is gone.
    try:
        while descriptor not in dict(poll.poll()) and (piece := os.read(source, READ_BYTES)):
            _write_all(descriptor, piece)
    except OSError:
        pass  # The command has closed its input, or the source cannot be read (a terminal that hung up).
    finally:
        os.close(source)
        os.close(descriptor)


def _write_all(descriptor: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
