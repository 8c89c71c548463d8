"""`sandboxd exec`, `shell` and `sandboxes`, and the client library, on the real service; terminals through a real pty."""

import asyncio
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any, Self

import pytest
from running_service import SOURCE, RunningService
from waiting import wait_for

from sandboxd.client import AsyncClient, Client, Conflict, NotFound, Sandbox

DEADLINE_SECONDS = 30.0


@pytest.fixture
def sandbox(client: Client) -> Iterator[Sandbox]:
    with client.sandbox() as made:
        yield made


def environment(service: RunningService) -> dict[str, str]:
    return service.environment | {
        "SANDBOXD_URL": service.url,
        "PYTHONPATH": str(SOURCE),
        "TERM": "dumb",
    }


def sandboxd(service: RunningService, *words: str, **options: Any) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "sandboxd", *words],
        env=environment(service),
        capture_output=True,
        timeout=60,
        check=False,
        **options,
    )


class Desk:
    """A command line in a terminal of its own, as a person has it."""

    def __init__(self, service: RunningService, *words: str) -> None:
        self.master, self._slave = pty.openpty()
        self.resize(40, 90)
        self.before = termios.tcgetattr(self._slave)
        self.shown = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sandboxd", *words],
            env=environment(service),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self._slave)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def until(self, pattern: bytes) -> "re.Match[bytes]":
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (match := re.search(pattern, self.shown)) is None:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.master], [], [], max(0, left))
            assert ready, f"no {pattern!r}; shown was {self.shown!r}"
            self.shown += os.read(self.master, 65536)
        self.shown = self.shown[match.end() :]
        return match

    def end(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._slave) == self.before


# The client library


def test_the_client_runs_commands_and_moves_files(sandbox: Sandbox) -> None:
    ran = sandbox.exec(["sh", "-c", "cat; echo wrong >&2; exit 3"], stdin=b"\xff\x00")
    sandbox.write_file("/work/a/b", "hello", mode=0o755)

    assert (ran.exit_code, ran.stdout, ran.stderr) == (3, b"\xff\x00", b"wrong\n")
    assert sandbox.exec(["sh", "-c", "cat a/b; test -x a/b && echo x"]).text == "hellox\n"
    assert sandbox.read_file("/work/a/b") == b"hello"
    assert [entry.name for entry in sandbox.list_files("/work/a")] == ["b"]
    sandbox.remove_file("/work/a/b")
    with pytest.raises(NotFound):
        sandbox.read_file("/work/a/b")


def test_the_client_pauses_changes_and_ends(client: Client) -> None:
    with client.sandbox(limits={"memory": "64Mi"}) as sandbox:
        sandbox.change(limits={"memory": "96Mi"}, idle_seconds=100)
        assert sandbox.record.limits["memory"] == 96 * 2**20
        sandbox.pause()
        with pytest.raises(Conflict):
            sandbox.exec(["true"])
        sandbox.resume()
        assert sandbox.exec(["true"]).exit_code == 0
        assert sandbox.id in [each.id for each in client.list_sandboxes(states=["running"]).data]
    assert sandbox.refresh().state == "ended"
    sandbox.close()  # twice is fine


def test_the_asynchronous_client_does_the_same(
    real_service: RunningService, client: Client
) -> None:
    async def use() -> tuple[str, bytes, str]:
        async with AsyncClient(real_service.url) as connected:
            async with await connected.sandbox() as sandbox:
                ran, _ = await asyncio.gather(
                    sandbox.exec(["echo", "hello"]), sandbox.write_file("/work/f", b"content")
                )
                content = await sandbox.read_file("/work/f")
            return ran.text, content, (await sandbox.refresh()).state

    assert asyncio.run(use()) == ("hello\n", b"content", "ended")


# The command line


def test_sandboxes_are_made_listed_shown_and_ended(
    real_service: RunningService, client: Client
) -> None:
    made = sandboxd(real_service, "sandboxes", "create", "--memory", "64Mi").stdout.decode().strip()

    listed = sandboxd(real_service, "sandboxes", "list").stdout.decode()
    assert made in listed
    assert "running" in sandboxd(real_service, "sandboxes", "show", made).stdout.decode()
    assert sandboxd(real_service, "sandboxes", "pause", made).returncode == 0
    assert "paused" in sandboxd(real_service, "sandboxes", "list").stdout.decode()
    assert sandboxd(real_service, "sandboxes", "resume", made).returncode == 0
    assert sandboxd(real_service, "sandboxes", "delete", made).returncode == 0
    assert made not in sandboxd(real_service, "sandboxes", "list").stdout.decode()


