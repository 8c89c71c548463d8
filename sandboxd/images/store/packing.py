"""A layer that is made here: what a sandbox's init packs, hashed and compressed on its way into the store.

init is at one end of a pipe and a thread at the other, so that neither a slow disk nor a sandbox that does not do its part holds up
anything else.
"""

import asyncio
import hashlib
import os
import select
import tempfile
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple

from sandboxd.errors import Conflict, Invalid, SandboxFailed
from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.documents.media_types import OCI_LAYER
from sandboxd.images.store.blobs import Blobs
from sandboxd.images.store.free_space import room_in

_CHUNK_BYTES = 2**20
_LEVEL = 6
_GZIP_BITS = 31
"""The largest window, with gzip's header around it, in which zlib leaves out name and time."""
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="pack")


class Packed(NamedTuple):
    """A layer in the store."""

    descriptor: Descriptor
    diff_id: str
    """`sha256:…` of it, uncompressed."""


async def pack(
    blobs: Blobs, ask: Callable[[int], Awaitable[object]], *, most_bytes: int, seconds: float
) -> Packed:
    """Keep what `ask` has init write to a descriptor, an archive of at most `most_bytes`.

    Raises Conflict (there is something that a layer cannot hold), Invalid (no room), SandboxFailed.
    """
    free = room_in(blobs.directory)
    with tempfile.TemporaryFile(dir=blobs.directory) as copy:
        reading, writing = os.pipe()
        deadline = time.monotonic() + seconds
        taking = asyncio.get_running_loop().run_in_executor(
            _THREADS, _compress, reading, copy, most_bytes, free, deadline
        )
        try:
            await ask(writing)
        except SandboxFailed as error:
            if error.step == "pack":
                raise Conflict(error.reason, code="cannot_pack") from error
            raise
        finally:
            os.close(writing)
            taken = await asyncio.shield(taking)
        if isinstance(taken, Exception):
            raise taken
        diff_id, descriptor = taken
        await blobs.add(descriptor, _pieces(copy), lambda _: None, sender="the disk")
    return Packed(descriptor, diff_id)


async def _pieces(copy: IO[bytes]) -> AsyncGenerator[bytes, None]:
    copy.seek(0)
    while piece := await asyncio.to_thread(copy.read, _CHUNK_BYTES):
        yield piece


def _compress(
    reading: int, copy: IO[bytes], most_bytes: int, free_bytes: int, deadline: float
) -> tuple[str, Descriptor] | Exception:
    """In a thread: closes the pipe. Whoever does not read any more ends it for init."""
    plain, compressed = hashlib.sha256(), hashlib.sha256()
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_BITS)
    size = 0

    def write(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if size > free_bytes:
            raise Invalid("there is no room for this layer", code="no_room")
        compressed.update(piece)
        copy.write(piece)

    try:
        left = most_bytes
        while piece := _read(reading, deadline):
            left -= len(piece)
            if left < 0:
                return SandboxFailed("pack", "init wrote more than it was asked for")
            plain.update(piece)
            write(compressor.compress(piece))
        write(compressor.flush())
        copy.flush()
    except (Invalid, SandboxFailed, OSError) as error:
        return error
    finally:
        os.close(reading)
    digest = f"sha256:{compressed.hexdigest()}"
    descriptor = Descriptor(media_type=f"{OCI_LAYER}+gzip", digest=digest, size=size)
    return f"sha256:{plain.hexdigest()}", descriptor


def _read(reading: int, deadline: float) -> bytes:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise SandboxFailed("pack", "it took too long")
    return os.read(reading, _CHUNK_BYTES)
