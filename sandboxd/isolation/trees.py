"""What a sandbox whose root is an image's own tree is asked to do at `/`. Runs in init, inside the walls."""

import resource

from sandboxd.isolation import layers, unpack
from sandboxd.isolation.protocol import Done, Failed, Layer, Message, OnTree, Unpack
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
            case _:
                entries, size = unpack.empty("/")
    except BadArchive as error:
        return Failed(step="unpack", reason=printable(error))
    except OSError as error:
        return Failed(step="use disk", reason=printable(error))
    return Done(entries=entries, size_bytes=size)


def printable(error: Exception) -> str:
    """Its text for a message: short, and without the bytes of names that are no text."""
    return str(error).encode("utf-8", "backslashreplace").decode()[:_LONGEST_REASON]


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
