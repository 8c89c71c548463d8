"""Pulling an image: from a reference to a tree that jobs can name.

    manifest (chosen from an index) ─ configuration ─ layers, some at a time ─ a tree for each ─ name

Each is verified before the next is asked for. The name is written last: until then a crash leaves blobs and trees, which the next pull
goes on with, or the next start of the service removes.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence

import msgspec

from sandboxd.errors import Invalid
from sandboxd.images.assembling import Found, check_layers, record_of
from sandboxd.images.catalogue import Images
from sandboxd.images.documents.configuration import parse_configuration
from sandboxd.images.documents.manifests import (
    MOST_MANIFEST_BYTES,
    Descriptor,
    Index,
    Machine,
    Manifest,
    choose,
    digest_of,
    named,
    parse_manifest,
    this_machine,
)
from sandboxd.images.documents.references import Reference
from sandboxd.images.registries.failures import failed
from sandboxd.images.registries.mirrors import open_registry
from sandboxd.images.registries.registry import Document, Registry
from sandboxd.images.registries.transport import Transport
from sandboxd.images.store.blobs import Blobs
from sandboxd.images.store.layers import LayerFile, Stack, Step, layers_needed, steps_of, unpack
from sandboxd.images.transfers import Progress, Tell, first_of
from sandboxd.jobs import Image

_AT_ONCE = 3


async def pull(
    images: Images,
    transport: Transport,
    reference: Reference,
    tell: Tell,
    *,
    owner: str = "",
    for_tenant: bool = False,
) -> Image:
    """Fetch an image, unpack it and name it by its canonical reference. `tell` hears of each layer as it comes.

    `for_tenant`: it does not take the place of an image that the operator made here, which exists nowhere else.
    `owner`: the tenant whose credentials the registry accepts, and for whom alone it is, with all that came for it; empty: everybody.

    Raises NotFound, Unavailable (the registry), Invalid (what it sent), Conflict, SandboxFailed.
    """
    registry = open_registry(transport, reference)
    blobs = images.blobs.of(owner)
    keys: list[str] = []
    try:
        with contextlib.ExitStack() as lease:
            async with blobs.in_use_soon():
                found = await _find_in_time(blobs, registry, transport, reference)
                check_layers(str(reference), found)
                steps = steps_of(
                    found.configuration.diff_ids, stacked=await images.stacked(), owner=owner
                )
                keys += [step.key for step in steps]
                fetching = _Fetching(images, blobs, registry, transport, tell)
                stack = await fetching.unpacked(found, steps, lease)
                record = await record_of(images, str(reference), found, stack, source="registry")
                tenants = (owner,) if owner else ()
                record = msgspec.structs.replace(record, owner=owner, tenants=tenants)
                if for_tenant:
                    images.check_replaceable(record)
                image = await images.add(record)
    except Invalid:
        # No next pull goes on with what is not an image: whoever makes many of those fills no disk.
        await images.discard(keys)
        raise
    await images.make_room(image.name)
    return image


async def _find_in_time(
    blobs: Blobs, registry: Registry, transport: Transport, reference: Reference
) -> Found:
    seconds = transport.patience.documents_seconds
    with named(str(reference)):
        machine = this_machine()
    try:
        async with asyncio.timeout(seconds):
            return await _find(blobs, registry, reference, machine)
    except TimeoutError:
        raise failed(
            f"{reference.domain} did not tell in {seconds:.0f} s what {reference} is"
        ) from None


async def _find(blobs: Blobs, registry: Registry, reference: Reference, machine: Machine) -> Found:
    """The image for this machine."""
    document = await registry.manifest(reference.target)
    documents = [await blobs.put(document.content)]
    parsed = _parse(document, f"the manifest of {reference}")
    if isinstance(parsed, Index):
        with named(f"the index of {reference}"):
            descriptor = choose(parsed, machine)
        document = await _chosen(registry, descriptor)
        documents.append(await blobs.put(document.content))
        parsed = _parse(document, f"the manifest of {reference}")
        if isinstance(parsed, Index):
            raise Invalid(f"{reference} has an index in its index", code="bad_image")
    config = parsed.config
    if config.size > MOST_MANIFEST_BYTES:
        raise Invalid(
            f"the configuration of {reference} is larger than {MOST_MANIFEST_BYTES} bytes",
            code="bad_image",
        )
    await blobs.add(config, registry.blob(config), lambda _: None, source=registry.name)
    content = blobs.path(config.digest).read_bytes()
    with named(f"the configuration of {reference}"):
        configuration = parse_configuration(content, machine, len(parsed.layers))
    return Found(digest_of(document.content), parsed, configuration, (*documents, config.digest))


async def _chosen(registry: Registry, descriptor: Descriptor) -> Document:
    """The manifest that an index names, which must be what the index says."""
    document = await registry.manifest(descriptor.digest)
    media_type = document.content_type.partition(";")[0].strip().lower()
    if len(document.content) != descriptor.size or media_type != descriptor.media_type:
        raise Invalid(
            f"the registry sent {len(document.content)} bytes of {media_type[:100]} for "
            f"{descriptor.size} bytes of {descriptor.media_type}",
            code="bad_image",
        )
    return document


def _parse(document: Document, what: str) -> Manifest | Index:
    with named(what):
        return parse_manifest(document.content, document.content_type)


class _Fetching:
    """What is not there of an image, on its way: layers come some at a time, and each is unpacked as soon as those below it are."""

    def __init__(
        self, images: Images, blobs: Blobs, registry: Registry, transport: Transport, tell: Tell
    ) -> None:
        self._images = images
        self._blobs = blobs
        self._registry = registry
        self._patience = transport.patience
        self._tell = tell
        self._some = asyncio.Semaphore(_AT_ONCE)

    async def unpacked(
        self, found: Found, steps: Sequence[Step], lease: contextlib.ExitStack
    ) -> Stack:
        """All of its trees. Those that are there already are not made again."""
        layers, diff_ids = found.manifest.layers, found.configuration.diff_ids
        wanted = self._wanted(layers, layers_needed(self._images.trees, steps, lease))
        for layer in wanted.values():
            self._tell(Progress(layer.digest, 0, layer.size))
        try:
            async with asyncio.TaskGroup() as group:
                fetched = {
                    layer.digest: group.create_task(self._fetch(layer)) for layer in wanted.values()
                }

                async def layer_file(number: int) -> LayerFile:
                    await fetched[layers[number].digest]
                    return LayerFile(self._blobs.path(layers[number].digest), diff_ids[number])

                unpacking = group.create_task(unpack(self._images.trees, steps, layer_file, lease))
        except BaseExceptionGroup as failed:
            raise first_of(failed) from None
        return unpacking.result()

    def _wanted(self, layers: Sequence[Descriptor], needed: Iterable[int]) -> dict[str, Descriptor]:
        """Each once, though an image may have one twice. Raises Invalid if there is no room for them."""
        wanted = {layers[number].digest: layers[number] for number in needed}
        # What is unpacked is wanted, too, by who pushes or saves the image, where there is room for it.
        others = {layer.digest: layer for layer in layers if not self._blobs.has(layer)}
        if self._images.has_room_for(sum(layer.size for layer in (wanted | others).values())):
            wanted |= others
        self._blobs.check_room(wanted.values(), code="bad_image")
        return wanted

    async def _fetch(self, layer: Descriptor) -> None:
        async with self._some:
            cached = self._blobs.has(layer)
            await self._blobs.add(
                layer,
                self._registry.blob(layer),
                lambda done: self._tell(Progress(layer.digest, done, layer.size, cached)),
                seconds=self._patience.download_seconds(layer.size),
                source=self._registry.name,
            )
