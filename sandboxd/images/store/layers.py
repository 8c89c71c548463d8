"""The layers of an image, each unpacked once into a tree of its own, which all images share that have it above the same layers.

Its tree is named by the chain of layers up to it (https://github.com/opencontainers/image-spec, config.md, "Layer ChainID"). Another
mark than that of an import's tree is in the name: a tar that was imported is taken as it is, also where its names would hide
something if it were a layer. Where trees cannot be put above each other (see `stacking`), there is one for all layers of an image.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sandboxd.errors import Invalid
from sandboxd.images.documents.manifests import MOST_LAYERS
from sandboxd.images.store.owners import owned
from sandboxd.images.store.trees import Room, Size, Trees
from sandboxd.isolation.protocol import Layer

STACKED, FLAT = "layer-", "layers-"
"""How the names of trees begin: of one layer, and of all layers of an image."""


class LayerFile(NamedTuple):
    """A layer as it came from the registry, verified."""

    path: Path
    diff_id: str
    """`sha256:…` that it has to have when it is uncompressed."""


class Step(NamedTuple):
    """A tree to be made."""

    key: str
    layers: range
    """Numbers of the layers that are applied to it, the lowest of the image being 0."""


class Stack(NamedTuple):
    """What an image is, unpacked."""

    keys: tuple[str, ...]
    """Of its trees, the uppermost first."""
    size_bytes: int
    """Of all files, also of those that a layer above hides."""


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """For each layer, the lowest first, what it and those below it are called."""
    return list(
        itertools.accumulate(
            diff_ids,
            lambda below, diff_id: (
                f"sha256:{hashlib.sha256(f'{below} {diff_id}'.encode()).hexdigest()}"
            ),
        )
    )


def steps_of(diff_ids: Sequence[str], *, stacked: bool, owner: str = "") -> list[Step]:
    """The trees of an image of these layers, the lowest first; with an `owner`, theirs alone. Raises Invalid if it has none, or more than there can be."""
    if not diff_ids:
        raise Invalid("an image without layers: there is nothing to run", code="bad_image")
    if len(diff_ids) > MOST_LAYERS:
        raise Invalid(f"{len(diff_ids)} layers; there can be {MOST_LAYERS}", code="bad_image")
    chain = [each.removeprefix("sha256:") for each in chain_ids(diff_ids)]
    if not stacked:
        return [Step(owned(f"{FLAT}{chain[-1]}", owner), range(len(diff_ids)))]
    return [Step(owned(f"{STACKED}{each}", owner), range(n, n + 1)) for n, each in enumerate(chain)]


def layers_needed(trees: Trees, steps: Sequence[Step], lease: contextlib.ExitStack) -> list[int]:
    """The layers whose trees are not there. Those that are stay until the lease ends."""
    return [
        layer for step in steps if trees.lease(step.key, lease) is None for layer in step.layers
    ]


async def unpack(
    trees: Trees,
    steps: Sequence[Step],
    layer_file: Callable[[int], Awaitable[LayerFile]],
    lease: contextlib.ExitStack,
) -> Stack:
    """Make the trees that are not there. `layer_file` is asked for the layers of those only, in their order.

    All stay until the lease ends. Raises SandboxFailed, Invalid.
    """
    keys: list[str] = []
    size_bytes = 0
    for step in steps:
        size = trees.lease(step.key, lease)
        if size is None:
            files = [await layer_file(number) for number in step.layers]
            filling = _Filling(trees, files, tuple(keys))
            # Their names are their digests; what they hold may be something else than the configuration says.
            source = " ".join(file.path.name for file in files)
            size = await trees.make(step.key, filling.fill, lease, keys, source)
        keys.insert(0, step.key)
        size_bytes += size.bytes
    return Stack(tuple(keys), size_bytes)


class _Filling:
    """Layers on their way into one tree."""

    def __init__(self, trees: Trees, files: Sequence[LayerFile], below: tuple[str, ...]) -> None:
        self._trees = trees
        self._files = files
        self._below = trees.paths(below)

    async def fill(self, rootfs: Path, room: Room) -> Size:
        """Apply them. Each has a sandbox of its own, which sees nothing but the layers below and that one."""
        written = entries = 0
        for number, file in enumerate(self._files):
            request = Layer(
                most_bytes=room.most_bytes - written,
                most_entries=room.most_entries - entries,
                id_count=room.id_count,
                has_lower=bool(number or self._below),
                diff_id=file.diff_id,
            )
            descriptor = _open(file.path)
            try:
                done = await self._trees.sandboxes.work(rootfs, request, [descriptor], self._below)
            finally:
                os.close(descriptor)
            written += done.size_bytes
            entries += done.entries
        return Size(written, entries)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Invalid("a layer was removed meanwhile; try it again", code="bad_image") from None
