"""The HTTP API with real jobs behind it: answers, waiting, logs in each form, lists, cancelling, deleting."""

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import patient_http
import pytest
from running_service import RunningService, running_service
from waiting import wait_for

from sandboxd.client import Client

SLOW = ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; sleep 0.1; done"]
SLOW_OUTPUT = "".join(f"line {number}\n" for number in range(1, 10))


@pytest.fixture
def http(real_service: RunningService) -> Iterator[httpx2.Client]:
    with real_service.http() as connected:
        yield connected


@pytest.fixture
def label() -> str:
    """A word that no other job has."""
    return uuid.uuid4().hex


def submit(http: httpx2.Client, command: list[str], *, prefer: str = "", **more: Any) -> Any:
    headers = {"prefer": prefer} if prefer else {}
    body = {"image": "host", "command": command, **more}
    return http.post("/v1/jobs", json=body, headers=headers)


def ended(http: httpx2.Client, job_id: str) -> Any:
    answer = http.get(f"/v1/jobs/{job_id}", params={"wait": 30}).json()
    assert answer["state"] not in ("queued", "starting", "running"), answer
    return answer


# Submitting


def test_a_job_is_accepted_before_it_is_done_and_the_answer_says_where_to_look(
    http: httpx2.Client,
) -> None:
    answer = submit(http, ["echo", "hi"])

    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert ended(http, answer.json()["id"])["stdout"] == "hi\n"


def test_prefer_wait_answers_with_the_result(http: httpx2.Client) -> None:
    answer = submit(http, ["echo", "hi"], prefer="wait=30")

    job = answer.json()
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait"
    assert (job["state"], job["stdout"], job["exit"]["code"]) == ("succeeded", "hi\n", 0)
    assert job["usage"]["pids_peak"] == 1
    assert 0 < job["usage"]["memory_peak_bytes"] < 64 * 2**20
    assert job["enforcement"]["limits"]["wall_seconds"] == "timer"
    assert job["enforcement"]["walls"]["seccomp"].startswith("sha256:")


def test_a_program_that_fails_is_no_failure_of_http(http: httpx2.Client) -> None:
    answer = submit(http, ["false"], prefer="wait=30")

    assert (answer.status_code, answer.json()["state"]) == (200, "failed")


def test_patience_that_ends_before_the_job_is_202_and_the_job_goes_on(http: httpx2.Client) -> None:
    answer = submit(http, ["sh", "-c", "sleep 0.5; echo done"], prefer="wait=0.1")

    assert answer.status_code == 202
    assert ended(http, answer.json()["id"])["stdout"] == "done\n"


def test_respond_async_does_not_wait(http: httpx2.Client) -> None:
    answer = submit(http, ["true"], prefer="respond-async, wait=30")

    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    ended(http, answer.json()["id"])


def test_a_client_that_hangs_up_cancels_its_job(
    http: httpx2.Client, client: Client, label: str
) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        http.post(
            "/v1/jobs",
            json={"image": "host", "command": ["sleep", "600"], "labels": {"own": label}},
            headers={"prefer": "wait=30"},
            timeout=2,
        )
    (job,) = wait_for(lambda: client.list(labels={"own": label}).data, "it is on the record")

    ended = client.wait(job.id)
    assert (ended.state, ended.reason) == ("cancelled", "client_gone")


def test_the_same_idempotency_key_runs_one_job(http: httpx2.Client, label: str) -> None:
    body = {"image": "host", "command": ["echo", label], "labels": {"own": label}}
    headers = {"idempotency-key": label}

    def post(_: int) -> httpx2.Response:
        return http.post("/v1/jobs", json=body, headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(8)))
    other = http.post("/v1/jobs", json=body | {"priority": 1}, headers=headers)

    ids = {answer.json()["id"] for answer in answers}
    assert {answer.status_code for answer in answers} == {202}
    assert len(ids) == 1
    replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert (replayed.count("true"), replayed.count(None)) == (7, 1)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    ended(http, ids.pop())
    assert len(http.get("/v1/jobs", params={"label.own": label}).json()["data"]) == 1


