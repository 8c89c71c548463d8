"""Pulling an image: from a reference to a tree that jobs can name.

    manifest (chosen from an index) ─ configuration ─ layers, some at a time ─ tree ─ name

Each is verified before the next is asked for. The name is written last: until then a crash leaves blobs and half a tree, which the
next start of the service removes.
"""

import asyncio
import contextlib
import functools
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sandboxd.errors import Invalid
from sandboxd.images import host
from sandboxd.images.blobs import Blobs
from sandboxd.images.catalogue import Images
from sandboxd.images.configuration import Configuration, parse_configuration
from sandboxd.images.layers import LayerFile, apply_layers, tree_key
from sandboxd.images.manifests import (
    MOST_MANIFEST_BYTES,
    BadManifest,
    Descriptor,
    Index,
    Machine,
    Manifest,
    choose,
    parse_manifest,
    this_machine,
)
from sandboxd.images.mirrors import open_registry
from sandboxd.images.names import Record, RunAs
from sandboxd.images.references import Reference
from sandboxd.images.registry import Document, Registry
from sandboxd.images.transport import Transport, failed
from sandboxd.images.users import find_user
from sandboxd.jobs import Image

_AT_ONCE = 3
_MOST_OF_FREE_SPACE = 0.9

Tell = Callable[["Progress"], None]


class Progress(NamedTuple):
    """How far a layer is."""

    digest: str
    done_bytes: int
    size_bytes: int
    cached: bool = False
    """It was here before."""


class Found(NamedTuple):
    """An image that is known, all of it but its layers."""

    digest: str
    """Of its manifest."""
    manifest: Manifest
    configuration: Configuration
    documents: tuple[str, ...]
    """Digests of what is kept beside the layers."""


async def pull(
    images: Images,
    transport: Transport,
    reference: Reference,
    tell: Tell,
    *,
    tenants: tuple[str, ...] = (),
) -> Image:
    """Fetch an image, unpack it and name it by its canonical reference. `tell` hears of each layer as it comes.

    `tenants`: for whom only, because it is their credentials that the registry accepts; empty: everybody.

    Raises NotFound, Unavailable (the registry), Invalid (what it sent), Conflict, SandboxFailed.
    """
    registry = open_registry(transport, reference)
    with images.blobs.in_use():
        found = await _find_in_time(images.blobs, registry, transport, reference)
        check_layers(str(reference), found)
        await _fetch_layers(images.blobs, registry, transport, found.manifest.layers, tell)
        return await assemble(images, str(reference), found, source="registry", tenants=tenants)


def check_layers(name: str, found: Found) -> None:
    """Raises Invalid for an image that has none."""
    if not found.manifest.layers:
        raise Invalid(f"{name} has no layers: there is nothing to run", code="bad_image")


async def assemble(
    images: Images, name: str, found: Found, *, source: str, tenants: tuple[str, ...] = ()
) -> Image:
    """Unpack and name an image whose blobs are all in the store, which the caller keeps in use. `tenants`: see `pull`.

    Raises Invalid (what a layer holds), Conflict, SandboxFailed.
    """
    layers = found.manifest.layers
    key = tree_key(found.configuration.diff_ids)
    files = [
        LayerFile(images.blobs.path(layer.digest), diff_id)
        for layer, diff_id in zip(layers, found.configuration.diff_ids, strict=True)
    ]
    size = await images.trees.make(key, functools.partial(apply_layers, images.trees, files))
    record = Record(
        name=name,
        digest=found.digest,
        size_bytes=size,
        created_at=time.time(),
        source=source,
        tree=key,
        run_as=_run_as(images, key, found.configuration),
        blobs=(*found.documents, *(layer.digest for layer in layers)),
        tenants=tenants,
    )
    return await images.add(record)


async def _find_in_time(
    blobs: Blobs, registry: Registry, transport: Transport, reference: Reference
) -> Found:
    seconds = transport.patience.documents_seconds
    with _named(str(reference)):
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
        with _named(f"the index of {reference}"):
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
    await blobs.add(config, registry.blob(config), lambda _: None)
    content = blobs.path(config.digest).read_bytes()
    with _named(f"the configuration of {reference}"):
        configuration = parse_configuration(content, machine, len(parsed.layers))
    digest = f"sha256:{hashlib.sha256(document.content).hexdigest()}"
    return Found(digest, parsed, configuration, (*documents, config.digest))


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
    with _named(what):
        return parse_manifest(document.content, document.content_type)


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Within, a bad manifest is what the caller of this module is told of."""
    try:
        yield
    except BadManifest as error:
        raise Invalid(f"{what} {error}", code="bad_image") from error


async def _fetch_layers(
    blobs: Blobs,
    registry: Registry,
    transport: Transport,
    layers: tuple[Descriptor, ...],
    tell: Tell,
) -> None:
    """Some at a time, each once, though an image may have one twice."""
    wanted = {layer.digest: layer for layer in layers}
    size = sum(layer.size for layer in wanted.values() if not blobs.has(layer))
    free = int(shutil.disk_usage(blobs.directory).free * _MOST_OF_FREE_SPACE)
    if size > free:
        raise Invalid(f"the layers are {size} bytes; there is room for {free}", code="bad_image")
    some = asyncio.Semaphore(_AT_ONCE)

    async def fetch(layer: Descriptor) -> None:
        seconds = transport.patience.download_seconds(layer.size)
        async with some:
            cached = blobs.has(layer)
            await blobs.add(
                layer,
                registry.blob(layer),
                lambda done: tell(Progress(layer.digest, done, layer.size, cached)),
                seconds=seconds,
            )

    for layer in wanted.values():
        tell(Progress(layer.digest, 0, layer.size))
    try:
        async with asyncio.TaskGroup() as group:
            for layer in wanted.values():
                group.create_task(fetch(layer))
    except BaseExceptionGroup as failed:
        raise _first(failed) from None


def _first(failed: BaseException) -> BaseException:
    while isinstance(failed, BaseExceptionGroup):
        failed = failed.exceptions[0]
    return failed


def _run_as(images: Images, key: str, configuration: Configuration) -> RunAs:
    user = find_user(images.trees.rootfs(key), configuration.user, images.trees.id_count)
    return RunAs(
        user=(user.uid, user.gid),
        env={"PATH": host.PATH, "HOME": user.home, **configuration.env},
        entrypoint=configuration.entrypoint,
        cmd=configuration.cmd,
        workdir=configuration.workdir,
    )
