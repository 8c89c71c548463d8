"""The images of a data directory, for the length of one command."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sandboxd.cli.accounts import refuse_root
from sandboxd.cli.data_directory import check_data_dir
from sandboxd.settings import Settings


@asynccontextmanager
async def opened_images(settings: Settings) -> AsyncIterator[Any]:
    """Their trees belong to ids that only a launcher can handle."""
    async with opened_service(settings) as service:
        yield service.images


@asynccontextmanager
async def opened_service(settings: Settings) -> AsyncIterator[Any]:
    """The same with all that a service has besides its API."""
    refuse_root()
    check_data_dir(settings.store.data_dir)
    from sandboxd import execution

    async with execution.embedded(settings) as service:
        yield service