def test_a_dry_run_checks_everything_and_runs_nothing(http: httpx2.Client, label: str) -> None:
    body = {"image": "host", "command": ["true"], "labels": {"own": label}}

    answer = http.post("/v1/jobs", params={"dry_run": "true"}, json=body)
    unknown = http.post("/v1/jobs", params={"dry_run": "true"}, json=body | {"image": "nowhere"})

    assert (answer.status_code, answer.json()["dry_run"]) == (200, True)
    assert unknown.status_code == 404
    assert http.get("/v1/jobs", params={"label.own": label}).json()["data"] == []


# Waiting and looking


def test_the_history_of_a_job_is_told_in_order(http: httpx2.Client) -> None:
    job = submit(http, ["sleep", "0.5"], prefer="wait=30").json()

    events = http.get(f"/v1/jobs/{job['id']}/events").json()["data"]
    states = [event["state"] for event in events]
    assert states[0] in ("queued", "starting")
    assert states[-1] == "succeeded"
    assert "running" in states
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


def test_an_unchanged_job_is_304_and_a_changed_one_is_not(http: httpx2.Client) -> None:
    job = submit(http, SLOW).json()
    path = f"/v1/jobs/{job['id']}"
    early = http.get(path).headers["etag"]
    ended(http, job["id"])

    changed = http.get(path, headers={"if-none-match": early})
    unchanged = http.get(path, headers={"if-none-match": changed.headers["etag"]})

    assert changed.status_code == 200
    assert unchanged.status_code == 304
    assert unchanged.content == b""


def test_lists_are_filtered_and_paged(http: httpx2.Client, label: str) -> None:
    commands = [["true"], ["false"], ["true"], ["true"], ["false"]]
    made = [
        submit(http, command, prefer="wait=30", labels={"own": label}).json()
        for command in commands
    ]

    def listed(**parameters: Any) -> list[str]:
        answer = http.get("/v1/jobs", params={"label.own": label, **parameters})
        return [job["id"] for job in answer.json()["data"]]

    newest_first = [job["id"] for job in reversed(made)]
    failed = [job["id"] for job in reversed(made) if job["state"] == "failed"]
    assert listed() == newest_first
    assert listed(state="failed") == failed
    assert listed(state="failed,succeeded") == newest_first
    assert listed(state="running") == []
    assert listed(since=made[2]["created_at"])[:2] == newest_first[:2]
    assert listed(until=made[0]["created_at"]) in ([], newest_first[-1:])
    page = http.get("/v1/jobs", params={"label.own": label, "limit": 3}).json()
    assert page["has_more"]
    rest = listed(limit=3, cursor=page["next_cursor"])
    assert [job["id"] for job in page["data"]] + rest == newest_first


# Logs


def test_the_log_comes_as_text_ndjson_and_bytes_of_one_stream(http: httpx2.Client) -> None:
    script = "echo out; sleep 0.05; echo err >&2"
    job = submit(http, ["sh", "-c", script], prefer="wait=30").json()
    path = f"/v1/jobs/{job['id']}/logs"

    text = http.get(path, headers={"accept": "text/plain"})
    lines = http.get(path, headers={"accept": "application/x-ndjson"})
    err = http.get(path, params={"stream": "stderr"})

    assert text.text == "out\nerr\n"
    assert text.headers["content-type"].startswith("text/plain")
    records = [json.loads(line) for line in lines.text.splitlines()]
    assert [(each["stream"], each["offset"], each["data"]) for each in records] == [
        ("stdout", 0, "out\n"),
        ("stderr", 4, "err\n"),
    ]
    assert err.content == b"err\n"


