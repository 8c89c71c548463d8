"""Values to rows and back."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Row

from sandboxd.admission import need_of
from sandboxd.jobs import (
    ApiKey,
    Artifact,
    Job,
    JobEvent,
    JobSpec,
    Reason,
    Result,
    State,
    Stream,
)
from sandboxd.quotas.tenants import Quotas
from sandboxd.steps import Step
from sandboxd.store.log_index import LogIndex
from sandboxd.store.logs import StoredLog, read_index

PAGE_BYTES = 2**20
"""A page of a list ends early when its jobs are more than this."""
LISTED_COMMAND_BYTES = 4096
_LISTED_FIXED_BYTES = 512

_to_json = msgspec.json.Encoder().encode
_to_spec = msgspec.json.Decoder(JobSpec).decode
_to_result = msgspec.json.Decoder(Result).decode
_to_quotas = msgspec.json.Decoder(Quotas).decode
_to_scopes = msgspec.json.Decoder(tuple[str, ...]).decode


class Idempotency(NamedTuple):
    """How a client marks a request that it may send twice."""

    key: str
    request_sha256: bytes


class Submitted(NamedTuple):
    """An accepted job, or the one that the same request made before (`replayed`)."""

    job: Job
    replayed: bool


class Page(NamedTuple):
    """One part of a list; `next_cursor` is None at its end."""

    items: list[Job]
    next_cursor: str | None
    shortened: frozenset[str] = frozenset()
    """Ids of those whose command is not here as a whole."""


class Deleted(NamedTuple):
    """Jobs whose records are gone, and the files of their logs: for the caller to remove."""

    job_ids: list[str]
    logs: list[Path]


class Conservation(NamedTuple):
    """What must add up: every job accepted waits, is active or has ended once."""

    accepted_total: int
    waiting: int
    active: int
    terminal_total: int

    @property
    def drift(self) -> int:
        """Jobs lost (positive) or ended twice (negative)."""
        return self.accepted_total - self.waiting - self.active - self.terminal_total


def taken_in(job: Job) -> Job:
    """A new job once it is stored: it waits."""
    return _changed(job, State.QUEUED, Reason.SUBMITTED)


def claimed_at_once(job: Job) -> Job:
    """A job that was `taken_in` and claimed in one step: attempt 1, lease token 1."""
    return _changed(job, State.STARTING, Reason.CLAIMED, attempt=1, lease_token=1)


def _changed(
    job: Job, state: State, reason: Reason, *, attempt: int = 0, lease_token: int = 0
) -> Job:
    return msgspec.structs.replace(
        job,
        state=state,
        reason=reason,
        attempt=attempt,
        lease_token=lease_token,
        sequence=job.sequence + 1,
    )


def job_values(
    job: Job, encoded_spec: bytes, *, storage_bytes: int, upload_bytes: int
) -> dict[str, Any]:
    """The row of a job that was not there before, of which so much is kept. Its input is stored apart."""
    spec = job.spec
    queue_seconds = spec.queue_seconds
    need = need_of(spec)
    return {
        "id": job.id,
        "tenant": job.tenant,
        "key_id": job.key_id,
        "state": job.state.value,
        "reason": job.reason.value,
        "priority": spec.priority,
        "memory_bytes": need.memory_bytes,
        "millicpus": need.millicpus,
        "wall_seconds": spec.limits.wall_seconds,
        "cpu_seconds": spec.limits.cpu_seconds,
        "run_at": 0.0,  # at once, also for a clock that was set back since
        "queue_until": None if queue_seconds is None else job.queued_at + queue_seconds,
        "attempt": job.attempt,
        "lease_token": job.lease_token,
        "cancel_requested": job.cancel_requested,
        "sequence": job.sequence,
        "created_at": job.created_at,
        "queued_at": job.queued_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "ttl_seconds": spec.ttl_seconds,
        "expires_at": job.expires_at,
        "request_id": job.request_id,
        "traceparent": job.traceparent,
        "retried_from": job.retried_from,
        "storage_bytes": storage_bytes,
        "upload_bytes": upload_bytes,
        "spec": encoded_spec.decode(),
        "result": None if job.result is None else encode_result(job.result).decode(),
    }


def encode_spec(spec: JobSpec) -> bytes:
    """A specification as it is stored: its input is stored apart."""
    return _to_json(without_input(spec))


def input_of(spec: JobSpec) -> bytes:
    """What the job reads, which is stored apart: its standard input, or those of its steps with what they should print."""
    if not spec.steps:
        return spec.stdin
    return _to_msgpack([_step_input(step) for step in spec.steps])


def without_input(spec: JobSpec) -> JobSpec:
    """The same specification without what is stored apart."""
    if spec.contents:
        spec = msgspec.structs.replace(spec, contents=b"")
    if spec.steps:
        steps = tuple(_with_step_input(step, _empty_input(step)) for step in spec.steps)
        return msgspec.structs.replace(spec, steps=steps)
    return msgspec.structs.replace(spec, stdin=b"") if spec.stdin else spec


def _with_input(spec: JobSpec, stored: bytes) -> JobSpec:
    if not stored:
        return spec
    if not spec.steps:
        return msgspec.structs.replace(spec, stdin=stored)
    inputs = zip(spec.steps, _to_step_inputs(stored), strict=True)
    return msgspec.structs.replace(
        spec, steps=tuple(_with_step_input(step, inside) for step, inside in inputs)
    )


_StepInput = tuple[bytes, list[tuple[bytes, bytes | None]]]
"""A step's standard input, and for each case the same with what it should print."""
_to_msgpack = msgspec.msgpack.Encoder().encode
_to_step_inputs = msgspec.msgpack.Decoder(list[_StepInput]).decode


