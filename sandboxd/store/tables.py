"""The tables: one definition for SQLite and PostgreSQL, which the migrations are checked against.

Times are Unix seconds as floating point, exactly as `jobs.py` has them (a double holds the present to 0.3 µs). State
and reason are their words. What only people and the API read is one JSON document (`spec`, `result`); what a query
needs is a column. Large values have tables of their own: SQLite writes a whole row anew when one column changes, and a
list must not read what it does not show.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    FromClause,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    or_,
)
from sqlalchemy.sql.elements import ColumnElement

from sandboxd.jobs import ACTIVE, WAITING, State

REVISION = "0006"
"""The migration that this release works with."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

job = Table(
    "job",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("millicpus", Integer, nullable=False),
    Column("wall_seconds", Float, nullable=False),
    Column("cpu_seconds", Float, nullable=False),
    Column("run_at", Float, nullable=False),
    Column("queue_until", Float),
    Column("attempt", Integer, nullable=False),
    Column("lease_owner", Text),
    Column("lease_token", BigInteger, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("queued_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("ttl_seconds", Float),
    Column("expires_at", Float),
    Column("request_id", Text),
    Column("traceparent", Text),
    Column("retried_from", Text),
    Column("storage_bytes", BigInteger, nullable=False),
    Column("upload_bytes", BigInteger, nullable=False),
    Column("spec", Text, nullable=False),
    Column("result", Text),
)


def state_in(states: frozenset[State], of: FromClause = job) -> ColumnElement[bool]:
    """Whether a job is in one of these states, with the words written out.

    A partial index is used only where the planner sees its very condition, which bound parameters would hide.
    """
    return or_(*(of.c.state == literal_column(f"'{state}'") for state in sorted(states)))


Index(
    "ix_job_claim",
    job.c.priority.desc(),
    job.c.id,
    sqlite_where=state_in(WAITING),
    postgresql_where=state_in(WAITING),
)
Index(
    "ix_job_line",
    job.c.tenant,
    job.c.priority.desc(),
    job.c.id,
    # So that who is passed over is passed over without a look at the row.
    job.c.key_id,
    job.c.run_at,
    job.c.state,
    sqlite_where=state_in(WAITING),
    postgresql_where=state_in(WAITING),
)
Index(
    "ix_job_key",
    job.c.key_id,
    sqlite_where=state_in(WAITING),
    postgresql_where=state_in(WAITING),
)
Index(
    "ix_job_queue_until",
    job.c.queue_until,
    sqlite_where=state_in(WAITING),
    postgresql_where=state_in(WAITING),
)
Index(
    "ix_job_active",
    job.c.state,
    sqlite_where=state_in(ACTIVE),
    postgresql_where=state_in(ACTIVE),
)
Index("ix_job_list", job.c.tenant, job.c.id)
Index(
    "ix_job_expire",
    job.c.expires_at,
    sqlite_where=job.c.expires_at.is_not(None),
    postgresql_where=job.c.expires_at.is_not(None),
)


def _job_id() -> Column[str]:
    return Column("job_id", Text, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)


job_stdin = Table("job_stdin", metadata, _job_id(), Column("stdin", LargeBinary, nullable=False))
"""Input of the jobs that have any."""

job_contents = Table(
    "job_contents", metadata, _job_id(), Column("contents", LargeBinary, nullable=False)
)
"""Contents of the files that came with a request, one after the other."""

tenant = Table(
    "tenant",
    metadata,
    Column("name", Text, primary_key=True),
    Column("quotas", Text, nullable=False),
)
"""Tenants with quotas of their own, as JSON."""

tenant_storage = Table(
    "tenant_storage",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("used_bytes", BigInteger, nullable=False),
)
"""The sum of `storage_bytes` over a tenant's jobs.

Triggers keep it, which migration 0006 makes; one that makes the table `job` anew has to make them again.
"""

usage_hour = Table(
    "usage_hour",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("jobs", BigInteger, nullable=False),
    Column("cpu_seconds", Float, nullable=False),
    Column("memory_byte_seconds", Float, nullable=False),
)
"""What the jobs of a tenant used that ended in an hour (hours since 1970)."""

key_usage_hour = Table(
    "key_usage_hour",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("jobs", BigInteger, nullable=False),
    Column("cpu_seconds", Float, nullable=False),
    Column("memory_byte_seconds", Float, nullable=False),
)
"""The same for each key that has quotas of its own."""

job_stats = Table("job_stats", metadata, _job_id(), Column("samples", LargeBinary, nullable=False))
"""Samples of the jobs that ran long enough for any, as JSON."""

job_artifact = Table(
    "job_artifact",
    metadata,
    _job_id(),
    Column("path", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("mode", Integer, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("at_byte", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Files that jobs left. Their content lies in a file of its own, each from `at_byte` on."""

job_label = Table(
    "job_label",
    metadata,
    _job_id(),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)
Index("ix_job_label_find", job_label.c.name, job_label.c.value, job_label.c.job_id)

job_event = Table(
    "job_event",
    metadata,
    _job_id(),
    Column("seq", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("message", Text),
    sqlite_with_rowid=False,
)
"""Every change of a job: `seq` is the job's `sequence` after it."""

job_log = Table(
    "job_log",
    metadata,
    _job_id(),
    Column("size_bytes", BigInteger, nullable=False),
    Column("stdout_truncated", Boolean, nullable=False),
    Column("stderr_truncated", Boolean, nullable=False),
    Column("path", Text),
    Column("entries", LargeBinary),
    Column("body", LargeBinary),
)
"""Output of the jobs that wrote any: in `body`, or in the file `path`, relative to the database's directory."""

job_total = Table(
    "job_total",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""How many jobs were ever accepted (`accepted`) and ever ended in each terminal state (its word).

Kept in the transactions that change the jobs, so that a lost or a doubled job shows as a difference.
"""

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_sha256", LargeBinary, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("ix_idempotency_created_at", "created_at"),
    sqlite_with_rowid=False,
)
"""No foreign key: a key outlives its job, else a late repetition of the request would run it again."""

webhook_event = Table(
    "webhook_event",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("window_hour", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Float),
    UniqueConstraint("tenant", "policy", "window_hour"),
)
"""Events for the operator's webhook. `next_at`: when one is to be delivered; null: it was, or it is given up."""
Index(
    "ix_webhook_event_next_at",
    webhook_event.c.next_at,
    sqlite_where=webhook_event.c.next_at.is_not(None),
    postgresql_where=webhook_event.c.next_at.is_not(None),
)
Index(
    "ix_webhook_event_settled",
    webhook_event.c.created_at,
    sqlite_where=webhook_event.c.next_at.is_(None),
    postgresql_where=webhook_event.c.next_at.is_(None),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("quotas", Text),
)

sandbox = Table(
    "sandbox",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("image_digest", Text),
    Column("execs", Integer, nullable=False),
    Column("request_id", Text),
    Column("plan", Text, nullable=False),
    Column("usage", Text),
    Index("ix_sandbox_list", "tenant", "id"),
)
"""Sandboxes that live until they are told to end, those that ended too. `plan` and `usage` are JSON."""