def test_a_part_of_the_log_can_be_asked_for(http: httpx2.Client) -> None:
    job = submit(http, ["seq", "100000"], prefer="wait=30").json()
    path = f"/v1/jobs/{job['id']}/logs"
    whole = http.get(path).content

    part = http.get(path, headers={"range": "bytes=100000-100099"})
    last = http.get(path, headers={"range": "bytes=-7"})
    beyond = http.get(path, headers={"range": f"bytes={len(whole)}-"})
    tail = http.get(path, params={"tail": 2})

    assert len(whole) == job["streams"]["stdout"]["size_bytes"] == 588_895
    assert (part.status_code, part.content) == (206, whole[100_000:100_100])
    assert part.headers["content-range"] == f"bytes 100000-100099/{len(whole)}"
    assert last.content == b"100000\n"
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
    assert tail.text == "99999\n100000\n"


def test_a_reader_that_is_cut_off_goes_on_where_it_was_while_the_job_runs(
    http: httpx2.Client,
) -> None:
    job = submit(http, SLOW).json()
    path = f"/v1/jobs/{job['id']}/logs"
    text, last_id, connections = "", "", 0
    end: Any = None
    while end is None:
        headers = {"accept": "text/event-stream"} | ({"last-event-id": last_id} if last_id else {})
        connections += 1
        with http.stream("GET", path, params={"follow": "true"}, headers=headers) as response:
            for seen, event in enumerate(httpx2.EventSource(response)):
                if event.event == "end":
                    end, last_id = json.loads(event.data), event.id
                    break
                text, last_id = text + json.loads(event.data)["data"], event.id
                if seen == 1:
                    break  # the connection is cut after two events
    again = http.get(
        path,
        params={"follow": "true"},
        headers={"accept": "text/event-stream", "last-event-id": last_id},
    )

    assert text == SLOW_OUTPUT
    assert connections > 2
    assert (end["state"], end["exit"]["code"]) == ("succeeded", 0)
    assert again.status_code == 204


def test_the_client_follows_a_job_to_its_end(client: Client) -> None:
    job = client.submit(SLOW)

    pieces = list(client.logs(job.id, follow=True))

    assert b"".join(piece.data for piece in pieces) == SLOW_OUTPUT.encode()
    assert len(pieces) > 2
    assert client.get(job.id).is_terminal


@pytest.mark.attack(47)
def test_a_reader_that_takes_nothing_does_not_slow_the_job(http: httpx2.Client) -> None:
    """Attack 47."""
    many = ["sh", "-c", "seq 1000000"]
    job = submit(http, many, limits={"output_bytes": "16Mi"}).json()
    path = f"/v1/jobs/{job['id']}/logs"
    with http.stream("GET", path, params={"follow": "true"}) as response:
        done = ended(http, job["id"])  # before a byte was read
        received = b"".join(response.iter_bytes())

    assert done["state"] == "succeeded"
    assert received.endswith(b"999999\n1000000\n")
    assert len(received) == done["streams"]["stdout"]["size_bytes"] == 6_888_896


# Ending and forgetting


def test_cancelling_is_idempotent_and_says_why(http: httpx2.Client) -> None:
    job = submit(http, ["sleep", "600"]).json()
    body = {"grace_seconds": 0, "reason": "not needed"}

    first = http.post(f"/v1/jobs/{job['id']}/cancel", json=body)
    done = ended(http, job["id"])
    second = http.post(f"/v1/jobs/{job['id']}/cancel", json=body)
    third = http.post(f"/v1/jobs/{job['id']}/cancel")

    assert first.status_code in (200, 202)
    assert (done["state"], done["reason"]) == ("cancelled", "cancelled_by_client")
    assert done["error"]["message"].startswith("not needed")
    assert (second.status_code, third.status_code) == (200, 200)
    assert second.json()["state"] == third.json()["state"] == "cancelled"


def test_cancelling_a_job_that_has_ended_changes_nothing(http: httpx2.Client) -> None:
    job = submit(http, ["echo", "hi"], prefer="wait=30").json()

    answer = http.post(f"/v1/jobs/{job['id']}/cancel")

    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


