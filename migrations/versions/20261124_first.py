"""The first schema: jobs with their events, labels, input and logs; keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WAITING = sa.text("state = 'queued' OR state = 'retrying'")
ACTIVE = sa.text("state = 'running' OR state = 'starting'")
EXPIRES = sa.text("expires_at IS NOT NULL")
TOTALS = (
    "accepted",
    "succeeded",
    "failed",
    "timed_out",
    "out_of_memory",
    "output_limit",
    "cancelled",
    "expired",
    "error",
)


def upgrade() -> None:
    create_jobs()
    create_parts_of_jobs()
    create_totals()
    create_idempotency()
    create_keys()


def downgrade() -> None:
    for table in (
        "api_key",
        "idempotency",
        "job_total",
        "job_log",
        "job_event",
        "job_label",
        "job_stdin",
        "job",
    ):
        op.drop_table(table)


def create_jobs() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("run_at", sa.Float(), nullable=False),
        sa.Column("queue_until", sa.Float()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Text()),
        sa.Column("lease_token", sa.BigInteger(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("queued_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float()),
        sa.Column("finished_at", sa.Float()),
        sa.Column("ttl_seconds", sa.Float()),
        sa.Column("expires_at", sa.Float()),
        sa.Column("request_id", sa.Text()),
        sa.Column("traceparent", sa.Text()),
        sa.Column("retried_from", sa.Text()),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
    )
    op.create_index("ix_job_list", "job", ["tenant", "id"])
    create_partial_index("ix_job_claim", [sa.text("priority DESC"), "id"], WAITING)
    create_partial_index("ix_job_queue_until", ["queue_until"], WAITING)
    create_partial_index("ix_job_active", ["state"], ACTIVE)
    create_partial_index("ix_job_expire", ["expires_at"], EXPIRES)


def create_partial_index(
    name: str, columns: list[str | sa.TextClause], where: sa.TextClause
) -> None:
    op.create_index(name, "job", columns, sqlite_where=where, postgresql_where=where)


def create_parts_of_jobs() -> None:
    op.create_table(
        "job_stdin",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("stdin", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_stdin"),
        reference_to_job("job_stdin"),
    )
    op.create_table(
        "job_label",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_job_label"),
        reference_to_job("job_label"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_job_label_find", "job_label", ["name", "value", "job_id"])
    op.create_table(
        "job_event",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text()),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_job_event"),
        reference_to_job("job_event"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job_log",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stdout_truncated", sa.Boolean(), nullable=False),
        sa.Column("stderr_truncated", sa.Boolean(), nullable=False),
        sa.Column("path", sa.Text()),
        sa.Column("entries", sa.LargeBinary()),
        sa.Column("body", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_log"),
        reference_to_job("job_log"),
    )


def reference_to_job(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["job_id"], ["job.id"], name=f"fk_{table}_job_id_job", ondelete="CASCADE"
    )


def create_totals() -> None:
    totals = op.create_table(
        "job_total",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_job_total"),
        sqlite_with_rowid=False,
    )
    op.bulk_insert(totals, [{"name": name, "value": 0} for name in TOTALS])


def create_idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key", name="pk_idempotency"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])


def create_keys() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float()),
        sa.Column("revoked_at", sa.Float()),
        sa.PrimaryKeyConstraint("id", name="pk_api_key"),
    )
