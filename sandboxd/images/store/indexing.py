"""The index of the OCI layout that the blobs are: what skopeo and other tools find there, by the names that images have here."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from sandboxd.images.documents.manifests import stated_type
from sandboxd.images.documents.media_types import NAME_BY_OCI, OCI_INDEX
from sandboxd.images.store.blobs import Blobs
from sandboxd.images.store.locks import make_locked
from sandboxd.images.store.names import Names, Record

_PAUSE_SECONDS = 0.005
_TRIES = 100


async def write_index(blobs: Blobs, names: Names) -> None:
    """Write it anew. Who dies over it, or before it, leaves one that is out of date until the next. Raises OSError."""
    await asyncio.to_thread(
        _write, blobs, names
    )  # It reads the manifests of all images, and may have to wait.


def _write(blobs: Blobs, names: Names) -> None:
    temporary = blobs.directory / "index.json.tmp"
    for _ in range(_TRIES):
        descriptor = make_locked(temporary)
        if descriptor is not None:
            break
        time.sleep(_PAUSE_SECONDS)  # Another writes it, who may not have seen the last name.
    else:
        return  # That one was stopped over it: nobody here depends on the index.
    with open(descriptor, "wb") as file:
        file.truncate()
        # Asked under the lock: the last to write has seen all.
        manifests = [each for record in names.all() for each in _described(blobs, record)]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
        file.write(msgspec.json.encode(index))
        file.flush()
        temporary.rename(blobs.directory / "index.json")


def _described(blobs: Blobs, record: Record) -> Iterator[dict[str, Any]]:
    """Nothing of what came as a tar and has no manifest, is one tenant's, or was just removed."""
    if not record.blobs or record.owner:
        return
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
        content = blobs.path(record.digest).read_bytes()
        yield {
            "mediaType": stated_type(content),
            "digest": record.digest,
            "size": len(content),
            "annotations": {NAME_BY_OCI: record.name},
        }
