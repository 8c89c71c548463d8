"""Both clients on connections that break and services that say "later"."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from scripted_service import answer, broken_stream, scripted_service

from sandboxd.client import AsyncClient, Client, ClientError, ConnectionFailed, Job, LogChunk

JOB = {
    "id": "job_1",
    "state": "succeeded",
    "reason": "exited",
    "image": "host",
    "command": ["true"],
    "created_at": "2026-01-31T12:00:00.000Z",
    "queued_at": "2026-01-31T12:00:00.000Z",
    "stdout": {"base64": "/w=="},
}
ENDED = answer(json.dumps(JOB))
LATER = answer("", "Retry-After: 0", status="503 Service Unavailable")
HANG_UP = b""
END_OF_LOG = "event: end\nid: 6-end\ndata: {}\n\n"


def log_event(text: str, start: int) -> str:
    record = {"time": "2026-01-31T12:00:00Z", "stream": "stdout", "offset": start, "data": text}
    return f"event: log\nid: {start + len(text)}\ndata: {json.dumps(record)}\n\n"


def submit_with_threads(url: str) -> Job:
    with Client(url) as client:
        return client.submit(["true"])


def submit_with_asyncio(url: str) -> Job:
    async def submit() -> Job:
        async with AsyncClient(url) as client:
            return await client.submit(["true"])

    return asyncio.run(submit())


def logs_with_threads(url: str) -> list[LogChunk]:
    with Client(url) as client:
        return list(client.logs("job_1", follow=True))


def logs_with_asyncio(url: str) -> list[LogChunk]:
    async def collect() -> list[LogChunk]:
        async with AsyncClient(url) as client:
            pieces: AsyncIterator[LogChunk] = client.logs("job_1", follow=True)
            return [piece async for piece in pieces]

    return asyncio.run(collect())


submit_with_both = pytest.mark.parametrize("submit", [submit_with_threads, submit_with_asyncio])
logs_with_both = pytest.mark.parametrize("logs", [logs_with_threads, logs_with_asyncio])


def idempotency_keys(heard: list[str]) -> set[str]:
    lines = [line for head in heard for line in head.lower().split("\r\n")]
    return {line for line in lines if line.startswith("idempotency-key:")}


@submit_with_both
def test_a_submission_survives_a_hang_up_and_a_busy_service_under_one_key(
    submit: Callable[[str], Job],
) -> None:
    with scripted_service(HANG_UP, LATER, ENDED) as service:
        job = submit(service.url)

    assert job.id == "job_1"
    assert len(service.heard) == 3
    assert len(idempotency_keys(service.heard)) == 1


@submit_with_both
def test_bytes_that_are_no_text_come_back_unharmed(submit: Callable[[str], Job]) -> None:
    with scripted_service(ENDED) as service:
        job = submit(service.url)

    assert job.stdout == b"\xff"
    assert job.text == "\N{REPLACEMENT CHARACTER}"


@submit_with_both
def test_nobody_there_is_told_with_the_address(submit: Callable[[str], Job]) -> None:
    with pytest.raises(ConnectionFailed, match=r"http://127\.0\.0\.1:1"):
        submit("http://127.0.0.1:1")


@logs_with_both
def test_a_log_is_whole_although_its_connection_broke(
    logs: Callable[[str], list[LogChunk]],
) -> None:
    first = broken_stream(log_event("abc", 0))
    second = broken_stream(log_event("def", 3), END_OF_LOG)
    with scripted_service(first, HANG_UP, LATER, second) as service:
        pieces = logs(service.url)

    assert b"".join(piece.data for piece in pieces) == b"abcdef"
    assert "last-event-id" not in service.heard[0].lower()
    assert all("last-event-id: 3" in head.lower() for head in service.heard[1:])


@logs_with_both
def test_a_log_that_had_ended_before_the_connection_broke_is_at_its_end(
    logs: Callable[[str], list[LogChunk]],
) -> None:
    no_content = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    with scripted_service(broken_stream(log_event("abc", 0)), no_content) as service:
        pieces = logs(service.url)

    assert [piece.data for piece in pieces] == [b"abc"]


@logs_with_both
def test_something_else_than_a_log_is_given_up(logs: Callable[[str], list[LogChunk]]) -> None:
    page = answer("<html>", "Content-Type: text/html")
    with scripted_service(*[page] * 5) as service, pytest.raises(ClientError):
        logs(service.url)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("url", ["localhost:8080", "ftp://host", ""])
def test_an_address_that_is_none_is_refused_at_once(kind: Callable[[str], Any], url: str) -> None:
    with pytest.raises(ClientError, match="http://HOST:PORT"):
        kind(url)
