"""Jobs over HTTP: submit, list, show, wait, cancel, retry, delete, events."""

import asyncio
import hashlib
import time
from http import HTTPStatus

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from sandboxd.api.answers import json_answer, list_answer, no_content
from sandboxd.api.body import parse_json, read_body, require_json
from sandboxd.api.conversion import read_struct
from sandboxd.api.hanging_up import while_connected
from sandboxd.api.headers import (
    Preference,
    etag_matches,
    parse_idempotency_key,
    parse_prefer,
)
from sandboxd.api.images import image_at_hand
from sandboxd.api.log_reader import ReadableLog
from sandboxd.api.output import Output, output_of
from sandboxd.api.parts import Call
from sandboxd.api.query import DEFAULT_PAGE, MAX_PAGE
from sandboxd.api.schemas import (
    CancelRequest,
    EmptyRequest,
    JobList,
    StepView,
    StreamsView,
    StreamView,
)
from sandboxd.api.step_views import step_views
from sandboxd.api.tenants import check_allowed
from sandboxd.api.uploads import FORM, TAR, Upload, brings_files, received
from sandboxd.api.validate import invalid, job_spec_of
from sandboxd.api.views import dry_run_view, event_view, job_view, listed_view, sample_view
from sandboxd.errors import Conflict, Fault, Invalid, NotFound
from sandboxd.ids import new_id
from sandboxd.jobs import ACTIVE, TERMINAL, WAITING, Job, JobSpec, Reason, State
from sandboxd.quotas.limits import LimitsAsked, settle
from sandboxd.scheduling.scheduler import Waits
from sandboxd.store.logs import remove_log
from sandboxd.store.records import Idempotency

RETRY_AFTER_SECONDS = 1
MAX_SMALL_BODY_BYTES = 64 * 2**10
"""Of requests that carry no input."""
_NO_OUTPUT = Output(
    "",
    "",
    StreamsView(
        stdout=StreamView(size_bytes=0, inline_bytes=0, truncated=False),
        stderr=StreamView(size_bytes=0, inline_bytes=0, truncated=False),
    ),
)


async def submit(call: Call) -> Response:
    """POST /v1/jobs"""
    query = call.query.reader()
    dry_run = query.flag("dry_run")
    query.done()
    idempotency_key = parse_idempotency_key(call.header(b"idempotency-key"))
    if brings_files(call):
        job_id = new_id("job")
        async with received(call, job_id) as upload:
            idempotency = _idempotency(idempotency_key, b"upload", upload.digest)
            return await _submit(call, upload.request, idempotency, dry_run, (job_id, upload))
    require_json(call.scope, or_else=(FORM, TAR))
    max_bytes = call.parts.settings.max_body_bytes
    body = await read_body(call.scope, call.receive, max_bytes=max_bytes)
    idempotency = _idempotency(idempotency_key, b"submit", body)
    return await _submit(call, parse_json(body), idempotency, dry_run)


def _check_allowed(call: Call, spec: JobSpec) -> None:
    """Raises NotAllowed."""
    check_allowed(call, image=spec.image, network_mode=spec.network.mode, runtime=spec.runtime)


async def _submit(
    call: Call,
    request: object,
    idempotency: Idempotency | None,
    dry_run: bool,
    uploaded: tuple[str, Upload] | None = None,
) -> Response:
    """`uploaded`: the job's id, under which there are files already."""
    parts = call.parts
    spec = job_spec_of(
        request,
        defaults=parts.limits,
        ceilings=parts.ceilings,
        check=parts.check,
        command_of=lambda name, args: parts.images.command_of(name, args, call.tenant),
        uploaded=uploaded[1].files if uploaded else (),
        own_ceilings=parts.tenants.of(call.tenant).ceilings,
        images=parts.image_settings,
    )
    _check_allowed(call, spec)
    image = await image_at_hand(call, spec.image, spec.pull)
    if dry_run:
        return json_answer(dry_run_view(spec, image))
    return await _accept(call, spec, idempotency, uploaded=uploaded)


