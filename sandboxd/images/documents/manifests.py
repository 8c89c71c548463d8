"""Manifests: what an image is made of, read strictly, and written.

An index lists one manifest for each platform; a manifest lists the configuration and the layers. Both are JSON in the formats
of OCI (https://github.com/opencontainers/image-spec) or Docker (image manifest version 2, schema 2), which differ in names only.
What the registry says a document is, and what the document says of itself, must be the same: one that is an index to some and
a manifest to others (CVE-2021-41190) is neither here.
"""

import contextlib
import functools
import hashlib
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from sandboxd.errors import Invalid
from sandboxd.images.documents.media_types import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
)
from sandboxd.images.documents.references import DIGEST

MOST_MANIFEST_BYTES = 4 * 2**20
MOST_LAYERS = 128
_MOST_MANIFESTS = 1024

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_LAYER_TYPE = re.compile(
    r"application/vnd\.oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?"
    r"|application/vnd\.docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.gzip|\.zstd)?"
)
_FIRST_SCHEMA = "application/vnd.docker.distribution.manifest.v1"
T = TypeVar("T")

_ATTESTATION = ("vnd.docker.reference.type", "attestation-manifest")


class BadManifest(ValueError):
    """It is not what it should be, or not for this machine; the message follows a name of the document."""


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest's programs run on, in the words of Go."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where something is to be found, and what it must be. Its `urls` are not looked at: only the registry is asked."""

    media_type: Annotated[str, Meta(max_length=255)]
    digest: Annotated[str, Meta(pattern=rf"^(?:{DIGEST.pattern})\Z")]
    size: Annotated[int, Meta(ge=0, le=2**50)]
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One image for one platform."""

    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], Meta(max_length=MOST_LAYERS)]


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """The same image for several platforms."""

    manifests: Annotated[tuple[Descriptor, ...], Meta(max_length=_MOST_MANIFESTS)]


class _Shape(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What tells the kinds of documents apart."""

    schema_version: int
    media_type: str | None = None
    config: Any = None
    layers: Any = None
    manifests: Any = None
    fs_layers: Any = None


class Machine(NamedTuple):
    """What this machine can run."""

    architecture: str
    variants: tuple[str, ...]
    """The best first; `""` is a manifest that names none."""

    def __str__(self) -> str:
        return f"linux/{self.architecture}"


_LEVELS = (
    ("v2", "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"),
    ("v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"),
    ("v4", "avx512bw avx512cd avx512dq avx512f avx512vl"),
)
"""Of x86-64 and what each needs besides those before it, in the kernel's words (the psABI of x86-64, 3.1.1)."""


def this_machine() -> Machine:
    """Raises BadManifest for a machine that no image can be chosen for."""
    name = platform.machine()
    match name:
        case "x86_64":
            return Machine("amd64", x86_variants(_cpu_flags()))
        case "aarch64":
            return Machine("arm64", ("v8", ""))
    raise BadManifest(f"cannot be chosen for a machine of type {name}")


def x86_variants(flags: frozenset[str]) -> tuple[str, ...]:
    """All whose programs a CPU with these flags can run."""
    variants = ["v1", ""]
    for variant, needed in _LEVELS:
        if not flags.issuperset(needed.split()):
            break
        variants.insert(0, variant)
    return tuple(variants)


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """What every CPU here has, as the kernel tells it; none where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    of_each = [frozenset(line.partition(":")[2].split()) for line in lines if line[:5] == "flags"]
    return frozenset.intersection(*of_each) if of_each else frozenset()


def parse_manifest(content: bytes, content_type: str) -> Manifest | Index:
    """The document that came with this `Content-Type`. Raises BadManifest."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.startswith(_FIRST_SCHEMA):
        raise BadManifest("is in Docker's first format (schema 1), which nothing verifies")
    if media_type not in INDEX_TYPES | MANIFEST_TYPES:
        raise BadManifest(f"came as {media_type[:100]!r}, which is no image")
    if len(content) > MOST_MANIFEST_BYTES:
        raise BadManifest(f"is larger than {MOST_MANIFEST_BYTES} bytes")
    shape = _decode(content, _Shape)
    _check_shape(shape, media_type)
    if media_type in INDEX_TYPES:
        return _decode(content, Index)
    manifest = _decode(content, Manifest)
    _check_types(manifest)
    return manifest


def choose(index: Index, machine: Machine) -> Descriptor:
    """The manifest for a machine. Raises BadManifest."""
    offered: dict[str, Descriptor] = {}
    for descriptor in index.manifests:
        key, value = _ATTESTATION
        if (descriptor.annotations or {}).get(key) == value or descriptor.platform is None:
            continue
        # Of two for the same platform the first counts, as everywhere.
        offered.setdefault(str(descriptor.platform), descriptor)
    for variant in machine.variants:
        wanted = Platform(os="linux", architecture=machine.architecture, variant=variant)
        found = offered.get(str(wanted))
        if found is None:
            continue
        if found.media_type not in MANIFEST_TYPES:
            raise BadManifest(f"has {found.media_type[:100]!r} inside, which is no manifest")
        return found
    known = ", ".join(_told(name) for name in sorted(offered)[:20]) or "none"
    raise BadManifest(f"has no image for {machine}; it has: {known}")


def encode_manifest(manifest: Manifest, media_type: str) -> bytes:
    """A manifest as a document, of the same bytes every time."""

    def described(descriptor: Descriptor) -> dict[str, str | int]:
        return {
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
        }

    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": described(manifest.config),
            "layers": [described(layer) for layer in manifest.layers],
        }
    )


class _Said(msgspec.Struct, frozen=True, rename="camel"):
    """One of Docker's says what it is, one of OCI's may."""

    media_type: str = OCI_MANIFEST


def stated_type(document: bytes) -> str:
    """The media type of a manifest that was checked when it came. Raises msgspec.DecodeError."""
    return msgspec.json.decode(document, type=_Said).media_type


def digest_of(content: bytes) -> str:
    """What a document is called."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Within, BadManifest becomes Invalid, with the name of the document."""
    try:
        yield
    except BadManifest as error:
        raise Invalid(f"{what} {error}", code="bad_image") from error


def _told(name: str) -> str:
    """What somebody else wrote, short and without power over a terminal."""
    return "".join(each if each.isprintable() else "?" for each in name[:40])


def _check_shape(shape: _Shape, media_type: str) -> None:
    if shape.fs_layers is not None or shape.schema_version == 1:
        raise BadManifest("is in Docker's first format (schema 1), which nothing verifies")
    if shape.schema_version != 2:
        raise BadManifest(f"has the schema version {shape.schema_version}, not 2")
    if shape.media_type is None and not media_type.startswith("application/vnd.oci."):
        raise BadManifest(f"came as {media_type} and does not say so itself")
    if shape.media_type not in (None, media_type):
        raise BadManifest(f"came as {media_type} and says that it is {shape.media_type[:100]!r}")
    is_index = media_type in INDEX_TYPES
    foreign = (shape.config, shape.layers) if is_index else (shape.manifests,)
    if any(part is not None for part in foreign):
        raise BadManifest("is an index and a manifest at once")


def _check_types(manifest: Manifest) -> None:
    if manifest.config.media_type not in _CONFIG_TYPES:
        raise BadManifest(f"is of {manifest.config.media_type[:100]!r}: no image to run")
    for layer in manifest.layers:
        if not _LAYER_TYPE.fullmatch(layer.media_type):
            raise BadManifest(f"has a layer of type {layer.media_type[:100]!r}")


def _decode(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadManifest(f"is not valid: {error}") from error
