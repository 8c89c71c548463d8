"""Who may come in, by which name, along which path; and what an answer never tells."""

import asyncio
import contextlib
import json
import time
from typing import Any

import httpx2
import pytest
from api_service import Service, exchange
from waiting import wait_for

from sandboxd.api.auth import FOUND_KEYS, FOUND_SECONDS, SCOPES, BearerKeys, new_key
from sandboxd.errors import Unauthenticated
from sandboxd.jobs import ApiKey

TRUE = {"image": "host", "command": ["/bin/true"]}
_GET_LOCAL = "GET /v1/jobs HTTP/1.1\r\nHost: localhost"
SOME_JOB = "job_01m8669d6mfb2r7d1k9tmpz2s4"


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_without_a_key_there_is_401(guarded: Service, method: str) -> None:
    with guarded.client() as client:
        answer = client.request(method, "/v1/keys")
        if method == "DELETE":
            answer = client.delete(f"/v1/jobs/{SOME_JOB}")

    assert (answer.status_code, answer.json()["code"]) == (401, "key_missing")
    assert answer.headers["www-authenticate"] == 'Bearer realm="sandboxd"'


BAD_AUTHORIZATION = {
    "another scheme": "Basic dXNlcjpwYXNz",
    "no key": "Bearer",
    "two words": "Bearer a b",
    "something else": "Bearer hello",
    "a key that was never made": "Bearer " + new_key(tenant="t", name="n", scopes=SCOPES, now=0)[0],
}


@pytest.mark.parametrize("case", BAD_AUTHORIZATION)
def test_what_is_no_valid_key_is_401(guarded: Service, case: str) -> None:
    with guarded.client() as client:
        answer = client.get("/v1/jobs", headers={"Authorization": BAD_AUTHORIZATION[case]})

    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_key")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_one_wrong_character_anywhere_makes_a_key_worthless(guarded: Service) -> None:
    key = guarded.make_key()
    with guarded.client() as client:
        for place in range(len(key)):
            wrong = key[:place] + ("0" if key[place] != "0" else "1") + key[place + 1 :]
            answer = client.get("/v1/whoami", headers={"Authorization": f"Bearer {wrong}"})
            assert answer.status_code == 401


@pytest.mark.attack(35)
def test_two_authorization_headers_are_refused(guarded: Service) -> None:
    key = guarded.make_key()
    headers = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
    with guarded.client() as client:
        assert client.get("/v1/whoami", headers=headers).status_code == 401


def test_a_key_tells_who_one_is(guarded: Service) -> None:
    key = guarded.make_key(tenant="blue", scopes=("jobs:read",))
    with guarded.client(key) as client:
        identity = client.get("/v1/whoami").json()

    assert (identity["tenant"], identity["scopes"]) == ("blue", ["jobs:read"])


@pytest.mark.parametrize(
    ("scopes", "method", "path", "status"),
    [
        (("jobs:read",), "GET", "/v1/jobs", 200),
        (("jobs:read",), "POST", "/v1/jobs", 403),
        (("jobs:read",), "DELETE", f"/v1/jobs/{SOME_JOB}", 403),
        (("jobs:read",), "GET", "/v1/keys", 403),
        (("jobs:write",), "GET", "/v1/jobs", 403),
        (("jobs:write",), "POST", "/v1/jobs", 202),
        (("jobs:read", "jobs:write"), "GET", "/metrics", 403),
        (("admin",), "GET", "/v1/jobs", 200),
        (("admin",), "POST", "/v1/jobs", 202),
        (("admin",), "GET", "/metrics", 200),
        ((), "GET", "/v1/jobs", 403),
        ((), "GET", "/v1/whoami", 200),
    ],
)
@pytest.mark.attack(39)
def test_scopes_decide(
    guarded: Service, scopes: tuple[str, ...], method: str, path: str, status: int
) -> None:
    with guarded.client(guarded.make_key(scopes=scopes)) as client:
        answer = client.request(method, path, json=TRUE if method == "POST" else None)

    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "scope_missing"


def test_another_tenants_job_does_not_exist(guarded: Service) -> None:
    with guarded.client(guarded.make_key(tenant="blue")) as blue:
        path = blue.post("/v1/jobs", json=TRUE, headers={"Prefer": "wait=20"}).json()["links"][
            "self"
        ]
    with guarded.client(guarded.make_key(tenant="red")) as red:
        requests = [("GET", ""), ("GET", "/logs"), ("GET", "/events"), ("POST", "/cancel")]
        requests += [("POST", "/retry"), ("DELETE", "")]
        answers = [red.request(method, path + rest) for method, rest in requests]
        never = red.get(f"/v1/jobs/{SOME_JOB}")
        assert red.get("/v1/jobs").json()["data"] == []

    assert [answer.status_code for answer in answers] == [404] * 6
    assert {answer.json()["title"] for answer in [*answers, never]} == {"Not Found"}
    assert answers[0].json()["detail"].replace(path[9:], "") == never.json()["detail"].replace(
        SOME_JOB, ""
    )


