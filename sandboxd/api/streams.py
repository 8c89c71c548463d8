"""A job's output over HTTP: raw bytes, NDJSON and server-sent events, of a log that may still grow.

Nobody waits for a reader: each reads from the log by offset, at its own pace, and sleeps until there is more. One
that takes nothing is dropped (`connections`).
"""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.responses import Response, StreamingResponse

from sandboxd.api.answers import encode, no_content
from sandboxd.api.key_watch import KeyedStream
from sandboxd.api.log_reader import (
    HEARTBEAT_SECONDS,
    Piece,
    ReadableLog,
    contents,
    offset_of_tail,
    offset_since,
    part_by_part,
    pieces,
)
from sandboxd.api.parts import Call
from sandboxd.api.query import rfc3339
from sandboxd.api.ranges import requested_range
from sandboxd.api.schemas import EndView, LogRecord
from sandboxd.api.sse import LastEvent, comment, event, parse_last_event_id
from sandboxd.api.views import exit_view
from sandboxd.errors import NotFound
from sandboxd.jobs import ACTIVE, TERMINAL, WAITING, Job, Stream
from sandboxd.store.log_index import LogIndex
from sandboxd.store.logs import StoredLog

MAX_TAIL_LINES = 100_000

TEXT = "text/plain"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
RAW = "application/octet-stream"
OFFERED = (TEXT, NDJSON, SSE, RAW)

_UNBUFFERED = {"X-Accel-Buffering": "no"}
_EMPTY = StoredLog(LogIndex(), body=b"")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """Which part of the log, and whether to stay for more."""

    stream: Stream | None
    follow: bool
    tail: int | None
    since: float | None

    @property
    def partial(self) -> bool:
        return self.tail is not None or self.since is not None


async def logs(call: Call) -> Response:
    """GET /v1/jobs/{job_id}/logs"""
    media_type = call.media_type
    wish = _read_wish(call)
    job = await call.parts.store.get(call.tenant, call.parameters["job_id"], with_stdin=False)
    if media_type == SSE:
        last = parse_last_event_id(call.header(b"last-event-id"))
        if last is not None and last.ended and (job.state in TERMINAL or not wish.follow):
            return no_content()  # tells an EventSource to stop coming back
        return KeyedStream(call, _sse(call, job, wish, last), headers=_UNBUFFERED, media_type=SSE)
    if media_type == NDJSON:
        return KeyedStream(call, _ndjson(call, job, wish), headers=_UNBUFFERED, media_type=NDJSON)
    if wish.follow or wish.partial:
        return KeyedStream(call, _raw(call, job, wish), headers=_UNBUFFERED, media_type=media_type)
    return await _raw_file(call, job, wish.stream, media_type)


def _read_wish(call: Call) -> Wish:
    query = call.query.reader()
    wish = Wish(
        stream=query.stream("stream"),
        follow=query.flag("follow") and call.scope["method"] != "HEAD",
        tail=query.integer("tail", least=0, most=MAX_TAIL_LINES),
        since=query.time("since"),
    )
    query.done()
    return wish


async def _raw_file(call: Call, job: Job, stream: Stream | None, media_type: str) -> Response:
    """What is there now, with Range (RFC 9110, 14)."""
    log = await _log_of(call, job)
    size = log.size(stream)
    part, status, headers = requested_range(call.header(b"range"), size, "log")
    headers["Content-Length"] = str(part.end - part.start)
    return StreamingResponse(
        part_by_part(log, stream, part.start, part.end),
        status_code=status,
        headers=headers,
        media_type=media_type,
    )


async def _raw(call: Call, job: Job, wish: Wish) -> AsyncIterator[bytes]:
    job = await _started(call, job, wish)
    log = await _log_of(call, job, follow=wish.follow)
    offset = await _first_offset(log, wish)
    async for content in contents(log, offset, stream=wish.stream, follow=wish.follow):
        yield content


async def _ndjson(call: Call, job: Job, wish: Wish) -> AsyncIterator[bytes]:
    job = await _started(call, job, wish)
    async for batch in _pieces(call, job, wish, offset=None):
        if batch:
            yield b"".join(encode(_record(piece)) + b"\n" for piece in batch)


async def _sse(call: Call, job: Job, wish: Wish, last: LastEvent | None) -> AsyncIterator[bytes]:
    """Events until the job has ended, or only what is there. A further attempt begins anew at offset 0."""
    offset = last.offset if last else None
    while True:
        while _must_start(job, wish):
            yield comment("waiting to start")
            job = await _wait_started(call, job)
        attempt, reached = job.attempt, 0
        async for batch in _pieces(call, job, wish, offset=offset):
            if batch:
                reached = batch[-1].end
                yield b"".join(log_event(piece) for piece in batch)
            else:
                yield comment("waiting")
        job = await call.parts.store.get(call.tenant, job.id, with_stdin=False)
        while wish.follow and job.state not in TERMINAL:
            job = await call.parts.progress.wait(call.tenant, job.id, HEARTBEAT_SECONDS)
            yield comment("ending")
        if job.attempt == attempt or not wish.follow:
            break
        offset = 0
    yield event("end", f"{reached}-end", encode(end_view(job)))


async def _pieces(
    call: Call, job: Job, wish: Wish, *, offset: int | None
) -> AsyncIterator[list[Piece]]:
    """What the client wished for, from `offset` if it has been here before."""
    log = await _log_of(call, job, follow=wish.follow)
    if offset is None or offset > log.size():  # beyond the end: it is of another attempt
        offset = await _first_offset(log, wish)
    async for batch in pieces(
        log, offset, stream=wish.stream, follow=wish.follow, whole_characters=True
    ):
        yield batch


async def _first_offset(log: ReadableLog, wish: Wish) -> int:
    offset = 0 if wish.since is None else offset_since(log, wish.since)
    if wish.tail is not None:
        offset = max(offset, await offset_of_tail(log, wish.stream, wish.tail))
    return offset


async def _started(call: Call, job: Job, wish: Wish) -> Job:
    while _must_start(job, wish):
        job = await _wait_started(call, job)
    return job


def _must_start(job: Job, wish: Wish) -> bool:
    return wish.follow and job.state in WAITING


async def _wait_started(call: Call, job: Job) -> Job:
    return await call.parts.progress.wait_started(call.tenant, job.id, HEARTBEAT_SECONDS)


async def _log_of(call: Call, job: Job, *, follow: bool = False) -> ReadableLog:
    if job.state in WAITING:
        return _EMPTY
    while True:
        try:
            return await call.parts.progress.log(call.tenant, job.id)
        except NotFound:
            if not follow or job.state not in ACTIVE:
                return _EMPTY  # it never started, or wrote nothing
        # It was claimed this moment: its log is about to be there.
        job = await _wait_started(call, job)


def _record(piece: Piece) -> LogRecord:
    time, stream = rfc3339(piece.time), piece.stream
    try:
        text = piece.content.decode("utf-8")
    except UnicodeDecodeError:
        encoded = base64.b64encode(piece.content).decode("ascii")
        return LogRecord(time=time, stream=stream, offset=piece.offset, base64=encoded)
    return LogRecord(time=time, stream=stream, offset=piece.offset, data=text)


def log_event(piece: Piece) -> bytes:
    return event("log", str(piece.end), encode(_record(piece)))


def end_view(job: Job) -> EndView:
    """The last event of a stream: how the job stands."""
    return EndView(
        state=job.state,
        reason=job.reason,
        attempt=job.attempt,
        exit=exit_view(job.result.exit) if job.result else None,
    )