def test_exec_passes_input_output_and_exit_code_on(
    sandbox: Sandbox, real_service: RunningService
) -> None:
    script = "cat; echo wrong >&2; echo $A; exit 9"
    words = ("exec", "-i", "-e", "A=b", sandbox.id, "--", "sh", "-c", script)
    ran = sandboxd(real_service, *words, input=b"in\x00put\n" * 100_000)

    assert ran.returncode == 9
    assert ran.stdout == b"in\x00put\n" * 100_000 + b"b\n"
    assert ran.stderr == b"wrong\n"
    assert sandboxd(real_service, "exec", sandbox.id, "--", "cat").stdout == b""
    assert sandboxd(real_service, "exec", sandbox.id, "--", "no-such").returncode == 127
    wall = sandboxd(real_service, "exec", "--wall-seconds", "0.2", sandbox.id, "sleep", "1000")
    assert wall.returncode == 124
    gone = sandboxd(real_service, "exec", "sbx_00000000000000000000000000", "true")
    assert (gone.returncode, b"no sandbox" in gone.stderr) == (125, True)
    without = sandboxd(real_service, "exec", "-it", sandbox.id, "true", stdin=subprocess.DEVNULL)
    assert without.returncode == 125


def test_a_terminal_reaches_through_and_is_as_before_afterwards(
    sandbox: Sandbox, real_service: RunningService
) -> None:
    with Desk(real_service, "exec", "-it", sandbox.id, "--", "bash", "--norc", "-i") as desk:
        desk.type(b"tty; stty size; echo re''ady\n")
        desk.until(rb"/dev/pts/0\r\n40 90\r\n")
        desk.until(rb"ready\r\n")
        assert not desk.is_as_before()
        desk.resize(55, 155)
        os.kill(desk.process.pid, signal.SIGWINCH)
        # What is typed may be there before the new size is.
        desk.type(b"until [ \"$(stty size)\" = '55 155' ]; do sleep 0.02; done; echo re''sized\n")
        desk.until(rb"resized\r\n")
        desk.type(b"sh -c 'echo sta\"\"rted; exec sleep 1000'\n")
        desk.until(rb"started\r\n")
        desk.type(b"\x03")
        desk.type(b"echo co''de $?\n")
        desk.until(rb"code 130\r\n")
        desk.type(b"exit 7\n")

        assert desk.end() == 7
        assert desk.is_as_before()


def test_the_terminal_is_as_before_when_the_sandbox_or_we_are_ended(
    client: Client, real_service: RunningService
) -> None:
    for how in ("sandbox", "connection", "signal"):
        with (
            client.sandbox() as sandbox,
            Desk(real_service, "exec", "-it", sandbox.id, "sh") as desk,
        ):
            desk.type(b"echo re''ady\n")
            desk.until(rb"ready\r\n")
            if how == "sandbox":
                sandbox.close()
            elif how == "connection":
                kill_connection(desk.process.pid)
            else:
                desk.process.send_signal(signal.SIGHUP)

            assert desk.end() != 0, how
            assert desk.is_as_before(), how


def kill_connection(pid: int) -> None:
    """Break the connection that a process has, as a network does."""
    import psutil

    (connection,) = psutil.Process(pid).net_connections("tcp")
    pidfd = os.pidfd_open(pid)
    try:
        # pidfd_getfd(2): a copy of its socket, which is shut down for both.
        import ctypes

        copy = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, connection.fd, 0)
        assert copy >= 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(pidfd)
    import socket

    with socket.socket(fileno=copy) as shared:
        shared.shutdown(socket.SHUT_RDWR)


def test_a_shell_s_sandbox_ends_with_it_unless_it_is_kept(
    real_service: RunningService, client: Client
) -> None:
    with Desk(real_service, "shell", "--memory", "64Mi") as desk:
        desk.until(rb"\$ ")
        (live,) = client.list_sandboxes(states=["running"]).data
        desk.type(b"exit 3\n")

        assert desk.end() == 3
        assert client.open_sandbox(live.id).record.reason == "deleted"
    with Desk(real_service, "shell", "--keep") as desk:
        kept = desk.until(rb"(sbx_\w+)")[1].decode()
        desk.until(rb"\$ ")
        desk.type(b"exit\n")
        assert desk.end() == 0
    assert client.open_sandbox(kept).record.state == "running"
    client.delete_sandbox(kept)


def test_when_the_command_line_is_killed_what_it_ran_is_hung_up(
    sandbox: Sandbox, real_service: RunningService
) -> None:
    with Desk(
        real_service, "exec", "-it", sandbox.id, "sh", "-c", "echo re''ady; sleep 1234"
    ) as desk:
        desk.until(rb"ready\r\n")
        desk.process.kill()

    def gone() -> bool:
        return sandbox.exec(["sh", "-c", "ps -C sleep -o pid= | wc -l"]).text == "0\n"

    wait_for(gone, "it is gone")
