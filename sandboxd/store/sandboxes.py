"""The record of sandboxes that live long: one function per question."""

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update

from sandboxd.errors import NotFound
from sandboxd.jobs import Usage
from sandboxd.sandbox_values import (
    SandboxPage,
    SandboxPlan,
    SandboxReason,
    SandboxRecord,
    SandboxState,
)
from sandboxd.store.cursors import decode_cursor, encode_cursor
from sandboxd.store.tables import sandbox

MOST_ENDED = 1000
"""So many records of sandboxes that have ended are kept of each tenant, without the environment."""

_to_json = msgspec.json.Encoder().encode
_to_plan = msgspec.json.Decoder(SandboxPlan).decode
_to_usage = msgspec.json.Decoder(Usage).decode


def create(connection: Connection, record: SandboxRecord) -> None:
    """Store a new one."""
    connection.execute(insert(sandbox), _values(record))


def change(connection: Connection, record: SandboxRecord) -> None:
    """Store one as it is now. Nothing happens if it was forgotten. With an end, older ones of the tenant are forgotten."""
    connection.execute(update(sandbox).where(sandbox.c.id == record.id), _values(record))
    if record.state is SandboxState.ENDED:
        _forget_old(connection, record.tenant)


def _forget_old(connection: Connection, tenant: str) -> None:
    ended = (sandbox.c.tenant == tenant) & (sandbox.c.state == SandboxState.ENDED.value)
    newest = select(sandbox.c.id).where(ended).order_by(sandbox.c.id.desc())
    oldest_kept = newest.offset(MOST_ENDED).limit(1).scalar_subquery()
    connection.execute(delete(sandbox).where(ended, sandbox.c.id <= oldest_kept))


def get(connection: Connection, tenant: str, sandbox_id: str) -> SandboxRecord:
    """Raises NotFound, also where it is another tenant's."""
    mine = (sandbox.c.id == sandbox_id) & (sandbox.c.tenant == tenant)
    row = connection.execute(select(sandbox).where(mine)).one_or_none()
    if row is None:
        raise NotFound(f"there is no sandbox {sandbox_id}")
    return _record_from(row)


def list_(
    connection: Connection,
    tenant: str,
    states: frozenset[SandboxState],
    limit: int,
    cursor: str | None,
) -> SandboxPage:
    """A tenant's sandboxes, newest first; `states` none: any. Raises Invalid for a cursor that is not from this list."""
    wanted = [sandbox.c.tenant == tenant]
    if states:
        wanted.append(sandbox.c.state.in_(sorted(state.value for state in states)))
    if cursor is not None:
        wanted.append(sandbox.c.id < decode_cursor(cursor, "sbx"))
    question = select(sandbox).where(*wanted).order_by(sandbox.c.id.desc()).limit(limit + 1)
    found = [_record_from(row) for row in connection.execute(question)]
    more = len(found) > limit
    return SandboxPage(
        items=found[:limit], next_cursor=encode_cursor(found[limit - 1].id) if more else None
    )


def forget(connection: Connection, tenant: str, sandbox_id: str) -> None:
    """Remove the record of one that has ended."""
    mine = (sandbox.c.id == sandbox_id) & (sandbox.c.tenant == tenant)
    connection.execute(delete(sandbox).where(mine, sandbox.c.state == SandboxState.ENDED.value))


def end_all(connection: Connection, now: float) -> int:
    """After a restart: none lives any more. How many had."""
    lost = update(sandbox).where(sandbox.c.state != SandboxState.ENDED.value)
    values = {
        "state": SandboxState.ENDED.value,
        "reason": SandboxReason.SERVICE_LOST.value,
        "message": "the service died, and the sandbox with it",
        "ended_at": now,
    }
    return int(connection.execute(lost, values).rowcount)


def _values(record: SandboxRecord) -> dict[str, Any]:
    values = msgspec.structs.asdict(record)
    if record.state is SandboxState.ENDED:
        record = msgspec.structs.replace(record, plan=msgspec.structs.replace(record.plan, env={}))
    return values | {
        "state": record.state.value,
        "reason": record.reason.value,
        "plan": _to_json(record.plan).decode(),
        "usage": None if record.usage is None else _to_json(record.usage).decode(),
    }


def _record_from(row: Row[Any]) -> SandboxRecord:
    values = dict(row._mapping)
    return SandboxRecord(
        **values
        | {
            "state": SandboxState(row.state),
            "reason": SandboxReason(row.reason),
            "plan": _to_plan(row.plan),
            "usage": None if row.usage is None else _to_usage(row.usage),
        }
    )
