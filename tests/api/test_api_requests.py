"""Every kind of bad request is refused with its own status, and with every fault at its JSON pointer."""

import base64
import json
from typing import Any

import httpx2
import pytest
from api_service import Service, exchange
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GOOD = {"image": "host", "command": ["/bin/true"]}

FIELD_CASES: dict[str, tuple[dict[str, Any], set[str]]] = (
    {
        "image is no string": ({"image": 5}, {"/image"}),
        "image is null": ({"image": None}, {"/image"}),
        "image in capitals": ({"image": "Host"}, {"/image"}),
        "image climbs": ({"image": "../host"}, {"/image"}),
        "image with a newline": ({"image": "host\n"}, {"/image"}),
        "image like an option": ({"image": "-rf"}, {"/image"}),
        "image with a NUL": ({"image": "host\0"}, {"/image"}),
        "image with an empty part": ({"image": "a//b"}, {"/image"}),
        "image with a short digest": ({"image": "host@sha256:abc"}, {"/image"}),
        "image that is too long": ({"image": "a" * 256}, {"/image"}),
        "image that is empty": ({"image": ""}, {"/image"}),
        "command is a string": ({"command": "/bin/true"}, {"/command"}),
        "command is empty": ({"command": []}, {"/command"}),
        "program is empty": ({"command": [""]}, {"/command/0"}),
        "argument is a number": ({"command": ["a", 1, None]}, {"/command/1", "/command/2"}),
        "argument with a NUL": ({"command": ["a", "b\0"]}, {"/command/1"}),
        "argument that is too long": ({"command": ["a", "b" * 131072]}, {"/command/1"}),
        "too many arguments": ({"args": ["a"] * 4096}, {"/args"}),
        "command with too many words": ({"command": ["a"] * 4097}, {"/command"}),
        "args with a NUL": ({"args": ["\0"]}, {"/args/0"}),
        "arguments that are too long together": ({"args": ["x" * 131000] * 9}, {""}),
        "environment is a list": ({"env": ["A=b"]}, {"/env"}),
        "variable is a number": ({"env": {"A": 1}}, {"/env/A"}),
        "variable's name with =": ({"env": {"A=B": ""}}, {"/env/A=B"}),
        "variable's name is empty": ({"env": {"": "x"}}, {"/env/"}),
        "variable's name with a NUL": ({"env": {"A\0": "x"}}, {"/env/A\0"}),
        "variable with a NUL": ({"env": {"A": "\0"}}, {"/env/A"}),
        "variable that is too long": ({"env": {"A": "x" * 131072}}, {"/env/A"}),
        "too many variables": ({"env": {f"V{n}": "" for n in range(4097)}}, {"/env"}),
        "names that need escapes": ({"env": {"a/b~c": 1}}, {"/env/a~1b~0c"}),
        "stdin is a number": ({"stdin": 1}, {"/stdin"}),
        "stdin is no base64": ({"stdin": {"base64": "!"}}, {"/stdin/base64"}),
        "stdin base64 without padding": ({"stdin": {"base64": "YQ"}}, {"/stdin/base64"}),
        "stdin base64 not ASCII": ({"stdin": {"base64": "é"}}, {"/stdin/base64"}),
        "stdin with another key": ({"stdin": {"hex": "00"}}, {"/stdin/hex", "/stdin/base64"}),
        "workdir is relative": ({"workdir": "tmp"}, {"/workdir"}),
        "workdir climbs": ({"workdir": "/tmp/../etc"}, {"/workdir"}),
        "workdir with a NUL": ({"workdir": "/tmp\0"}, {"/workdir"}),
        "workdir that is too long": ({"workdir": "/" + "a" * 5000}, {"/workdir"}),
        "user by name": ({"user": "root"}, {"/user"}),
        "user is a number": ({"user": 0}, {"/user"}),
        "user is negative": ({"user": "-1"}, {"/user"}),
        "user with a leading zero": ({"user": "007"}, {"/user"}),
        "user with an empty group": ({"user": "1:"}, {"/user"}),
        "user with too many parts": ({"user": "1:2:3"}, {"/user"}),
        "user in other digits": ({"user": "\u0661"}, {"/user"}),
        "user with a space": ({"user": "1 "}, {"/user"}),
        "user beyond 31 bits": ({"user": "2147483648"}, {"/user"}),
        "group beyond 31 bits": ({"user": "0:4294967295"}, {"/user"}),
        "limits is a list": ({"limits": []}, {"/limits"}),
        "misspelt limit": ({"limits": {"memroy": 1}}, {"/limits/memroy"}),
        "memory is no size": ({"limits": {"memory": "lots"}}, {"/limits/memory"}),
        "memory is true": ({"limits": {"memory": True}}, {"/limits/memory"}),
        "memory is negative": ({"limits": {"memory": -1}}, {"/limits/memory"}),
        "memory beyond 64 bits": ({"limits": {"memory": 2**80}}, {"/limits/memory"}),
        "memory over the ceiling": ({"limits": {"memory": "1Ti"}}, {"/limits/memory"}),
        "too little memory": ({"limits": {"memory": 1}}, {"/limits/memory"}),
        "cpus is no number": ({"limits": {"cpus": "many"}}, {"/limits/cpus"}),
        "no cpus": ({"limits": {"cpus": 0}}, {"/limits/cpus"}),
        "pids is a fraction": ({"limits": {"pids": 1.5}}, {"/limits/pids"}),
        "pids is a string": ({"limits": {"pids": "1"}}, {"/limits/pids"}),
        "no pids": ({"limits": {"pids": 0}}, {"/limits/pids"}),
        "disk with a wrong unit": ({"limits": {"disk": "1mb"}}, {"/limits/disk"}),
        "wall time is negative": ({"limits": {"wall_seconds": -1}}, {"/limits/wall_seconds"}),
        "wall time is a string": ({"limits": {"wall_seconds": "1s"}}, {"/limits/wall_seconds"}),
        "cpu time is huge": ({"limits": {"cpu_seconds": 1e300}}, {"/limits/cpu_seconds"}),
        "output over the ceiling": ({"limits": {"output_bytes": "2Gi"}}, {"/limits/output_bytes"}),
        "too few open files": ({"limits": {"open_files": 1}}, {"/limits/open_files"}),
        "queue time is negative": ({"limits": {"queue_seconds": -1}}, {"/limits/queue_seconds"}),
        "network mode is unknown": ({"network": {"mode": "host"}}, {"/network/mode"}),
        "network is a string": ({"network": "none"}, {"/network"}),
        "network with more": ({"network": {"allow": []}}, {"/network/allow"}),
        "requirement is no word": ({"require": {"Memory!": "x"}}, {"/require/Memory!"}),
        "requirement's value is no word": ({"require": {"memory": ""}}, {"/require/memory"}),
        "requirement is a number": ({"require": {"memory": 1}}, {"/require/memory"}),
        "priority is too high": ({"priority": 101}, {"/priority"}),
        "priority is a fraction": ({"priority": 0.5}, {"/priority"}),
        "label's key is empty": ({"labels": {"": "x"}}, {"/labels/"}),
        "label's key with a space": ({"labels": {"a b": "x"}}, {"/labels/a b"}),
        "label's key is too long": ({"labels": {"a" * 64: "x"}}, {"/labels/" + "a" * 64}),
        "label's value is too long": ({"labels": {"a": "x" * 257}}, {"/labels/a"}),
        "label's value with a newline": ({"labels": {"a": "x\n"}}, {"/labels/a"}),
        "too many labels": ({"labels": {f"l{n}": "" for n in range(65)}}, {"/labels"}),
        "no attempts": ({"retry": {"max_attempts": 0}}, {"/retry/max_attempts"}),
        "too many attempts": ({"retry": {"max_attempts": 11}}, {"/retry/max_attempts"}),
        "retry policy of a later issue": ({"retry": {"on": []}}, {"/retry/on"}),
        "ttl is negative": ({"ttl_seconds": -1}, {"/ttl_seconds"}),
        "ttl is a string": ({"ttl_seconds": "1h"}, {"/ttl_seconds"}),
        "files is an object": ({"files": {"a": "x"}}, {"/files"}),
        "file without a path": ({"files": [{"content": "x"}]}, {"/files/0/path"}),
        "file with a misspelt field": (
            {"files": [{"path": "a", "contents": "x"}]},
            {"/files/0/contents"},
        ),
        "file's content is no base64": (
            {"files": [{"path": "a", "content": {"base64": "!"}}]},
            {"/files/0/content/base64"},
        ),
        "file's content is a number": (
            {"files": [{"path": "a", "content": 1}]},
            {"/files/0/content"},
        ),
        "directory with content": (
            {"files": [{"path": "a", "directory": True, "content": "x"}]},
            {"/files/0/content"},
        ),
        "too many files": ({"files": [{"path": str(n)} for n in range(1001)]}, {"/files"}),
        "the same file twice": ({"files": [{"path": "a"}, {"path": "./a"}]}, {"/files/1/path"}),
        "the same file by another name": (
            {"workdir": "/tmp/w", "files": [{"path": "a"}, {"path": "/tmp//w/a"}]},
            {"/files/1/path"},
        ),
        "a file below a file": (
            {"files": [{"path": "a/b/c"}, {"path": "d"}, {"path": "a"}]},
            {"/files/0/path"},
        ),
        "too many patterns": ({"outputs": ["x"] * 101}, {"/outputs"}),
        "pattern that climbs": ({"outputs": ["*", "../*"]}, {"/outputs/1"}),
        "pattern that is empty": ({"outputs": [""]}, {"/outputs/0"}),
        "pattern with a NUL": ({"outputs": ["a\0"]}, {"/outputs/0"}),
    }
    | {
        f"file at {name}": ({"files": [{"path": path}]}, {"/files/0/path"})
        for name, path in {
            "no path": "",
            "a path with NUL": "a\0b",
            "a path that climbs": "a/../../b",
            "an absolute path that climbs": "/work/../etc/passwd",
            "a path that is too long": "a/" * 2048,
            "a name that is too long": "a" * 256,
            "a path with a slash at its end": "a/",
            "the root": "/",
            "the root by way of itself": "/./",
            "/proc": "/proc",
            "a path below /proc": "/proc/self/mem",
            "a path below //proc": "//proc/./self/mem",
            "a path below /sys": "/sys/kernel/x",
            "a path below /dev": "/dev/null",
            "/dev/shm itself": "/dev/shm",
        }.items()
    }
    | {
        f"file at {path} below {workdir}": (
            {"workdir": workdir, "files": [{"path": path}]},
            {"/files/0/path"},
        )
        for workdir, path in (("/proc", "self/mem"), ("/", "dev/null"))
    }
    | {
        f"file of mode {mode!r}": ({"files": [{"path": "a", "mode": mode}]}, {"/files/0/mode"})
        for mode in (
            -1,
            512,
            0o4755,
            "4755",
            "rwx",
            "",
            "0o644",
            "888",
            "\u0666\u0664\u0664",
            True,
            6.5,
        )
    }
    | {
        f"{name} is not a field (yet)": ({name: value}, {f"/{name}"})
        for name, value in {
            "mounts": [],
            "secrets": [],
            "capabilities": [],
            "webhook": {},
            "imag": "host",
        }.items()
    }
)


