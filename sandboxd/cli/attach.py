"""This process's terminal or pipes as those of a command in a sandbox."""

import asyncio
import contextlib
import os
import signal
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from typing import Any

from sandboxd.cli.endings import Ending
from sandboxd.client.sockets import CommandSocket, connected
from sandboxd.client.types import ConnectionFailed
from sandboxd.jobs import Stream

_READ_BYTES = 32 * 2**10
_DESCRIPTORS = {Stream.STDOUT: 1, Stream.STDERR: 2}
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


async def attach(
    url: str,
    key: str | None,
    sandbox_id: str,
    command: Sequence[str],
    *,
    interactive: bool,
    terminal: bool,
    **options: Any,
) -> Ending:
    """Run a command with our input (`interactive`) and output, in a terminal like ours or without one. Returns its end."""
    if terminal:
        rows, columns = _size()
        options["terminal"] = {"rows": rows, "columns": columns}
    async with connected(url, key, sandbox_id, command, **options) as socket:
        with _raw(terminal and interactive), _signals(socket, terminal=terminal):
            feeding = asyncio.ensure_future(_feed(socket, interactive=interactive))
            try:
                async for stream, piece in socket.output():
                    await asyncio.to_thread(_write_all, _DESCRIPTORS[stream], piece)
            finally:
                feeding.cancel()
    result = socket.result
    if result is None:
        raise ConnectionFailed(f"{url}: the connection ended before the command did")
    return Ending(result.state, result.reason, result.exit, result.error)


async def _feed(socket: CommandSocket, *, interactive: bool) -> None:
    """Pass our input on, as fast as it is taken."""
    if interactive:
        async for piece in _input():
            await socket.write(piece)
    await socket.end_input()


async def _input() -> Any:
    """Our standard input, read in a thread: a file cannot be waited for, and a terminal must stay as it is."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue(1)

    def read() -> None:
        with contextlib.suppress(
            RuntimeError
        ):  # The loop is gone, and so is who would have had it.
            while True:
                try:
                    piece = os.read(0, _READ_BYTES)
                except OSError:
                    piece = b""
                asyncio.run_coroutine_threadsafe(pieces.put(piece), loop).result()
                if not piece:
                    return

    threading.Thread(target=read, daemon=True).start()
    while piece := await pieces.get():
        yield piece


@contextlib.contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """Our terminal as it must be so that every key reaches the command; as it was on every way out."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # What was typed already is for the command.
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals(socket: CommandSocket, *, terminal: bool) -> Iterator[None]:
    """What is sent to us is for the command; and a new size of our terminal is one of its."""
    loop = asyncio.get_running_loop()
    telling: set[asyncio.Task[None]] = set()

    def tell(work: Any) -> None:
        task = loop.create_task(work)
        telling.add(task)
        task.add_done_callback(telling.discard)

    numbers = [n for n in _FORWARDED if signal.getsignal(n) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, lambda name: tell(socket.signal(name)), number.name)
    if terminal:
        loop.add_signal_handler(signal.SIGWINCH, lambda: tell(socket.resize(*_size())))
        numbers.append(signal.SIGWINCH)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _size() -> tuple[int, int]:
    """Rows and columns of our terminal."""
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(descriptor)
            return max(1, size.lines), max(1, size.columns)
    return 24, 80


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
