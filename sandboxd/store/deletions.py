"""How records go: one by one on request, or when their time is over. What belongs to a job's row goes with it."""

from pathlib import Path

from sqlalchemy import Connection, and_, delete, select

from sandboxd.errors import Conflict, NotFound
from sandboxd.jobs import TERMINAL, State
from sandboxd.store import outbox, tables
from sandboxd.store.records import Deleted
from sandboxd.store.writes import IDEMPOTENCY_SECONDS

_job = tables.job
_idempotency = tables.idempotency


def delete_job(connection: Connection, tenant: str, job_id: str, log_base: Path) -> Path | None:
    """Forget a job that has ended; the path of its log, if that is a file.

    Raises NotFound, and Conflict if the job has not ended.
    """
    mine = and_(_job.c.id == job_id, _job.c.tenant == tenant)
    columns = (_job.c.state, tables.job_log.c.path)
    row = connection.execute(select(*columns).outerjoin(tables.job_log).where(mine)).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    if State(row.state) not in TERMINAL:
        raise Conflict(f"job {job_id} is {row.state}: only a job that has ended can be deleted")
    connection.execute(delete(_job).where(mine))
    return None if row.path is None else log_base / row.path


def delete_expired(connection: Connection, now: float, limit: int, log_base: Path) -> Deleted:
    """Forget up to `limit` jobs whose time is over."""
    over = (
        select(_job.c.id, tables.job_log.c.path)
        .outerjoin(tables.job_log)
        .where(_job.c.expires_at <= now)
        .order_by(_job.c.expires_at)
        .limit(limit)
    )
    rows = connection.execute(over).all()
    job_ids = [row.id for row in rows]
    connection.execute(delete(_job).where(_job.c.id.in_(job_ids)))
    old = _idempotency.c.created_at <= now - IDEMPOTENCY_SECONDS
    connection.execute(delete(_idempotency).where(old))
    outbox.forget(connection, now)
    return Deleted(job_ids, [log_base / row.path for row in rows if row.path is not None])
