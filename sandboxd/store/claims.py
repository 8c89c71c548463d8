"""Who runs next: waiting jobs are shown to who chooses, and those that are chosen are claimed, in one transaction."""

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, insert, select, update

from sandboxd.admission import Choose
from sandboxd.jobs import WAITING, Candidate, Job, Reason, State
from sandboxd.store import stored_input, tables
from sandboxd.store.prepared import Prepared
from sandboxd.store.records import event_values, job_from

_job = tables.job
_INSERT_EVENT = Prepared(insert(tables.job_event))

_LINE = 32
"""Of each tenant, so many jobs are looked at."""
_WAITS = tables.state_in(WAITING)
_tenants = select(func.min(_job.c.tenant).label("name")).where(_WAITS).cte("t", recursive=True)
_next_tenant = (
    select(func.min(_job.c.tenant))
    .where(_WAITS, _job.c.tenant > _tenants.c.name)
    .correlate(_tenants)
    .scalar_subquery()
)
_tenants = _tenants.union_all(select(_next_tenant).where(_tenants.c.name.is_not(None)))
"""Those with jobs that wait: a jump in the index for each, however many jobs it has."""
_mine = _job.alias("mine")
_OF_OTHER_IMAGES = (_mine.c.tenant + " " + func.json_extract(_mine.c.spec, "$.image")).not_in(
    bindparam("of_images", expanding=True)
)
"""Of the same tenant; no tenant's name has a space. Read out of each row: it is asked only while more jobs wait for an image that comes than could start with it."""
_OF_OTHER_KEYS = func.coalesce(_mine.c.key_id, "").not_in(bindparam("passed_over", expanding=True))


def _candidates(*conditions: ColumnElement[bool]) -> Select[Any]:
    """The first of each tenant that may run now."""
    in_line = (
        select(_mine.c.id)
        .where(
            tables.state_in(WAITING, _mine),
            _mine.c.tenant == _tenants.c.name,
            _mine.c.run_at <= bindparam("now"),
            *conditions,
        )
        .order_by(_mine.c.priority.desc(), _mine.c.id)
        .limit(_LINE)
        .correlate(_tenants)
        .scalar_subquery()
    )
    return select(
        _job.c.id,
        _job.c.tenant,
        _job.c.priority,
        _job.c.memory_bytes,
        _job.c.millicpus,
        _job.c.wall_seconds,
        _job.c.key_id,
    ).select_from(_tenants.join(_job, _job.c.id.in_(in_line)))


_CANDIDATES = _candidates()
_CANDIDATES_OF_OTHER_KEYS = _candidates(_OF_OTHER_KEYS)
"""A key that has enough must not fill the part of its tenant's line that is looked at."""
_CANDIDATES_OF_OTHER_IMAGES = _candidates(_OF_OTHER_KEYS, _OF_OTHER_IMAGES)
"""The same for an image that is crowded."""
_USUAL_CANDIDATES = Prepared(_CANDIDATES)
_CLAIM = Prepared(
    update(_job)
    .where(_job.c.id == bindparam("of_job"), _WAITS)
    .values(
        state=State.STARTING.value,
        reason=Reason.CLAIMED.value,
        attempt=_job.c.attempt + 1,
        lease_owner=bindparam("owner"),
        lease_token=_job.c.lease_token + 1,
        sequence=_job.c.sequence + 1,
    )
    .returning(*_job.c)
)


def claim(
    connection: Connection,
    owner: str,
    choose: Choose,
    now: float,
    passed_over: Collection[str] = (),
    of_images: Collection[tuple[str, str]] = (),
) -> list[Job]:
    """Take the jobs that `choose` picks of those that may run now, in its order, with their input.

    `passed_over`: keys whose jobs are not looked at; `of_images`: tenants and images, the same.
    """
    rows: Iterable[Any]
    if of_images:
        names = [f"{tenant} {image}" for tenant, image in of_images]
        values = {"now": now, "passed_over": list(passed_over), "of_images": names}
        rows = connection.execute(_CANDIDATES_OF_OTHER_IMAGES, values)
    elif passed_over:
        values = {"now": now, "passed_over": list(passed_over)}
        rows = connection.execute(_CANDIDATES_OF_OTHER_KEYS, values)
    else:
        rows = _USUAL_CANDIDATES.rows(connection, {"now": now})
    candidates = [Candidate(*row) for row in rows]
    job_ids = choose(candidates) if candidates else ()
    claimed = [_CLAIM.row(connection, {"owner": owner, "of_job": job_id}) for job_id in job_ids]
    jobs = [stored_input.added(connection, job_from(row)) for row in claimed if row is not None]
    _INSERT_EVENT.execute_each(connection, [event_values(job, now) for job in jobs])
    return jobs
