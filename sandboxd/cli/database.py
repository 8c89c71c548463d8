"""The database of the data directory, for commands that work on it without a service."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from sandboxd.cli.accounts import refuse_root
from sandboxd.cli.data_directory import check_data_dir
from sandboxd.settings import StoreSettings

if TYPE_CHECKING:
    from sandboxd.store.sqlite import SqliteStore


class Revisions(NamedTuple):
    """Where a schema stands, and where this release wants it."""

    current: str | None
    wanted: str | None


def revisions(settings: StoreSettings) -> Revisions:
    """Nothing is changed. A database that is not there yet has no revision."""
    from sandboxd.store import schema
    from sandboxd.store.tables import REVISION

    if not settings.database.exists():
        return Revisions(None, REVISION)
    return Revisions(schema.current(settings.database), REVISION)


def upgrade(settings: StoreSettings) -> Revisions:
    """Bring the schema to this release; the directory and the database are made where they are missing.

    Raises HostNotReady while a service has the database, or if it cannot be used. Gives the revisions as they were before.
    """
    from sandboxd.store import upgrade
    from sandboxd.store.ownership import owned

    refuse_root()
    check_data_dir(settings.data_dir)
    os.makedirs(settings.data_dir, mode=0o700, exist_ok=True)
    with owned(settings.database):
        before = revisions(settings)
        upgrade.upgrade(settings.database)
    return before


@asynccontextmanager
async def opened(settings: StoreSettings) -> AsyncIterator["SqliteStore"]:
    """The store, made where there is none yet: the first key is older than the first start of the service."""
    from sandboxd.store.sqlite import SqliteStore

    refuse_root()
    check_data_dir(settings.data_dir)
    if not settings.database.exists():
        upgrade(settings)
    store = await SqliteStore.open(settings.database, inline_log_bytes=settings.inline_log_bytes)
    try:
        yield store
    finally:
        await store.close()
