"""What a client or a job does to the service itself: it refuses in time, grows no further, and others are served."""

import json
import socket
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from running_service import RunningService

from sandboxd.api import body
from sandboxd.client import Client
from sandboxd.errors import Malformed

pytestmark = pytest.mark.usefixtures("neighbour")

MIB = 2**20
JSON = {"content-type": "application/json"}


def resident_bytes(service: RunningService) -> int:
    return int(psutil.Process(service.process.pid).memory_info().rss)


# Requests

WISHES: list[dict[str, Any]] = [
    {"privileged": True},
    {"binds": ["/:/host"]},
    {"mounts": [{"source": "/", "target": "/host"}]},
    {"volumes": {"/": {}}},
    {"volumes_from": ["other"]},
    {"devices": ["/dev/mem"]},
    {"cap_add": ["ALL"]},
    {"capabilities": ["SYS_ADMIN"]},
    {"security_opt": ["seccomp=unconfined"]},
    {"seccomp": "unconfined"},
    {"pid": "host"},
    {"ipc": "host"},
    {"userns": "host"},
    {"network": {"mode": "host"}},
    {"network": {"mode": "container:other"}},
    {"cgroup_parent": "../../"},
    {"sysctls": {"kernel.core_pattern": "|/bin/sh"}},
    {"annotations": {"run.oci.handler": "x"}},
    {"oom_score_adj": -1000},
    {"ulimits": {"nofile": 10**9}},
    {"limits": {"open_files": 10**9}},
    {"limits": {"nice": -20}},
    {"HostConfig": {"Privileged": True}},
]


@pytest.mark.attack(36)
@pytest.mark.parametrize("wish", WISHES, ids=json.dumps)
def test_a_wish_for_the_host_is_refused_by_name(
    real_service: RunningService, wish: dict[str, Any]
) -> None:
    with real_service.http() as http:
        answer = http.post("/v1/jobs", json={"image": "host", "command": ["true"]} | wish)

    assert answer.status_code == 422
    (name,) = wish
    assert all(fault["pointer"].startswith(f"/{name}") for fault in answer.json()["errors"])


MANY = 10**6


def a_job(**more: Any) -> bytes:
    return json.dumps({"image": "host", "command": ["a"]} | more).encode()


def many_names(value: Any) -> dict[str, Any]:
    return dict.fromkeys(map(str, range(MANY)), value)


LARGE: dict[str, Callable[[], bytes]] = {
    "a million arguments": lambda: a_job(command=["true"] * MANY),
    "a million variables": lambda: a_job(env=many_names("")),
    "an environment of 100 MB": lambda: a_job(env={"A": "x" * 10**8}),
    "a million labels": lambda: a_job(labels=many_names("")),
    "a million unknown fields": lambda: json.dumps(many_names(1)).encode(),
    "a million nestings": lambda: b"[" * MANY + b"]" * MANY,
}
"""Made when they are sent: together they take half a gigabyte."""


@pytest.mark.attack(41)
@pytest.mark.parametrize("name", LARGE)
def test_a_request_that_is_large_in_any_way_is_refused_and_forgotten(
    real_service: RunningService, name: str
) -> None:
    content = LARGE[name]()
    before = resident_bytes(real_service)
    with real_service.http() as http:
        answers = [http.post("/v1/jobs", content=content, headers=JSON) for _ in range(3)]

    assert {answer.status_code for answer in answers} <= {400, 422}
    assert all(len(answer.content) < 64 * 2**10 for answer in answers)
    assert resident_bytes(real_service) - before < 3 * len(content) + 32 * MIB


@pytest.mark.attack(41)
def test_values_are_counted_and_what_is_in_strings_is_not() -> None:
    filling, most = "x" * 2**20, body.MAX_VALUES
    text = ',[{"\\' * 10**6

    assert len(body.parse_json(json.dumps([1] * (most - 2) + [filling]).encode())) == most - 1
    assert body.parse_json(json.dumps({"stdin": text}).encode()) == {"stdin": text}
    for values in ([1] * most + [filling], [[]] * most + [filling], [{}] * most + [filling]):
        with pytest.raises(Malformed, match="more than 100000 values"):
            body.parse_json(json.dumps(values).encode())


