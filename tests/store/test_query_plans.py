"""Questions that are asked all the time use their indexes, however many jobs there are."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Delete, Select, Update, select
from sqlalchemy.dialects import sqlite

from sandboxd.jobs import ACTIVE, WAITING
from sandboxd.quotas.tenants import Holder
from sandboxd.store import claims, outbox, reads, tenants, writes
from sandboxd.store.tables import job, state_in
from sandboxd.store.upgrade import upgrade

Statement = Select[tuple[object]] | Update | Delete


def plan_of(path: Path, statement: Statement) -> str:
    compiled = statement.compile(dialect=sqlite.dialect(paramstyle="named"))
    values = {name: [1] if bind.expanding else 1 for name, bind in compiled.binds.items()}
    expanded = compiled.construct_expanded_state(values)
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            f"EXPLAIN QUERY PLAN {expanded.statement}", expanded.parameters
        ).fetchall()
    return "\n".join(detail for *_, detail in rows)


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (claims._CANDIDATES, "COVERING INDEX ix_job_line (tenant=?)"),
        (claims._CANDIDATES, "ix_job_line (tenant>?)"),
        (claims._CANDIDATES_OF_OTHER_KEYS, "COVERING INDEX ix_job_line (tenant=?)"),
        (tenants._ACCOUNTS[Holder.KEY].reserved[0], "ix_job_key (key_id=?)"),
        (tenants._ACCOUNTS[Holder.KEY].reserved[1], "ix_job_active"),
        (tenants._ACCOUNTS[Holder.TENANT].reserved[0], "ix_job_line (tenant=?)"),
        (reads._BEFORE[0], "ix_job_claim (priority>"),
        (reads._BEFORE[1], "ix_job_claim (priority=? AND id<?"),
        (writes._RECOVER, "ix_job_active"),
        (select(job).where(state_in(WAITING), job.c.queue_until <= 5.0), "ix_job_queue_until"),
        (select(job.c.id).where(state_in(ACTIVE)), "ix_job_active"),
        (select(job).where(job.c.tenant == "a").order_by(job.c.id.desc()), "ix_job_list"),
        (select(job.c.id).where(job.c.expires_at <= 5.0), "ix_job_expire"),
        (outbox._FORGET, "ix_webhook_event_settled (created_at<?)"),
    ],
)
def test_a_question_uses_its_index(tmp_path: Path, statement: Statement, index: str) -> None:
    path = tmp_path / "sandboxd.db"
    upgrade(path)

    plan = plan_of(path, statement)

    assert index in plan
    assert "SCAN job\n" not in plan + "\n"
    assert "TEMP B-TREE" not in plan