@pytest.mark.parametrize("case", FIELD_CASES)
@pytest.mark.attack(12, 34, 38, 41)
def test_a_bad_field_is_422_at_its_pointer(client: httpx2.Client, case: str) -> None:
    change, pointers = FIELD_CASES[case]
    answer = client.post("/v1/jobs", json=GOOD | change)

    problem = _problem(answer, 422, "invalid")
    assert {fault["pointer"] for fault in problem["errors"]} == pointers
    assert all(len(fault["detail"]) < 250 for fault in problem["errors"])


def test_all_faults_are_told_at_once_and_none_twice(client: httpx2.Client) -> None:
    body = {
        "imag": "host",
        "command": ["a\0", 1, ""],
        "env": {"a=b": "c", "d": 5},
        "limits": {"memory": "12X", "pids": 1.5, "cpus": 1e9, "foo": 1},
        "user": "root",
        "stdin": {"base64": "%"},
        "network": {"mode": "host"},
        "retry": 3,
        "priority": 1000,
        "workdir": "../x",
    }

    pointers = [
        fault["pointer"]
        for fault in _problem(client.post("/v1/jobs", json=body), 422, "invalid")["errors"]
    ]

    assert len(pointers) == len(set(pointers))
    assert set(pointers) == {
        "/image",
        "/imag",
        "/command/0",
        "/command/1",
        "/env/a=b",
        "/env/d",
        "/limits/memory",
        "/limits/pids",
        "/limits/cpus",
        "/limits/foo",
        "/user",
        "/stdin/base64",
        "/network/mode",
        "/retry",
        "/priority",
        "/workdir",
    }


