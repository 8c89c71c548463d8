"""What changes a job. Each function is one step of a transaction; every engine shares them.

Every change that a client can see raises the job's `sequence` by one and leaves an event of that number. Who works on
a job proves with its lease token that it is still the one who may (`_HELD`): a stale lease changes nothing.
"""

from pathlib import Path

import msgspec
from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    delete,
    func,
    insert,
    null,
    select,
    update,
)

from sandboxd.errors import Conflict, Invalid, NotFound
from sandboxd.jobs import (
    ACTIVE,
    TERMINAL,
    WAITING,
    Component,
    Job,
    JobError,
    Reason,
    Result,
    State,
    Usage,
)
from sandboxd.quotas.tenants import Bounds, Holder, Whose
from sandboxd.store import outbox, storage, tables, tenants
from sandboxd.store.logs import StoredLog
from sandboxd.store.prepared import Prepared
from sandboxd.store.records import (
    Idempotency,
    Submitted,
    artifact_values,
    claimed_at_once,
    encode_result,
    encode_samples,
    event_values,
    job_from,
    job_values,
    log_values,
    taken_in,
)

IDEMPOTENCY_SECONDS = 86_400.0
"""How long a repeated request is recognised."""

_job = tables.job
_event = tables.job_event
_idempotency = tables.idempotency

_HELD = and_(
    _job.c.id == bindparam("of_job"),
    _job.c.lease_token == bindparam("token"),
    tables.state_in(ACTIVE),
)
_JOB = Prepared(select(_job).where(_job.c.id == bindparam("of_job")))
_INSERT_JOB = Prepared(insert(_job))
_INSERT_STDIN = Prepared(insert(tables.job_stdin))
_INSERT_CONTENTS = Prepared(insert(tables.job_contents))
_INSERT_STATS = Prepared(insert(tables.job_stats))
_INSERT_ARTIFACT = Prepared(insert(tables.job_artifact))
_INSERT_LABEL = Prepared(insert(tables.job_label))
_INSERT_EVENT = Prepared(insert(_event))
_INSERT_LOG = Prepared(insert(tables.job_log))
_OF_KEY = and_(
    _idempotency.c.tenant == bindparam("of_tenant"), _idempotency.c.key == bindparam("of_key")
)
_FORMER = Prepared(select(_idempotency).where(_OF_KEY))
_FORGET = Prepared(delete(_idempotency).where(_OF_KEY))
_REMEMBER = Prepared(insert(_idempotency))
_COUNT = Prepared(
    update(tables.job_total)
    .where(tables.job_total.c.name == bindparam("of_name"))
    .values(value=tables.job_total.c.value + 1)
)


def submit(
    connection: Connection,
    job: Job,
    idempotency: Idempotency | None,
    claim_owner: str | None,
    bounds: Bounds | None = None,
) -> Submitted:
    """Accept a job; with `claim_owner` it is theirs at once, as if they had claimed it.

    Raises Invalid or Conflict where the idempotency key stands for something else, QuotaExceeded.
    """
    if idempotency is not None:
        former = _remembered(connection, job, idempotency)
        if former is not None:
            return Submitted(former, replayed=True)
    coming = storage.incoming(job.spec)
    # Before anything is changed: a refusal must not cost those that share its commit theirs.
    if bounds is not None:
        tenants.check(connection, job, bounds, waits=claim_owner is None, now=job.created_at)
        if bounds.tenant.storage_bytes:
            storage.check(connection, job, coming, bounds.tenant.storage_bytes)
    if idempotency is not None:
        _remember(connection, job, idempotency)
    job = taken_in(job)
    events = [event_values(job, job.created_at)]
    if claim_owner is not None:
        job = claimed_at_once(job)
        events.append(event_values(job, job.queued_at))
    values = job_values(
        job, coming.spec, storage_bytes=coming.all_bytes, upload_bytes=coming.upload_bytes
    )
    _INSERT_JOB.execute(connection, values | {"lease_owner": claim_owner})
    _INSERT_EVENT.execute_each(connection, events)
    _COUNT.execute(connection, {"of_name": "accepted"})
    if coming.stdin:
        _INSERT_STDIN.execute(connection, {"job_id": job.id, "stdin": coming.stdin})
    if job.spec.contents:
        _INSERT_CONTENTS.execute(connection, {"job_id": job.id, "contents": job.spec.contents})
    if job.spec.labels:
        labels = job.spec.labels.items()
        _INSERT_LABEL.execute_each(
            connection,
            [{"job_id": job.id, "name": name, "value": value} for name, value in labels],
        )
    return Submitted(job, replayed=False)


