"""From blobs in the store to an image that jobs can name: what pulling, loading and committing end with."""

import contextlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sandboxd.errors import Invalid
from sandboxd.images import host
from sandboxd.images.catalogue import Images
from sandboxd.images.documents.configuration import Configuration
from sandboxd.images.documents.manifests import Manifest
from sandboxd.images.documents.users import ACCOUNT_FILES, find_user
from sandboxd.images.store.layers import LayerFile, Stack, steps_of, unpack
from sandboxd.images.store.names import LayerOf, Record, RunAs
from sandboxd.images.store.trees import Trees
from sandboxd.jobs import Image


class Found(NamedTuple):
    """An image that is known, all of it but its layers."""

    digest: str
    """Of its manifest."""
    manifest: Manifest
    configuration: Configuration
    documents: tuple[str, ...]
    """Digests of what is kept beside the layers."""


def check_layers(name: str, found: Found) -> None:
    """Raises Invalid for an image that has none."""
    if not found.manifest.layers:
        raise Invalid(f"{name} has no layers: there is nothing to run", code="bad_image")


async def assemble(
    images: Images,
    name: str,
    found: Found,
    *,
    source: str,
    owner: str = "",
    tenants: tuple[str, ...] = (),
) -> Image:
    """Unpack and name an image whose blobs are all in the store, which the caller keeps in use. `owner`, `tenants`: see `Record`.

    Raises Invalid (what a layer holds), Conflict, SandboxFailed.
    """
    layers, diff_ids = found.manifest.layers, found.configuration.diff_ids
    blobs = images.blobs.of(owner)

    async def layer_file(number: int) -> LayerFile:
        return LayerFile(blobs.path(layers[number].digest), diff_ids[number])

    with contextlib.ExitStack() as lease:
        steps = steps_of(diff_ids, stacked=await images.stacked(), owner=owner)
        stack = await unpack(images.trees, steps, layer_file, lease)
        record = await record_of(images, name, found, stack, source=source)
        return await images.add(msgspec.structs.replace(record, owner=owner, tenants=tenants))


async def record_of(
    images: Images,
    name: str,
    found: Found,
    stack: Stack,
    *,
    source: str,
) -> Record:
    """What its name will mean. Raises Invalid (its user is not in it), SandboxFailed."""
    layers = found.manifest.layers
    return Record(
        name=name,
        digest=found.digest,
        size_bytes=stack.size_bytes,
        created_at=time.time(),
        source=source,
        trees=stack.keys,
        run_as=await _run_as(images.trees, stack.keys, found.configuration),
        blobs=(*found.documents, *(layer.digest for layer in layers)),
        configuration=found.manifest.config.digest,
        layers=tuple(
            LayerOf(diff_id=diff_id, digest=layer.digest)
            for layer, diff_id in zip(layers, found.configuration.diff_ids, strict=True)
        ),
    )


async def _run_as(trees: Trees, keys: Sequence[str], configuration: Configuration) -> RunAs:
    """How an image of these trees is run. Raises Invalid for a user that it does not have, SandboxFailed."""
    passwd, group = await trees.sandboxes.read(trees.paths(keys), ACCOUNT_FILES)
    user = find_user(passwd, group, configuration.user, trees.sandboxes.id_count)
    return RunAs(
        user=(user.uid, user.gid),
        groups=user.groups,
        env={"PATH": host.PATH, "HOME": user.home, **configuration.env},
        entrypoint=configuration.entrypoint,
        cmd=configuration.cmd,
        workdir=configuration.workdir,
        stop_signal=configuration.stop_signal,
    )
