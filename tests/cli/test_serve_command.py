"""`sandboxd serve`: it starts with what it was told, serves, and stops in good order."""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import environment, sandboxd

from sandboxd.client import Client


@contextmanager
def serving(data: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A service on `DATA/socket`, once it says that it serves."""
    words = ("--listen", f"unix:{data}/socket", "--metrics-listen", "", "--no-auth", *words)
    with subprocess.Popen(
        [sys.executable, "-m", "sandboxd", "serve", "--data-dir", str(data), *words],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            log = []
            for line in process.stderr:
                log.append(line)
                if "serving" in line:
                    break
            else:
                pytest.fail("".join(log))
            yield process
        finally:
            process.terminate()


@pytest.mark.host
@pytest.mark.usefixtures("prepared_host")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    url = f"unix:{tmp_path}/socket"
    with serving(tmp_path) as process:
        with Client(url) as client:
            version = client.system()["version"]
        ran = sandboxd("run", "--url", url, "echo", "hello")
        locked = sandboxd("keys", "list", "--data-dir", str(tmp_path))
        process.send_signal(number)
        code = process.wait(60)

    assert version
    assert ran == (0, "hello\n", "")
    assert locked.code == 1
    assert "another process owns" in locked.errors
    assert code == 0


def test_serving_everybody_without_keys_is_refused() -> None:
    ended = sandboxd("serve", "--no-auth", "--listen", "0.0.0.0:0", "--user", user_name())

    assert ended.code in (1, 2)
    assert "server.auth is off" in ended.errors


def test_an_unknown_user_is_named() -> None:
    ended = sandboxd("serve", "--user", "no-such-user")

    assert ended.code == 1
    assert '"no-such-user"' in ended.errors


def test_root_is_no_ordinary_user() -> None:
    ended = sandboxd("serve", "--user", "root")

    assert ended.code == 1
    assert "ordinary user" in ended.errors


@pytest.mark.as_root
def test_root_is_told_to_name_a_user() -> None:
    ended = sandboxd("serve")

    assert ended.code == 1
    assert "--user sandboxd" in ended.errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root may become anybody")
def test_an_ordinary_user_cannot_become_another() -> None:
    ended = sandboxd("serve", "--user", "nobody")

    assert ended.code == 1
    assert "only root can become" in ended.errors


def user_name() -> str:
    """Somebody that this test may be: itself, or for root any ordinary user."""
    return pwd.getpwuid(os.geteuid()).pw_name if os.geteuid() else "nobody"
