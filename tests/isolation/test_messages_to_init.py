"""What the service says to an init that does not listen."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest

from sandboxd.isolation import protocol
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import Machine, SandboxSpec, Used

SPEC = SandboxSpec(rootfs="/", scratch_bytes=0, scratch_inodes=0)


def with_deaf_init(do: Callable[[Sandbox, socket.socket], None]) -> int:
    """How the process ended that stands for an init; it reads nothing."""

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)

    async def main(pid: int) -> None:
        sandbox = Sandbox(SPEC, pid, ours, os.pidfd_open(pid))
        do(sandbox, theirs)
        sandbox.kill()
        await sandbox.dead()

    with subprocess.Popen(["sleep", "600"]) as process, theirs:
        asyncio.run(main(process.pid))
        return process.wait()


def receive(channel: socket.socket) -> object:
    return protocol.receive(channel, protocol.from_above)[0]


def test_what_there_is_to_see_never_fills_its_socket_and_the_last_of_it_is_told_later() -> None:
    def show_often(sandbox: Sandbox, init: socket.socket) -> None:
        for memory_bytes in range(1000):
            sandbox.show(Machine((0,), memory_bytes, 0))

        assert receive(init) == protocol.Show(Machine((0,), 0, 0), None)
        with pytest.raises(BlockingIOError):
            receive(init)
        sandbox.show(used=Used(1, 2.0))
        assert receive(init) == protocol.Show(Machine((0,), 999, 0), Used(1, 2.0))

    with_deaf_init(show_often)


def test_a_command_that_cannot_be_killed_by_it_dies_with_it() -> None:
    ended = []

    def fill(sandbox: Sandbox, _: socket.socket) -> None:
        for _ in range(10_000):
            sandbox.signal(1, signal.SIGTERM)
        ended.append(os.waitid(os.P_PID, sandbox.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))
        sandbox.signal(1, signal.SIGKILL)
        os.waitid(os.P_PID, sandbox.pid, os.WEXITED | os.WNOWAIT)

    assert with_deaf_init(fill) == -signal.SIGKILL
    assert ended == [None]
