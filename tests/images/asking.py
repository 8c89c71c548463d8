"""Asking a registry, as a pull does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from registries import BRIEF

from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.registries.mirrors import open_registry
from sandboxd.images.registries.registry import Document, Registry
from sandboxd.images.registries.terms import Access, Patience
from sandboxd.images.registries.transport import Transport

SECONDS = 30
"""What any of it may take."""


@contextlib.asynccontextmanager
async def registry_for(
    reference: str, accesses: Mapping[str, Access], patience: Patience = BRIEF
) -> AsyncIterator[Registry]:
    transport = Transport(accesses, patience)
    try:
        async with asyncio.timeout(SECONDS):
            yield open_registry(transport, parse_reference(reference))
    finally:
        await transport.close()


def manifest_of(
    reference: str, accesses: Mapping[str, Access], patience: Patience = BRIEF
) -> Document:
    async def ask() -> Document:
        async with registry_for(reference, accesses, patience) as registry:
            return await registry.manifest(parse_reference(reference).target)

    return asyncio.run(ask())


def blob_of(
    reference: str,
    blob: Descriptor,
    accesses: Mapping[str, Access],
    patience: Patience = BRIEF,
) -> bytes:
    async def ask() -> bytes:
        async with registry_for(reference, accesses, patience) as registry:
            return b"".join([piece async for piece in registry.blob(blob)])

    return asyncio.run(ask())