async def retry(call: Call) -> Response:
    """POST /v1/jobs/{job_id}/retry"""
    idempotency_key = parse_idempotency_key(call.header(b"idempotency-key"))
    body = await _read_optional_body(call)
    _, faults = read_struct(parse_json(body) if body else {}, EmptyRequest)
    if faults:
        raise invalid(faults)
    former = await call.parts.store.get(call.tenant, call.parameters["job_id"])
    if former.spec.has_upload:
        raise Conflict(
            "The files that were uploaded for this job went with its end: send them again.",
            code="upload_gone",
        )
    _check_allowed(call, former.spec)
    await image_at_hand(call, former.spec.image, former.spec.pull)
    spec, faults = _within_ceilings(call, former.spec)
    if faults := [*faults, *call.parts.check(spec)]:
        raise Invalid("This job can no longer be run.", tuple(faults))
    idempotency = _idempotency(idempotency_key, b"retry", former.id.encode())
    return await _accept(call, spec, idempotency, retried_from=former.id)


def _within_ceilings(call: Call, spec: JobSpec) -> tuple[JobSpec, list[Fault]]:
    """A job that was accepted once, as it may run now, and what it may not ask for any more.

    Its record does not tell what it asked for: what is no default was asked for.
    """
    parts, limits = call.parts, msgspec.structs.asdict(spec.limits)
    asked = {name: value for name, value in limits.items() if value != getattr(parts.limits, name)}
    own_ceilings = parts.tenants.of(call.tenant).ceilings
    settled, faults = settle(LimitsAsked(**asked), parts.limits, parts.ceilings, own_ceilings)
    return msgspec.structs.replace(spec, limits=settled), faults