@pytest.mark.attack(40)
def test_half_open_and_half_sent_requests_by_the_hundred_delay_nobody(
    real_service: RunningService, client: Client
) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    starts = [
        b"",
        b"GET /v1/jobs HTT",
        head,
        head + b"Content-Length: 1000000\r\n\r\n{",
        head + b"Transfer-Encoding: chunked\r\n\r\nffffff\r\n{",
        head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n",
        b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 4000,
    ]
    connections = []
    try:
        for number in range(300):
            connection = socket.create_connection(("127.0.0.1", real_service.port))
            connection.sendall(starts[number % len(starts)])
            if number % 3 == 0:
                connection.shutdown(socket.SHUT_WR)
            connections.append(connection)
        job = client.run(["echo", "served"])
    finally:
        for connection in connections:
            connection.close()

    assert job.text == "served\n"


@pytest.mark.attack(40, 47)
def test_readers_that_never_read_hold_no_log_in_memory(
    real_service: RunningService, client: Client
) -> None:
    job = client.run(["head", "-c", str(32 * MIB), "/dev/zero"], limits={"output_bytes": 64 * MIB})
    before = resident_bytes(real_service)
    request = f"GET /v1/jobs/{job.id}/logs?follow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    readers = [socket.create_connection(("127.0.0.1", real_service.port)) for _ in range(20)]
    try:
        for reader in readers:
            reader.sendall(request.encode())
            assert reader.recv(16).startswith(b"HTTP/1.1 200")
        other = client.run(["echo", "served"])
        grown = resident_bytes(real_service) - before
    finally:
        for reader in readers:
            reader.close()

    assert other.text == "served\n"
    assert grown < 64 * MIB


# Output


@pytest.mark.attack(46)
def test_two_gigabytes_of_output_are_a_flood_and_cost_no_memory(
    real_service: RunningService, client: Client
) -> None:
    before = resident_bytes(real_service)
    script = "yes | head -c 2G & yes '' | tr '\\n' '\\0' | head -c 2G >&2; wait"

    job = client.run(["bash", "-c", script], limits={"output_bytes": 16 * MIB})

    assert (job.state, job.reason) == ("output_limit", "output_bytes")
    assert len(client.read_log(job.id)) == 16 * MIB
    assert resident_bytes(real_service) - before < 48 * MIB


@pytest.mark.attack(33, 46)
def test_what_a_job_does_to_its_own_streams_leaves_its_log_right(client: Client) -> None:
    code = """
import fcntl, os, sys
os.write(1, b"first\\n")
def attempt(action, *words):
    try: action(*words)
    except OSError: pass
for number in (1, 2):
    attempt(os.ftruncate, number, 0)
    attempt(os.lseek, number, 0, 0)
    attempt(os.set_blocking, number, False)
    attempt(fcntl.fcntl, number, 1031, 2**20)
    attempt(fcntl.fcntl, number, fcntl.F_SETFL, os.O_APPEND | os.O_ASYNC | os.O_DIRECT)
    attempt(os.fchmod, number, 0)
for path in ("/dev/stdout", "/dev/fd", "/proc/self/fd/1", "/dev/null"):
    attempt(os.unlink, path)
    attempt(os.symlink, "/etc/passwd", path)
    attempt(os.rename, "/tmp", path)
def steal():
    own = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
    os.read(own, 10)
attempt(steal)
copy = os.dup(1)
os.close(1)
if os.fork() == 0:
    os.set_blocking(copy, True)
    os.write(copy, b"last\\n")
    os._exit(0)
os.wait()
"""
    job = client.run(["python3", "-c", code])

    assert job.state == "succeeded", job.stderr
    assert client.read_log(job.id, stream="stdout") in (b"first\nlast\n", b"last\n")
