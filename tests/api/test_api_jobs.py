"""Jobs over HTTP, from submission to deletion."""

import base64
import re
import socket
import threading
from pathlib import Path

import httpx2
import msgspec
from api_service import Service

from sandboxd.jobs import TERMINAL, State

TRUE = {"image": "host", "command": ["/bin/true"]}
SLEEP = {"image": "host", "command": ["/bin/sleep", "60"]}
WAIT = {"Prefer": "wait=20"}
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def shell(script: str, **more: object) -> dict[str, object]:
    return {"image": "host", "command": ["/bin/sh", "-c", script], **more}


def test_a_job_is_accepted_with_202_and_where_to_find_it(client: httpx2.Client) -> None:
    answer = client.post("/v1/jobs", json=TRUE)

    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert answer.headers["retry-after"] == "1"
    assert client.get(answer.headers["location"]).status_code == 200


def test_wait_gives_the_ended_job_with_its_output(client: httpx2.Client) -> None:
    answer = client.post(
        "/v1/jobs", json=shell("cat; echo oops >&2; exit 3", stdin="hi"), headers=WAIT
    )

    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait"
    job = answer.json()
    assert (job["state"], job["reason"]) == ("failed", "exited")
    assert job["exit"]["code"] == 3
    assert (job["stdout"], job["stderr"]) == ("hi", "oops\n")
    assert job["streams"]["stdout"] == {"size_bytes": 2, "inline_bytes": 2, "truncated": False}
    assert job["limits"]["memory"] == 256 * 2**20
    assert all(RFC3339.fullmatch(job[f"{name}_at"]) for name in ("created", "started", "finished"))


def test_respond_async_wins_over_wait(client: httpx2.Client) -> None:
    answer = client.post("/v1/jobs", json=TRUE, headers={"Prefer": "wait=20, respond-async"})

    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"


def test_a_wait_that_is_too_short_gives_202(client: httpx2.Client) -> None:
    answer = client.post("/v1/jobs", json=SLEEP, headers={"Prefer": "wait=1"})

    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers
    client.post(f"{answer.headers['location']}/cancel")


def test_output_that_is_not_utf8_is_never_destroyed(client: httpx2.Client) -> None:
    stdin = bytes(range(256)) * 10
    body = {"image": "host", "command": ["/bin/cat"]}
    body |= {"stdin": {"base64": base64.b64encode(stdin).decode()}}

    job = client.post("/v1/jobs", json=body, headers=WAIT).json()

    assert base64.b64decode(job["stdout"]["base64"]) == stdin


def test_inline_output_ends_at_64_kib_and_at_a_whole_character(client: httpx2.Client) -> None:
    text = "a" + "é" * 40_000
    job = client.post("/v1/jobs", json=shell("cat", stdin=text), headers=WAIT).json()

    assert job["stdout"] == text[:32768]
    assert job["streams"]["stdout"] == {
        "size_bytes": 80_001,
        "inline_bytes": 65_535,
        "truncated": False,
    }


def test_truncation_is_said(client: httpx2.Client) -> None:
    body = shell("printf 1234567890", limits={"output_bytes": 4})

    job = client.post("/v1/jobs", json=body, headers=WAIT).json()

    assert job["stdout"] == "1234"
    assert job["streams"]["stdout"]["truncated"] is True


def test_a_dry_run_stores_nothing(own_service: Service) -> None:
    with own_service.client() as client:
        answer = client.post("/v1/jobs?dry_run=true", json=TRUE | {"user": "7"})

        assert answer.status_code == 200
        assert answer.json()["dry_run"] is True
        assert answer.json()["user"] == "7:7"
        assert client.get("/v1/jobs").json()["data"] == []


def test_an_unknown_image_is_404(client: httpx2.Client) -> None:
    answer = client.post("/v1/jobs", json=TRUE | {"image": "nothing"})

    assert answer.status_code == 404
    assert answer.json()["code"] == "image_not_found"


def test_what_the_host_cannot_enforce_is_refused(client: httpx2.Client) -> None:
    answer = client.post("/v1/jobs", json=TRUE | {"require": {"gpu": "yes"}})

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/require/gpu"]


