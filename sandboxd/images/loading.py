"""Loading images from an archive: what `docker save`, skopeo, podman, umoci and we ourselves write.

    index (`index.json` of an OCI layout, else Docker's `manifest.json`) ─ configurations ─ layers ─ trees ─ names

Every document is read and checked before the first layer is touched. Layers go into the same store as those of a registry, by their
digest, and are applied by the same code, which checks them against the configuration.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from sandboxd.errors import Invalid
from sandboxd.images.archives.opening import Source
from sandboxd.images.assembling import Found, assemble, check_layers
from sandboxd.images.catalogue import Images
from sandboxd.images.documents.configuration import parse_configuration
from sandboxd.images.documents.manifests import (
    MOST_LAYERS,
    MOST_MANIFEST_BYTES,
    BadManifest,
    Descriptor,
    Index,
    Machine,
    Manifest,
    choose,
    digest_of,
    encode_manifest,
    named,
    parse_manifest,
    this_machine,
)
from sandboxd.images.documents.media_types import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    NAME_BY_CONTAINERD,
    NAME_BY_OCI,
    OCI_INDEX,
)
from sandboxd.images.new_names import new_name, new_reference
from sandboxd.images.transfers import Progress, Tell
from sandboxd.jobs import Image

_MOST_IMAGES = 64
_MOST_NAMES = 1024
_MOST_DOCUMENT_BYTES = 64 * 2**20
"""Of all images together: they are held until the last one is checked."""
_HEX_OF_CONFIG = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?", re.ASCII)
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"

_Path = Annotated[str, Meta(min_length=1, max_length=1024)]


class _Saved(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One image in Docker's `manifest.json`."""

    config: _Path
    repo_tags: Annotated[tuple[str, ...], Meta(max_length=_MOST_NAMES)] | None = None
    layers: Annotated[tuple[_Path, ...], Meta(max_length=MOST_LAYERS)]


_SavedImages = Annotated[tuple[_Saved, ...], Meta(max_length=_MOST_IMAGES)]


class _Listed(NamedTuple):
    """An image of an archive, all of it checked but its layers."""

    names: tuple[str, ...]
    found: Found
    documents: tuple[bytes, ...]
    members: tuple[str, ...]
    """Where in the archive its layers are."""


async def load(
    images: Images, source: Source, tell: Tell, *, name: str | None = None
) -> list[Image]:
    """Make images of all that an archive has, named as it says; `name` is that of its only one instead.

    Raises Invalid, Conflict, SandboxFailed. What was named before something failed stays.
    """
    wanted = None if name is None else new_name(name)
    async with images.blobs.in_use_soon():
        listed = await asyncio.to_thread(_list_images, source, wanted)
        layers = [layer for each in listed for layer in each.found.manifest.layers]
        images.blobs.check_room(layers, code="bad_archive")
        for each in listed:
            for content in each.documents:
                await images.blobs.put(content)
            await _add_layers(images, source, each, tell)
        loaded = [
            await assemble(images, given, each.found, source="archive")
            for each in listed
            for given in each.names
        ]
    for image in loaded[-1:]:
        await images.make_room(image.name)
    return loaded


async def _add_layers(images: Images, source: Source, listed: _Listed, tell: Tell) -> None:
    for layer, member in zip(listed.found.manifest.layers, listed.members, strict=True):

        def told(done: int, layer: Descriptor = layer) -> None:
            tell(Progress(layer.digest, done, layer.size))

        content = _in_thread(source.pieces(member))
        await images.blobs.add(layer, content, told, sender="the archive")


