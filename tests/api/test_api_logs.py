"""Logs over HTTP: raw with ranges, NDJSON, server-sent events; whole, followed, resumed."""

import asyncio
import base64
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_service import Service

from sandboxd.jobs import Stream
from sandboxd.store.logs import JobLog

WAIT = {"Prefer": "wait=20"}
SSE = {"Accept": "text/event-stream"}
NDJSON = {"Accept": "application/x-ndjson"}


def run(client: httpx2.Client, script: str, **more: object) -> str:
    """The path of the logs of a job that has ended."""
    body = {"image": "host", "command": ["/bin/sh", "-c", script], **more}
    job = client.post("/v1/jobs", json=body, headers=WAIT).json()
    return f"{job['links']['self']}/logs"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A pipe that a job reads from, so that a test decides when it goes on."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def start(client: httpx2.Client, script: str) -> str:
    """The path of the logs of a job that runs."""
    body = {"image": "host", "command": ["/bin/sh", "-c", script]}
    return client.post("/v1/jobs", json=body).json()["links"]["self"] + "/logs"


def events_of(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]  # type: ignore[misc]


def output_of(records: list[dict[str, Any]], stream: str | None = None) -> bytes:
    return b"".join(
        record["data"].encode() if "data" in record else base64.b64decode(record["base64"])
        for record in records
        if stream in (None, record["stream"])
    )


def test_the_raw_log_is_both_streams_in_order_of_arrival(client: httpx2.Client) -> None:
    path = run(client, "echo one; sleep 0.5; echo two >&2; sleep 0.5; echo three")

    answer = client.get(path)
    assert answer.text == "one\ntwo\nthree\n"
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get(path, params={"stream": "stdout"}).text == "one\nthree\n"
    assert client.get(path, params={"stream": "stderr"}).text == "two\n"


def test_binary_output_comes_unharmed_in_every_form(client: httpx2.Client) -> None:
    blob = os.urandom(300_000)
    body = {
        "image": "host",
        "command": ["/bin/cat"],
        "stdin": {"base64": base64.b64encode(blob).decode()},
    }
    path = client.post("/v1/jobs", json=body, headers=WAIT).json()["links"]["self"] + "/logs"

    assert client.get(path).content == blob
    assert client.get(path, headers={"Accept": "application/octet-stream"}).content == blob
    lines = [json.loads(line) for line in client.get(path, headers=NDJSON).text.splitlines()]
    assert output_of(lines) == blob
    sent = events_of(client.get(path, headers=SSE).text)
    assert output_of([json.loads(event["data"]) for event in sent[:-1]]) == blob


def test_long_text_is_cut_between_characters_only(client: httpx2.Client) -> None:
    text = "a" + "é€😀" * 20_000
    path = run(client, "cat", stdin=text)
    lines = [json.loads(line) for line in client.get(path, headers=NDJSON).text.splitlines()]

    assert len(lines) > 2
    assert all("data" in line for line in lines)
    assert "".join(line["data"] for line in lines) == text


def test_ndjson_says_where_each_piece_lies(client: httpx2.Client) -> None:
    path = run(client, "echo out; sleep 0.5; echo err >&2; sleep 0.5; printf '\\377'")
    lines = [json.loads(line) for line in client.get(path, headers=NDJSON).text.splitlines()]

    places = [(line["stream"], line["offset"]) for line in lines]
    assert places == [("stdout", 0), ("stderr", 4), ("stdout", 8)]
    assert lines[2]["base64"] == "/w=="


def test_a_job_without_output_has_an_empty_log(client: httpx2.Client) -> None:
    path = run(client, "exit 0")

    assert (client.get(path).status_code, client.get(path).content) == (200, b"")
    assert [event["event"] for event in events_of(client.get(path, headers=SSE).text)] == ["end"]


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=x", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
    ],
)
def test_a_range_of_the_raw_log(
    service: Service, asked: str, status: int, content: bytes | None, content_range: str | None
) -> None:
    with service.client() as client:
        path = run(client, "printf 01234; sleep 0.05; printf x >&2; printf 56789")
        answer = client.get(path, params={"stream": "stdout"}, headers={"Range": asked})

    assert answer.status_code == status
    assert answer.headers.get("content-range") == content_range
    if content is not None:
        assert answer.content == content
        assert answer.headers["content-length"] == str(len(content))


def test_head_tells_the_size_of_the_log(client: httpx2.Client) -> None:
    answer = client.head(run(client, "printf 12345"))

    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "5", b"")


