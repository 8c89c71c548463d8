"""The steps of a job over HTTP: as they stand, or each run as it ends."""

from collections.abc import AsyncIterator

from starlette.responses import Response

from sandboxd.api.answers import encode, json_answer
from sandboxd.api.key_watch import KeyedStream
from sandboxd.api.log_reader import HEARTBEAT_SECONDS, ReadableLog
from sandboxd.api.parts import Call
from sandboxd.api.schemas import StepList
from sandboxd.api.sse import comment, event, parse_last_event_id
from sandboxd.api.step_views import run_event_view, step_views
from sandboxd.api.streams import SSE, end_view
from sandboxd.errors import NotFound
from sandboxd.jobs import TERMINAL, WAITING, Job

JSON = "application/json"
OFFERED = (JSON, SSE)


async def steps(call: Call) -> Response:
    """GET /v1/jobs/{job_id}/steps"""
    query = call.query.reader()
    follow = query.flag("follow") and call.scope["method"] != "HEAD"
    query.done()
    job = await call.parts.store.get(call.tenant, call.parameters["job_id"], with_stdin=False)
    if call.media_type == SSE:
        last = parse_last_event_id(call.header(b"last-event-id"))
        seen = 0 if last is None else last.offset
        headers = {"X-Accel-Buffering": "no"}
        return KeyedStream(call, _events(call, job, seen, follow), headers=headers, media_type=SSE)
    runs = call.parts.progress.runs(job)
    return json_answer(StepList(data=await step_views(job.spec.steps, runs, await _log(call, job))))


async def _events(call: Call, job: Job, seen: int, follow: bool) -> AsyncIterator[bytes]:
    """One event for each run; its id is how many there were until then. Another attempt begins anew."""
    attempt = job.attempt
    while True:
        if job.attempt != attempt:
            attempt, seen = job.attempt, 0
        log = await _log(call, job)
        for run in call.parts.progress.runs(job)[seen:]:
            seen += 1
            yield event("run", str(seen), encode(await run_event_view(job.spec.steps, run, log)))
        if job.state in TERMINAL or not follow:
            break
        job = await call.parts.progress.wait_run(call.tenant, job.id, seen, HEARTBEAT_SECONDS)
        yield comment("waiting")
    yield event("end", f"{seen}-end", encode(end_view(job)))


async def _log(call: Call, job: Job) -> ReadableLog | None:
    if job.state in WAITING:
        return None
    try:
        return await call.parts.progress.log(call.tenant, job.id)
    except NotFound:
        return None
