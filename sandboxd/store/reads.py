"""What is asked about jobs. Each function is one question; every engine shares them."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, func, select, union_all

from sandboxd.errors import NotFound
from sandboxd.jobs import ACTIVE, TERMINAL, WAITING, Job, JobEvent, Sample, State
from sandboxd.store import stored_input, tables
from sandboxd.store.cursors import decode_cursor, encode_cursor
from sandboxd.store.log_index import LogIndex
from sandboxd.store.logs import StoredLog
from sandboxd.store.prepared import Prepared
from sandboxd.store.records import (
    PAGE_BYTES,
    Conservation,
    Page,
    artifact_from,
    event_from,
    job_from,
    listed,
    listed_bytes,
    log_from,
)

_job = tables.job
_MINE = and_(_job.c.id == bindparam("of_job"), _job.c.tenant == bindparam("of_tenant"))
_GET = Prepared(select(_job).where(_MINE))
_LOG = Prepared(select(_job.c.state, tables.job_log).outerjoin(tables.job_log).where(_MINE))
_to_samples = msgspec.json.Decoder(tuple[Sample, ...]).decode


def get(connection: Connection, tenant: str, job_id: str, with_stdin: bool) -> Job:
    """One job.

    Raises NotFound.
    """
    row = _GET.row(connection, {"of_tenant": tenant, "of_job": job_id})
    if row is None:
        raise _not_found(job_id)
    job = _with_artifacts(connection, job_from(row))
    return stored_input.added(connection, job) if with_stdin else job


def _with_artifacts(connection: Connection, job: Job) -> Job:
    if job.result is None or not job.result.artifact_count:
        return job
    part = tables.job_artifact
    rows = connection.execute(select(part).where(part.c.job_id == job.id).order_by(part.c.number))
    artifacts = tuple(artifact_from(row) for row in rows)
    return msgspec.structs.replace(
        job, result=msgspec.structs.replace(job.result, artifacts=artifacts)
    )


def jobs_with_artifacts(connection: Connection) -> set[str]:
    """The ids of all jobs that left something."""
    return set(connection.scalars(select(tables.job_artifact.c.job_id).distinct()))


def unfinished_jobs(connection: Connection) -> set[str]:
    """The ids of all jobs that have not ended."""
    return {
        job_id
        for states in (WAITING, ACTIVE)
        for job_id in connection.scalars(select(_job.c.id).where(tables.state_in(states)))
    }


def list_jobs(
    connection: Connection,
    tenant: str,
    states: Collection[State],
    labels: Mapping[str, str],
    since: float | None,
    until: float | None,
    limit: int,
    cursor: str | None,
) -> Page:
    """A tenant's jobs, newest first, without input and environment, long commands cut.

    A page has fewer than `limit` where those would be more than PAGE_BYTES. They fulfil every condition: one of `states` (none given: any), all of `labels`, made from `since` to before
    `until`. Raises Invalid for a cursor that is not from a page of this list.
    """
    wanted = [_job.c.tenant == tenant]
    if states:
        wanted.append(_job.c.state.in_(sorted(state.value for state in states)))
    if since is not None:
        wanted.append(_job.c.created_at >= since)
    if until is not None:
        wanted.append(_job.c.created_at < until)
    if cursor is not None:
        wanted.append(_job.c.id < decode_cursor(cursor))
    label = tables.job_label
    for name, value in labels.items():
        labelled = select(label.c.job_id).where(label.c.name == name, label.c.value == value)
        wanted.append(_job.c.id.in_(labelled))
    question = select(_job).where(*wanted).order_by(_job.c.id.desc()).limit(limit + 1)
    return _page(connection.execute(question), limit)


def _page(rows: Iterable[Row[Any]], limit: int) -> Page:
    """One job after the other: each may be a megabyte before it is cut."""
    jobs: list[Job] = []
    shortened: set[str] = set()
    size = 0
    for row in rows:
        whole = job_from(row)
        job = listed(whole)
        size += listed_bytes(job)
        if len(jobs) == limit or (jobs and size > PAGE_BYTES):
            return Page(jobs, encode_cursor(jobs[-1].id), frozenset(shortened))
        jobs.append(job)
        if job.command != whole.command:
            shortened.add(job.id)
    return Page(jobs, None, frozenset(shortened))


def samples(connection: Connection, tenant: str, job_id: str) -> tuple[Sample, ...]:
    """What a job used, moment by moment. Raises NotFound."""
    part = tables.job_stats
    found = (
        select(_job.c.id, part.c.samples)
        .select_from(_job.outerjoin(part, part.c.job_id == _job.c.id))
        .where(_mine(tenant, job_id))
    )
    row = connection.execute(found).one_or_none()
    if row is None:
        raise _not_found(job_id)
    return () if row.samples is None else _to_samples(row.samples)


def events(connection: Connection, tenant: str, job_id: str) -> list[JobEvent]:
    """What happened to a job, in order.

    Raises NotFound.
    """
    event = tables.job_event
    question = select(event).join(_job).where(_mine(tenant, job_id)).order_by(event.c.seq)
    found = [event_from(row) for row in connection.execute(question)]
    if not found:  # a job has at least the event of its submission
        raise _not_found(job_id)
    return found


def log(connection: Connection, tenant: str, job_id: str, base: Path) -> StoredLog | None:
    """The log of a job that has ended; None if it has not.

    Raises NotFound, also (`log_gone`) if the log was a file that somebody removed.
    """
    row = _LOG.row(connection, {"of_tenant": tenant, "of_job": job_id})
    if row is None:
        raise _not_found(job_id)
    if State(row.state) not in TERMINAL:
        return None
    if row.job_id is None:
        return StoredLog(LogIndex(), body=b"")
    try:
        return log_from(row, base)
    except FileNotFoundError as error:
        raise NotFound(f"the log file of {job_id} is gone", code="log_gone") from error


def counts(connection: Connection) -> dict[State, int]:
    """How many jobs wait and are active now, by state, and how many ever ended in each terminal state."""
    question = union_all(
        *(
            select(_job.c.state.label("name"), func.count().label("jobs"))
            .where(tables.state_in(states))
            .group_by(_job.c.state)
            for states in (WAITING, ACTIVE)
        ),
        select(tables.job_total.c.name, tables.job_total.c.value).where(
            tables.job_total.c.name.in_(sorted(TERMINAL))
        ),
    )
    found = {State(row.name): row.jobs for row in connection.execute(question)}
    return dict.fromkeys(State, 0) | found


def conservation(connection: Connection) -> Conservation:
    """The figures that must add up, all of one moment."""
    total = tables.job_total

    def total_of(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return select(func.sum(total.c.value)).where(condition).scalar_subquery()

    def jobs_in(states: frozenset[State]) -> ColumnElement[int]:
        return select(func.count(_job.c.id)).where(tables.state_in(states)).scalar_subquery()

    row = connection.execute(
        select(
            total_of(total.c.name == "accepted"),
            jobs_in(WAITING),
            jobs_in(ACTIVE),
            total_of(total.c.name.in_(sorted(TERMINAL))),
        )
    ).one()
    return Conservation(*row)


def oldest_waiting(connection: Connection) -> float | None:
    """Since when the job that waits longest has waited, as Unix time in seconds."""
    oldest: float | None = connection.scalar(
        select(func.min(_job.c.queued_at)).where(tables.state_in(WAITING))
    )
    return oldest


_MAY_RUN = select(func.count(_job.c.id)).where(
    tables.state_in(WAITING), _job.c.run_at <= bindparam("now")
)
_BEFORE = (
    _MAY_RUN.where(_job.c.priority > bindparam("priority")),
    _MAY_RUN.where(_job.c.priority == bindparam("priority"), _job.c.id < bindparam("job_id")),
)
"""Two counts and not one with `or`, so that each reads just its part of the index."""


def waiting_before(connection: Connection, job: Job, now: float) -> int:
    """How many jobs that may run now are claimed before this one: of higher priority, or as high and older."""
    values = {"now": now, "priority": job.spec.priority, "job_id": job.id}
    return sum(connection.scalar(question, values) or 0 for question in _BEFORE)


def next_due(connection: Connection, now: float) -> float | None:
    """When time alone next changes what a scheduler should do: a retry may run, or a job has waited too long."""
    retry = select(func.min(_job.c.run_at)).where(tables.state_in(WAITING), _job.c.run_at > now)
    expiry = select(func.min(_job.c.queue_until)).where(tables.state_in(WAITING))
    times = [connection.scalar(question) for question in (retry, expiry)]
    return min((time for time in times if time is not None), default=None)


def _mine(tenant: str, job_id: str) -> ColumnElement[bool]:
    return and_(_job.c.id == job_id, _job.c.tenant == tenant)


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id}")