async def show(call: Call) -> Response:
    """GET /v1/jobs/{job_id}"""
    query = call.query.reader()
    wait_seconds = query.seconds("wait")
    query.done()
    job_id = call.parameters["job_id"]
    if wait_seconds:
        timeout_seconds = min(wait_seconds, call.parts.settings.max_wait_seconds)
        waiting = call.parts.progress.wait(call.tenant, job_id, timeout_seconds)
        job = await while_connected(call, waiting)
    else:
        job = await call.parts.store.get(call.tenant, job_id, with_stdin=False)
    log = await _log_of(call, job)
    waits = await call.parts.scheduler.waits(job) if job.state in WAITING else None
    etag = _etag(job, log, waits)
    if etag_matches(call.header(b"if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    view = job_view(job, await _output(job, log), steps=await _steps(call, job, log), waits=waits)
    return json_answer(view, headers=headers)


async def list_(call: Call) -> Response:
    """GET /v1/jobs"""
    query = call.query.reader()
    states = query.states("state")
    labels = query.labels("label.")
    since, until = query.time("since"), query.time("until")
    limit = query.integer("limit", least=1, most=MAX_PAGE) or DEFAULT_PAGE
    cursor = query.cursor("cursor")
    query.done()
    page = await call.parts.store.list_jobs(
        call.tenant,
        states=states,
        labels=labels,
        since=since,
        until=until,
        limit=limit,
        cursor=cursor,
    )
    answer = JobList(
        data=[listed_view(job, shortened=job.id in page.shortened) for job in page.items],
        next_cursor=page.next_cursor,
        has_more=page.next_cursor is not None,
    )
    return json_answer(answer, headers=call.query.next_page("/v1/jobs", page.next_cursor))


async def cancel(call: Call) -> Response:
    """POST /v1/jobs/{job_id}/cancel"""
    body = await _read_optional_body(call)
    request, faults = read_struct(parse_json(body) if body else {}, CancelRequest)
    if faults:
        raise invalid(faults)
    job = await call.parts.scheduler.cancel(
        call.tenant,
        call.parameters["job_id"],
        grace_seconds=request.grace_seconds,
        message=request.reason,
    )
    status = HTTPStatus.OK if job.state in TERMINAL else HTTPStatus.ACCEPTED
    return json_answer(job_view(job), status)


async def delete(call: Call) -> Response:
    """DELETE /v1/jobs/{job_id}"""
    job_id = call.parameters["job_id"]
    log_path = await call.parts.store.delete(call.tenant, job_id)

    def remove_files() -> None:
        call.parts.artifacts.remove([job_id])
        if log_path is not None:
            remove_log(log_path)

    await asyncio.to_thread(remove_files)
    return no_content()


async def events(call: Call) -> Response:
    """GET /v1/jobs/{job_id}/events"""
    found = await call.parts.store.events(call.tenant, call.parameters["job_id"])
    return list_answer([event_view(event) for event in found])


async def stats(call: Call) -> Response:
    """GET /v1/jobs/{job_id}/stats"""
    samples = await call.parts.progress.samples(call.tenant, call.parameters["job_id"])
    return list_answer([sample_view(sample) for sample in samples])


async def _accept(
    call: Call,
    spec: JobSpec,
    idempotency: Idempotency | None,
    *,
    retried_from: str | None = None,
    uploaded: tuple[str, Upload] | None = None,
) -> Response:
    """Have the job written down, wait for its end as far as the client wants to, and answer."""
    now = time.time()
    job = Job(
        id=uploaded[0] if uploaded else new_id("job"),
        tenant=call.tenant,
        key_id=call.principal.key_id,
        spec=spec,
        state=State.QUEUED,
        reason=Reason.SUBMITTED,
        created_at=now,
        queued_at=now,
        request_id=call.request_id,
        traceparent=call.traceparent,
        retried_from=retried_from,
    )
    preference = parse_prefer(call.header(b"prefer"))
    patience = 0.0 if preference.respond_async else preference.wait_seconds or 0.0
    submitted = await call.parts.scheduler.submit(
        job, idempotency=idempotency, client_waits=patience > 0
    )
    if uploaded and not submitted.replayed:
        uploaded[1].accepted = spec.has_upload
    job = submitted.job
    call.scope["state"]["job_id"] = job.id
    headers = {"Location": f"/v1/jobs/{job.id}"}
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    if patience and job.state not in TERMINAL:
        timeout_seconds = min(patience, call.parts.settings.max_wait_seconds)
        job = await _wait_or_cancel(call, job, timeout_seconds, own=not submitted.replayed)
    return await _submitted_answer(call, job, preference, headers)


async def _submitted_answer(
    call: Call, job: Job, preference: Preference, headers: dict[str, str]
) -> Response:
    if preference.respond_async:
        headers["Preference-Applied"] = "respond-async"
    elif preference.wait_seconds and job.state in TERMINAL:
        headers["Preference-Applied"] = "wait"
        log = await _log_of(call, job)
        view = job_view(job, await _output(job, log), steps=await _steps(call, job, log))
        return json_answer(view, HTTPStatus.OK, headers)
    headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    view = job_view(job, steps=await _steps(call, job, None))
    return json_answer(view, HTTPStatus.ACCEPTED, headers)


async def _wait_or_cancel(call: Call, job: Job, timeout_seconds: float, *, own: bool) -> Job:
    """The job at its end or at the timeout. If the client hangs up first, the job is cancelled.

    Not so if the client said otherwise, or if the job is another request's (a replay).
    """
    try:
        waiting = call.parts.progress.wait(call.tenant, job.id, timeout_seconds)
        return await while_connected(call, waiting)
    except ClientDisconnect:
        keep = call.header(b"sandboxd-on-disconnect").strip().lower() == "continue"
        if own and not keep:
            await call.parts.scheduler.cancel(
                call.tenant,
                job.id,
                grace_seconds=0,
                message="the client hung up",
                reason=Reason.CLIENT_GONE,
            )
        raise


async def _log_of(call: Call, job: Job) -> ReadableLog | None:
    if job.state in WAITING:
        return None
    try:
        return await call.parts.progress.log(call.tenant, job.id)
    except NotFound:
        return None  # it never started, or wrote nothing


async def _output(job: Job, log: ReadableLog | None) -> Output | None:
    if log is not None:
        return await output_of(log)
    return _NO_OUTPUT if job.state in TERMINAL else None


async def _steps(call: Call, job: Job, log: ReadableLog | None) -> list[StepView] | None:
    if not job.spec.steps:
        return None
    return await step_views(job.spec.steps, call.parts.progress.runs(job), log)


def _etag(job: Job, log: ReadableLog | None, waits: Waits | None) -> str:
    """The row's sequence; while the job waits, also its place and why; while it writes, also how much it wrote."""
    waiting = "" if waits is None else f"-{waits.position}-{waits.reason}"
    written = f"-{log.size()}" if log is not None and job.state in ACTIVE else ""
    return f'"{job.sequence}{waiting}{written}"'


async def _read_optional_body(call: Call) -> bytes:
    body = await read_body(call.scope, call.receive, max_bytes=MAX_SMALL_BODY_BYTES)
    if body:
        require_json(call.scope)
    return body


def _idempotency(key: str | None, operation: bytes, request: bytes) -> Idempotency | None:
    if key is None:
        return None
    digest = hashlib.sha256(operation + b"\0" + request).digest()
    return Idempotency(key=key, request_sha256=digest)
