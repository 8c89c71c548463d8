"""The layers of an image, applied one after the other to one tree.

The tree is named by the chain of its layers (https://github.com/opencontainers/image-spec, config.md, "Layer ChainID"), so that
images of the same layers share it. Another mark than that of an import's tree is in the name: a tar that was imported is taken as it
is, also where its names would hide something if it were a layer.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sandboxd.errors import Invalid
from sandboxd.images.trees import Room, Trees
from sandboxd.isolation.protocol import Layer


class LayerFile(NamedTuple):
    """A layer as it came from the registry, verified."""

    path: Path
    diff_id: str
    """`sha256:…` that it has to have when it is uncompressed."""


def tree_key(diff_ids: Sequence[str]) -> str:
    """What the tree of these layers is called, the lowest first."""
    chain_id = functools.reduce(
        lambda below, diff_id: (
            f"sha256:{hashlib.sha256(f'{below} {diff_id}'.encode()).hexdigest()}"
        ),
        diff_ids,
    )
    return f"layers-{chain_id.removeprefix('sha256:')}"


async def apply_layers(trees: Trees, layers: Sequence[LayerFile], rootfs: Path, room: Room) -> int:
    """Fill the empty directory. Returns the bytes of all files that were written.

    Each layer has a sandbox of its own, which sees nothing but the tree and that layer. Raises SandboxFailed, Invalid.
    """
    written = entries = 0
    for number, layer in enumerate(layers):
        request = Layer(
            most_bytes=room.most_bytes - written,
            most_entries=room.most_entries - entries,
            id_count=room.id_count,
            has_lower=number > 0,
            diff_id=layer.diff_id,
        )
        descriptor = _open(layer.path)
        try:
            done = await trees.work_inside(rootfs, request, [descriptor])
        finally:
            os.close(descriptor)
        written += done.size_bytes
        entries += done.entries
    return written


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Invalid("a layer was removed meanwhile; try it again", code="bad_image") from None