def test_keys_are_made_shown_once_used_and_revoked(guarded: Service) -> None:
    with guarded.client(guarded.make_key()) as admin:
        made = admin.post("/v1/keys", json={"name": "ci", "tenant": "ci", "ttl_seconds": 60})
        key = made.json()
        assert made.status_code == 201
        listed = [
            entry for entry in admin.get("/v1/keys").json()["data"] if entry["id"] == key["id"]
        ]
        assert [set(entry) for entry in listed] == [set(key) - {"key"}]
        with guarded.client(key["key"]) as client:
            assert client.get("/v1/whoami").json()["scopes"] == ["jobs:read", "jobs:write"]
            assert admin.delete(f"/v1/keys/{key['id']}").status_code == 204
            assert client.get("/v1/whoami").status_code == 401
        assert admin.delete(f"/v1/keys/{SOME_JOB.replace('job', 'key')}").status_code == 404


def test_an_expired_key_is_worthless(guarded: Service) -> None:
    key = guarded.make_key(expires_at=time.time() - 1)
    with guarded.client(key) as client:
        assert client.get("/v1/whoami").json()["detail"] == "The key has expired."


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/openapi.json", "/docs"])
def test_some_things_need_no_key(guarded: Service, path: str) -> None:
    with guarded.client() as client:
        assert client.get(path).status_code == 200


RAW_PATHS = {
    "//v1/jobs": 400,
    "/v1//jobs": 400,
    "/v1/jobs/": 404,
    "/V1/jobs": 404,
    "/v1/./jobs": 400,
    "/v1/x/../jobs": 400,
    "/v1/jobs/..": 400,
    "/livez/../v1/jobs": 400,
    "/livez/%2e%2e/v1/jobs": 400,
    "/livez/%2E%2e/v1/jobs": 400,
    "/livez/%252e%252e/v1/jobs": 400,
    "/v1%2fjobs": 400,
    "/v1%2Fjobs": 400,
    "/v1\\jobs": 400,
    "/v1%5cjobs": 400,
    "/v1/jobs%00": 400,
    "/v1/jobs%0a": 400,
    "/%76%31/jobs": 401,
    "/v1/jobs;x": 404,
    "/v1/jobs/job_1": 401,
    "/v1/jobs/%C3%A9": 401,
    "/v1/jobs/%ff": 401,
    "/": 404,
    "/v1": 404,
    "/v1.41/jobs": 404,
}


@pytest.mark.parametrize("path", RAW_PATHS)
@pytest.mark.attack(35)
def test_no_path_leads_past_the_door(guarded: Service, path: str) -> None:
    answer = exchange(
        guarded.port,
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
    )

    assert answer.startswith(f"HTTP/1.1 {RAW_PATHS[path]} ".encode()), answer
    assert b"Traceback" not in answer


@pytest.mark.attack(35)
def test_a_body_that_nobody_looks_at_opens_no_door(guarded: Service) -> None:
    answer = exchange(
        guarded.port,
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )

    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "job_id",
    ["x", "job_", "-rf", "job_%20", SOME_JOB.upper(), SOME_JOB + "0", "key" + SOME_JOB[3:]],
)
@pytest.mark.attack(38)
def test_what_is_no_id_is_404(client: httpx2.Client, job_id: str) -> None:
    assert client.get(f"/v1/jobs/{job_id}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("PATCH", f"/v1/jobs/{SOME_JOB}", "DELETE, GET, HEAD, OPTIONS"),
        ("GET", f"/v1/jobs/{SOME_JOB}/cancel", "OPTIONS, POST"),
        ("TRACE", "/livez", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_method_that_is_not_there_is_405(
    client: httpx2.Client, method: str, path: str, allow: str
) -> None:
    answer = client.request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    assert answer.json()["code"] == "method_not_allowed"
    assert client.options(path).headers["allow"] == allow


@pytest.mark.parametrize("path", ["/v1/jobs", "/livez", "/docs", "/openapi.json", "/v1/system"])
def test_head_is_get_without_the_body(client: httpx2.Client, path: str) -> None:
    get, head = client.get(path), client.head(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("127.8.9.10:1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.0.1", 403),
        ("0.0.0.0", 403),
        ("[::]", 403),
        ("", 403),
        ("127.0.0.1:8111@evil.example", 403),
        ("user@localhost", 403),
        ("[::1]evil.example", 403),
        ("[::1", 403),
        ("localhost:evil.example", 403),
        ("localhost:80:80", 403),
        ("localhost/evil.example", 403),
        ("LocalHost", 200),
    ],
)
@pytest.mark.attack(39)
def test_without_authentication_only_local_names_are_answered(
    client: httpx2.Client, host: str, status: int
) -> None:
    answer = client.get("/v1/jobs", headers={"Host": host})

    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nHost: localhost", 400),
        ("GET /v1/jobs HTTP/1.1\r\nHost: evil.example\r\nHost: localhost", 400),
        (f"{_GET_LOCAL}\r\nOrigin: http://localhost\r\nOrigin: http://localhost", 400),
        (f"{_GET_LOCAL}\r\nOrigin: http://localhost", 200),
        ("GET http://localhost/v1/jobs HTTP/1.1\r\nHost: localhost", 200),
        ("GET http://LOCALHOST/v1/jobs HTTP/1.1\r\nHost: localhost", 200),
        ("GET http://evil.example/v1/jobs HTTP/1.1\r\nHost: localhost", 400),
        ("GET http://a@localhost/v1/jobs HTTP/1.1\r\nHost: localhost", 400),
        ("GET http://localhost:1/v1/jobs HTTP/1.1\r\nHost: localhost", 400),
        ("GET http://evil.example/v1/jobs HTTP/1.1\r\nHost: evil.example", 403),
        ("GET http://localhost HTTP/1.1\r\nHost: localhost", 400),
        ("GET http://localhost?x HTTP/1.1\r\nHost: localhost", 400),
    ],
)
@pytest.mark.attack(35, 39)
def test_a_request_names_one_host_and_one_origin(service: Service, head: str, status: int) -> None:
    answer = exchange(service.port, f"{head}\r\nConnection: close\r\n\r\n".encode())

    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer


@pytest.mark.attack(39)
def test_pages_of_other_origins_cannot_call_without_authentication(service: Service) -> None:
    with service.client() as client:
        own = client.post("/v1/jobs", json=TRUE, headers={"Origin": service.url})
        others = [
            client.post("/v1/jobs", json=TRUE, headers={"Origin": origin})
            for origin in (
                "http://evil.example",
                "null",
                "http://localhost:1",
                f"https{service.url[4:]}",
            )
        ]

    assert own.status_code == 202
    assert [answer.json()["code"] for answer in others] == ["origin_not_allowed"] * 4


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("abcdefgh", True),
        ("A.b_c-9" * 8, True),
        ("short", False),
        ("x" * 129, False),
        ("has space", False),
    ],
)
@pytest.mark.attack(38)
def test_a_request_id_is_honoured_if_it_is_harmless(
    client: httpx2.Client, sent: str, kept: bool
) -> None:
    answer = client.get("/livez", headers={"X-Request-Id": sent})

    assert (answer.headers["x-request-id"] == sent) is kept


def test_a_job_remembers_its_request_and_trace(client: httpx2.Client) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"X-Request-Id": "my-request", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    job = client.post("/v1/jobs", json=TRUE, headers=headers).json()
    untraced = client.post(
        "/v1/jobs", json=TRUE, headers={"traceparent": f"00-{trace}-0-01"}
    ).json()

    assert (job["request_id"], job["trace_id"]) == ("my-request", trace)
    assert "trace_id" not in untraced


def test_answers_carry_headers_that_protect_the_client(client: httpx2.Client) -> None:
    headers = client.get("/v1/jobs").headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_an_internal_fault_is_a_500_that_tells_only_its_request_id(
    own_service: Service, capfd: pytest.CaptureFixture[str]
) -> None:
    async def break_down(*_: Any) -> Any:
        raise RuntimeError("secret detail at /srv/secret/path")

    own_service.images.resolve = break_down
    with own_service.client() as client:
        answer = client.post("/v1/jobs", json=TRUE, headers={"X-Request-Id": "find-me-again"})

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["request_id"]) == ("internal", "find-me-again")
    assert "secret" not in answer.text
    log = capfd.readouterr().out
    assert "find-me-again" in log
    assert "secret detail" in log


def test_a_store_that_is_down_is_503_with_retry_after(own_service: Service) -> None:
    own_service.run(own_service.store.close)
    with own_service.client() as client:
        answers = [client.get("/v1/jobs"), client.post("/v1/jobs", json=TRUE)]

    assert [answer.status_code for answer in answers] == [503, 503]
    assert all(answer.headers["retry-after"] == "1" for answer in answers)
    assert answers[0].json()["retry_after_seconds"] == 1


def test_readiness_says_what_is_missing(own_service: Service) -> None:
    with own_service.client() as client:
        assert client.get("/readyz").json() == {"ready": True}
        own_service.ready = {"ready": False, "store": "down"}
        answer = client.get("/readyz")

    assert (answer.status_code, answer.json()["store"]) == (503, "down")
    assert "retry-after" in answer.headers