def _remembered(connection: Connection, job: Job, idempotency: Idempotency) -> Job | None:
    """The job of an earlier request with this key. Raises Invalid, Conflict."""
    former = _FORMER.row(connection, {"of_tenant": job.tenant, "of_key": idempotency.key})
    if former is None or former.created_at <= job.created_at - IDEMPOTENCY_SECONDS:
        return None
    if former.request_sha256 != idempotency.request_sha256:
        raise Invalid(
            "this idempotency key was used with another request", code="idempotency_key_reused"
        )
    row = _JOB.row(connection, {"of_job": former.job_id})
    if row is None:
        raise Conflict(
            f"this request made {former.job_id}, whose record was deleted",
            code="idempotency_job_deleted",
        )
    return job_from(row)


def _remember(connection: Connection, job: Job, idempotency: Idempotency) -> None:
    """This request's key stands for this job, and no longer for one that it stood for too long ago."""
    _FORGET.execute(connection, {"of_tenant": job.tenant, "of_key": idempotency.key})
    values = {"tenant": job.tenant, "job_id": job.id, "created_at": job.created_at}
    _REMEMBER.execute(connection, values | idempotency._asdict())


_MARK_RUNNING = Prepared(
    update(_job)
    .where(_HELD, _job.c.state == State.STARTING.value)
    .values(
        state=State.RUNNING.value,
        reason=Reason.STARTED.value,
        started_at=bindparam("at"),
        sequence=_job.c.sequence + 1,
    )
    .returning(*_job.c)
)


def mark_running(connection: Connection, job_id: str, lease_token: int, started_at: float) -> None:
    """Note that the command started. Nothing happens if the lease is stale or the job is known to run."""
    key = {"of_job": job_id, "token": lease_token}
    row = _MARK_RUNNING.row(connection, key | {"at": started_at})
    if row is not None:
        _INSERT_EVENT.execute(connection, event_values(job_from(row), started_at))


_NOTE_START = Prepared(
    update(_job)
    .where(_HELD, _job.c.state == State.STARTING.value)
    .values(reason=bindparam("to_reason"), sequence=_job.c.sequence + 1)
    .returning(*_job.c)
)


def note_start(
    connection: Connection, job_id: str, lease_token: int, reason: Reason, message: str, now: float
) -> None:
    """Note how far a job that starts has come. Nothing happens if the lease is stale."""
    values = {"of_job": job_id, "token": lease_token, "to_reason": reason.value}
    row = _NOTE_START.row(connection, values)
    if row is not None:
        event = event_values(job_from(row), now) | {"message": message}
        _INSERT_EVENT.execute(connection, event)


_RECORD_START = Prepared(
    insert(_event).from_select(
        ["job_id", "seq", "at", "state", "reason", "attempt", "message"],
        select(
            _job.c.id,
            _job.c.sequence + 1,
            bindparam("at"),
            bindparam("state", State.RUNNING.value),
            bindparam("reason", Reason.STARTED.value),
            _job.c.attempt,
            null(),
        ).where(_HELD, _job.c.state == State.STARTING.value),
    )
)
_END_VALUES = {
    "state": bindparam("to_state"),
    "reason": bindparam("to_reason"),
    "result": bindparam("to_result"),
    "finished_at": bindparam("at"),
    "expires_at": _job.c.ttl_seconds + bindparam("at"),
    "storage_bytes": _job.c.storage_bytes - _job.c.upload_bytes + bindparam("left_bytes"),
}
_FINISH = Prepared(
    update(_job)
    .where(_HELD)
    .values(
        **_END_VALUES,
        started_at=func.coalesce(bindparam("started_at"), _job.c.started_at),
        sequence=_job.c.sequence + bindparam("changes"),
    )
    .returning(*_job.c)
)


