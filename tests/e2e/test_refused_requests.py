"""Bad input never gets as far as a job, is told in full, and tells nothing of the inside."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from running_service import RunningService

MIB = 2**20
GOOD = {"image": "host", "command": ["true"]}


@pytest.fixture
def http(real_service: RunningService) -> Iterator[httpx2.Client]:
    """At the end no job has come of anything, and the service has nothing to say about it but its requests."""
    before = len(real_service.events())
    with real_service.http() as connected:
        jobs = connected.get("/v1/jobs", params={"limit": 1}).json()["data"]
        yield connected
        assert connected.get("/v1/jobs", params={"limit": 1}).json()["data"] == jobs
    told = {event["event"] for event in real_service.events()[before:]}
    assert told <= {"request"}, told


def problem_of(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["request_id"] == answer.headers["x-request-id"]
    for inside in ("Traceback", "/sandboxd/", ".py", "sqlite", "site-packages"):
        assert inside not in answer.text
    return problem


FIELDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "no command": ({"command": []}, {"/command"}),
    "a command that is a string": ({"command": "true"}, {"/command"}),
    "NUL in an argument": ({"command": ["true", "\0"]}, {"/command/1"}),
    "an argument that is too long": ({"command": ["true", "x" * 2**17]}, {"/command/1"}),
    "an unknown field": ({"comand": ["true"]}, {"/comand"}),
    "an unknown limit": ({"limits": {"mem": "1Gi"}}, {"/limits/mem"}),
    "a variable with =": ({"env": {"A=B": "c"}}, {"/env/A=B"}),
    "a variable that is a number": ({"env": {"A": 1}}, {"/env/A"}),
    "a relative workdir": ({"workdir": "work"}, {"/workdir"}),
    "a workdir that climbs": ({"workdir": "/work/../.."}, {"/workdir"}),
    "a user by name": ({"user": "root"}, {"/user"}),
    "a user out of range": ({"user": "4294967296"}, {"/user"}),
    "a user that no sandbox has": ({"user": "65536"}, {"/user"}),
    "a group that no sandbox has": ({"user": "0:65536"}, {"/user"}),
    "a group that is missing": ({"user": "1000:"}, {"/user"}),
    "more CPUs than there are": ({"limits": {"cpus": 10_000}}, {"/limits/cpus"}),
    "more memory than there is": ({"limits": {"memory": "1Pi"}}, {"/limits/memory"}),
    "a negative size": ({"limits": {"disk": -1}}, {"/limits/disk"}),
    "a size that is none": ({"limits": {"memory": "much"}}, {"/limits/memory"}),
    "no processes": ({"limits": {"pids": 0}}, {"/limits/pids"}),
    "no time": ({"limits": {"wall_seconds": 0}}, {"/limits/wall_seconds"}),
    "a network that there is not": ({"network": {"mode": "host"}}, {"/network/mode"}),
    "a stronger wall than there is": ({"require": {"memory": "vm"}}, {"/require/memory"}),
    "a wall that nobody knows": ({"require": {"moat": "deep"}}, {"/require/moat"}),
    "input that is no base64": ({"stdin": {"base64": "*"}}, {"/stdin/base64"}),
    "a label with a space": ({"labels": {"a b": "c"}}, {"/labels/a b"}),
    "a priority out of range": ({"priority": 101}, {"/priority"}),
    "too many attempts": ({"retry": {"max_attempts": 11}}, {"/retry/max_attempts"}),
    "an image in capitals": ({"image": "Host"}, {"/image"}),
    "an image that climbs": ({"image": "../host"}, {"/image"}),
    "an image like an option": ({"image": "--privileged"}, {"/image"}),
    "an image with a newline": ({"image": "host\n"}, {"/image"}),
    "privileges of other engines": (
        {"privileged": True, "pid": "host", "binds": ["/:/host"], "cgroup_parent": "../.."},
        {"/privileged", "/pid", "/binds", "/cgroup_parent"},
    ),
    "everything at once": (
        {"image": "!", "command": [""], "user": "x", "limits": {"pids": "many"}, "ttl_seconds": -1},
        {"/image", "/command/0", "/user", "/limits/pids", "/ttl_seconds"},
    ),
}


@pytest.mark.parametrize(("change", "pointers"), FIELDS.values(), ids=FIELDS.keys())
@pytest.mark.attack(36, 41)
def test_each_bad_field_is_named_by_its_pointer(
    http: httpx2.Client, change: dict[str, Any], pointers: set[str]
) -> None:
    answer = http.post("/v1/jobs", json=GOOD | change)

    problem = problem_of(answer)
    assert answer.status_code == 422
    assert {fault["pointer"] for fault in problem["errors"]} == pointers
    assert all(fault["detail"] for fault in problem["errors"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"image": "host", "command": ["true"], "priority": NaN}',
        b'{"image": "\xff", "command": ["true"]}',
        b'{"image": "host", "command": ["\\ud800"]}',
    ],
)
@pytest.mark.attack(41)
def test_a_body_that_is_no_json_is_malformed(http: httpx2.Client, body: bytes) -> None:
    """Attack 41."""
    headers = {"content-type": "application/json"}
    answer = http.post("/v1/jobs", content=body, headers=headers)

    assert answer.status_code in (400, 422)
    problem_of(answer)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/jobs/job_00000000000000000000000000", 404),
        ("GET", "/v1/jobs/nonsense", 404),
        ("GET", "/v1/jobs/..%2f..%2fetc%2fpasswd", 400),
        ("GET", "/v1/jobs/../../../etc/passwd", 404),
        ("GET", "//v1/jobs", 404),
        ("GET", "/v1/jobs/%00", 400),
        ("PATCH", "/v1/jobs", 405),
        ("DELETE", "/v1/system", 405),
        ("GET", "/v1/jobs?limit=0", 400),
        ("GET", "/v1/jobs?limit=many", 400),
        ("GET", "/v1/jobs?cursor=nonsense", 400),
        ("GET", "/v1/jobs?state=happy", 400),
        ("GET", "/v1/jobs?colour=blue", 400),
        ("POST", "/v1/jobs/job_00000000000000000000000000/cancel", 404),
        ("DELETE", "/v1/jobs/job_00000000000000000000000000", 404),
        ("GET", "/v1/jobs/job_00000000000000000000000000/logs", 404),
    ],
)
@pytest.mark.attack(35)
def test_each_bad_path_method_and_parameter_has_its_status(
    http: httpx2.Client, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)

    assert answer.status_code == status
    problem_of(answer)


def test_another_media_type_is_415_and_one_that_nobody_offers_is_406(http: httpx2.Client) -> None:
    unsupported = http.post("/v1/jobs", content=b"command=true")
    unacceptable = http.get(
        "/v1/jobs/job_00000000000000000000000000/logs", headers={"accept": "image/png"}
    )

    assert (unsupported.status_code, unacceptable.status_code) == (415, 406)
    problem_of(unsupported)
    problem_of(unacceptable)


def test_a_body_over_the_limit_is_refused_before_it_is_sent(
    http: httpx2.Client, real_service: RunningService
) -> None:
    head = (
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {200 * MIB}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", real_service.port), timeout=30) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.attack(40)
def test_an_endless_body_is_cut_off_at_the_limit(http: httpx2.Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 400 * MIB:
            sent += MIB
            yield b" " * MIB

    try:
        answer = http.post(
            "/v1/jobs", content=endless(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413
    except httpx2.TransportError:
        pass  # the service hung up while we were still sending

    assert sent < 300 * MIB


@pytest.mark.parametrize("name", ["nowhere", "team/tools:1.2", "host2", f"host@sha256:{'0' * 64}"])
def test_an_image_that_is_not_there_is_404(http: httpx2.Client, name: str) -> None:
    answer = http.post("/v1/jobs", json=GOOD | {"image": name, "pull": "never"})

    assert answer.status_code == 404
    assert problem_of(answer)["code"] == "image_not_found"


@pytest.mark.parametrize("key", ["x" * 256, '"unclosed', "a\tb"])
def test_a_bad_idempotency_key_is_refused(http: httpx2.Client, key: str) -> None:
    answer = http.post("/v1/jobs", json=GOOD, headers={"idempotency-key": key})

    assert answer.status_code == 400
    problem_of(answer)


@pytest.mark.attack(40)
def test_bytes_that_are_no_http_are_refused(real_service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", real_service.port), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Traceback" not in answer