def _step_input(step: Step) -> _StepInput:
    return step.stdin, [(case.stdin, case.expected) for case in step.cases]


def _empty_input(step: Step) -> _StepInput:
    return b"", [(b"", None if case.expected is None else b"") for case in step.cases]


def _with_step_input(step: Step, inside: _StepInput) -> Step:
    cases = tuple(
        msgspec.structs.replace(case, stdin=stdin, expected=expected)
        for case, (stdin, expected) in zip(step.cases, inside[1], strict=True)
    )
    return msgspec.structs.replace(step, stdin=inside[0], cases=cases)


def listed(job: Job) -> Job:
    """The job as lists have it: without environment, files and steps, and with the first LISTED_COMMAND_BYTES of its command."""
    command: list[str] = []
    left = LISTED_COMMAND_BYTES
    for word in job.command:
        kept = word.encode("utf-8", "surrogatepass")[:left].decode("utf-8", "ignore")
        left -= len(word.encode("utf-8", "surrogatepass")) + 1
        command.append(kept)
        if left <= 0:
            break
    spec = msgspec.structs.replace(
        job.spec, env={}, command=tuple(command), args=(), steps=(), files=(), outputs=()
    )
    result = job.result and msgspec.structs.replace(
        job.result, command=None, runs=(), artifacts_passed_over=(), changes=None
    )
    return msgspec.structs.replace(job, spec=spec, result=result)


def listed_bytes(job: Job) -> int:
    """About how much the job adds to an answer."""
    return _LISTED_FIXED_BYTES + len(_to_json(job.spec)) + len(_to_json(job.result))


def encode_result(result: Result) -> bytes:
    """A result as it is stored: artifacts and samples have rows of their own."""
    if result.artifacts or result.samples:
        result = msgspec.structs.replace(result, artifacts=(), samples=())
    return _to_json(result)


def encode_samples(result: Result) -> bytes:
    """The samples as they are stored; empty where there are none."""
    return _to_json(result.samples) if result.samples else b""


def with_input(job: Job, stored: bytes | None, contents: bytes | None) -> Job:
    """The job with what is stored apart, as far as there is any."""
    if not stored and not contents:
        return job
    spec = _with_input(job.spec, stored or b"")
    return msgspec.structs.replace(
        job, spec=msgspec.structs.replace(spec, contents=contents or b"")
    )


