"""What an image is made of, from the documents that its registry sent: they were verified when they came."""

from typing import NamedTuple

import msgspec

from sandboxd.images.blobs import Blobs
from sandboxd.images.manifests import Descriptor
from sandboxd.images.names import Record


class Details(NamedTuple):
    """What the documents of an image say; empty where there are none, or they are not here any more."""

    layers: tuple[Descriptor, ...]
    """The lowest first."""
    config_digest: str | None
    labels: dict[str, str]


def no_details() -> Details:
    """Of an image that came without documents."""
    return Details((), None, {})


class _Manifest(msgspec.Struct, frozen=True):
    config: Descriptor
    layers: tuple[Descriptor, ...]


class _Run(msgspec.Struct, frozen=True, rename="pascal"):
    labels: dict[str, str] | None = None


class _Config(msgspec.Struct, frozen=True):
    config: _Run | None = None


def details_of(record: Record, blobs: Blobs) -> Details:
    """What is known of an image besides its record."""
    if record.run_as is None:
        return no_details()
    try:
        manifest = msgspec.json.decode(blobs.path(record.digest).read_bytes(), type=_Manifest)
        config = blobs.path(manifest.config.digest).read_bytes()
    except (FileNotFoundError, msgspec.DecodeError):
        return no_details()
    return Details(manifest.layers, manifest.config.digest, _labels(config))


def _labels(config: bytes) -> dict[str, str]:
    """They mean nothing to us, so they were not looked at before: what is no text is left out."""
    try:
        run = msgspec.json.decode(config, type=_Config).config
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return (run and run.labels) or {}
