"""A command in a terminal of the sandbox's own, and what else might be sent in its place."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sandbox_bench import Bench, run_in, start_in
from test_protocol import Impostor, open_descriptors
from waiting import TIME_FACTOR

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import protocol
from sandboxd.isolation.sandbox import Process, Sandbox
from sandboxd.isolation.spec import TerminalSize, Then, Unusable

SIZE = TerminalSize(rows=33, columns=101)
JOB_CONTROL = "PS1='$ '; bind 'set enable-bracketed-paste off' 2>/dev/null"


class Screen:
    """The service's end of a terminal, in a test: what is typed and what is shown."""

    def __init__(self, process: Process) -> None:
        assert process.terminal is not None
        self.process = process
        self.master = process.terminal
        self.shown = b""
        os.set_blocking(self.master, False)

    async def until(self, pattern: bytes) -> "re.Match[bytes]":
        """Wait until something is shown; what is before it is forgotten."""
        loop = asyncio.get_running_loop()
        while (match := re.search(pattern, self.shown, re.DOTALL)) is None:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self.master, readable.set_result, None)
            try:
                async with asyncio.timeout(20 * TIME_FACTOR):
                    await readable
            except TimeoutError:
                raise AssertionError(f"no {pattern!r}; shown was {self.shown!r}") from None
            finally:
                loop.remove_reader(self.master)
            try:
                self.shown += os.read(self.master, 65536)
            except OSError as error:
                raise AssertionError(f"hung up; shown was {self.shown!r}") from error
        self.shown = self.shown[match.end() :]
        return match

    def type(self, text: bytes) -> None:
        assert os.write(self.master, text) == len(text)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


@pytest.fixture(autouse=True)
def in_use(bench: Bench) -> None:
    """What a launcher and its event loop keep open is open before a test counts."""
    bench.run("true")


async def screen_of(made: Sandbox, *argv: str, **changes: Any) -> Screen:
    process = await start_in(made, *argv, descriptors=[], then=Then.KEEP, terminal=SIZE, **changes)
    assert isinstance(process, Process), process
    return Screen(process)


async def in_bash(bench: Bench, use: Callable[[Screen], Any]) -> Any:
    async with bench.sandbox() as made:
        screen = await screen_of(made, "bash", "--norc", "--noprofile", "-i")
        screen.type(JOB_CONTROL.encode() + b"; echo rea''dy\n")
        await screen.until(rb"\nready\r\n")
        try:
            return await use(screen)
        finally:
            os.close(screen.master)


@pytest.mark.attack(5)
def test_the_command_has_a_controlling_terminal_of_its_own_devpts(either: Bench) -> None:
    async def run() -> tuple[bytes, bytes]:
        async with either.sandbox() as made:
            script = "tty; stty size; ps -o tty= -p $$; echo over > /dev/tty; test -t 0 -a -t 1 -a -t 2 && echo all"
            screen = await screen_of(made, "sh", "-c", script)
            match = await screen.until(rb"(.*)all\r\n")
            ended = await screen.process.exited()
            os.close(screen.master)
            assert ended is not None
            assert ended.code == 0
            return match[1], (await run_in(made, "ls", "/dev/pts", then=Then.KEEP)).out

    shown, left = either.do(run())
    assert shown == b"/dev/pts/0\r\n33 101\r\npts/0\r\nover\r\n"
    assert left == b"ptmx\n"


def test_a_command_cannot_push_input_into_its_terminal(bench: Bench) -> None:
    async def run() -> bytes:
        async with bench.sandbox() as made:
            source = (
                "import fcntl\nfor number in (0x5412, 0x100005412):\n"
                "  try: fcntl.ioctl(0, number & 0xffffffff, b'x'); print('pushed')\n"
                "  except OSError as e: print(e.errno)\nprint('all')"
            )
            screen = await screen_of(made, "python3", "-c", source)
            match = await screen.until(rb"(.*)all\r\n")
            os.close(screen.master)
            return match[1]

    assert bench.do(run()) == b"1\r\n1\r\n"


def test_ctrl_c_ends_the_command_in_front_and_not_the_shell(bench: Bench) -> None:
    async def use(screen: Screen) -> None:
        screen.type(b"sh -c 'echo sta\"\"rted; exec sleep 1000'\n")
        await screen.until(rb"\nstarted\r\n")
        screen.type(b"\x03")
        screen.type(b"echo co''de $?\n")
        await screen.until(rb"\ncode 130\r\n")

    bench.do(in_bash(bench, use))


