"""What each tenant may have, the operator's word for all or for one; and what a key of it may have besides."""

import time
from collections.abc import Callable

from sandboxd.jobs import ApiKey
from sandboxd.quotas.tenants import (
    Bounds,
    Holder,
    Quotas,
    Rate,
    TenantQuotas,
    TokenBucket,
    Whose,
)
from sandboxd.store.sqlite import SqliteStore


class Tenants:
    """Quotas by tenant and by key, as the store has them, and how many requests each has left."""

    def __init__(self, store: SqliteStore, usual: TenantQuotas, *, told: bool = False) -> None:
        """`told`: whether somebody is told when most of a quota is used."""
        self._store = store
        self._usual = usual
        self._told = told
        self.on_told: Callable[[], None] = lambda: None
        """Called when there may be something new to tell."""
        self._own: dict[str, TenantQuotas] = {}
        self._of_keys: dict[str, Quotas] = {}
        self.on_change: Callable[[], None] = lambda: None
        """Called when a tenant may have other things than before."""
        self._buckets: dict[Whose, TokenBucket] = {}
        """Of those that have a rate; there are as many as the operator made."""

    async def start(self) -> None:
        """Read what the store has."""
        self._own = await self._store.all_quotas()
        self._of_keys = await self._store.quotas_of_keys()

    def of(self, tenant: str) -> TenantQuotas:
        """What this tenant may have. From any thread."""
        return self._own.get(tenant, self._usual)

    def of_key(self, key_id: str | None) -> Quotas | None:
        """What this key may have besides; None: all that its tenant may. From any thread."""
        return None if key_id is None else self._of_keys.get(key_id)

    def bounds(self, tenant: str, key_id: str | None) -> Bounds:
        """All that holds for what comes with this key."""
        return Bounds(self.of(tenant), self.of_key(key_id), self._told)

    def most_at_once(self, tenant: str) -> int:
        """How many jobs of this tenant may run at once; 0: as many as there is room for. From any thread."""
        return self.of(tenant).max_concurrency

    def most_of_key(self, key_id: str | None) -> int:
        """The same for those that come with this key."""
        quotas = self.of_key(key_id)
        return 0 if quotas is None else quotas.max_concurrency

    async def put(self, tenant: str, quotas: TenantQuotas | None) -> None:
        """Set a tenant's own quotas; None: it has those of all from now on."""
        await self._store.put_quotas(tenant, quotas)
        if quotas is None:
            self._own.pop(tenant, None)
        else:
            self._own[tenant] = quotas
        self.on_change()

    def note_key(self, key: ApiKey) -> None:
        """A key was made. What it may have holds as long as anything that came with it waits, also if it is revoked."""
        if key.quotas is not None:
            self._of_keys[key.id] = key.quotas

    def take_request(self, tenant: str, key_id: str | None) -> dict[Holder, Rate]:
        """Count a request: how those stand then whose requests are counted, up to the first that has none left."""
        rates = {}
        for holder, name, quotas in (
            (Holder.KEY, key_id or "", self.of_key(key_id)),
            (Holder.TENANT, tenant, self.of(tenant)),
        ):
            if quotas is not None and quotas.requests_per_minute:
                rates[holder] = self._take(Whose(holder, name), quotas)
                if not rates[holder].allowed:
                    break
        return rates

    def _take(self, whose: Whose, quotas: Quotas) -> Rate:
        shape = (quotas.requests_per_minute, quotas.request_burst)
        now = time.monotonic()
        bucket = self._buckets.get(whose)
        if bucket is None or bucket.shape != shape:
            bucket = self._buckets[whose] = TokenBucket(*shape, now)
        return bucket.take(now)
