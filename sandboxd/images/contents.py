"""An image as registries and archives have it: its manifest, its configuration, its layers.

What came from a registry or an archive has all of that in the store. An imported tree has none of it: its one layer is packed anew
whenever somebody wants it, to the same bytes each time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from sandboxd.errors import Conflict, NotFound
from sandboxd.images import host
from sandboxd.images.catalogue import Images
from sandboxd.images.documents.manifests import (
    BadManifest,
    Descriptor,
    Manifest,
    digest_of,
    encode_manifest,
    parse_manifest,
    stated_type,
    this_machine,
)
from sandboxd.images.documents.media_types import (
    DOCKER_FOREIGN_LAYER,
    DOCKER_LAYER,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
)
from sandboxd.images.store.blobs import Blobs
from sandboxd.images.store.names import Record
from sandboxd.images.store.packing import pack
from sandboxd.isolation.protocol import Pack

_OCI_LAYERS = {
    DOCKER_LAYER: OCI_LAYER,
    f"{DOCKER_LAYER}.gzip": f"{OCI_LAYER}+gzip",
    f"{DOCKER_LAYER}.zstd": f"{OCI_LAYER}+zstd",
    f"{DOCKER_FOREIGN_LAYER}.gzip": f"{OCI_LAYER}+gzip",
}
_MOST_PACKED_BYTES = 64 * 2**30
_PACK_SECONDS = 1800.0


class Contents(NamedTuple):
    """All of an image. Its blobs are in the store for as long as the caller keeps that in use."""

    record: Record
    document: bytes
    """The manifest, as it is passed on."""
    media_type: str
    manifest: Manifest
    config: bytes

    @property
    def descriptor(self) -> Descriptor:
        """Of the manifest."""
        digest = digest_of(self.document)
        return Descriptor(media_type=self.media_type, digest=digest, size=len(self.document))


def as_oci(contents: Contents) -> Contents:
    """The same configuration and layers under a manifest of OCI's: some tools look for no other in a layout."""
    if contents.media_type == OCI_MANIFEST:
        return contents
    manifest = Manifest(
        config=_retyped(contents.manifest.config, OCI_CONFIG),
        layers=tuple(
            _retyped(layer, _OCI_LAYERS.get(layer.media_type, layer.media_type))
            for layer in contents.manifest.layers
        ),
    )
    document = encode_manifest(manifest, OCI_MANIFEST)
    return contents._replace(document=document, media_type=OCI_MANIFEST, manifest=manifest)


def _retyped(descriptor: Descriptor, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=descriptor.digest, size=descriptor.size)


async def read_contents(images: Images, name: str, tenant: str | None = None) -> Contents:
    """All of an image, as the name means it to a tenant (None: the operator), in the store, which the caller keeps in use.

    Raises NotFound, Conflict (`host`, or something of it is not there), SandboxFailed.
    """
    record = images.record(name, tenant)
    return (
        _read(images.blobs.of(record.owner), record)
        if record.blobs
        else await _pack(images, record)
    )


def read_documents(images: Images, name: str, tenant: str | None = None) -> Contents | None:
    """Manifest and configuration of an image; None: it was imported, and its author said nothing. Raises NotFound, Conflict."""
    record = images.record(name, tenant)
    return _read(images.blobs.of(record.owner), record, with_layers=False) if record.blobs else None


def in_rfc3339(seconds: float) -> str:
    """As configurations have times."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def _read(blobs: Blobs, record: Record, *, with_layers: bool = True) -> Contents:
    with _complete(record):
        document = blobs.path(record.digest).read_bytes()
        media_type = stated_type(document)
        manifest = parse_manifest(document, media_type)
        if not isinstance(manifest, Manifest):
            raise BadManifest("is an index")
        config = blobs.path(manifest.config.digest).read_bytes()
        if with_layers:
            for layer in manifest.layers:
                if not blobs.has(layer):
                    raise FileNotFoundError(layer.digest)
    return Contents(record, document, media_type, manifest, config)


@contextmanager
def _complete(record: Record) -> Iterator[None]:
    """Within, what should be there and is not, or is something else, is Conflict."""
    try:
        yield
    except (FileNotFoundError, BadManifest, msgspec.DecodeError) as error:
        detail = f"some of what {record.name} was made of is not here: pull or load it again"
        raise Conflict(detail, code="image_incomplete") from error


async def _pack(images: Images, record: Record) -> Contents:
    """Of an imported tree: one layer, and a configuration that says no more than what runs it here."""
    trees = images.trees
    try:
        with trees.locked(record.keys):
            packed = await pack(
                images.blobs,
                lambda output: trees.sandboxes.work(
                    trees.rootfs(record.keys[0]), Pack(_MOST_PACKED_BYTES), [output]
                ),
                most_bytes=_MOST_PACKED_BYTES,
                seconds=_PACK_SECONDS,
            )
    except FileNotFoundError:
        raise NotFound(f'no image "{record.name[:256]}"', code="image_not_found") from None
    created = in_rfc3339(record.created_at)
    config = msgspec.json.encode(
        {
            "architecture": this_machine().architecture,
            "os": "linux",
            "created": created,
            "config": {"Env": [f"PATH={host.PATH}"]},
            "rootfs": {"type": "layers", "diff_ids": [packed.diff_id]},
            "history": [{"created": created, "created_by": "sandboxd images import"}],
        }
    )
    described = Descriptor(media_type=OCI_CONFIG, digest=digest_of(config), size=len(config))
    manifest = Manifest(config=described, layers=(packed.descriptor,))
    document = encode_manifest(manifest, OCI_MANIFEST)
    for content in (config, document):
        await images.blobs.put(content)
    return Contents(record, document, OCI_MANIFEST, manifest, config)