def test_ctrl_z_stops_the_command_and_fg_goes_on_with_it(bench: Bench) -> None:
    # It says when it goes on: what is typed before that is not a line yet (n_tty_set_termios() in drivers/tty/n_tty.c).
    # By waiting for the signal: a handler would not run if it came just before the reading.
    source = (
        "import os, signal, sys, threading; tell = lambda *words: print(*words, flush=True); "
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT]); "
        "read = lambda: ([tell('got', line.strip()) for line in sys.stdin], tell('over'), os._exit(0)); "
        "threading.Thread(target=read).start(); tell('started'); "
        "[tell('back') for _ in iter(lambda: signal.sigwait([signal.SIGCONT]), 0)]"
    )

    async def use(screen: Screen) -> None:
        screen.type(f'python3 -c "{source}"\n'.encode())
        await screen.until(rb"\nstarted\r\n")
        screen.type(b"one\n")
        await screen.until(rb"\ngot one\r\n")
        screen.type(b"\x1a")
        await screen.until(rb"Stopped.*\$ ")
        screen.type(b"fg\n")
        await screen.until(rb"\nback\r\n")
        screen.type(b"two\n")
        await screen.until(rb"\ngot two\r\n")
        screen.type(b"\x04")
        await screen.until(rb"over\r\n")

    bench.do(in_bash(bench, use))


def test_a_new_size_reaches_the_command(bench: Bench) -> None:
    async def use(screen: Screen) -> None:
        # Said in one write: the line that is typed after may be echoed between two.
        screen.type(b"trap 'echo ch''anged $(stty size)' WINCH; echo s''et\n")
        await screen.until(rb"\nset\r\n")
        screen.resize(50, 140)
        screen.type(b"\n")
        await screen.until(rb"changed 50 140\r\n")

    bench.do(in_bash(bench, use))


def test_when_the_terminal_hangs_up_so_does_what_runs_in_it(bench: Bench) -> None:
    async def run() -> tuple[int | None, bytes]:
        async with bench.sandbox() as made:
            screen = await screen_of(made, "bash", "--norc", "-i")
            screen.type(b"sleep 1000 & sh -c 'echo sta\"\"rted; exec sleep 1001'\n")
            await screen.until(rb"\nstarted\r\n")
            os.close(screen.master)
            ended = await screen.process.exited()
            assert ended is not None
            gone = "while ps -C sleep; do :; done >/dev/null; echo gone"
            left = await run_in(made, "sh", "-c", gone, then=Then.KEEP)
            return ended.signal, left.out

    number, left = bench.do(run())
    assert number == signal.SIGHUP
    assert left == b"gone\n"


def test_a_sandbox_has_only_so_many_terminals_and_says_so(bench: Bench) -> None:
    async def run() -> tuple[Any, bytes]:
        async with bench.sandbox() as made:
            screens = []
            while True:
                process = await start_in(made, "cat", descriptors=[], then=Then.KEEP, terminal=SIZE)
                if isinstance(process, Unusable):
                    break
                screens.append(Screen(process))
            for screen in screens:
                os.close(screen.master)
            return process, (await run_in(made, "echo", "there", then=Then.KEEP)).out

    assert bench.do(run()) == (Unusable("terminal", 28), b"there\n")


def test_the_death_of_the_sandbox_ends_its_terminals(bench: Bench) -> None:
    async def run() -> Any:
        before = open_descriptors()
        async with bench.sandbox() as made:
            screen = await screen_of(made, "cat")
            made.kill()
            ended = await screen.process.exited()
            await made.dead()
            with pytest.raises((OSError, AssertionError)):
                await screen.until(b"never")
            os.close(screen.master)
        return ended, open_descriptors() - before

    assert bench.do(run()) == (None, 0)


# What a sandbox that has been broken into might send


def send_with(impostor: Impostor, message: protocol.Message, descriptors: list[int]) -> None:
    protocol.send(impostor.channel, message, descriptors)


async def answer_of_an_impostor(
    kind: Callable[[int, float], protocol.Message], descriptors: list[int], *, terminal: bool
) -> tuple[Any, bool]:
    """What the service makes of an answer to the first command: what `run` gave, and whether the sandbox lived on."""
    impostor = Impostor()
    asked = asyncio.ensure_future(
        start_in(
            impostor.sandbox,
            "true",
            descriptors=[] if terminal else [0, 0, 0],
            then=Then.KEEP,
            terminal=SIZE if terminal else None,
        )
    )
    await asyncio.sleep(0)
    send_with(impostor, kind(1, 1.0), descriptors)
    try:
        outcome: Any = await asyncio.wait_for(asked, 10)
    except SandboxFailed as error:
        outcome = error
    alive = impostor.sandbox.alive
    if isinstance(outcome, Process) and outcome.terminal is not None:
        os.close(outcome.terminal)
    impostor.sandbox.kill()
    await impostor.ended()
    return outcome, alive


def a_pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def a_socket() -> int:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


def a_slave() -> int:
    master, slave = pty.openpty()
    os.close(master)
    return slave


@contextlib.contextmanager
def a_master(bench: Bench) -> Iterator[int]:
    """Of a sandbox that is gone: as good for this as any other."""

    async def make() -> int:
        async with bench.sandbox() as made:
            return (await screen_of(made, "true")).master

    master = bench.do(make())
    yield master
    os.close(master)


