"""Clients that connect and say nothing cannot take the descriptors that jobs need."""

import contextlib
import json
import resource
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import patient_http
import psutil
import pytest
from running_service import BLANKS, RunningService, running_service
from waiting import wait_for

from sandboxd.server import connection_limit

OPEN_FILES = 600
"""Hard limit of the service: less than the idle connections."""
IDLE = 900


@pytest.fixture
def small_service(prepared_host: None) -> Iterator[RunningService]:
    """A service with two slots that starts with few descriptors, and may have a few more."""
    with running_service(
        flags=("--no-auth", "--slots", "2"),
        prefix=("prlimit", f"--nofile=256:{OPEN_FILES}"),
        isolation_parked_shapes=2,
    ) as service:
        yield service


@contextlib.contextmanager
def idle_connections(service: RunningService, count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * count + soft), hard))
    with contextlib.ExitStack() as opened:
        for _ in range(count):
            opened.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def asked(service: RunningService, path: str) -> socket.socket:
    """A connection of its own on which one request was sent."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    return connection


def answer_on(connection: socket.socket) -> tuple[dict[str, str], Any]:
    """Header fields, with the status line as `status`, and the JSON. Raises ConnectionError."""
    with connection:
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    if not answer:
        raise ConnectionAbortedError
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    return {"status": lines[0]} | dict(line.split(": ", 1) for line in lines[1:]), json.loads(body)


def is_alive(service: RunningService) -> bool:
    try:
        return patient_http.get(f"{service.url}/livez").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.attack(40)
def test_jobs_run_while_idle_connections_take_all_that_may_be(
    small_service: RunningService,
) -> None:
    with small_service.http() as http:
        requests = [
            {"image": "host", "command": ["sleep", seconds]}
            for seconds in ["3", "3"] + ["0.01"] * 20
        ]
        jobs = [http.post("/v1/jobs", json=request).json()["id"] for request in requests]
    waiting = asked(small_service, f"/v1/jobs/{jobs[-1]}?wait=30")

    with idle_connections(small_service, IDLE):
        with pytest.raises(ConnectionError):
            answer_on(asked(small_service, "/livez"))
        descriptors = psutil.Process(small_service.process.pid).num_fds()
        _, last = answer_on(waiting)
    wait_for(lambda: is_alive(small_service), "the service takes connections again")
    with small_service.client() as client:
        states = {client.wait(job_id).state for job_id in jobs}

    assert 256 < descriptors < OPEN_FILES
    assert last["state"] == "succeeded"
    assert states == {"succeeded"}


@pytest.mark.attack(40)
def test_a_connection_too_many_is_told_so(small_service: RunningService) -> None:
    most = connection_limit(OPEN_FILES, slots=2, parked=4 * 2 + BLANKS)

    with idle_connections(small_service, most):
        headers, problem = answer_on(asked(small_service, "/v1/system"))
    wait_for(lambda: is_alive(small_service), "the service takes connections again")

    assert (headers["status"], problem["status"]) == ("http/1.1 503 service unavailable", 503)
    assert problem["code"] == "too_many_connections"
    assert headers["content-type"] == "application/problem+json"
    assert (headers["connection"], headers["retry-after"]) == ("close", "1")
    assert headers["x-request-id"] == problem["request_id"]


@pytest.mark.parametrize(
    ("open_files", "most"), [(2**30, 10_000), (65_536, 10_000), (1024, 640), (256, 16)]
)
def test_connections_are_as_many_as_descriptors_allow(open_files: int, most: int) -> None:
    assert connection_limit(open_files, slots=4, parked=32) == most
    assert connection_limit(open_files, slots=4, parked=32, egress=True) <= most