@pytest.mark.parametrize(
    ("tail", "stream", "expected"),
    [
        (0, None, b""),
        (1, None, b"e3"),
        (2, None, b"o3\ne3"),
        (3, None, b"e2\no3\ne3"),
        (1, "stdout", b"o3\n"),
        (2, "stderr", b"e2\ne3"),
        (100, None, b"o1\ne1\no2\ne2\no3\ne3"),
    ],
)
def test_tail_counts_lines(
    client: httpx2.Client, tail: int, stream: str | None, expected: bytes
) -> None:
    script = "for n in 1 2; do echo o$n; sleep 0.3; echo e$n >&2; sleep 0.3; done"
    path = run(client, f"{script}; echo o3; sleep 0.3; printf e3 >&2")
    query = {"tail": str(tail)} | ({"stream": stream} if stream else {})

    assert client.get(path, params=query).content == expected


def test_tail_reaches_far_back(client: httpx2.Client) -> None:
    path = run(client, "seq 1 60000")

    lines = client.get(path, params={"tail": "30000"}).text.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("30001", "60000", 30000)


def test_since_leaves_out_what_came_before(client: httpx2.Client) -> None:
    path = run(client, "echo early; sleep 3; echo late")
    lines = [json.loads(line) for line in client.get(path, headers=NDJSON).text.splitlines()]

    assert client.get(path, params={"since": lines[1]["time"]}).text == "late\n"
    assert client.get(path, params={"since": lines[0]["time"]}).text == "early\nlate\n"
    assert client.get(path, params={"since": "2100-01-01T00:00:00Z"}).text == ""


def test_following_shows_output_as_it_comes(client: httpx2.Client, gate: Path) -> None:
    path = start(client, f"echo first; read line < {gate}; echo $line")
    with client.stream("GET", path, params={"follow": "true"}) as stream:
        pieces = stream.iter_raw()
        first = next(pieces)
        gate.write_text("second\n")
        rest = b"".join(pieces)

    assert (first, rest) == (b"first\n", b"second\n")


def test_following_events_end_with_the_state_of_the_job(client: httpx2.Client, gate: Path) -> None:
    path = start(client, f"echo first; read line < {gate}; echo $line; exit 7")
    with client.stream("GET", path, params={"follow": "true"}, headers=SSE) as stream:
        assert stream.headers["x-accel-buffering"] == "no"
        pieces = stream.iter_text()
        text = next(pieces)
        gate.write_text("second\n")
        sent = events_of(text + "".join(pieces))

    assert [(event["event"], event["id"]) for event in sent] == [
        ("log", "6"),
        ("log", "13"),
        ("end", "13-end"),
    ]
    end = json.loads(sent[-1]["data"])
    assert (end["state"], end["exit"]["code"]) == ("failed", 7)


def test_events_resume_exactly_at_last_event_id(client: httpx2.Client) -> None:
    path = run(client, "printf 0123456789")

    def events_after(last_event_id: str) -> list[dict[str, str]]:
        return events_of(client.get(path, headers=SSE | {"Last-Event-ID": last_event_id}).text)

    assert json.loads(events_after("4")[0]["data"])["data"] == "456789"
    assert [event["event"] for event in events_after("10")] == ["end"]
    assert json.loads(events_after("nonsense")[0]["data"])["offset"] == 0


def test_who_saw_the_end_is_told_to_stay_away(client: httpx2.Client) -> None:
    path = run(client, "echo x")
    last = events_of(client.get(path, headers=SSE).text)[-1]["id"]

    assert client.get(path, headers=SSE | {"Last-Event-ID": last}).status_code == 204


def test_following_a_queued_job_waits_until_it_starts(tmp_path: Path, gate: Path) -> None:
    with Service(slots=1).running(tmp_path) as service, service.client() as client:
        start(client, f"read line < {gate}")
        path = start(client, "echo here")
        assert client.get(path).content == b""
        with client.stream("GET", path, params={"follow": "1"}, headers=SSE) as stream:
            pieces = stream.iter_text()
            assert next(pieces) == ": waiting to start\n\n"
            gate.write_text("go\n")
            names = [event["event"] for event in events_of("".join(pieces))]

    assert names == ["log", "end"]


