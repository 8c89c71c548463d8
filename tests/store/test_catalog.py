"""Keys."""

import pytest
from sqlalchemy.exc import IntegrityError
from store_examples import in_store

from sandboxd.jobs import ApiKey
from sandboxd.quotas.tenants import Quotas
from sandboxd.store.sqlite import SqliteStore


def a_key(
    key_id: str = "key_1",
    *,
    created_at: float = 1.0,
    expires_at: float | None = None,
    quotas: Quotas | None = None,
) -> ApiKey:
    return ApiKey(
        id=key_id,
        tenant="ada",
        name="ci",
        secret_sha256=bytes(32),
        scopes=("jobs:read", "jobs:write"),
        created_at=created_at,
        expires_at=expires_at,
        quotas=quotas,
    )


@in_store
async def test_a_key_reads_back_as_it_was_made(store: SqliteStore) -> None:
    await store.create_key(a_key(expires_at=9.0))

    assert await store.find_key("key_1") == a_key(expires_at=9.0)
    assert await store.find_key("key_2") is None


@in_store
async def test_quotas_of_keys_are_read_at_once_and_stay_when_the_key_is_revoked(
    store: SqliteStore,
) -> None:
    own = Quotas(max_concurrency=2, images=("python-*",))
    await store.create_key(a_key(quotas=own))
    await store.create_key(a_key("key_2"))
    await store.revoke_key("key_1", 5.0)

    assert await store.quotas_of_keys() == {"key_1": own}
    found = await store.find_key("key_1")
    assert found is not None
    assert found.quotas == own


@in_store
async def test_keys_are_listed_oldest_first(store: SqliteStore) -> None:
    for number in (3, 1, 2):
        await store.create_key(a_key(f"key_{number}", created_at=float(number)))

    assert [key.id for key in await store.list_keys()] == ["key_1", "key_2", "key_3"]


@in_store
async def test_a_key_is_revoked_once_and_for_all(store: SqliteStore) -> None:
    await store.create_key(a_key())

    assert await store.revoke_key("key_1", 5.0)
    assert await store.revoke_key("key_1", 6.0)
    assert not await store.revoke_key("key_2", 5.0)

    key = await store.find_key("key_1")
    assert key is not None
    assert key.revoked_at == 5.0


@in_store
async def test_a_key_is_never_overwritten(store: SqliteStore) -> None:
    await store.create_key(a_key())

    with pytest.raises(IntegrityError):
        await store.create_key(a_key(expires_at=9.0))

    assert await store.find_key("key_1") == a_key()