def finish(
    connection: Connection,
    job_id: str,
    lease_token: int,
    result: Result,
    log: StoredLog,
    finished_at: float,
    log_base: Path,
    bounds: Bounds | None = None,
) -> tuple[Job, StoredLog] | None:
    """End a job for good, with its log. None: the lease was lost, and nothing was written.

    Where its key has quotas of its own (`bounds`), its use is counted for the key, too. Of log and artifacts is kept what
    fits into what its tenant may store: the job and the log are returned as they are kept.
    """
    if bounds is not None and bounds.tenant.storage_bytes:
        most_bytes = bounds.tenant.storage_bytes
        result, log = storage.fitting(connection, job_id, result, log, most_bytes)
    key = {"of_job": job_id, "token": lease_token}
    changes = 1
    if result.started_at is not None:
        # A short job was not marked as running on the way: that would have cost a commit of its own.
        changes += _RECORD_START.execute(connection, key | {"at": result.started_at})
    samples = encode_samples(result)
    files_bytes = sum(artifact.size_bytes for artifact in result.artifacts)
    end = _end_values(result, finished_at, log.kept_bytes + files_bytes + len(samples))
    values = {"started_at": result.started_at, "changes": changes}
    row = _FINISH.row(connection, key | values | end)
    if row is None:
        return None
    if not log.empty:
        _INSERT_LOG.execute(connection, log_values(job_id, log, log_base))
    if result.artifacts:
        _INSERT_ARTIFACT.execute_each(connection, artifact_values(job_id, result))
    if samples:
        _INSERT_STATS.execute(connection, {"job_id": job_id, "samples": samples})
    job = msgspec.structs.replace(job_from(row), result=result)
    _count_use(connection, job, result, bounds, finished_at)
    return _ended(connection, job, finished_at), log


def _count_use(
    connection: Connection, job: Job, result: Result, bounds: Bounds | None, now: float
) -> None:
    """Add what a job used to the hour of its tenant and of its key, and tell of what that makes."""
    use = tenants.Use(
        cpu_seconds=result.usage.cpu_seconds or 0.0,
        memory_byte_seconds=job.spec.limits.memory_bytes * result.usage.wall_seconds,
    )
    tenants.add_use(connection, Whose(Holder.TENANT, job.tenant), now, use)
    if bounds is None:
        return
    if bounds.key is not None and job.key_id is not None:
        tenants.add_use(connection, Whose(Holder.KEY, job.key_id), now, use)
    if bounds.tells:
        outbox.note_thresholds(connection, job.tenant, bounds.tenant, now)


_RETRY = Prepared(
    update(_job)
    .where(_HELD)
    .values(
        state=State.RETRYING.value,
        reason=bindparam("to_reason"),
        lease_owner=None,
        started_at=None,
        run_at=bindparam("at"),
        queued_at=bindparam("at"),
        # It may wait as long as the first time.
        queue_until=_job.c.queue_until - _job.c.queued_at + bindparam("at"),
        sequence=_job.c.sequence + 1,
    )
    .returning(*_job.c)
)


def retry(
    connection: Connection,
    job_id: str,
    lease_token: int,
    reason: Reason,
    message: str | None,
    run_at: float,
    now: float,
) -> bool:
    """Let a job wait for another attempt, not before `run_at`. False: the lease was lost."""
    values = {"of_job": job_id, "token": lease_token, "to_reason": reason.value, "at": run_at}
    row = _RETRY.row(connection, values)
    if row is None:
        return False
    _INSERT_EVENT.execute(connection, event_values(job_from(row), now, message))
    return True


