"""Records of sandboxes that live long."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from sandboxd.ids import new_id
from sandboxd.quotas.limits import LEAST
from sandboxd.sandbox_values import SandboxPlan, SandboxReason, SandboxRecord, SandboxState
from sandboxd.store import sandboxes
from sandboxd.store.sqlite import SqliteStore
from sandboxd.store.upgrade import upgrade


def record(tenant: str) -> SandboxRecord:
    plan = SandboxPlan(
        image="host", env={"A": "b"}, limits=LEAST, idle_seconds=1.0, ttl_seconds=2.0
    )
    return SandboxRecord(
        id=new_id("sbx"),
        tenant=tenant,
        plan=plan,
        state=SandboxState.RUNNING,
        reason=SandboxReason.CREATED,
        created_at=1.0,
    )


def test_of_those_that_ended_only_the_newest_of_each_tenant_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes, "MOST_ENDED", 3)

    async def run() -> tuple[list[str], list[str], list[SandboxRecord]]:
        path = tmp_path / "db"
        upgrade(path)
        store = await SqliteStore.open(path, inline_log_bytes=0)
        living, other = record("mine"), record("other")
        await store.create_sandbox(living)
        await store.create_sandbox(other)
        await store.change_sandbox(msgspec.structs.replace(other, state=SandboxState.ENDED))
        made = []
        for _ in range(5):
            each = record("mine")
            made.append(each.id)
            await store.create_sandbox(each)
            await store.change_sandbox(msgspec.structs.replace(each, state=SandboxState.ENDED))
        mine = await store.list_sandboxes("mine", states=frozenset(), limit=10, cursor=None)
        theirs = await store.list_sandboxes("other", states=frozenset(), limit=10, cursor=None)
        await store.close()
        assert [each.id for each in theirs.items] == [other.id]
        return [each.id for each in mine.items], [*reversed(made[2:]), living.id], mine.items

    found, expected, records = asyncio.run(run())

    assert found == expected
    assert [each.plan.env for each in records] == [{}, {}, {}, {"A": "b"}]
