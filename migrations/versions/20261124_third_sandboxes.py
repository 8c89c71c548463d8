"""Sandboxes that live until they are told to end."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sandbox",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text()),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float()),
        sa.Column("ended_at", sa.Float()),
        sa.Column("image_digest", sa.Text()),
        sa.Column("execs", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.Text()),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("usage", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_sandbox"),
    )
    op.create_index("ix_sandbox_list", "sandbox", ["tenant", "id"])


def downgrade() -> None:
    op.drop_table("sandbox")