@pytest.mark.attack(40, 47)
def test_a_reader_that_does_not_read_never_slows_the_job(
    service: Service, client: httpx2.Client
) -> None:
    path = start(client, "head -c 15000000 /dev/zero")
    with socket.create_connection(("127.0.0.1", service.port)) as idle:
        idle.sendall(f"GET {path}?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        job = client.get(path.removesuffix("/logs"), params={"wait": "20"}).json()

    assert job["state"] == "succeeded"
    assert job["streams"]["stdout"]["size_bytes"] == 15_000_000


def test_many_readers_follow_the_same_job(
    client: httpx2.Client, service: Service, gate: Path
) -> None:
    path = start(client, f"read line < {gate}; seq 1 2000")
    readers = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(20)]
    request = (
        f"GET {path}?follow=true HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    for reader in readers:
        reader.sendall(request)
    gate.write_text("go\n")
    answers = [reader.makefile("rb").read() for reader in readers]
    for reader in readers:
        reader.close()

    assert all(b"1999\n2000\n" in answer for answer in answers)


@pytest.mark.parametrize("accept", ["application/json", "text/html", "image/png", "text/plain;q=0"])
def test_a_form_that_logs_do_not_come_in_is_406(client: httpx2.Client, accept: str) -> None:
    answer = client.get(run(client, "echo x"), headers={"Accept": accept})

    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("*/*", "text/plain"),
        ("text/html, */*;q=0.1", "text/plain"),
        ("text/*", "text/plain"),
        ("text/plain;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("application/*", "application/x-ndjson"),
    ],
)
def test_the_client_chooses_the_form(client: httpx2.Client, accept: str, chosen: str) -> None:
    answer = client.get(run(client, "echo x"), headers={"Accept": accept})

    assert answer.headers["content-type"].startswith(chosen)


def test_bad_parameters_of_logs_are_named(client: httpx2.Client) -> None:
    path = run(client, "echo x")
    answer = client.get(f"{path}?stream=both&follow=maybe&tail=x&since=never")

    assert answer.status_code == 400
    assert [fault["parameter"] for fault in answer.json()["errors"]] == [
        "stream",
        "follow",
        "tail",
        "since",
    ]


LONG_LOG_CHUNKS = 240_000
WAYS_TO_READ: list[tuple[dict[str, str], str]] = [
    (NDJSON, "/logs"),
    (SSE, "/logs"),
    ({}, "/logs?tail=1"),
    ({}, "/logs?tail=100000&stream=stderr"),
    ({}, "/logs?stream=stdout"),
    (NDJSON, "/logs?stream=stdout"),
    ({}, "/logs?since=2020-01-01T00:00:00Z&stream=stderr"),
    ({}, ""),
]


async def fill(log: JobLog) -> None:
    for number in range(LONG_LOG_CHUNKS):
        log.append((Stream.STDOUT, Stream.STDERR)[number % 2], b"oe"[number % 2 :][:1], 1.7e9)


async def longest_pause(stop: threading.Event) -> float:
    """The most processor time, in seconds, that the loop's thread took for others before it came back to this task.

    Not the time of a clock: that counts what other processes of the machine do, too.
    """
    longest, last = 0.0, time.thread_time()
    while not stop.is_set():
        await asyncio.sleep(0.001)
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    return longest


@pytest.mark.thorough
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.attack(40, 46)
def test_readers_of_a_log_of_single_bytes_do_not_hold_up_the_service(
    tmp_path: Path, gate: Path, ended: bool
) -> None:
    with Service().running(tmp_path) as service, service.client() as client:
        path = start(client, f"read line < {gate}").removesuffix("/logs")
        log = service.scheduler._logs[path.rpartition("/")[2]]
        service.run(lambda: fill(log))
        if ended:
            gate.write_text("go\n")
            client.get(path, params={"wait": "20"})

        stop = threading.Event()
        with ThreadPoolExecutor(5) as threads:
            watch = threads.submit(lambda: service.run(lambda: longest_pause(stop)))
            answers = list(
                threads.map(lambda way: client.get(path + way[1], headers=way[0]), WAYS_TO_READ)
            )
            stop.set()
        if not ended:
            gate.write_text("go\n")

    assert watch.result() < 0.3
    assert len(answers[0].text.splitlines()) == LONG_LOG_CHUNKS
    assert len(events_of(answers[1].text)) == LONG_LOG_CHUNKS + 1
    assert answers[2].content == b"oe" * (LONG_LOG_CHUNKS // 2)
    assert answers[3].content == answers[6].content == b"e" * (LONG_LOG_CHUNKS // 2)
    assert answers[4].content == b"o" * (LONG_LOG_CHUNKS // 2)
    assert answers[7].json()["stdout"] == "o" * 65536
