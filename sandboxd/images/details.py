"""All that is known of one image: its record, and what the documents say that came with it. They were verified when they came."""

from typing import NamedTuple

import msgspec

from sandboxd.images import host
from sandboxd.images.blobs import Blobs
from sandboxd.images.catalogue import Images
from sandboxd.images.manifests import Descriptor
from sandboxd.images.names import Record, RunAs
from sandboxd.jobs import Image


class Details(NamedTuple):
    """An image with what it is made of. Layers and labels are empty where its documents are not here (any more)."""

    image: Image
    run_as: RunAs | None
    """None: its author did not say."""
    tenants: tuple[str, ...] = ()
    """Whose own credentials its registry accepted for it; empty: everybody may use it."""
    layers: tuple[Descriptor, ...] = ()
    """The lowest first."""
    config_digest: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    last_used_at: float | None = None
    """Unix time, to some minutes."""


class _Manifest(msgspec.Struct, frozen=True):
    config: Descriptor
    layers: tuple[Descriptor, ...]


class _Run(msgspec.Struct, frozen=True, rename="pascal"):
    labels: dict[str, str] | None = None


class _Config(msgspec.Struct, frozen=True):
    config: _Run | None = None


async def details_of(images: Images, name: str, tenant: str | None = None) -> Details:
    """What a tenant may know of an image; None: the operator. Raises NotFound."""
    if name == host.NAME:
        (ours,) = [each for each in await images.list() if each.name == name]
        image = await images.resolve(name)
        return Details(ours, RunAs(user=image.user, env=image.env, workdir=image.workdir))
    record = images.record(name, tenant)
    known = Details(
        record.image, record.run_as, record.tenants, last_used_at=images.last_used(record.name)
    )
    if record.run_as is None:
        return known
    return _with_documents(known, record, images.blobs.of(record.owner))


def _with_documents(known: Details, record: Record, blobs: Blobs) -> Details:
    try:
        manifest = msgspec.json.decode(blobs.path(record.digest).read_bytes(), type=_Manifest)
        config = blobs.path(manifest.config.digest).read_bytes()
    except (FileNotFoundError, msgspec.DecodeError):
        return known
    return known._replace(
        layers=manifest.layers,
        config_digest=manifest.config.digest,
        labels=tuple(_labels(config).items()),
    )


def _labels(config: bytes) -> dict[str, str]:
    """They mean nothing to us, so they were not looked at before: what is no text is left out."""
    try:
        run = msgspec.json.decode(config, type=_Config).config
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return (run and run.labels) or {}
