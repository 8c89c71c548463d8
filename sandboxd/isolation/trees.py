"""What a sandbox whose root is an image's own tree is asked to do at `/`. Runs in init, inside the walls."""

import os
import resource

from sandboxd.isolation import layers, packing, unpack
from sandboxd.isolation.protocol import (
    Done,
    Empty,
    Failed,
    Layer,
    Message,
    OnTree,
    Pack,
    Unpack,
)
from sandboxd.isolation.tar import BadArchive

_ADDRESS_SPACE_BYTES = 512 * 2**20
"""The headers of an archive are read whole, and a dictionary of xz or zstd is as large as its header says."""
_LONGEST_REASON = 500


def carry_out(request: OnTree, descriptors: list[int]) -> Message:
    """Do it, and tell how it went."""
    try:
        match request:
            case Unpack():
                _limit_memory()
                entries, size = unpack.unpack(descriptors[0], "/", request)
            case Layer():
                _limit_memory()
                entries, size = layers.apply(descriptors[0], "/", request)
            case Pack():
                entries, size = _pack(request, descriptors[0])
            case Empty():
                entries, size = unpack.empty("/")
    except packing.CannotPack as error:
        return Failed(step="pack", reason=printable(error))
    except BadArchive as error:
        return Failed(step="unpack", reason=printable(error))
    except OSError as error:
        return Failed(step="use disk", reason=printable(error))
    return Done(entries=entries, size_bytes=size)


def _pack(request: Pack, output: int) -> tuple[int, int]:
    """Entries and bytes of their contents. Times are left out: they are those of the unpacking."""
    packer = packing.Packer(output, request.most_bytes, keep_times=False)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        packer.pack_tree(root)
        packer.end()
    finally:
        os.close(root)
    return packer.entries, packer.size_bytes


def printable(error: Exception) -> str:
    """Its text for a message: short, and without the bytes of names that are no text."""
    return str(error).encode("utf-8", "backslashreplace").decode()[:_LONGEST_REASON]


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