_REQUEST_CANCEL = Prepared(
    update(_job)
    .where(_job.c.id == bindparam("of_job"))
    .values(cancel_requested=True, sequence=_job.c.sequence + 1)
    .returning(*_job.c)
)


def request_cancel(
    connection: Connection,
    tenant: str,
    job_id: str,
    now: float,
    message: str | None,
    reason: Reason,
) -> Job:
    """Cancel a waiting job at once, ask for the end of an active one, leave an ended one as it is.

    Raises NotFound.
    """
    row = _JOB.row(connection, {"of_job": job_id})
    if row is None or row.tenant != tenant:
        raise NotFound(f"there is no job {job_id}")
    job = job_from(row)
    if job.state in TERMINAL or job.cancel_requested:
        return job
    if job.state in WAITING:
        text = message or "cancelled before it started"
        error = JobError(component=None, code=reason, message=text)
        return _end_waiting(connection, job, State.CANCELLED, reason, error, now)
    job = job_from(_REQUEST_CANCEL.row(connection, {"of_job": job_id}))
    asked = event_values(job, now, message) | {"reason": reason.value}
    _INSERT_EVENT.execute(connection, asked)
    return job


def expire_waiting(connection: Connection, now: float) -> list[Job]:
    """End the jobs that waited longer than their clients wanted."""
    late = select(_job).where(tables.state_in(WAITING), _job.c.queue_until <= now)
    expired = []
    for row in connection.execute(late.order_by(_job.c.id)).all():
        job = job_from(row)
        waited = now - job.queued_at
        text = f"waited {waited:.1f} s for a free slot, of at most {job.spec.queue_seconds:g} s"
        error = JobError(component=Component.QUEUE, code=Reason.QUEUE_SECONDS, message=text)
        expired.append(
            _end_waiting(connection, job, State.EXPIRED, Reason.QUEUE_SECONDS, error, now)
        )
    return expired


_END_WAITING = Prepared(
    update(_job)
    .where(_job.c.id == bindparam("of_job"), tables.state_in(WAITING))
    .values(
        **_END_VALUES,
        sequence=_job.c.sequence + 1,
    )
    .returning(*_job.c)
)


def _end_waiting(
    connection: Connection, job: Job, state: State, reason: Reason, error: JobError, now: float
) -> Job:
    usage = Usage(queue_seconds=max(0.0, now - job.queued_at))
    result = Result(state=state, reason=reason, error=error, usage=usage)
    values = {"of_job": job.id} | _end_values(result, now, 0)
    return _ended(connection, job_from(_END_WAITING.row(connection, values)), now)


_RECOVER = (
    update(_job)
    .where(tables.state_in(ACTIVE))
    .values(lease_owner=bindparam("owner"), lease_token=_job.c.lease_token + 1)
    .returning(*_job.c)
)


def recover(connection: Connection, owner: str) -> list[Job]:
    """Take over every active job: whoever worked on it is gone, and its lease with it."""
    rows = connection.execute(_RECOVER, {"owner": owner}).all()
    return sorted((job_from(row) for row in rows), key=lambda job: job.id)


def _end_values(result: Result, now: float, beside_bytes: int) -> dict[str, object]:
    """`beside_bytes`: so much is left beside the result."""
    encoded = encode_result(result)
    return {
        "to_state": result.state.value,
        "to_reason": result.reason.value,
        "to_result": encoded.decode(),
        "left_bytes": len(encoded) + beside_bytes,
        "at": now,
    }


def _ended(connection: Connection, job: Job, now: float) -> Job:
    """Leave the event and the count of a job that has just reached its terminal state."""
    error = None if job.result is None else job.result.error
    message = None if error is None else error.message
    _INSERT_EVENT.execute(connection, event_values(job, now, message))
    _COUNT.execute(connection, {"of_name": job.state.value})
    return job
