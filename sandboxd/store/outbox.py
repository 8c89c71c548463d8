"""Events for the operator's webhook, from the transaction that made them happen until they are delivered.

An event about a quota is one row for its tenant, the quota and the window: what is there already happens no second time.
"""

from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from sandboxd.ids import new_id
from sandboxd.quotas.tenants import (
    METERED,
    STORAGE,
    WINDOWS,
    Holder,
    TenantQuotas,
    Whose,
    first_hour,
    seconds_left,
)
from sandboxd.store import storage, tables, tenants

THRESHOLD = 0.8
"""Of a quota: who has used so much of it is told of."""
_STORAGE_WINDOW = "day"
"""What is stored has no window: it is told of once a day."""
_KEPT_SECONDS = 62 * 86_400.0
"""Longer than the longest window, so that nothing is told twice in it."""

_event = tables.webhook_event
_waits = _event.c.next_at.is_not(None)


class Undelivered(NamedTuple):
    """An event that is to be delivered now."""

    id: str
    body: str
    attempts: int
    """So many have failed."""


class _Reached(NamedTuple):
    """So much of a quota that it is told."""

    policy: str
    used: float
    allowed: float
    window: str
    has_end: bool


def note_thresholds(connection: Connection, tenant: str, quotas: TenantQuotas, now: float) -> None:
    """Leave an event for each quota of which the tenant has used most, unless there is one of this window."""
    for reached in _reached(connection, tenant, quotas, now):
        start = first_hour(reached.window, now)
        mine = (_event.c.tenant == tenant, _event.c.policy == reached.policy)
        here = select(_event.c.id).where(*mine, _event.c.window_hour == start)
        if connection.scalar(here) is not None:
            continue
        event_id = new_id("evt")
        values = {
            "id": event_id,
            "tenant": tenant,
            "policy": reached.policy,
            "window_hour": start,
            "created_at": now,
            "body": _cloud_event(event_id, tenant, reached, now),
            "attempts": 0,
            "next_at": now,
        }
        connection.execute(insert(_event), values)


def _reached(
    connection: Connection, tenant: str, quotas: TenantQuotas, now: float
) -> list[_Reached]:
    found = []
    for window in WINDOWS:
        allowed = [quotas.most(what, window) for what in METERED]
        if not any(allowed):
            continue
        used = tenants.used_in_window(connection, Whose(Holder.TENANT, tenant), window, now)
        found += [
            _Reached(f"{what}_per_{window}", so_far, most, window, True)
            for what, so_far, most in zip(METERED, used, allowed, strict=True)
        ]
    if quotas.storage_bytes:
        stored = storage.used(connection, tenant)
        found.append(_Reached(STORAGE, stored, quotas.storage_bytes, _STORAGE_WINDOW, False))
    return [each for each in found if each.allowed and each.used >= THRESHOLD * each.allowed]


def _cloud_event(event_id: str, tenant: str, reached: _Reached, now: float) -> str:
    """CloudEvents 1.0, in JSON."""
    window_end = now + seconds_left(reached.window, now)
    event = {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/v1/tenants/{tenant}",
        "type": "quota.threshold",
        "subject": tenant,
        "time": _rfc3339(now),
        "datacontenttype": "application/json",
        "data": {
            "tenant": tenant,
            "policy": reached.policy,
            "used": reached.used,
            "allowed": reached.allowed,
            "window_end": _rfc3339(window_end) if reached.has_end else None,
        },
    }
    return msgspec.json.encode(event).decode()


def _rfc3339(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat().replace("+00:00", "Z")


def due(connection: Connection, now: float, limit: int) -> list[Undelivered]:
    """Events that are to be delivered now, oldest first."""
    question = select(_event.c.id, _event.c.body, _event.c.attempts).where(_event.c.next_at <= now)
    rows = connection.execute(question.order_by(_event.c.next_at).limit(limit))
    return [Undelivered(*row) for row in rows]


def next_due(connection: Connection) -> float | None:
    """When the next one is to be delivered (Unix time); None: all are settled."""
    at: float | None = connection.scalar(select(func.min(_event.c.next_at)).where(_waits))
    return at


def backlog(connection: Connection) -> int:
    """How many are to be delivered yet."""
    return connection.scalar(select(func.count()).select_from(_event).where(_waits)) or 0


def note_attempt(connection: Connection, event_id: str, next_at: float | None) -> None:
    """One more attempt was made; another one is due then. None: it was delivered, or is given up."""
    one_more = update(_event).where(_event.c.id == event_id)
    connection.execute(one_more.values(attempts=_event.c.attempts + 1, next_at=next_at))


_FORGET = delete(_event).where(
    _event.c.created_at < bindparam("before"), _event.c.next_at.is_(None)
)


def forget(connection: Connection, now: float) -> None:
    """Remove those of which nothing is to be delivered and nothing to be remembered."""
    connection.execute(_FORGET, {"before": now - _KEPT_SECONDS})
