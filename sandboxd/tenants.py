"""What each tenant may have: the operator's word for all, and for one where there is one."""

import time
from collections.abc import Callable

from sandboxd.quotas.tenants import Rate, TenantQuotas, TokenBucket
from sandboxd.store.sqlite import SqliteStore


class Tenants:
    """Quotas by tenant, as the store has them, and how many requests each has left."""

    def __init__(self, store: SqliteStore, usual: TenantQuotas) -> None:
        self._store = store
        self._usual = usual
        self._own: dict[str, TenantQuotas] = {}
        self.on_change: Callable[[], None] = lambda: None
        """Called when a tenant may have other things than before."""
        self._buckets: dict[str, TokenBucket] = {}
        """Of tenants that have a rate; there are as many as the operator gave keys to."""

    async def start(self) -> None:
        """Read what the store has."""
        self._own = await self._store.all_quotas()

    def of(self, tenant: str) -> TenantQuotas:
        """What this tenant may have. From any thread."""
        return self._own.get(tenant, self._usual)

    def most_at_once(self, tenant: str) -> int:
        """How many jobs of this tenant may run at once; 0: as many as there is room for. From any thread."""
        return self.of(tenant).max_concurrency

    async def put(self, tenant: str, quotas: TenantQuotas | None) -> None:
        """Set a tenant's own quotas; None: it has those of all from now on."""
        await self._store.put_quotas(tenant, quotas)
        if quotas is None:
            self._own.pop(tenant, None)
        else:
            self._own[tenant] = quotas
        self.on_change()

    def take_request(self, tenant: str) -> Rate | None:
        """Count a request. None: this tenant's are not counted."""
        quotas = self.of(tenant)
        if not quotas.requests_per_minute:
            return None
        shape = (quotas.requests_per_minute, quotas.request_burst)
        now = time.monotonic()
        bucket = self._buckets.get(tenant)
        if bucket is None or bucket.shape != shape:
            bucket = self._buckets[tenant] = TokenBucket(*shape, now)
        return bucket.take(now)