def test_a_misspelt_field_is_told_what_it_may_have_meant(client: httpx2.Client) -> None:
    problem = client.post("/v1/jobs", json=GOOD | {"limits": {"memroy": 1}}).json()

    assert 'did you mean "memory"?' in problem["errors"][0]["detail"]


@pytest.mark.attack(41)
def test_the_list_of_faults_is_bounded(client: httpx2.Client) -> None:
    problem = client.post("/v1/jobs", json=GOOD | {"args": [1] * 5000}).json()

    assert len(problem["errors"]) == 100


BODY_CASES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "body_empty"),
    "no JSON": (b"{", 400, "malformed"),
    "trailing text": (b"{} {}", 400, "malformed"),
    "single quotes": (b"{'a': 1}", 400, "malformed"),
    "NaN": (b'{"priority": NaN}', 400, "malformed"),
    "infinity": (b'{"ttl_seconds": -Infinity}', 400, "malformed"),
    "a number beyond floats": (b'{"ttl_seconds": 1e999}', 400, "malformed"),
    "a number of absurd length": (b'{"priority": ' + b"9" * 100_000 + b"}", 400, "malformed"),
    "a depth bomb of lists": (b"[" * 100_000, 400, "malformed"),
    "a depth bomb of objects": (b'{"a":' * 100_000, 400, "malformed"),
    "a duplicate key": (b'{"image": "a", "image": "b"}', 400, "malformed"),
    "a duplicate key inside": (b'{"env": {"A": "1", "A": "2"}}', 400, "malformed"),
    "a duplicate key by escape": (b'{"image": "a", "\\u0069mage": "b"}', 400, "malformed"),
    "invalid UTF-8": (b'{"image": "\xff"}', 400, "malformed"),
    "UTF-16": ('{"image": "host"}'.encode("utf-16"), 400, "malformed"),
    "a byte order mark": (b"\xef\xbb\xbf{}", 400, "malformed"),
    "a lone surrogate": (b'{"image": "\\ud800"}', 400, "malformed"),
    "a lone surrogate as a key": (b'{"env": {"\\udfff": ""}}', 400, "malformed"),
    "a raw control character": (b'{"image": "a\x01"}', 400, "malformed"),
    "a list": (b"[]", 422, "invalid"),
    "null": (b"null", 422, "invalid"),
    "a string": (b'"x"', 422, "invalid"),
    "a number": (b"1", 422, "invalid"),
}


