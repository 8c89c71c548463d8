"""Saving images into an archive that docker, podman, skopeo and `load` read.

It is an OCI layout in a tar; with Docker's own index in it, too, it is what `docker save` writes since version 25. The same images give
the same bytes. Configurations and layers stay what they are, digest for digest; so does the manifest, but for one of Docker's in an archive
of OCI's alone.
"""

import asyncio
import os
import tarfile
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from sandboxd.images.catalogue import Images
from sandboxd.images.contents import Contents, as_oci, read_contents
from sandboxd.images.documents.media_types import NAME_BY_CONTAINERD, NAME_BY_OCI, OCI_INDEX
from sandboxd.images.documents.references import Reference, parse_reference

FORMATS = ("docker", "oci")
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_CHUNK_BYTES = 2**20
_DOCKER_DOMAIN = "docker.io/"
_LIBRARY = "docker.io/library/"


async def save(
    images: Images, names: Sequence[str], *, docker: bool = True
) -> AsyncGenerator[bytes, None]:
    """The archive, piece by piece. What is wrong with the images is raised before the first one comes.

    Raises NotFound, Conflict, SandboxFailed.
    """
    async with images.blobs.in_use_soon():
        found = [await read_contents(images, name) for name in dict.fromkeys(names)]
        if not docker:
            found = [as_oci(each) for each in found]
            for each in found:
                await images.blobs.of(each.record.owner).put(each.document)
        for name, content in _documents(found, docker=docker):
            yield _file(name, content)
        for name in ("blobs", "blobs/sha256"):
            yield _header(name, tarfile.DIRTYPE, 0, 0o755)
        for digest, owner in sorted(_blobs(found).items()):
            path = images.blobs.of(owner).path(digest)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                yield _header(_place_of(digest), tarfile.REGTYPE, size, 0o644)
                while piece := await asyncio.to_thread(os.read, descriptor, _CHUNK_BYTES):
                    yield piece
            finally:
                os.close(descriptor)
            yield bytes(-size % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)


def _documents(found: Sequence[Contents], *, docker: bool) -> list[tuple[str, bytes]]:
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [_listed(each) for each in found],
    }
    documents = [("oci-layout", _LAYOUT), ("index.json", msgspec.json.encode(index))]
    if docker:
        documents.append(("manifest.json", msgspec.json.encode(_saved(found))))
    return documents


def _listed(contents: Contents) -> dict[str, Any]:
    descriptor = contents.descriptor
    name = str(_reference(contents))
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
        "annotations": {NAME_BY_CONTAINERD: name, NAME_BY_OCI: name},
    }


def _saved(found: Sequence[Contents]) -> list[dict[str, Any]]:
    """Docker's index: an image once, with all of its names."""
    by_digest: dict[str, list[Contents]] = {}
    for each in found:
        by_digest.setdefault(each.descriptor.digest, []).append(each)
    return [
        {
            "Config": _place_of(same[0].manifest.config.digest),
            "RepoTags": [
                _familiar(reference)
                for each in same
                if (reference := _reference(each)).tag is not None
            ],
            "Layers": [_place_of(layer.digest) for layer in same[0].manifest.layers],
        }
        for same in by_digest.values()
    ]


def _blobs(found: Sequence[Contents]) -> dict[str, str]:
    """Each once, and whose it is."""
    return {
        digest: each.record.owner
        for each in found
        for digest in (
            each.descriptor.digest,
            each.manifest.config.digest,
            *(layer.digest for layer in each.manifest.layers),
        )
    }


def _reference(contents: Contents) -> Reference:
    """A name without a digest, which it has anyway; that of an import is what Docker makes of such a word."""
    reference = parse_reference(contents.record.name)
    return reference if reference.tag is None else reference._replace(digest=None)


def _familiar(reference: Reference) -> str:
    """As Docker shows it, and looks for it."""
    name = str(reference._replace(digest=None))
    return name.removeprefix(_LIBRARY).removeprefix(_DOCKER_DOMAIN)


def _place_of(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _file(name: str, content: bytes) -> bytes:
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return _header(name, tarfile.REGTYPE, len(content), 0o644) + content + padding


def _header(name: str, kind: bytes, size: int, mode: int) -> bytes:
    """Of nobody, and of no time."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, size, mode
    return info.tobuf(tarfile.GNU_FORMAT)
