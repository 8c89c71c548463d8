"""Keys: a small table, one function per question."""

from sqlalchemy import Connection, func, insert, select, update

from sandboxd.errors import Conflict
from sandboxd.jobs import ApiKey
from sandboxd.quotas.tenants import Quotas
from sandboxd.store.records import key_from, key_values
from sandboxd.store.tables import api_key

_ONE_TENANT = (
    'tenant "{other}" has keys already, and without subordinate ids one service is for one tenant, since all jobs have '
    'the same id: a key for "{new}" needs subordinate ids (`sandboxd setup` as root) or the setting '
    "isolation.single_id_many_tenants"
)


def create_key(connection: Connection, key: ApiKey, one_tenant: bool) -> None:
    """Store a new key. Raises Conflict where there may be `one_tenant` only and another has keys that are not revoked."""
    if one_tenant:
        of_others = api_key.c.revoked_at.is_(None) & (api_key.c.tenant != key.tenant)
        other = connection.scalar(select(api_key.c.tenant).where(of_others).limit(1))
        if other is not None:
            raise Conflict(_ONE_TENANT.format(other=other, new=key.tenant), code="one_tenant_only")
    connection.execute(insert(api_key), key_values(key))


def find_key(connection: Connection, key_id: str) -> ApiKey | None:
    """The key, also if it is revoked or expired: the caller judges."""
    row = connection.execute(select(api_key).where(api_key.c.id == key_id)).one_or_none()
    return None if row is None else key_from(row)


def list_keys(connection: Connection) -> list[ApiKey]:
    """Every key, oldest first."""
    rows = connection.execute(select(api_key).order_by(api_key.c.created_at, api_key.c.id))
    return [key_from(row) for row in rows]


def quotas_of_keys(connection: Connection) -> dict[str, Quotas]:
    """Of every key that has its own, also if it is revoked: jobs that came with it may still wait."""
    rows = connection.execute(select(api_key).where(api_key.c.quotas.is_not(None)))
    keys = [key_from(row) for row in rows]
    return {key.id: key.quotas for key in keys if key.quotas is not None}


def revoke_key(connection: Connection, key_id: str, now: float) -> bool:
    """Make a key worthless; the first time counts. False: there is no such key."""
    revoked_at = func.coalesce(api_key.c.revoked_at, now)
    revoke = update(api_key).where(api_key.c.id == key_id).values(revoked_at=revoked_at)
    return connection.execute(revoke).rowcount == 1
