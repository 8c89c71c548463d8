"""Keys with quotas of their own: which key a job came with, and what the jobs of such a key used."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_WAITING = sa.text("state = 'queued' OR state = 'retrying'")


def upgrade() -> None:
    op.add_column("job", sa.Column("key_id", sa.Text()))
    op.create_index(
        "ix_job_key", "job", ["key_id"], sqlite_where=_WAITING, postgresql_where=_WAITING
    )
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


def downgrade() -> None:
    op.drop_table("key_usage_hour")
    op.drop_column("api_key", "quotas")
    op.drop_index("ix_job_key", table_name="job")
    op.drop_column("job", "key_id")
