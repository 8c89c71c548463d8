"""Pushing an image: what the store has of it goes to a registry, layers first, the name last.

layers and configuration, some at a time: there already? ─ mounted from another repository? ─ sent
manifest, by tag or digest: only now does anybody see the image
"""

import asyncio
import functools
import os
from collections.abc import AsyncGenerator
from typing import NamedTuple

import msgspec

from sandboxd.errors import Fault, Invalid
from sandboxd.images.catalogue import Images
from sandboxd.images.contents import Contents, read_contents
from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.documents.references import (
    BadReference,
    Reference,
    is_reference,
    parse_reference,
)
from sandboxd.images.registries.transport import Transport
from sandboxd.images.registries.uploading import WritableRegistry
from sandboxd.images.store.blobs import Blobs
from sandboxd.images.store.names import Record
from sandboxd.images.transfers import Progress, Tell, first_of

_AT_ONCE = 3
_CHUNK_BYTES = 256 * 2**10


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry has now."""

    reference: str
    digest: str
    """Of the manifest."""
    size_bytes: int
    """Of manifest, configuration and layers."""


class _Part(NamedTuple):
    descriptor: Descriptor
    is_layer: bool


def destination_of(name: str, destination: str | None) -> Reference:
    """Where an image is pushed to: to where its name says, unless another reference is given. Raises Invalid."""
    text = destination or name
    if destination is None and not is_reference(name):
        raise _invalid(f"{name[:80]} is no reference: say where it is to be pushed to")
    try:
        return parse_reference(text)
    except BadReference as error:
        raise _invalid(f"the reference {error}") from None


async def push(
    images: Images, transport: Transport, name: str, destination: Reference, tell: Tell
) -> Pushed:
    """Send an image to a registry. `tell` hears of each layer as it goes.

    Raises NotFound, Conflict, Unavailable (the registry), Invalid, SandboxFailed.
    """
    async with images.blobs.in_use_soon():
        contents = await read_contents(images, name)
        manifest = contents.descriptor
        if destination.digest not in (None, manifest.digest):
            raise _invalid(f"{name} is {manifest.digest}: it cannot be pushed as {destination}")
        mount_from = _other_repository(contents.record, destination)
        registry = WritableRegistry(transport, destination, mount_from=mount_from)
        parts = _parts(contents)
        await _send_parts(images.blobs.of(contents.record.owner), registry, parts, tell)
        await registry.put_manifest(destination.tag or manifest.digest, contents.document, manifest)
    return Pushed(
        reference=str(destination),
        digest=manifest.digest,
        size_bytes=manifest.size + sum(part.descriptor.size for part in parts),
    )


def _parts(contents: Contents) -> list[_Part]:
    """Each blob once, though an image may have one twice."""
    layers = {layer.digest: _Part(layer, True) for layer in contents.manifest.layers}
    return [*layers.values(), _Part(contents.manifest.config, False)]


def _other_repository(record: Record, destination: Reference) -> str | None:
    """Where the registry that is pushed to may have the blobs: where they were pulled from."""
    if record.source != "registry" or not is_reference(record.name):
        return None
    source = parse_reference(record.name)
    if source.registry != destination.registry or source.path == destination.path:
        return None
    return source.path


async def _send_parts(
    blobs: Blobs, registry: WritableRegistry, parts: list[_Part], tell: Tell
) -> None:
    some = asyncio.Semaphore(_AT_ONCE)

    async def send(part: _Part) -> None:
        descriptor = part.descriptor

        def told(done: int, *, cached: bool = False) -> None:
            if part.is_layer:
                tell(Progress(descriptor.digest, done, descriptor.size, cached))

        async with some:
            if await registry.has(descriptor):
                told(descriptor.size, cached=True)
                return
            pieces = functools.partial(_pieces, blobs, descriptor)
            await registry.put_blob(descriptor, pieces, told)

    for part in parts:
        if part.is_layer:
            tell(Progress(part.descriptor.digest, 0, part.descriptor.size))
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(send(part))
    except BaseExceptionGroup as failures:
        raise first_of(failures) from None


async def _pieces(blobs: Blobs, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
    file = os.open(blobs.path(descriptor.digest), os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := await asyncio.to_thread(os.read, file, _CHUNK_BYTES):
            yield piece
    finally:
        os.close(file)


def _invalid(fact: str) -> Invalid:
    return Invalid(fact, (Fault("/destination", fact),), code="bad_reference")
