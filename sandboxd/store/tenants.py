"""Tenants: their quotas, what their jobs used hour by hour, and whether another job fits into what is left.

What a job may use at most is reserved as long as it waits or runs, by its row alone; when it ends, what it did use is
added to the hour in the same transaction. So nothing is counted twice, and nothing is lost by a crash.
"""

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from sandboxd.errors import QuotaExceeded
from sandboxd.jobs import ACTIVE, WAITING, Job
from sandboxd.quotas.tenants import (
    HOUR_SECONDS,
    METERED,
    WINDOWS,
    HourOfUse,
    TenantQuotas,
    first_hour,
    seconds_left,
)
from sandboxd.store import tables
from sandboxd.store.prepared import Prepared

_FULL_RETRY_SECONDS = 1.0

_job, _tenant, _hour = tables.job, tables.tenant, tables.usage_hour
_to_quotas = msgspec.json.Decoder(TenantQuotas).decode

_ADD = Prepared(
    update(_hour)
    .where(_hour.c.tenant == bindparam("of_tenant"), _hour.c.hour == bindparam("of_hour"))
    .values(
        jobs=_hour.c.jobs + 1,
        cpu_seconds=_hour.c.cpu_seconds + bindparam("cpu"),
        memory_byte_seconds=_hour.c.memory_byte_seconds + bindparam("memory"),
    )
)
_mine = _job.c.tenant == bindparam("of_tenant")
_RESERVED = [
    select(
        func.count(_job.c.id),
        func.coalesce(func.sum(_job.c.cpu_seconds), 0.0),
        func.coalesce(func.sum(_job.c.memory_bytes * _job.c.wall_seconds), 0.0),
    ).where(_mine, tables.state_in(states))
    for states in (WAITING, ACTIVE)
]
"""Of the jobs that wait, and of those that run: two questions, each of which has its index."""
_USED = select(
    func.coalesce(func.sum(_hour.c.cpu_seconds), 0.0),
    func.coalesce(func.sum(_hour.c.memory_byte_seconds), 0.0),
).where(_hour.c.tenant == bindparam("of_tenant"), _hour.c.hour >= bindparam("since"))


def all_quotas(connection: Connection) -> dict[str, TenantQuotas]:
    """Of every tenant that has its own."""
    return {row.name: _to_quotas(row.quotas) for row in connection.execute(select(_tenant))}


def put_quotas(connection: Connection, name: str, quotas: TenantQuotas | None) -> None:
    """Set a tenant's quotas; None: it has those of all from now on."""
    connection.execute(delete(_tenant).where(_tenant.c.name == name))
    if quotas is not None:
        text = msgspec.json.encode(quotas).decode()
        connection.execute(insert(_tenant), {"name": name, "quotas": text})


def add_use(
    connection: Connection, tenant: str, now: float, cpu_seconds: float, memory_byte_seconds: float
) -> None:
    """A job ended that used so much."""
    hour = int(now // HOUR_SECONDS)
    values = {"cpu": cpu_seconds, "memory": memory_byte_seconds}
    if _ADD.execute(connection, {"of_tenant": tenant, "of_hour": hour} | values):
        return
    first = HourOfUse(hour, 1, cpu_seconds, memory_byte_seconds)
    connection.execute(insert(_hour), {"tenant": tenant} | first._asdict())


def uses(connection: Connection, tenant: str, since: int, until: int) -> list[HourOfUse]:
    """What the tenant's jobs used that ended from hour `since` to before hour `until`, oldest first."""
    here = and_(_hour.c.tenant == tenant, _hour.c.hour >= since, _hour.c.hour < until)
    rows = connection.execute(select(_hour).where(here).order_by(_hour.c.hour))
    return [HourOfUse(row.hour, row.jobs, row.cpu_seconds, row.memory_byte_seconds) for row in rows]


def used_and_reserved(
    connection: Connection, tenant: str, now: float
) -> dict[str, dict[str, float]]:
    """By what is metered and by window: what ended jobs used in it, and what the others may use yet."""
    _, *reserved = _reserved(connection, tenant)
    table: dict[str, dict[str, float]] = {what: {} for what in METERED}
    for window in WINDOWS:
        used = connection.execute(
            _USED, {"of_tenant": tenant, "since": first_hour(window, now)}
        ).one()
        for what, so_far, more in zip(METERED, used, reserved, strict=True):
            table[what][window] = so_far + more
    return table


def check(
    connection: Connection, job: Job, quotas: TenantQuotas, *, waits: bool, now: float
) -> None:
    """Raises QuotaExceeded where one more job, this one, is more than its tenant may have."""
    if waits and quotas.max_queued:
        waiting = connection.execute(_RESERVED[0], {"of_tenant": job.tenant}).one()[0]
        if waiting >= quotas.max_queued:
            raise QuotaExceeded(
                f"{waiting} jobs of yours wait already, of at most {quotas.max_queued}",
                policy="max_queued",
                retry_after_seconds=_FULL_RETRY_SECONDS,
            )
    if not quotas.metered:
        return
    limits = job.spec.limits
    needs = (limits.cpu_seconds, limits.memory_bytes * limits.wall_seconds)
    table = used_and_reserved(connection, job.tenant, now)
    for what, need in zip(METERED, needs, strict=True):
        for window in WINDOWS:
            most, so_far = quotas.most(what, window), table[what][window]
            if most and so_far + need > most:
                raise QuotaExceeded(
                    f"{what} per {window}: {so_far:.6g} of {most:.6g} are used or reserved, and this job may need "
                    f"{need:.6g}",
                    policy=f"{what}_per_{window}",
                    retry_after_seconds=max(1.0, seconds_left(window, now)),
                )


def _reserved(connection: Connection, tenant: str) -> tuple[int, float, float]:
    """How many jobs wait or run, and what they may use together."""
    rows = [connection.execute(each, {"of_tenant": tenant}).one() for each in _RESERVED]
    count, cpu, memory = (sum(parts) for parts in zip(*rows, strict=True))
    return count, cpu, memory