@pytest.mark.parametrize("case", BODY_CASES)
@pytest.mark.attack(41)
def test_a_bad_body_is_refused(client: httpx2.Client, case: str) -> None:
    body, status, code = BODY_CASES[case]
    headers = {"Content-Type": "application/json"}

    problem = _problem(client.post("/v1/jobs", content=body, headers=headers), status, code)

    assert len(problem["detail"]) < 300


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"],
)
def test_a_body_that_is_not_called_json_is_415(client: httpx2.Client, content_type: str) -> None:
    answer = client.post("/v1/jobs", content=b"{}", headers={"Content-Type": content_type})

    _problem(answer, 415, "unsupported_media_type")
    taken = "application/json, multipart/form-data, application/x-tar"
    assert answer.headers["accept"] == taken


def test_json_may_say_its_charset(client: httpx2.Client) -> None:
    headers = {"Content-Type": 'Application/JSON; charset="UTF-8"'}

    assert client.post("/v1/jobs", content=json.dumps(GOOD), headers=headers).status_code == 202


def test_a_compressed_body_is_415(client: httpx2.Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

    _problem(
        client.post("/v1/jobs", content=b"x", headers=headers), 415, "unsupported_content_encoding"
    )


@pytest.mark.attack(40)
def test_a_body_that_says_it_is_too_long_is_413_before_it_is_sent(service: Service) -> None:
    answer = exchange(
        service.port,
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99999999\r\n\r\n",
    )

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b'"code":"body_too_large"' in answer


@pytest.mark.attack(40)
def test_an_endless_body_is_413_as_soon_as_it_is_over_the_limit(service: Service) -> None:
    limit = service.settings.max_body_bytes
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    answer = exchange(
        service.port,
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + chunk * (limit // 2**20) + b"1\r\n \r\n",
    )

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_large_input_within_the_limit_is_taken(client: httpx2.Client) -> None:
    stdin = base64.b64encode(bytes(8 * 2**20)).decode()
    body = {"image": "host", "command": ["/usr/bin/wc", "-c"], "stdin": {"base64": stdin}}

    job = client.post("/v1/jobs", json=body, headers={"Prefer": "wait=20"}).json()

    assert job["stdout"].strip() == str(8 * 2**20)


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "é", '"open', "a\tb"])
def test_a_bad_idempotency_key_is_400(client: httpx2.Client, key: str) -> None:
    headers = [(b"Idempotency-Key", key.encode())] if key else []
    answer = client.post("/v1/jobs?dry_run=1", json=GOOD, headers=headers)

    if key:
        _problem(answer, 400, "idempotency_key_malformed")
    else:
        assert answer.status_code == 200


