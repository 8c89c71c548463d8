"""A service with keys: who has none sees nothing, and nobody sees another tenant's jobs."""

import json
import time
from collections.abc import Iterator

import httpx2
import patient_http
import pytest
from running_service import RunningService, data_directory
from sandbox_client import Box
from waiting import TIME_FACTOR
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from sandboxd.api.key_watch import KEY_SECONDS
from sandboxd.client import Client, KeyRefused, NotFound


@pytest.fixture(scope="module")
def guarded(prepared_host: None) -> Iterator[tuple[RunningService, str]]:
    """A service that asks for keys, and the first one, which was made before it started."""
    with data_directory() as data_dir:
        service = RunningService(data_dir, flags=())
        data_dir.mkdir(mode=0o700)
        made = service.command(
            "keys", "create", "first", "--scope", "admin", "--scope", "jobs:read"
        )
        assert made.returncode == 0, made.stderr
        try:
            service.start()
            yield service, made.stdout.strip()
            service.stop()
        finally:
            if service.process.poll() is None:
                service.kill()


@pytest.fixture
def service(guarded: tuple[RunningService, str]) -> RunningService:
    return guarded[0]


@pytest.fixture
def admin(guarded: tuple[RunningService, str]) -> Iterator[Client]:
    service, key = guarded
    with service.client(key) as connected:
        yield connected


@pytest.mark.parametrize(
    "path",
    ["/v1/jobs", "/v1/system", "/v1/images", "/v1/keys", "/v1/whoami", "/v1/jobs/job_x/logs"],
)
@pytest.mark.parametrize(
    "authorization", [None, "Bearer", "Bearer sbx_nonsense", "Basic Zm9vOmJhcg==", "Bearer é"]
)
@pytest.mark.attack(35, 39)
def test_without_a_good_key_every_door_is_closed(
    service: RunningService, path: str, authorization: str | None
) -> None:
    headers = [(b"authorization", authorization.encode())] if authorization else []

    answer = patient_http.get(f"{service.url}{path}", headers=headers)

    assert answer.status_code in (400, 401)
    assert answer.headers["content-type"] == "application/problem+json"
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_health_is_told_to_everybody(service: RunningService) -> None:
    assert patient_http.get(f"{service.url}/livez").status_code == 200
    assert patient_http.get(f"{service.url}/readyz").status_code == 200


def test_a_key_of_which_a_letter_is_wrong_is_no_key(
    guarded: tuple[RunningService, str],
) -> None:
    service, key = guarded
    for place in (4, len(key) // 2, len(key) - 1):
        letter = "a" if key[place] != "a" else "b"
        wrong = key[:place] + letter + key[place + 1 :]
        with service.client(wrong) as stranger, pytest.raises(KeyRefused):
            stranger.system()


def test_a_key_works_for_its_scopes_and_until_it_is_revoked(
    service: RunningService, admin: Client
) -> None:
    full = admin.create_key("full", scopes=["jobs:read", "jobs:write"])
    reader = admin.create_key("reader", scopes=["jobs:read"])
    with service.client(full.key) as writing, service.client(reader.key) as reading:
        job = writing.run(["echo", "mine"])
        assert reading.get(job.id).text == "mine\n"
        with pytest.raises(KeyRefused):
            reading.submit(["true"])
        with pytest.raises(KeyRefused):
            writing.create_key("more")
        admin.revoke_key(full.id)
        with pytest.raises(KeyRefused):
            writing.get(job.id)


def test_a_socket_does_not_outlive_its_key(
    guarded: tuple[RunningService, str], admin: Client
) -> None:
    service, lasting_key = guarded
    key = admin.create_key("socket", scopes=["jobs:read", "jobs:write"])
    with service.http(lasting_key) as http, Box(http) as box:
        headers = {"Authorization": f"Bearer {key.key}"}
        with connect(
            f"ws://127.0.0.1:{service.port}{box.path}/exec/ws", additional_headers=headers
        ) as socket:
            socket.send(json.dumps({"command": ["cat"]}))
            assert json.loads(socket.recv(timeout=30))["type"] == "started"
            admin.revoke_key(key.id)

            problem = json.loads(socket.recv(timeout=30))
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=30)

    assert problem["problem"]["code"] == "invalid_key"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["text/event-stream", "application/x-ndjson", "text/plain"])
def test_a_stream_of_a_log_does_not_outlive_its_key(
    guarded: tuple[RunningService, str], admin: Client, kind: str
) -> None:
    service, _ = guarded
    key = admin.create_key("stream", scopes=["jobs:read"])
    writer = admin.create_key("writer", scopes=["jobs:read", "jobs:write"])
    with service.client(writer.key) as client, service.http(key.key) as http:
        job = client.submit(["sh", "-c", "while :; do echo more; sleep 0.2; done"])
        path, headers = f"/v1/jobs/{job.id}/logs?follow=true", {"Accept": kind}
        with http.stream("GET", path, headers=headers) as answer:
            pieces = answer.iter_bytes()
            assert b"more" in next(pieces)
            admin.revoke_key(key.id)
            revoked = time.monotonic()
            with pytest.raises(httpx2.RemoteProtocolError):
                list(pieces)  # Not whole, and the client knows it.
            seconds = time.monotonic() - revoked
        client.cancel(job.id, grace_seconds=0)

    assert seconds < 2 * KEY_SECONDS * TIME_FACTOR


def test_a_tenant_sees_only_its_own_jobs(service: RunningService, admin: Client) -> None:
    one = admin.create_key("one", tenant="one", scopes=["jobs:read", "jobs:write"])
    two = admin.create_key("two", tenant="two", scopes=["jobs:read", "jobs:write"])
    with service.client(one.key) as first, service.client(two.key) as second:
        job = first.submit(["sh", "-c", "echo secret; exec sleep 600"])
        next(first.logs(job.id, follow=True))
        for look in (
            lambda: second.get(job.id),
            lambda: second.read_log(job.id),
            lambda: list(second.logs(job.id, follow=True)),
            lambda: second.events(job.id),
            lambda: second.cancel(job.id),
            lambda: second.delete(job.id),
            lambda: second.wait(job.id, 0.1),
        ):
            with pytest.raises(NotFound):
                look()
        assert second.list().data == []
        assert [each.id for each in first.list().data] == [job.id]
        first.cancel(job.id, grace_seconds=0)

        assert first.wait(job.id).text == "secret\n"


def test_no_key_is_in_the_log_or_the_database(
    guarded: tuple[RunningService, str], admin: Client
) -> None:
    service, key = guarded
    made = admin.create_key("secret")

    for path in [service.log_file, *service.data_dir.glob("sandboxd.sqlite3*")]:
        content = path.read_bytes()
        assert key.encode() not in content
        assert made.key.encode() not in content