NO_TERMINALS: dict[str, Callable[[], int]] = {
    "pipe": a_pipe,
    "socket": a_socket,
    "file": lambda: os.open(__file__, os.O_RDONLY),
    "path of a master": lambda: os.open("/dev/pts/ptmx", os.O_PATH),
    "directory": lambda: os.open("/", os.O_RDONLY),
    "null": lambda: os.open("/dev/null", os.O_RDWR),
    "the other end": a_slave,
    "memory": lambda: os.memfd_create("x"),
}


@pytest.mark.attack(3)
@pytest.mark.parametrize("kind", NO_TERMINALS)
def test_whatever_is_no_master_of_a_terminal_is_closed_and_its_sandbox_killed(
    kind: str, bench: Bench
) -> None:
    before = open_descriptors()
    descriptor = NO_TERMINALS[kind]()

    outcome, alive = bench.do(
        answer_of_an_impostor(protocol.StartedInTerminal, [descriptor], terminal=True)
    )

    os.close(descriptor)
    assert isinstance(outcome, SandboxFailed)
    assert not alive
    assert open_descriptors() == before


@pytest.mark.attack(3)
@pytest.mark.parametrize(
    ("message", "count", "terminal"),
    [
        (protocol.StartedInTerminal, 0, True),
        (protocol.StartedInTerminal, 2, True),
        (protocol.StartedInTerminal, 8, True),
        (protocol.StartedInTerminal, 1, False),
        (protocol.Started, 0, True),
        (protocol.Started, 1, True),
        (protocol.Started, 1, False),
        (lambda number, _: protocol.NotStarted(number, Unusable("command", 2)), 1, True),
        (lambda number, _: protocol.StartedInTerminal(number + 1, 1.0), 1, True),
        (lambda number, _: protocol.Loaded(number), 0, False),
        (lambda number, _: protocol.NotLoaded(number, "runtime", "x"), 0, False),
        (lambda *_: protocol.Done(1, 1), 1, True),
        (lambda *_: protocol.Done(1, 1), 1, False),
    ],
)
def test_a_terminal_comes_once_alone_and_only_when_it_was_asked_for(
    message: Callable[[int, float], protocol.Message], count: int, terminal: bool, bench: Bench
) -> None:
    before = open_descriptors()

    with a_master(bench) as master:
        outcome, alive = bench.do(
            answer_of_an_impostor(message, [master] * count, terminal=terminal)
        )

    assert isinstance(outcome, SandboxFailed)
    assert not alive
    assert open_descriptors() == before


def test_an_answer_as_init_gives_it_is_taken(bench: Bench) -> None:
    """The two tests above could not fail if nothing were ever taken."""
    before = open_descriptors()

    with a_master(bench) as master:
        outcome, alive = bench.do(
            answer_of_an_impostor(protocol.StartedInTerminal, [master], terminal=True)
        )

    assert isinstance(outcome, Process)
    assert alive
    assert open_descriptors() == before


def test_no_command_starts_later_than_now_whatever_its_init_says(bench: Bench) -> None:
    """Its wall time counts from its start: an init that was broken into must not put its end off."""
    outcome, alive = bench.do(
        answer_of_an_impostor(lambda number, _: protocol.Started(number, 1e9), [], terminal=False)
    )

    assert isinstance(outcome, Process)
    assert alive
    assert 0 < outcome.started_at <= time.monotonic()


@pytest.mark.attack(3)
def test_a_second_terminal_for_the_same_command_is_closed_and_its_sandbox_killed(
    bench: Bench,
) -> None:
    async def run(master: int) -> bool:
        impostor = Impostor()
        asked = asyncio.ensure_future(
            start_in(impostor.sandbox, "true", descriptors=[], then=Then.KEEP, terminal=SIZE)
        )
        await asyncio.sleep(0)
        for _ in range(2):
            send_with(impostor, protocol.StartedInTerminal(1, 1.0), [master])
        process = await asked
        assert isinstance(process, Process)
        assert process.terminal is not None
        os.close(process.terminal)
        await asyncio.wait_for(impostor.sandbox.dead(), 10)
        await impostor.ended()
        return impostor.sandbox.alive

    before = open_descriptors()
    with a_master(bench) as master:
        assert not bench.do(run(master))
    assert open_descriptors() == before


def test_who_stops_waiting_for_a_terminal_leaves_no_descriptor(bench: Bench) -> None:
    async def run() -> None:
        async with bench.sandbox() as made:
            asked = asyncio.ensure_future(
                start_in(made, "cat", descriptors=[], then=Then.KEEP, terminal=SIZE)
            )
            await asyncio.sleep(0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await made.dead()

    before = open_descriptors()
    bench.do(run())
    assert open_descriptors() == before