QUERY_CASES = {
    "/v1/jobs?statee=queued": {"statee"},
    "/v1/jobs?state=done": {"state"},
    "/v1/jobs?limit=0&cursor=x&limit=2": {"limit", "cursor"},
    "/v1/jobs?limit=1000": {"limit"},
    "/v1/jobs?limit=-1": {"limit"},
    "/v1/jobs?limit=\u0661": {"limit"},
    "/v1/jobs?since=yesterday": {"since"},
    "/v1/jobs?since=2026-01-01T00:00:00": {"since"},
    "/v1/jobs?cursor=nonsense": {"cursor"},
    "/v1/jobs?label=x": {"label"},
    "/v1/jobs?label.=x": {"label."},
    "/v1/jobs?a=1&b=2&limit=3": {"a", "b"},
    "/v1/jobs?a=1&state=done&limit=0&cursor=x&since=y": {"a", "state", "limit", "cursor", "since"},
    "/v1/jobs/job_00000000000000000000000000?wait=x&b=1": {"wait", "b"},
    "/v1/jobs/job_00000000000000000000000000/logs?stream=x&b=1": {"stream", "b"},
    "/v1/system?verbose=1": {"verbose"},
    "/livez?x=1": {"x"},
}


@pytest.mark.parametrize("path", QUERY_CASES)
def test_a_bad_query_parameter_is_400_and_named(client: httpx2.Client, path: str) -> None:
    problem = _problem(client.get(path), 400, "malformed")

    assert {fault["parameter"] for fault in problem["errors"]} == QUERY_CASES[path]
    assert all("pointer" not in fault for fault in problem["errors"])


@pytest.mark.parametrize("query", ["a=%ff", "%80=1", "&".join(f"a{n}" for n in range(101))])
def test_a_query_that_cannot_be_read_is_400(client: httpx2.Client, query: str) -> None:
    _problem(client.get(f"/v1/jobs?{query}"), 400, "malformed")


@pytest.mark.parametrize(
    ("method", "path", "body", "pointers"),
    [
        ("POST", "/v1/jobs/{}/cancel", {"grace_seconds": -1, "x": 1}, {"/grace_seconds", "/x"}),
        ("POST", "/v1/jobs/{}/cancel", {"reason": "x" * 501}, {"/reason"}),
        ("POST", "/v1/jobs/{}/cancel", [], {""}),
        ("POST", "/v1/jobs/{}/retry", {"stdin": ""}, {"/stdin"}),
        ("POST", "/v1/keys", {"name": "", "scopes": ["root"]}, {"/name", "/scopes/0"}),
        ("POST", "/v1/keys", {"tenant": "../x", "scopes": []}, {"/name", "/tenant", "/scopes"}),
    ],
)
def test_other_bodies_are_checked_in_the_same_way(
    client: httpx2.Client, method: str, path: str, body: Any, pointers: set[str]
) -> None:
    job_id = client.post("/v1/jobs", json=GOOD).json()["id"]
    problem = _problem(client.request(method, path.format(job_id), json=body), 422, "invalid")

    assert {fault["pointer"] for fault in problem["errors"]} == pointers