def test_only_a_job_that_has_ended_can_be_deleted_and_then_it_is_gone(
    http: httpx2.Client, real_service: RunningService
) -> None:
    script = "seq 100000; exec sleep 600"  # more than is kept in the database
    job = submit(http, ["sh", "-c", script], limits={"wall_seconds": 3}).json()
    path = f"/v1/jobs/{job['id']}"

    early = http.delete(path)
    ended(http, job["id"])
    log_files = list(real_service.data_dir.rglob(f"*{job['id']}*"))
    deleted = http.delete(path)

    assert (early.status_code, early.headers["content-type"]) == (409, "application/problem+json")
    assert log_files
    assert deleted.status_code == 204
    for gone in (path, f"{path}/logs", f"{path}/events"):
        assert http.get(gone).status_code == 404
    assert list(real_service.data_dir.rglob(f"*{job['id']}*")) == []


def test_a_job_can_be_run_again(http: httpx2.Client) -> None:
    first = submit(http, ["cat"], prefer="wait=30", stdin="again").json()

    second = http.post(f"/v1/jobs/{first['id']}/retry", headers={"prefer": "wait=30"}).json()

    assert second["id"] != first["id"]
    assert second["retried_from"] == first["id"]
    assert second["stdout"] == "again"


# The queue


@pytest.fixture(scope="module")
def narrow(prepared_host: None) -> Iterator[RunningService]:
    """A service that runs one job at a time and lets three wait."""
    flags = ("--no-auth", "--slots", "1")
    with running_service(flags=flags, scheduler_max_queued=3) as service:
        yield service


def test_waiting_jobs_go_by_priority_expire_are_cancelled_and_are_no_more_than_allowed(
    narrow: RunningService,
) -> None:
    with narrow.http() as http, narrow.client() as client:
        running = submit(http, ["sh", "-c", "echo started; exec sleep 600"]).json()
        next(client.logs(running["id"], follow=True))
        low = submit(http, ["true"], priority=-1).json()
        high = submit(http, ["true"], priority=5).json()
        expiring = submit(http, ["true"], limits={"queue_seconds": 4}).json()
        refused = submit(http, ["true"])
        expired = ended(http, expiring["id"])
        hopeless = submit(http, ["true"]).json()
        cancelled = http.post(f"/v1/jobs/{hopeless['id']}/cancel")
        seen = http.get(f"/v1/jobs/{low['id']}").json()
        http.post(f"/v1/jobs/{running['id']}/cancel", json={"grace_seconds": 0})
        done = [ended(http, job["id"]) for job in (low, high)]
        # Those that were cancelled or expired while they waited take no place in the queue any more.
        narrow.assert_nothing_left(client)

    assert seen["state"] == "queued"
    assert seen["waiting"]["for"] == "slot"
    assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert (expired["state"], expired["reason"]) == ("expired", "queue_seconds")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert {job["state"] for job in done} == {"succeeded"}
    assert done[1]["started_at"] <= done[0]["started_at"]
    assert done[0]["usage"]["queue_seconds"] > 0


# Figures


def test_the_counters_of_jobs_are_on_the_metrics_port(
    real_service: RunningService, client: Client
) -> None:
    def figure(name: str) -> float:
        text = patient_http.get(f"http://127.0.0.1:{real_service.metrics_port}/metrics").text
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if 'outcome="failed"' in line)

    before = figure("sandboxd_jobs_finished_total")
    client.run(["false"])

    assert figure("sandboxd_jobs_finished_total") == before + 1


def test_the_service_tells_of_its_host(real_service: RunningService, client: Client) -> None:
    system = client.system()

    assert system["isolation"]["id_map"] in ("range", "single")
    assert set(system["enforcement"]) >= {"cpus", "memory", "pids", "disk", "wall_seconds"}
    # Rates of disks are limited, and CPUs chosen, where an operator wants it.
    unlimited = {name for name, word in system["enforcement"].items() if word == "none"}
    assert unlimited <= {"io_bytes_per_second", "cpuset"}
    assert system["capacity"]["slots"] == 8


def test_many_threads_may_share_one_client(client: Client) -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda n=number: results.append(client.run(["echo", str(n)]).text))
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results, key=int) == [f"{number}\n" for number in range(16)]
