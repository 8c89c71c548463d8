"""A connection that does not bring a request in good time and size is closed."""

import asyncio
import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_service import Service

from sandboxd.api.body import read_body
from sandboxd.api.connections import HEAD_BYTES, Connection
from sandboxd.api.problems import HttpRefused

PATIENCE_SECONDS = 2.0
REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


class HastyConnection(Connection):
    head_seconds = PATIENCE_SECONDS
    stall_seconds = PATIENCE_SECONDS


class PatientConnection(Connection):
    """For who reads slowly: a busy machine may hold both up for seconds."""

    stall_seconds = 3 * PATIENCE_SECONDS


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory: Path = tmp_path_factory.mktemp("hasty")
    with Service(connection=HastyConnection).running(directory) as running:
        yield running


@contextlib.contextmanager
def connected(service: Service) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        yield connection


@pytest.mark.parametrize(
    ("before", "start"),
    [
        (b"", b""),
        (b"", b"GET /livez HT"),
        (b"", b"GET /livez HTTP/1.1\r\nHost: lo"),
        (b"", b"\r\n\r\n"),
        (REQUEST, b"GET /livez HTTP/1.1\r\nHost: lo"),
        (REQUEST, b"\r\n\r\n"),
    ],
)
@pytest.mark.attack(40)
def test_a_head_that_does_not_end_closes_the_connection(
    hasty: Service, before: bytes, start: bytes
) -> None:
    started = time.monotonic()
    with connected(hasty) as connection:
        connection.sendall(before)
        answer = b""
        while before and not answer.endswith(b'{"status":"ok"}'):
            piece = connection.recv(65536)
            assert piece
            answer += piece
        connection.sendall(start)

        assert connection.recv(1) == b""

    assert PATIENCE_SECONDS * 0.9 < time.monotonic() - started < 10


@pytest.mark.attack(40)
def test_dripping_bytes_do_not_buy_time(hasty: Service) -> None:
    with connected(hasty) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        connection.settimeout(0.05)
        started = time.monotonic()
        while time.monotonic() - started < 60:
            connection.send(b"x")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1) == b""
                break

    assert time.monotonic() - started < 30


@pytest.mark.parametrize("piece", [b"x", b"x: y\r\n"])
@pytest.mark.attack(40)
def test_a_head_without_bounds_is_431(hasty: Service, piece: bytes) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ")
        connection.sendall(piece * (HEAD_BYTES // len(piece)))

        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_a_long_answer_is_not_cut_short(hasty: Service) -> None:
    body = {"image": "host", "command": ["/bin/sleep", str(PATIENCE_SECONDS * 2)]}
    with hasty.client() as client:
        job = client.post("/v1/jobs", json=body, headers={"Prefer": "wait=20"}).json()
        again = client.get("/livez")

    assert (job["state"], again.status_code) == ("succeeded", 200)


def large_job(service: Service) -> str:
    """The path of a job that has ended and is, like its log, more than the kernel takes in advance."""
    body = {
        "image": "host",
        "command": ["/usr/bin/head", "-c", "12000000", "/dev/zero"],
        "env": {f"V{number}": "\x01" * 120_000 for number in range(8)},
    }
    with service.client() as client:
        answer = client.post("/v1/jobs", json=body, headers={"Prefer": "wait=20"}).json()
        assert answer["state"] == "succeeded", answer
        path: str = answer["links"]["self"]
        return path


def unread(service: Service, path: str, *, window_bytes: int) -> socket.socket:
    """A connection that asked and has not read yet."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", service.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


@pytest.mark.parametrize("rest", ["", "/logs"])
@pytest.mark.attack(40)
def test_who_does_not_read_the_answer_is_cut_off(hasty: Service, rest: str) -> None:
    path = large_job(hasty)
    started = time.monotonic()
    with unread(hasty, path, window_bytes=4096) as connection:
        hang_up = select.poll()
        hang_up.register(connection, select.POLLHUP | select.POLLERR)

        assert hang_up.poll(20_000)

    assert PATIENCE_SECONDS * 0.9 < time.monotonic() - started


def test_who_reads_slowly_gets_the_whole_answer(tmp_path: Path) -> None:
    """It takes longer in all than anybody may read nothing at all."""
    with Service(connection=PatientConnection).running(tmp_path) as service:
        path = large_job(service)
        with service.client() as client:
            size = len(client.get(path).content)
        started, received = time.monotonic(), 0
        with unread(service, path, window_bytes=2**18) as connection:
            while received < size:
                piece = connection.recv(size // 40, socket.MSG_WAITALL)
                assert piece, "it was cut off"
                received += len(piece)
                threading.Event().wait(PatientConnection.stall_seconds / 30)

        assert time.monotonic() - started > PatientConnection.stall_seconds


@pytest.mark.attack(40)
def test_a_body_that_does_not_come_is_408() -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(HttpRefused) as refusal:
        asyncio.run(read_body({"headers": []}, receive, max_bytes=1, timeout_seconds=0.01))

    assert (refusal.value.status, refusal.value.code) == (408, "body_timeout")
