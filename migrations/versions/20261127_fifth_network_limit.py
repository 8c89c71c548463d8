"""A further way to end: `network_limit`. Its total stands beside those of the others."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TOTAL = sa.table("job_total", sa.column("name"), sa.column("value"))


def upgrade() -> None:
    op.bulk_insert(_TOTAL, [{"name": "network_limit", "value": 0}])


def downgrade() -> None:
    op.execute(sa.delete(_TOTAL).where(_TOTAL.c.name == "network_limit"))
