"""Keys with quotas of their own, and what the jobs of such a key used; how much is kept of each tenant's jobs; events for a webhook."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_WAITING = sa.text("state = 'queued' OR state = 'retrying'")


def upgrade() -> None:
    op.add_column("job", sa.Column("key_id", sa.Text()))
    op.create_index(
        "ix_job_key", "job", ["key_id"], sqlite_where=_WAITING, postgresql_where=_WAITING
    )
    op.drop_index("ix_job_line", table_name="job")
    _create_line("key_id", "run_at", "state")
    op.add_column("api_key", sa.Column("quotas", sa.Text()))
    op.create_table(
        "key_usage_hour",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("cpu_seconds", sa.Float(), nullable=False),
        sa.Column("memory_byte_seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "hour", name="pk_key_usage_hour"),
    )
    for name in ("storage_bytes", "upload_bytes"):
        op.add_column("job", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "tenant_storage",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_tenant_storage"),
    )
    op.create_table(
        "webhook_event",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("window_hour", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.Float()),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_event"),
        sa.UniqueConstraint(
            "tenant", "policy", "window_hour", name="uq_webhook_event_tenant_policy_window_hour"
        ),
    )
    not_settled = sa.text("next_at IS NOT NULL")
    op.create_index(
        "ix_webhook_event_next_at",
        "webhook_event",
        ["next_at"],
        sqlite_where=not_settled,
        postgresql_where=not_settled,
    )
    settled = sa.text("next_at IS NULL")
    op.create_index(
        "ix_webhook_event_settled",
        "webhook_event",
        ["created_at"],
        sqlite_where=settled,
        postgresql_where=settled,
    )
    _fill_in_uploads()
    for statement in (*_FILL_IN, *_TRIGGERS):
        op.execute(statement)


def _create_line(*passed_over_by: str) -> None:
    op.create_index(
        "ix_job_line",
        "job",
        ["tenant", sa.text("priority DESC"), "id", *passed_over_by],
        sqlite_where=_WAITING,
        postgresql_where=_WAITING,
    )


# The indexes of logs that are files are not counted: the database does not know how long they are.
_FILL_IN = (
    """
    UPDATE job SET storage_bytes = upload_bytes
        + length(CAST(spec AS BLOB)) + coalesce(length(CAST(result AS BLOB)), 0)
        + coalesce((SELECT length(samples) FROM job_stats WHERE job_id = job.id), 0)
        + coalesce((SELECT length(stdin) FROM job_stdin WHERE job_id = job.id), 0)
        + coalesce((SELECT length(contents) FROM job_contents WHERE job_id = job.id), 0)
        + coalesce((SELECT size_bytes + coalesce(length(entries), 0) FROM job_log WHERE job_id = job.id), 0)
        + coalesce((SELECT sum(size_bytes) FROM job_artifact WHERE job_id = job.id), 0)
    """,
    "INSERT INTO tenant_storage SELECT tenant, sum(storage_bytes) FROM job GROUP BY tenant",
)


_TRIGGERS = (
    """
    CREATE TRIGGER job_storage_more AFTER INSERT ON job BEGIN
        INSERT INTO tenant_storage (tenant, used_bytes) VALUES (new.tenant, new.storage_bytes)
            ON CONFLICT (tenant) DO UPDATE SET used_bytes = used_bytes + excluded.used_bytes;
    END
    """,
    """
    CREATE TRIGGER job_storage_change AFTER UPDATE OF storage_bytes ON job BEGIN
        UPDATE tenant_storage SET used_bytes = used_bytes + new.storage_bytes - old.storage_bytes
            WHERE tenant = new.tenant;
    END
    """,
    """
    CREATE TRIGGER job_storage_less AFTER DELETE ON job BEGIN
        UPDATE tenant_storage SET used_bytes = used_bytes - old.storage_bytes
            WHERE tenant = old.tenant;
    END
    """,
)


def _fill_in_uploads() -> None:
    """Of jobs that have ended nothing is left of what was uploaded."""
    connection = op.get_bind()
    job = sa.table("job", *(sa.column(name) for name in ("id", "state", "spec", "upload_bytes")))
    unfinished = job.c.state.in_(("queued", "retrying", "starting", "running"))
    rows = connection.execute(sa.select(job.c.id, job.c.spec).where(unfinished)).all()
    for job_id, text in rows:
        files = json.loads(text).get("files", ())
        uploaded = sum(f.get("size_bytes") or 0 for f in files if f.get("offset") is not None)
        if uploaded:
            of_this = sa.update(job).where(job.c.id == job_id)
            connection.execute(of_this.values(upload_bytes=uploaded))


def downgrade() -> None:
    for name in ("job_storage_more", "job_storage_change", "job_storage_less"):
        op.execute(f"DROP TRIGGER {name}")
    op.drop_table("webhook_event")
    op.drop_table("tenant_storage")
    op.drop_column("job", "upload_bytes")
    op.drop_column("job", "storage_bytes")
    op.drop_table("key_usage_hour")
    op.drop_column("api_key", "quotas")
    op.drop_index("ix_job_key", table_name="job")
    op.drop_index("ix_job_line", table_name="job")
    op.drop_column("job", "key_id")
    _create_line()
