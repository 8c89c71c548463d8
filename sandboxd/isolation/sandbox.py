"""One sandbox as the service sees it.

Runs in the service's event loop and waits for two descriptors: init's socket and its pidfd.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import hearing, protocol
from sandboxd.isolation.spec import (
    Command,
    Exit,
    File,
    Machine,
    SandboxSpec,
    TerminalSize,
    Then,
    Unusable,
    Used,
)

_MOST_UNREAD_MESSAGES = 8
"""init answers one request at a time; who says more wants to fill the service's memory."""
_SIOCOUTQ = 0x5411
"""ioctl of sockets: how much the other end has not read (unix_ioctl() in net/unix/af_unix.c)."""
_RUNTIME_SECONDS = 30.0
"""An OCI runtime that has not started the command by then never will."""


class InitEnded(SandboxFailed):
    """init is gone and said nothing of a step that failed: it, or the launcher, was killed."""


OfCommand = protocol.Started | protocol.StartedInTerminal | protocol.NotStarted | protocol.Exited


class Process:
    """One command in a sandbox, from its start on."""

    def __init__(
        self,
        sandbox: "Sandbox",
        number: int,
        *,
        in_terminal: bool,
        set_limits: Callable[[], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._sandbox = sandbox
        self._number = number
        self._set_limits = set_limits
        self._loaded = False
        self._start: asyncio.Future[float | Unusable | None] = loop.create_future()
        self._end: asyncio.Future[Exit | None] = loop.create_future()
        self.terminal: int | None = None
        """Descriptor of its terminal's master, if it was to have one: whoever started it takes it over."""
        self._in_terminal = in_terminal

    @property
    def started_at(self) -> float:
        """time.monotonic() of the start."""
        at = self._start.result()
        if not isinstance(at, float):
            raise SandboxFailed("run", "init ended before the command ran")
        return at

    async def exited(self) -> Exit | None:
        """Wait for the command's end. None if init died without telling: it was killed, by us or by the kernel."""
        return await asyncio.shield(self._end)

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group. Nothing happens if it is gone."""
        self._sandbox.signal(self._number, number)

    def kill(self) -> None:
        """SIGKILL to its process group, which the command, as the leader of its session, cannot leave."""
        self.signal(signal.SIGKILL)

    async def start(self) -> "Process | Unusable":
        """For the sandbox: itself once it runs, or what is wrong with it. Raises SandboxFailed."""
        started = await self._start
        if isinstance(started, Unusable):
            return started
        if started is None:
            raise SandboxFailed("run", "init ended before the command ran")
        return self

    @property
    def terminal_due(self) -> bool:
        """For the sandbox: whether a terminal may still come for it."""
        return self._in_terminal and not self._start.done()

    def hear(self, message: "OfCommand", descriptor: int | None) -> bool:
        """For the sandbox: take what init says of this command. False: it makes no sense."""
        match message:
            case protocol.Started(at=at) if not self._start.done() and not self._in_terminal:
                self._start.set_result(_not_later_than_now(at))
            case protocol.StartedInTerminal(at=at) if self.terminal_due:
                self.terminal = descriptor
                self._start.set_result(_not_later_than_now(at))
            case protocol.NotStarted(why=why) if not self._start.done():
                self._start.set_result(why)
                self._end.set_result(None)
            case protocol.Exited(exit=how) if self._start.done() and not self._end.done():
                self._end.set_result(how)
            case _:
                return False
        return True

    def hear_of_runtime(self, message: protocol.Loaded | protocol.NotLoaded) -> bool:
        """For the sandbox: the command is held until its limits are set, or is not there. False: it makes no sense."""
        if self._start.done() or self._loaded:
            return False
        self._loaded = True
        try:
            if isinstance(message, protocol.NotLoaded):
                raise SandboxFailed(message.step, message.reason)
            self._set_limits()
            self._sandbox.let_go(self._number)
        except SandboxFailed as error:
            self._start.set_exception(error)
        return True

    def lose(self) -> None:
        """For the sandbox: nothing more will be heard of this command."""
        for future in (self._start, self._end):
            if not future.done():
                future.set_result(None)


class Sandbox:
    """One sandbox: init's socket and pidfd. It serves one job, with one command or several, and is never used again."""

    def __init__(
        self,
        spec: SandboxSpec,
        pid: int,
        channel: socket.socket,
        pidfd: int,
        network: Sequence[int] = (),
    ) -> None:
        loop = asyncio.get_running_loop()
        channel.setblocking(False)
        self.spec = spec
        self.pid = pid
        """init's pid as the service sees it."""
        self.network = network
        """With egress: descriptors of the network namespace, of the resolver's socket in it, and of the firewall's."""
        self._loop = loop
        self._channel = channel
        self._pidfd = pidfd
        self._answers: asyncio.Queue[protocol.FromInit | None] = asyncio.Queue()
        """To everything but commands, which have their own."""
        self._asking = asyncio.Lock()
        self._processes: dict[int, Process] = {}
        self._started = 0
        self.before_kill: Callable[[], None] | None = None
        """What has to be done so that it can die: of one that is frozen."""
        self._unshown: Machine | None = None
        """What has still to be said of the machine."""
        self._dead: asyncio.Future[None] = loop.create_future()
        loop.add_reader(channel.fileno(), self._read_channel)
        loop.add_reader(pidfd, self._died)

    @property
    def alive(self) -> bool:
        return not self._dead.done()

    async def begun(self) -> None:
        """Wait until a blank is ready for its shape. Raises SandboxFailed with the step that failed."""
        await self._built(protocol.Begun)

    async def take_shape(self, spec: SandboxSpec) -> None:
        """Tell a blank what it is to become, and wait until all walls stand. Raises SandboxFailed with the step that failed."""
        self.spec = spec
        self._send(protocol.Shape(spec), [])
        await self.ready()

    async def ready(self) -> None:
        """Wait until all walls stand. Raises SandboxFailed with the step that failed."""
        await self._built(protocol.Ready)

    async def _built(self, answer: type[protocol.Begun | protocol.Ready]) -> None:
        match await self._answers.get():
            case protocol.Begun() | protocol.Ready() as message if isinstance(message, answer):
                return
            case protocol.Failed(step=step, reason=reason):
                raise SandboxFailed(step, reason)
            case None:
                raise InitEnded("build", "init ended while it built")
            case message:
                raise SandboxFailed("build", f"init said {message!r} while it built")

    async def run(
        self,
        command: Command,
        descriptors: Sequence[int],
        *,
        then: Then = Then.END,
        terminal: TerminalSize | None = None,
        set_limits: Callable[[], None] = lambda: None,
    ) -> Process | Unusable:
        """Start a command with its three standard streams, or without them in a terminal. Returns it, or what is wrong with it.

        `then` is what becomes of the sandbox when it is over. The descriptors stay open here. Raises SandboxFailed. Whoever
        does not wait for the start ends the sandbox: nobody would know the command.

        With an OCI runtime `set_limits` is called when the command is in memory and the runtime is done, before the
        command's first instruction: limits that hold earlier hold for the runtime, too.
        """
        self._started += 1
        number = self._started
        process = Process(self, number, in_terminal=terminal is not None, set_limits=set_limits)
        self._processes[number] = process
        try:
            request = protocol.Run(number=number, command=command, then=then, terminal=terminal)
            self._send(request, descriptors)
            if self.spec.runtime is None:
                return await process.start()
            return await self._start_by_runtime(process, self.spec.runtime.name)
        except BaseException as error:
            self._processes.pop(number, None)
            if process.terminal is not None:
                os.close(process.terminal)
            if not isinstance(error, SandboxFailed):
                self.kill()
            raise

    async def _start_by_runtime(self, process: Process, name: str) -> Process | Unusable:
        try:
            async with asyncio.timeout(_RUNTIME_SECONDS):
                return await process.start()
        except TimeoutError:
            self.kill()
            reason = f"the command did not run after {_RUNTIME_SECONDS:.0f} s"
            raise SandboxFailed(f"runtime {name}", reason) from None

    async def place(
        self, files: Sequence[File], contents: int
    ) -> protocol.Done | protocol.NotPlaced:
        """Have files made, with contents that init reads from a descriptor, one after the other. Raises SandboxFailed."""
        answer = await self._ask(protocol.Place(files=tuple(files)), [contents])
        if isinstance(answer, protocol.NotPlaced):
            return answer
        return _done(answer)

    async def collect(self, request: protocol.Collect, output: int) -> protocol.Done:
        """Have what matches written to a descriptor (see `files` for how). Raises SandboxFailed."""
        return _done(await self._ask(request, [output]))

    async def changes(self, request: protocol.Changes, output: int) -> protocol.Done:
        """Have what the commands changed written to a descriptor (see `scratch` for how). Raises SandboxFailed."""
        return _done(await self._ask(request, [output]))

    async def pack_changes(self, request: protocol.PackChanges, output: int) -> protocol.Done:
        """Have what the commands changed written to a descriptor as an archive (see `packing`). Raises SandboxFailed."""
        return _done(await self._ask(request, [output]))

    async def look(self, request: protocol.Look, output: int) -> protocol.Done | protocol.NotPlaced:
        """Have what is in a directory written to a descriptor. Raises SandboxFailed."""
        answer = await self._ask(request, [output])
        return answer if isinstance(answer, protocol.NotPlaced) else _done(answer)

    async def remove(self, path: str) -> protocol.Done | protocol.NotPlaced:
        """Remove a file, or a directory that is empty. Raises SandboxFailed."""
        answer = await self._ask(protocol.Remove(path), [])
        return answer if isinstance(answer, protocol.NotPlaced) else _done(answer)

    async def read(self, request: protocol.Read, outputs: Sequence[int]) -> protocol.Done:
        """Have the beginnings of files written to descriptors, one for each. Raises SandboxFailed."""
        return _done(await self._ask(request, outputs))

    async def work(self, request: protocol.OnTree, descriptors: Sequence[int]) -> protocol.Done:
        """Have init itself do something inside the walls. Raises SandboxFailed."""
        return _done(await self._ask(request, descriptors))

    def signal(self, command: int, number: int) -> None:
        """Send a signal to a command's process group. Nothing happens if it is gone.

        An init that takes no more messages ends, and all with it, when one is to be killed.
        """
        try:
            protocol.send(self._channel, protocol.Signal(command=command, number=number))
        except BlockingIOError:
            if number == signal.SIGKILL:
                self.kill()
        except OSError:
            return

    def show(self, machine: Machine | None = None, used: Used | None = None) -> None:
        """Say what the commands are to see of the machine from now on. Nothing happens if it is gone.

        An init that has not read what was sent before is not told: what matters more must find room. It is with the next.
        """
        self._unshown = machine or self._unshown
        if not self.alive:
            return
        with contextlib.suppress(OSError):
            (unread,) = struct.unpack("i", fcntl.ioctl(self._channel, _SIOCOUTQ, bytes(4)))
            if not unread:
                protocol.send(self._channel, protocol.Show(self._unshown, used))
                self._unshown = None

    def let_go(self, command: int) -> None:
        """For a process: its limits are set. Raises SandboxFailed."""
        self._send(protocol.Go(command=command), [])

    def kill(self) -> None:
        """SIGKILL to init: every process of the sandbox is gone at once."""
        if self.alive:
            if self.before_kill is not None:
                self.before_kill()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def abandon(self) -> None:
        """Tell who waits for anything that it will not come: a process is stuck in the kernel."""
        if self.alive:
            self._lose_all()

    async def dead(self) -> None:
        """Wait until init, and with it every process of the sandbox, is gone."""
        await asyncio.shield(self._dead)

    async def _ask(
        self, request: protocol.ToInit, descriptors: Sequence[int]
    ) -> protocol.FromInit | None:
        async with self._asking:
            self._send(request, descriptors)
            try:
                return await self._answers.get()
            except BaseException:
                self.kill()  # Its answer would be taken for that to the next request.
                raise

    def _send(self, message: protocol.Message, descriptors: Sequence[int]) -> None:
        try:
            protocol.send(self._channel, message, descriptors)
        except OSError as error:
            raise InitEnded("ask init", str(error)) from error

    def _read_channel(self) -> None:
        try:
            message, descriptor = self._receive()
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._loop.remove_reader(self._channel.fileno())
            return
        except protocol.BadMessage:
            self._end_broken()
            return
        if not self._hear(message, descriptor):
            self._end_broken()

    def _receive(self) -> tuple[protocol.FromInit, int | None]:
        due = any(process.terminal_due for process in self._processes.values())
        return hearing.receive_from_init(self._channel, terminal_due=due)

    def _hear(self, message: protocol.FromInit, descriptor: int | None) -> bool:
        """Pass a message on to who waits for it. False: nobody can, init does not speak like this."""
        if isinstance(message, OfCommand):
            process = self._processes.get(message.command)
            if process is None or not process.hear(message, descriptor):
                if descriptor is not None:
                    os.close(descriptor)
                return False
            if isinstance(message, protocol.NotStarted | protocol.Exited):
                del self._processes[message.command]
            return True
        if isinstance(message, protocol.Loaded | protocol.NotLoaded):
            process = self._processes.get(message.command)
            if self.spec.runtime is None or process is None:
                return False
            return process.hear_of_runtime(message)
        if self._answers.qsize() == _MOST_UNREAD_MESSAGES:
            return False
        self._answers.put_nowait(message)
        return True

    def _end_broken(self) -> None:
        """init does not speak like this: the sandbox has been broken into."""
        self._loop.remove_reader(self._channel.fileno())
        self.kill()

    def _died(self) -> None:
        """The pidfd is readable: no process is left. What init said last is read first."""
        self._loop.remove_reader(self._pidfd)
        with contextlib.suppress(EOFError, OSError, protocol.BadMessage):
            while self._hear(*self._receive()):
                pass
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        # Nobody must find numbers here that are another's by then.
        network, self.network = self.network, ()
        for descriptor in (self._pidfd, *network):
            os.close(descriptor)
        self._dead.set_result(None)
        self._lose_all()

    def _lose_all(self) -> None:
        self._answers.put_nowait(None)
        for process in self._processes.values():
            process.lose()
        self._processes.clear()


def _not_later_than_now(at: float) -> float:
    """What init says of a start, as far as it can be: limits of time count from it, and init may have been broken into."""
    return min(at, time.monotonic())


def _done(answer: protocol.FromInit | None) -> protocol.Done:
    match answer:
        case protocol.Done() as done:
            return done
        case protocol.Failed(step=step, reason=reason):
            raise SandboxFailed(step, reason)
        case message:
            raise SandboxFailed("work", f"init ended before it was done ({message!r})")