def test_the_same_idempotency_key_and_body_give_the_same_job(client: httpx2.Client) -> None:
    headers = {"Idempotency-Key": '"one"'}
    first = client.post("/v1/jobs", json=TRUE, headers=headers)
    second = client.post("/v1/jobs", json=TRUE, headers={"Idempotency-Key": "one"} | WAIT)

    assert first.json()["id"] == second.json()["id"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.json()["state"] == "succeeded"


def test_the_same_idempotency_key_with_another_body_is_422(client: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "two"}
    client.post("/v1/jobs", json=TRUE, headers=headers)
    answer = client.post("/v1/jobs", json=SLEEP, headers=headers)

    assert answer.status_code == 422
    assert answer.json()["code"] == "idempotency_key_reused"


def test_a_client_that_hangs_up_cancels_its_job(service: Service, client: httpx2.Client) -> None:
    job_id = _hang_up(service, client, "hangs-up", {})

    job = client.get(f"/v1/jobs/{job_id}?wait=20").json()
    assert (job["state"], job["reason"]) == ("cancelled", "client_gone")


def test_a_client_may_hang_up_and_let_the_job_go_on(
    service: Service, client: httpx2.Client
) -> None:
    job_id = _hang_up(service, client, "goes-on", {"Sandboxd-On-Disconnect": "continue"})

    # The service has noticed: it writes its line about a request once that is over.
    assert client.get(f"/v1/jobs/{job_id}?wait=0.2").json()["state"] == "running"
    client.post(f"/v1/jobs/{job_id}/cancel")


def _hang_up(service: Service, client: httpx2.Client, label: str, headers: dict[str, str]) -> str:
    """Submit a long job, wait until it runs, close the connection; its id."""
    body = msgspec.json.encode(SLEEP | {"labels": {"test": label}})
    lines = {"Host": "localhost", "Content-Type": "application/json", "Prefer": "wait=20"} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(
            f"POST /v1/jobs HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
        found: list[dict[str, str]] = []
        while not found:
            query = f"/v1/jobs?label.test={label}&state=running"
            found = client.get(query).json()["data"]
    return found[0]["id"]


def test_a_get_may_wait_for_the_end(client: httpx2.Client) -> None:
    job_id = client.post("/v1/jobs", json=shell("sleep 0.3")).json()["id"]

    assert client.get(f"/v1/jobs/{job_id}?wait=20").json()["state"] == "succeeded"


def test_an_etag_spares_what_is_known(client: httpx2.Client) -> None:
    path = "/v1/jobs/" + client.post("/v1/jobs", json=TRUE, headers=WAIT).json()["id"]
    etag = client.get(path).headers["etag"]

    again = client.get(path, headers={"If-None-Match": f'W/"x", {etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_etag_of_a_running_job_changes_with_its_output(client: httpx2.Client) -> None:
    path = (
        "/v1/jobs/" + client.post("/v1/jobs", json=shell("echo a; read x; sleep 60")).json()["id"]
    )
    etags = set()
    with client.stream("GET", f"{path}/logs?follow=true") as stream:
        next(stream.iter_raw())
        etags.add(client.get(path).headers["etag"])
    client.post(f"{path}/cancel")
    etags.add(client.get(f"{path}?wait=20").headers["etag"])

    assert len(etags) == 2


def test_cancel_is_idempotent_and_takes_a_reason(client: httpx2.Client) -> None:
    path = "/v1/jobs/" + client.post("/v1/jobs", json=SLEEP).json()["id"]
    first = client.post(f"{path}/cancel", json={"grace_seconds": 0, "reason": "enough"})
    client.get(f"{path}?wait=20")
    second = client.post(f"{path}/cancel")

    assert first.status_code in (200, 202)
    assert second.status_code == 200
    assert second.json()["state"] == "cancelled"
    events = client.get(f"{path}/events").json()["data"]
    assert "enough" in [event["message"] for event in events]


def test_a_job_is_deleted_only_after_its_end(client: httpx2.Client) -> None:
    path = "/v1/jobs/" + client.post("/v1/jobs", json=SLEEP).json()["id"]
    early = client.delete(path)
    client.post(f"{path}/cancel")
    client.get(f"{path}?wait=20")

    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert client.get(f"{path}/logs").status_code == 404


def test_a_retry_is_a_new_job_with_the_same_input(client: httpx2.Client) -> None:
    first = client.post("/v1/jobs", json=shell("cat", stdin="again"), headers=WAIT).json()
    second = client.post(f"/v1/jobs/{first['id']}/retry", headers=WAIT).json()

    assert second["id"] != first["id"]
    assert second["retried_from"] == first["id"]
    assert second["stdout"] == "again"


def test_events_tell_the_history_in_order(client: httpx2.Client) -> None:
    job_id = client.post("/v1/jobs", json=TRUE, headers=WAIT).json()["id"]
    events = client.get(f"/v1/jobs/{job_id}/events").json()["data"]

    assert events[0]["state"] == "queued"
    assert events[-1]["state"] == "succeeded"
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)


def test_a_queued_job_says_what_it_waits_for(tmp_path: Path) -> None:
    with Service(slots=0).running(tmp_path) as service, service.client() as client:
        job = client.post("/v1/jobs", json=TRUE).json()

        assert job["waiting"] == {"for": "slot"}
        assert "stdout" not in client.get(job["links"]["self"]).json()


def test_a_queued_job_shows_how_many_start_before_it(tmp_path: Path) -> None:
    with Service(slots=0).running(tmp_path) as service, service.client() as client:
        ordinary, urgent = (
            client.post("/v1/jobs", json=TRUE | {"priority": priority}).json()["id"]
            for priority in (0, 5)
        )
        first = client.get(f"/v1/jobs/{ordinary}")
        client.post(f"/v1/jobs/{urgent}/cancel")
        etag = {"If-None-Match": first.headers["etag"]}
        second = client.get(f"/v1/jobs/{ordinary}", headers=etag)
        ended = client.get(f"/v1/jobs/{urgent}").json()

    assert first.json()["waiting"] == {"for": "slot", "position": 1}
    assert second.status_code == 200
    assert second.json()["waiting"]["position"] == 0
    assert "waiting" not in ended


def test_lists_go_page_by_page_newest_first(own_service: Service) -> None:
    with own_service.client() as client:
        ids = [
            client.post(
                "/v1/jobs", json=TRUE | {"labels": {"n/x": str(n % 2)}}, headers=WAIT
            ).json()["id"]
            for n in range(5)
        ]
        seen, path = [], "/v1/jobs?limit=2&state=succeeded,failed&state=error"
        while path:
            answer = client.get(path)
            page = answer.json()
            seen += [job["id"] for job in page["data"]]
            assert all("stdout" not in job for job in page["data"])
            assert page["has_more"] is (page["next_cursor"] is not None)
            path = answer.links.get("next", {}).get("url")

        assert seen == ids[::-1]
        labelled = client.get("/v1/jobs", params={"label.n/x": "1"}).json()["data"]
        assert [job["id"] for job in labelled] == [ids[3], ids[1]]
        created = client.get(f"/v1/jobs/{ids[2]}").json()["created_at"]
        assert client.get("/v1/jobs", params={"until": "2000-01-01T00:00:00Z"}).json()["data"] == []
        since = client.get("/v1/jobs", params={"since": created}).json()["data"]
        assert [job["id"] for job in since] == [ids[4], ids[3], ids[2]]


def test_states_in_the_api_are_the_states_of_jobs() -> None:
    assert TERMINAL < frozenset(State)


def test_many_clients_wait_at_once(service: Service) -> None:
    states: list[str] = []

    def one() -> None:
        with service.client() as client:
            states.append(client.post("/v1/jobs", json=TRUE, headers=WAIT).json()["state"])

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert states == ["succeeded"] * 20


def test_lists_leave_out_what_is_large(client: httpx2.Client) -> None:
    body = {"image": "host", "command": ["/bin/true", "x" * 5000], "env": {"A": "a" * 100_000}}
    job = client.post("/v1/jobs", json=body, headers=WAIT).json()
    listed = client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]

    assert (job["env"], job["command"]) == (body["env"], body["command"])
    assert "command_truncated" not in job
    assert listed["id"] == job["id"]
    assert "env" not in listed
    assert listed["command_truncated"] is True
    assert sum(map(len, listed["command"])) < 4096
