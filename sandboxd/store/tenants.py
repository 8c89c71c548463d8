"""Tenants: their quotas, what their jobs used hour by hour, and whether another job fits into what is left.

What a job may use at most is reserved as long as it waits or runs, by its row alone; when it ends, what it did use is
added to the hour in the same transaction. So nothing is counted twice, and nothing is lost by a crash. A key that has
quotas of its own is counted in the same way, beside its tenant.
"""

from typing import NamedTuple

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from sandboxd.errors import QuotaExceeded
from sandboxd.jobs import ACTIVE, WAITING, Job
from sandboxd.quotas.tenants import (
    HOUR_SECONDS,
    METERED,
    WINDOWS,
    Bounds,
    Holder,
    HourOfUse,
    Quotas,
    TenantQuotas,
    Whose,
    first_hour,
    seconds_left,
)
from sandboxd.store import tables
from sandboxd.store.prepared import Prepared

_FULL_RETRY_SECONDS = 1.0

_job, _tenant, _hour = tables.job, tables.tenant, tables.usage_hour
_to_quotas = msgspec.json.Decoder(TenantQuotas).decode


class Use(NamedTuple):
    """What one job used."""

    cpu_seconds: float
    memory_byte_seconds: float


class _Account:
    """The statements about the jobs of one tenant or of one key."""

    def __init__(self, hours: Table, column: Column[str], of_jobs: Column[str]) -> None:
        """`column` of the table of hours, and `of_jobs`, say whose they are."""
        self.hours = hours
        self.column = column
        mine = column == bindparam("whose")
        self.add = Prepared(
            update(hours)
            .where(mine, hours.c.hour == bindparam("of_hour"))
            .values(
                jobs=hours.c.jobs + 1,
                cpu_seconds=hours.c.cpu_seconds + bindparam("cpu"),
                memory_byte_seconds=hours.c.memory_byte_seconds + bindparam("memory"),
            )
        )
        self.used = select(
            func.coalesce(func.sum(hours.c.cpu_seconds), 0.0),
            func.coalesce(func.sum(hours.c.memory_byte_seconds), 0.0),
        ).where(mine, hours.c.hour >= bindparam("since"))
        self.reserved = [
            select(
                func.count(_job.c.id),
                func.coalesce(func.sum(_job.c.cpu_seconds), 0.0),
                func.coalesce(func.sum(_job.c.memory_bytes * _job.c.wall_seconds), 0.0),
            ).where(of_jobs == bindparam("whose"), tables.state_in(states))
            for states in (WAITING, ACTIVE)
        ]
        """Of the jobs that wait, and of those that run: two questions, each of which has its index."""


_ACCOUNTS = {
    Holder.TENANT: _Account(_hour, _hour.c.tenant, _job.c.tenant),
    Holder.KEY: _Account(tables.key_usage_hour, tables.key_usage_hour.c.key_id, _job.c.key_id),
}


def all_quotas(connection: Connection) -> dict[str, TenantQuotas]:
    """Of every tenant that has its own."""
    return {row.name: _to_quotas(row.quotas) for row in connection.execute(select(_tenant))}


def put_quotas(connection: Connection, name: str, quotas: TenantQuotas | None) -> None:
    """Set a tenant's quotas; None: it has those of all from now on."""
    connection.execute(delete(_tenant).where(_tenant.c.name == name))
    if quotas is not None:
        text = msgspec.json.encode(quotas).decode()
        connection.execute(insert(_tenant), {"name": name, "quotas": text})


def add_use(connection: Connection, whose: Whose, now: float, use: Use) -> None:
    """A job ended that used so much."""
    account = _ACCOUNTS[whose.holder]
    hour = int(now // HOUR_SECONDS)
    values = {"cpu": use.cpu_seconds, "memory": use.memory_byte_seconds}
    if account.add.execute(connection, {"whose": whose.id, "of_hour": hour} | values):
        return
    first = HourOfUse(hour, 1, *use)
    connection.execute(insert(account.hours), {account.column.name: whose.id} | first._asdict())


def uses(connection: Connection, tenant: str, since: int, until: int) -> list[HourOfUse]:
    """What the tenant's jobs used that ended from hour `since` to before hour `until`, oldest first."""
    here = and_(_hour.c.tenant == tenant, _hour.c.hour >= since, _hour.c.hour < until)
    rows = connection.execute(select(_hour).where(here).order_by(_hour.c.hour))
    return [HourOfUse(row.hour, row.jobs, row.cpu_seconds, row.memory_byte_seconds) for row in rows]


def used_and_reserved(
    connection: Connection, whose: Whose, now: float
) -> dict[str, dict[str, float]]:
    """By what is metered and by window: what ended jobs used in it, and what the others may use yet."""
    account = _ACCOUNTS[whose.holder]
    rows = [connection.execute(each, {"whose": whose.id}).one() for each in account.reserved]
    _, *reserved = (sum(parts) for parts in zip(*rows, strict=True))
    table: dict[str, dict[str, float]] = {what: {} for what in METERED}
    for window in WINDOWS:
        used = used_in_window(connection, whose, window, now)
        for what, so_far, more in zip(METERED, used, reserved, strict=True):
            table[what][window] = so_far + more
    return table


def used_in_window(
    connection: Connection, whose: Whose, window: str, now: float
) -> tuple[float, ...]:
    """What ended jobs used in the hour, day or month of a moment, by what is metered."""
    values = {"whose": whose.id, "since": first_hour(window, now)}
    return tuple(connection.execute(_ACCOUNTS[whose.holder].used, values).one())


def check(connection: Connection, job: Job, bounds: Bounds, *, waits: bool, now: float) -> None:
    """Raises QuotaExceeded where one more job, this one, is more than its tenant or its key may have."""
    if bounds.key is not None and job.key_id is not None:
        _check(connection, job, Whose(Holder.KEY, job.key_id), bounds.key, waits, now)
    _check(connection, job, Whose(Holder.TENANT, job.tenant), bounds.tenant, waits, now)


_OF = {Holder.TENANT: "of yours", Holder.KEY: "of this key"}


def _check(
    connection: Connection, job: Job, whose: Whose, quotas: Quotas, waits: bool, now: float
) -> None:
    if waits and quotas.max_queued:
        count_waiting, _ = _ACCOUNTS[whose.holder].reserved
        waiting = connection.execute(count_waiting, {"whose": whose.id}).one()[0]
        if waiting >= quotas.max_queued:
            raise QuotaExceeded(
                f"{waiting} jobs {_OF[whose.holder]} wait already, of at most {quotas.max_queued}",
                policy="max_queued",
                of=whose.holder,
                retry_after_seconds=_FULL_RETRY_SECONDS,
            )
    if quotas.metered:
        _check_metered(connection, job, whose, quotas, now)


def _check_metered(
    connection: Connection, job: Job, whose: Whose, quotas: Quotas, now: float
) -> None:
    limits = job.spec.limits
    needs = (limits.cpu_seconds, limits.memory_bytes * limits.wall_seconds)
    table = used_and_reserved(connection, whose, now)
    for what, need in zip(METERED, needs, strict=True):
        for window in WINDOWS:
            most, so_far = quotas.most(what, window), table[what][window]
            if most and so_far + need > most:
                raise QuotaExceeded(
                    f"{what} per {window}: {so_far:.6g} of {most:.6g} {_OF[whose.holder]} are used or reserved, and this job "
                    f"may need {need:.6g}",
                    policy=f"{what}_per_{window}",
                    of=whose.holder,
                    retry_after_seconds=max(1.0, seconds_left(window, now)),
                )
