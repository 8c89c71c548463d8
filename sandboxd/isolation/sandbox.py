"""One sandbox as the service sees it.

Runs in the service's event loop and waits for two descriptors: init's socket and its pidfd.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import hearing, protocol
from sandboxd.isolation.spec import Command, Exit, SandboxSpec, Unusable

_MOST_UNREAD_MESSAGES = 8
"""init says one thing at a time; who says more wants to fill the service's memory."""


class Sandbox:
    """One sandbox: init's socket and pidfd. It runs one command and is never used again."""

    def __init__(self, spec: SandboxSpec, pid: int, channel: socket.socket, pidfd: int) -> None:
        loop = asyncio.get_running_loop()
        channel.setblocking(False)
        self.spec = spec
        self.pid = pid
        """init's pid as the service sees it."""
        self._loop = loop
        self._channel = channel
        self._pidfd = pidfd
        self._messages: asyncio.Queue[protocol.FromInit | None] = asyncio.Queue()
        self._dead: asyncio.Future[None] = loop.create_future()
        loop.add_reader(channel.fileno(), self._read_channel)
        loop.add_reader(pidfd, self._died)

    @property
    def alive(self) -> bool:
        return not self._dead.done()

    async def ready(self) -> None:
        """Wait until all walls stand. Raises SandboxFailed with the step that failed."""
        match await self._messages.get():
            case protocol.Ready():
                return
            case protocol.Failed(step=step, reason=reason):
                raise SandboxFailed(step, reason)
            case message:
                raise SandboxFailed("build", f"init ended while it built ({message!r})")

    async def run(self, command: Command, descriptors: Sequence[int]) -> float | Unusable:
        """Start the command with its three standard streams.

        Returns when that was (time.monotonic()), or what is wrong with the command.

        The descriptors stay open here. Raises SandboxFailed.
        """
        self._send(protocol.Run(command=command), descriptors)
        match await self._messages.get():
            case protocol.Started(at=started_at):
                return started_at
            case Unusable() as unusable:
                return unusable
            case protocol.Failed(step=step, reason=reason):
                raise SandboxFailed(step, reason)
            case message:
                raise SandboxFailed("run", f"init ended before the command ran ({message!r})")

    async def exited(self) -> Exit | None:
        """Wait for the command's end. None if init died without telling: it was killed, by us or by the kernel."""
        match await self._messages.get():
            case Exit() as end:
                return end
            case None:
                return None
            case message:
                raise SandboxFailed("run", f"unexpected answer {message!r}")

    async def work(
        self, request: protocol.Unpack | protocol.Empty, descriptors: Sequence[int]
    ) -> protocol.Done:
        """Have init itself do something inside the walls. Raises SandboxFailed."""
        self._send(request, descriptors)
        match await self._messages.get():
            case protocol.Done() as done:
                return done
            case protocol.Failed(step=step, reason=reason):
                raise SandboxFailed(step, reason)
            case message:
                raise SandboxFailed("work", f"init ended before it was done ({message!r})")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command's process group. Nothing happens if it is gone."""
        with contextlib.suppress(OSError):
            protocol.send(self._channel, protocol.Signal(number=number))

    def kill(self) -> None:
        """SIGKILL to init: every process of the sandbox is gone at once."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def abandon(self) -> None:
        """Tell who waits for the command's end that there will be none: a process is stuck in the kernel."""
        if self.alive:
            self._messages.put_nowait(None)

    async def dead(self) -> None:
        """Wait until init, and with it every process of the sandbox, is gone."""
        await asyncio.shield(self._dead)

    def _send(self, message: protocol.Message, descriptors: Sequence[int]) -> None:
        try:
            protocol.send(self._channel, message, descriptors)
        except OSError as error:
            raise SandboxFailed("ask init", str(error)) from error

    def _read_channel(self) -> None:
        try:
            message = hearing.receive_from_init(self._channel)
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._loop.remove_reader(self._channel.fileno())
            return
        except protocol.BadMessage:
            self._end_broken()
            return
        if self._messages.qsize() < _MOST_UNREAD_MESSAGES:
            self._messages.put_nowait(message)
        else:
            self._end_broken()

    def _end_broken(self) -> None:
        """init does not speak like this: the sandbox has been broken into."""
        self._loop.remove_reader(self._channel.fileno())
        self.kill()

    def _died(self) -> None:
        """The pidfd is readable: no process is left. What init said last is read first."""
        self._loop.remove_reader(self._pidfd)
        while self._messages.qsize() < _MOST_UNREAD_MESSAGES:
            try:
                self._messages.put_nowait(hearing.receive_from_init(self._channel))
            except (EOFError, OSError, protocol.BadMessage):
                break
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        os.close(self._pidfd)
        self._messages.put_nowait(None)
        self._dead.set_result(None)
