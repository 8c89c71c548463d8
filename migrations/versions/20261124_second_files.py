"""Files of jobs: contents that came with a request, and what a job left."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_contents",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("contents", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_contents"),
        reference_to_job("job_contents"),
    )
    op.create_table(
        "job_artifact",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("at_byte", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "path", name="pk_job_artifact"),
        reference_to_job("job_artifact"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("job_artifact")
    op.drop_table("job_contents")


def reference_to_job(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["job_id"], ["job.id"], name=f"fk_{table}_job_id_job", ondelete="CASCADE"
    )