async def _in_thread(pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


# In a thread: what the archive says of itself


def _list_images(source: Source, name: str | None) -> list[_Listed]:
    """Raises Invalid."""
    with named("this machine"):
        machine = this_machine()
    if source.size_bytes("oci-layout") is not None:
        listed = _bounded(_of_layout(source, machine, name))
    elif source.size_bytes("manifest.json") is not None:
        listed = _bounded(_of_docker(source, machine, name))
    else:
        raise _bad(
            "has neither an index.json of OCI's nor a manifest.json of Docker's: a root file system is imported"
        )
    if not listed:
        raise _bad("has no images")
    if name is not None and len(listed) > 1:
        raise _bad(f"has {len(listed)} images: they cannot all be called {name}")
    names = [each for one in listed for each in one.names]
    if len(names) > _MOST_NAMES:
        raise _bad(f"has more than {_MOST_NAMES} names")
    if len(set(names)) < len(names):
        raise _bad("gives one name to two images")
    return listed


def _bounded(listed: Iterator[_Listed]) -> list[_Listed]:
    found: list[_Listed] = []
    left = _MOST_DOCUMENT_BYTES
    for each in listed:
        found.append(each)
        left -= sum(map(len, each.documents))
        if left < 0:
            raise _bad(f"has more than {_MOST_DOCUMENT_BYTES} bytes of manifests")
    return found


def _of_layout(source: Source, machine: Machine, name: str | None) -> Iterator[_Listed]:
    content = _document(source, "index.json")
    with named("the archive's index.json"):
        index = parse_manifest(content, OCI_INDEX)
    if not isinstance(index, Index):
        raise _bad("has an index.json that is none")
    for given, descriptors in _by_name(index).items():
        known = name or given
        if known is None:
            raise _nameless(descriptors[0].digest)
        yield _of_descriptors(source, machine, known, descriptors)


def _by_name(index: Index) -> dict[str | None, list[Descriptor]]:
    """What an index says, of each name all platforms."""
    found: dict[str | None, list[Descriptor]] = {}
    for descriptor in index.manifests:
        annotations = descriptor.annotations or {}
        if annotations.get("vnd.docker.reference.type") == "attestation-manifest":
            continue
        found.setdefault(_name_in(annotations), []).append(descriptor)
    if len(found) > _MOST_IMAGES:
        raise _bad(f"has more than {_MOST_IMAGES} images")
    return found


def _name_in(annotations: dict[str, str]) -> str | None:
    """The whole name. A tag alone (`1`, as umoci and skopeo have it) names no image."""
    text = annotations.get(NAME_BY_CONTAINERD) or annotations.get(NAME_BY_OCI) or ""
    if "/" not in text and ":" not in text:
        return None
    return str(new_reference(text))


def _of_descriptors(
    source: Source, machine: Machine, name: str, descriptors: list[Descriptor]
) -> _Listed:
    descriptor = descriptors[0]
    documents: list[bytes] = []
    with named(name):
        if len(descriptors) > 1:
            descriptor = choose(Index(manifests=tuple(descriptors)), machine)
        content = _blob(source, descriptor)
        parsed = parse_manifest(content, descriptor.media_type)
        if isinstance(parsed, Index):
            documents.append(content)
            descriptor = choose(parsed, machine)
            content = _blob(source, descriptor)
            parsed = parse_manifest(content, descriptor.media_type)
        if isinstance(parsed, Index):
            raise BadManifest("has an index in its index")
        documents.append(content)
        config = _blob(source, parsed.config)
        documents.append(config)
        configuration = parse_configuration(config, machine, len(parsed.layers))
    found = Found(
        descriptor.digest, parsed, configuration, tuple(digest_of(each) for each in documents)
    )
    check_layers(name, found)
    for layer in parsed.layers:
        _check_size(source, layer)
    members = tuple(_place_of(layer) for layer in parsed.layers)
    return _Listed((name,), found, tuple(documents), members)


def _of_docker(source: Source, machine: Machine, name: str | None) -> Iterator[_Listed]:
    content = _document(source, "manifest.json")
    try:
        saved = msgspec.json.decode(content, type=_SavedImages)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(f"has a manifest.json that is not valid: {error}") from error
    hashed: dict[str, Descriptor] = {}
    for each in saved:
        names = tuple(dict.fromkeys(str(new_reference(tag)) for tag in each.repo_tags or ()))
        if name is not None:
            names = (name,)
        if not names:
            raise _nameless(each.config)
        # Each file once, whatever links lead to it.
        members = [source.resolve(member) for member in each.layers]
        for member in members:
            if member not in hashed:
                hashed[member] = _described(source, member)
        yield _of_saved(source, machine, names, each, [hashed[member] for member in members])


def _of_saved(
    source: Source,
    machine: Machine,
    names: tuple[str, ...],
    saved: _Saved,
    layers: list[Descriptor],
) -> _Listed:
    """An image of Docker's: its configuration and layers, and a manifest that we write of them."""
    config = _document(source, saved.config)
    stated = _HEX_OF_CONFIG.fullmatch(saved.config)
    if stated is not None and digest_of(config) != f"sha256:{stated[1]}":
        raise _bad(f"has a configuration that is {digest_of(config)} for {stated[1]}")
    with named(names[0]):
        configuration = parse_configuration(config, machine, len(layers))
    described = Descriptor(media_type=DOCKER_CONFIG, digest=digest_of(config), size=len(config))
    manifest = Manifest(config=described, layers=tuple(layers))
    document = encode_manifest(manifest, DOCKER_MANIFEST)
    documents = (document, config)
    found = Found(
        digest_of(document), manifest, configuration, tuple(digest_of(each) for each in documents)
    )
    check_layers(names[0], found)
    return _Listed(names, found, documents, saved.layers)


def _described(source: Source, member: str) -> Descriptor:
    """A layer of Docker's, of which the index says where it is and nothing else."""
    size = source.size_bytes(member)
    if size is None:
        raise _bad(f"has no {member[:100]!r}, which its index names")
    digest = hashlib.sha256()
    beginning = b""
    for piece in source.pieces(member):
        beginning = beginning or piece[:4]
        digest.update(piece)
    media_type = DOCKER_LAYER
    if beginning.startswith(_GZIP):
        media_type += ".gzip"
    elif beginning == _ZSTD:
        media_type += ".zstd"
    return Descriptor(media_type=media_type, digest=f"sha256:{digest.hexdigest()}", size=size)


def _blob(source: Source, descriptor: Descriptor) -> bytes:
    _check_size(source, descriptor)
    content = _document(source, _place_of(descriptor))
    if digest_of(content) != descriptor.digest:
        raise _bad(f"has {digest_of(content)} for {descriptor.digest}")
    return content


def _check_size(source: Source, descriptor: Descriptor) -> None:
    size = source.size_bytes(_place_of(descriptor))
    if size != descriptor.size:
        there = "nothing" if size is None else f"{size} bytes"
        raise _bad(f"has {there} for {descriptor.digest}, which has {descriptor.size}")


def _place_of(descriptor: Descriptor) -> str:
    return f"blobs/sha256/{descriptor.digest.removeprefix('sha256:')}"


def _document(source: Source, member: str) -> bytes:
    """A document of the archive. No link: what is behind it, other tools may not see."""
    size = source.size_bytes(member)
    if size is None or source.resolve(member) != member:
        raise _bad(f"has no file {member[:100]!r}")
    if size > MOST_MANIFEST_BYTES:
        raise _bad(f"has a {member[:100]!r} of more than {MOST_MANIFEST_BYTES} bytes")
    return b"".join(source.pieces(member))


def _nameless(what: str) -> Invalid:
    return _bad(f"does not say what the image {what[:100]} is called: give it a name (`name`)")


def _bad(fact: str) -> Invalid:
    return Invalid(f"the archive {fact}", code="bad_archive")
