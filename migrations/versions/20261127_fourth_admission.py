"""What a job needs, for whether it may start; the line of each tenant; samples of what a job used; quotas of tenants."""

import json
import math

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_WAITING = sa.text("state = 'queued' OR state = 'retrying'")


def upgrade() -> None:
    for name, kind in (
        ("memory_bytes", sa.BigInteger()),
        ("millicpus", sa.Integer()),
        ("wall_seconds", sa.Float()),
        ("cpu_seconds", sa.Float()),
    ):
        op.add_column("job", sa.Column(name, kind, nullable=False, server_default="0"))
    _fill_in_unfinished()
    op.create_index(
        "ix_job_line",
        "job",
        ["tenant", sa.text("priority DESC"), "id"],
        sqlite_where=_WAITING,
        postgresql_where=_WAITING,
    )
    op.create_table(
        "tenant",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("quotas", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenant"),
    )
    op.create_table(
        "usage_hour",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("cpu_seconds", sa.Float(), nullable=False),
        sa.Column("memory_byte_seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "hour", name="pk_usage_hour"),
    )
    op.create_table(
        "job_stats",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("samples", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_stats"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name="fk_job_stats_job_id_job", ondelete="CASCADE"
        ),
    )


def _fill_in_unfinished() -> None:
    """Of jobs that are over nobody asks what they needed. One that ran when the service died may wait again."""
    connection = op.get_bind()
    job = sa.table(
        "job",
        *(
            sa.column(name)
            for name in (
                "id",
                "state",
                "spec",
                "memory_bytes",
                "millicpus",
                "wall_seconds",
                "cpu_seconds",
            )
        ),
    )
    unfinished = job.c.state.in_(("queued", "retrying", "starting", "running"))
    rows = connection.execute(sa.select(job.c.id, job.c.spec).where(unfinished)).all()
    for job_id, text in rows:
        spec = json.loads(text)
        limits = spec["limits"]
        cases = [case for step in spec.get("steps", ()) for case in step.get("cases", ())]
        checked = any(case.get("checker", {}).get("comparison") == "program" for case in cases)
        connection.execute(
            sa.update(job)
            .where(job.c.id == job_id)
            .values(
                memory_bytes=limits["memory_bytes"] * (2 if checked else 1),
                millicpus=math.ceil(1000 * limits["cpus"]),
                wall_seconds=limits["wall_seconds"],
                cpu_seconds=limits["cpu_seconds"],
            )
        )


def downgrade() -> None:
    op.drop_table("job_stats")
    op.drop_table("usage_hour")
    op.drop_table("tenant")
    op.drop_index("ix_job_line", table_name="job")
    for name in ("cpu_seconds", "wall_seconds", "millicpus", "memory_bytes"):
        op.drop_column("job", name)