def has_contents(job: Job) -> bool:
    """Whether contents of files came with the request that made the job."""
    return any(file.size_bytes and file.offset is None for file in job.spec.files)


def artifact_values(job_id: str, result: Result) -> list[dict[str, Any]]:
    """The rows of a result's artifacts."""
    return [
        {
            "job_id": job_id,
            "number": number,
            "path": artifact.path,
            "size_bytes": artifact.size_bytes,
            "mode": artifact.mode,
            "sha256": artifact.sha256,
            "at_byte": artifact.offset,
        }
        for number, artifact in enumerate(result.artifacts)
    ]


def artifact_from(row: Row[Any]) -> Artifact:
    """The artifact of a row of the table `job_artifact`."""
    return Artifact(
        path=row.path,
        size_bytes=row.size_bytes,
        mode=row.mode,
        sha256=row.sha256,
        offset=row.at_byte,
    )


def job_from(row: Row[Any]) -> Job:
    """The job of a row of the table `job`."""
    return Job(
        id=row.id,
        tenant=row.tenant,
        key_id=row.key_id,
        spec=_to_spec(row.spec),
        state=State(row.state),
        reason=Reason(row.reason),
        attempt=row.attempt,
        lease_token=row.lease_token,
        created_at=row.created_at,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        expires_at=row.expires_at,
        cancel_requested=bool(row.cancel_requested),
        result=None if row.result is None else _to_result(row.result),
        request_id=row.request_id,
        traceparent=row.traceparent,
        retried_from=row.retried_from,
        sequence=row.sequence,
    )


def event_values(job: Job, at: float, message: str | None = None) -> dict[str, object]:
    """The event of the change that made the job what it is."""
    return {
        "job_id": job.id,
        "seq": job.sequence,
        "at": at,
        "state": job.state.value,
        "reason": job.reason.value,
        "attempt": job.attempt,
        "message": message,
    }


def event_from(row: Row[Any]) -> JobEvent:
    """The event of a row of the table `job_event`."""
    return JobEvent(
        seq=row.seq,
        at=row.at,
        state=State(row.state),
        reason=Reason(row.reason),
        attempt=row.attempt,
        message=row.message,
    )


def log_values(job_id: str, log: StoredLog, base: Path) -> dict[str, Any]:
    """The row of a log. A path below `base` is stored relative to it, so that the whole can be moved."""
    path = log.path
    if path is not None and path.is_relative_to(base):
        path = path.relative_to(base)
    return {
        "job_id": job_id,
        "size_bytes": log.size(),
        "stdout_truncated": log.truncated(Stream.STDOUT),
        "stderr_truncated": log.truncated(Stream.STDERR),
        "path": None if path is None else str(path),
        "entries": log.index.encode() if path is None else None,
        "body": log.body,
    }


def log_from(row: Row[Any], base: Path) -> StoredLog:
    """The log of a row of the table `job_log`.

    Raises FileNotFoundError if its file is gone.
    """
    truncated = {Stream.STDOUT: row.stdout_truncated, Stream.STDERR: row.stderr_truncated}
    path = None if row.path is None else base / row.path
    if path is None:
        index = LogIndex.decode(row.entries, row.size_bytes)
    else:
        index = read_index(path, row.size_bytes)
    return StoredLog(
        index,
        body=row.body,
        path=path,
        truncated=frozenset(stream for stream, cut in truncated.items() if cut),
    )


def key_values(key: ApiKey) -> dict[str, Any]:
    """The row of a key."""
    quotas = None if key.quotas is None else _to_json(key.quotas).decode()
    return msgspec.structs.asdict(key) | {
        "scopes": _to_json(key.scopes).decode(),
        "quotas": quotas,
    }


def key_from(row: Row[Any]) -> ApiKey:
    """The key of a row of the table `api_key`."""
    quotas = None if row.quotas is None else _to_quotas(row.quotas)
    return ApiKey(**{**row._mapping, "scopes": _to_scopes(row.scopes), "quotas": quotas})