WORDING_CASES: dict[str, tuple[Any, str]] = {
    "/priority": (101, "must be at most 100"),
    "/retry/max_attempts": (0, "must be at least 1"),
    "/network/mode": ("host", "must be one of: none, egress"),
    "/limits/pids": ("many", "must be a whole number"),
    "/limits/wall_seconds": ([], "must be a number"),
    "/limits/cpus": ({}, "must be a number or a text"),
    "/limits/memory": (True, "must be a whole number or a text"),
    "/command": ("ls -l", "must be a list"),
    "/command/0": (7, "must be a text"),
    "/env/A": (None, "must be a text"),
    "/stdin": (1, "must be a text or an object"),
    "/labels": ("x", "must be an object"),
    "/limits/open_files": (2**70, "1180591620717411303424 is not from 16 to 65536"),
}


@pytest.mark.parametrize("pointer", WORDING_CASES)
def test_what_is_wrong_is_said_as_people_do(client: httpx2.Client, pointer: str) -> None:
    value, sentence = WORDING_CASES[pointer]
    body: Any = value
    for part in reversed(pointer.split("/")[1:]):
        body = [body] if part.isdigit() else {part: body}

    answer = client.post("/v1/jobs?dry_run=1", json=GOOD | body)

    (fault,) = _problem(answer, 422, "invalid")["errors"]
    assert fault == {"pointer": pointer, "detail": sentence}


def test_what_this_host_cannot_do_is_told_with_the_other_faults(client: httpx2.Client) -> None:
    body = GOOD | {"priority": "high", "require": {"gpu": "cgroup", "memory": 1}}

    problem = _problem(client.post("/v1/jobs", json=body), 422, "invalid")

    pointers = {fault["pointer"] for fault in problem["errors"]}
    assert pointers == {"/priority", "/require/gpu", "/require/memory"}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)
FIELDS = ["image", "command", "args", "stdin", "env", "workdir", "user", "limits", "network"]
FIELDS += ["runtime", "require", "priority", "labels", "retry", "ttl_seconds"]
LIMIT_NAMES = ["cpus", "memory", "pids", "disk", "wall_seconds", "output_bytes", "queue_seconds"]


@settings(
    database=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON_VALUES, max_size=8),
    st.dictionaries(st.sampled_from(LIMIT_NAMES), JSON_VALUES),
)
@pytest.mark.attack(41)
def test_no_json_value_is_ever_answered_with_a_500(
    client: httpx2.Client, body: dict[str, Any], limits: dict[str, Any]
) -> None:
    content = json.dumps(body | {"limits": limits} if limits else body)
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/jobs?dry_run=true", content=content, headers=headers)

    assert answer.status_code in (200, 400, 404, 422), answer.text
    assert answer.status_code == 200 or answer.json()["detail"]


@settings(
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(st.binary(max_size=200))
@pytest.mark.attack(41)
def test_no_bytes_are_ever_answered_with_a_500(client: httpx2.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}

    assert client.post("/v1/jobs", content=body, headers=headers).status_code in (400, 422)


def _problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert "sandboxd/" not in answer.text
    return problem


@pytest.mark.parametrize(
    "files",
    [
        [{"path": "/dev/shm/a"}, {"path": "/devel/x"}, {"path": "/process"}],
        [
            {"path": "a", "directory": True},
            {"path": "a/b"},
            {"path": "a/b.c"},
            {"path": "...", "mode": "777"},
        ],
        [{"path": "é" * 127, "mode": 0}, {"path": "/a b\n"}],
    ],
)
def test_paths_that_only_look_wrong_are_accepted(
    client: httpx2.Client, files: list[dict[str, Any]]
) -> None:
    answer = client.post("/v1/jobs?dry_run=true", json=GOOD | {"files": files})

    assert answer.status_code == 200, answer.text
    assert [file["path"] for file in answer.json()["files"]] == [file["path"] for file in files]