def test_requests_are_counted_by_route_never_by_path(own_service: Service) -> None:
    with own_service.client() as client:
        client.get(f"/v1/jobs/{SOME_JOB}")
        client.get("/v1/nothing/here")
        client.get("/v1/jobs?x=1")

    # The last is counted when its answer is on its way.
    wait_for(lambda: len(own_service.metrics.requests) == 3, "all are counted")
    assert own_service.metrics.requests == [
        ("GET", "/v1/jobs/{job_id}", 404),
        ("GET", "unmatched", 404),
        ("GET", "/v1/jobs", 400),
    ]


def test_the_system_and_images_are_shown(client: httpx2.Client) -> None:
    assert client.get("/v1/system").json() == {"version": "test"}
    assert [image["name"] for image in client.get("/v1/images").json()["data"]] == ["host"]


def test_problems_are_json_even_for_odd_paths(client: httpx2.Client) -> None:
    problem = json.loads(client.get("/v1/é\u2028").content)

    assert problem["instance"] == "/v1/é\u2028"


ANSWERS = {
    "/v1/jobs": "application/json",
    "/v1/system": "application/json",
    "/readyz": "application/json",
    "/openapi.json": "application/json",
    "/docs": "text/html",
    "/metrics": "text/plain",
}


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("accept", ["*/*", "{family}/*", "x/y, {type};q=0.1", "{TYPE};v=1", ""])
def test_an_accept_that_includes_the_answer_is_served(
    client: httpx2.Client, path: str, accept: str
) -> None:
    media_type = ANSWERS[path]
    family = media_type.partition("/")[0]
    header = accept.format(type=media_type, TYPE=media_type.upper(), family=family)

    answer = client.get(path, headers={"Accept": header})

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("accept", ["image/png", "*/*;q=0", "{type};q=0, */*", "image/*, video/x"])
def test_an_accept_that_excludes_the_answer_is_406_as_a_problem(
    client: httpx2.Client, path: str, accept: str
) -> None:
    if path == "/metrics" and accept.endswith("*/*"):
        accept += ", application/openmetrics-text;q=0"

    answer = client.get(path, headers={"Accept": accept.format(type=ANSWERS[path])})

    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert answer.headers["content-type"] == "application/problem+json"
    assert ANSWERS[path] in answer.json()["detail"]


def test_a_job_is_not_taken_in_if_its_answer_would_not_be(client: httpx2.Client) -> None:
    before = len(client.get("/v1/jobs").json()["data"])
    body = {"image": "host", "command": ["true"]}

    answer = client.post("/v1/jobs", json=body, headers={"Accept": "text/html"})

    assert answer.status_code == 406
    assert len(client.get("/v1/jobs").json()["data"]) == before


def test_a_problem_is_sent_and_an_empty_answer_given_whatever_is_accepted(
    guarded: Service,
) -> None:
    with guarded.client(guarded.make_key()) as client:
        made = client.post("/v1/keys", json={"name": "k"}).json()["id"]
        gone = client.delete(f"/v1/keys/{made}", headers={"Accept": "image/png"})
    with guarded.client() as client:
        refused = client.get("/v1/jobs", headers={"Accept": "image/png"})

    assert gone.status_code == 204
    assert refused.status_code == 401
    assert refused.headers["content-type"] == "application/problem+json"


class CountingStore:
    """The part of a store that knows keys."""

    def __init__(self, key: ApiKey) -> None:
        self._key = key
        self.questions = 0

    async def find_key(self, key_id: str) -> ApiKey | None:
        self.questions += 1
        return self._key if key_id == self._key.id else None


def test_a_key_that_is_not_known_costs_one_question_only() -> None:
    text, key = new_key(tenant="t", name="n", scopes=SCOPES, now=0)
    others = [new_key(tenant="t", name="n", scopes=SCOPES, now=0)[0] for _ in range(FOUND_KEYS + 1)]
    now = 1000.0
    store: Any = CountingStore(key)
    keys = BearerKeys(store, monotonic=lambda: now)

    def asked(key_text: str) -> int:
        """How many questions the store was asked for a request with this key."""
        before = store.questions
        header = (b"authorization", f"Bearer {key_text}".encode())
        with contextlib.suppress(Unauthenticated):
            asyncio.run(keys.principal({"headers": [header]}))
        return int(store.questions - before)

    assert [asked(text), asked(text)] == [1, 0]
    assert [asked(others[0]), asked(others[0])] == [1, 0]
    assert [asked(other) for other in others[1:]] == [1] * FOUND_KEYS
    assert asked(text) == 0  # guesses drive no known key out
    assert asked(others[0]) == 1  # and the memory for them has an end
    now += FOUND_SECONDS
    assert asked(others[-1]) == 1
