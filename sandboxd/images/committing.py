"""Committing: what a sandbox's commands changed becomes a layer above those of its image, and that a new image.

    packed by the sandbox's own init ─ compressed, hashed ─ a new configuration ─ tree ─ name

Whoever wrote those files is a stranger: their layer goes through the same code as one that was pulled, and counts only then.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from sandboxd.errors import Conflict, Fault, Invalid
from sandboxd.images.assembling import Found, assemble
from sandboxd.images.catalogue import Images
from sandboxd.images.contents import Contents, in_rfc3339, read_contents
from sandboxd.images.documents.configuration import parse_configuration
from sandboxd.images.documents.manifests import (
    MOST_LAYERS,
    BadManifest,
    Descriptor,
    Manifest,
    digest_of,
    encode_manifest,
    this_machine,
)
from sandboxd.images.documents.media_types import DOCKER_LAYER, OCI_MANIFEST
from sandboxd.images.store.blobs import Blobs
from sandboxd.images.store.packing import Packed, pack
from sandboxd.jobs import Image


class RunChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be different in how the image is run; None and what is not named stay as they are."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: dict[str, str] = {}
    user: str | None = None
    workdir: str | None = None
    labels: dict[str, str] = {}


class CommitPlan(msgspec.Struct, frozen=True, kw_only=True):
    """An image to be made of a sandbox."""

    name: str
    """Checked: see `new_names.new_name`."""
    changes: RunChanges
    comment: str = ""
    author: str = ""
    stop: bool = True
    """Whether the sandbox's commands are stopped while its files are read."""


async def commit(
    images: Images,
    base: str,
    base_digest: str | None,
    ask: Callable[[int], Awaitable[object]],
    plan: CommitPlan,
    *,
    tenant: str | None = None,
    most_bytes: int,
    seconds: float,
) -> Image:
    """An image of what `ask` has the sandbox's init pack, above the image that the sandbox of that tenant (None: the operator) was made of.

    Raises NotFound, Conflict (the base is another one now, or `host`; something cannot be packed), Invalid, SandboxFailed.
    """
    async with images.blobs.in_use_soon():
        below = await read_contents(images, base, tenant)
        if below.record.digest != base_digest:
            detail = f"{base} is not the image any more that the sandbox was made of"
            raise Conflict(detail, code="image_changed")
        if len(below.manifest.layers) >= MOST_LAYERS:
            raise Conflict(f"{base} has {MOST_LAYERS} layers already", code="too_many_layers")
        # Seen to be right before anything is packed.
        _configuration(below, plan, "sha256:" + "0" * 64)
        owner, tenants = below.record.owner, below.record.tenants
        blobs = images.blobs.of(owner)
        packed = await pack(blobs, ask, most_bytes=most_bytes, seconds=seconds)
        found = await _keep_documents(blobs, below, plan, packed)
        image = await assemble(
            images, plan.name, found, source="commit", owner=owner, tenants=tenants
        )
    await images.make_room(image.name)
    return image


async def _keep_documents(blobs: Blobs, below: Contents, plan: CommitPlan, packed: Packed) -> Found:
    config = _configuration(below, plan, packed.diff_id)
    layer = packed.descriptor
    if below.media_type != OCI_MANIFEST:
        layer = msgspec.structs.replace(layer, media_type=f"{DOCKER_LAYER}.gzip")
    described = Descriptor(
        media_type=below.manifest.config.media_type, digest=digest_of(config), size=len(config)
    )
    manifest = Manifest(config=described, layers=(*below.manifest.layers, layer))
    document = encode_manifest(manifest, below.media_type)
    for content in (config, document):
        await blobs.put(content)
    configuration = parse_configuration(config, this_machine(), len(manifest.layers))
    digest = digest_of(document)
    return Found(digest, manifest, configuration, (digest, described.digest))


def _configuration(below: Contents, plan: CommitPlan, diff_id: str) -> bytes:
    """The base's, with all that its author wrote there, and what is new. Raises Invalid."""
    try:
        config: dict[str, Any] = msgspec.json.decode(below.config, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Conflict(
            f"the configuration of {below.record.name} is not valid", code="image_incomplete"
        ) from error
    now = in_rfc3339(time.time())
    config["created"] = now
    if plan.author:
        config["author"] = plan.author
    config["config"] = _run(config.get("config"), plan.changes)
    rootfs = config["rootfs"]
    config["rootfs"] = {**rootfs, "diff_ids": [*rootfs["diff_ids"], diff_id]}
    told = _told(config.get("history"), len(below.manifest.layers))
    step = {"created": now, "created_by": "sandboxd commit"}
    step |= {"comment": plan.comment} if plan.comment else {}
    step |= {"author": plan.author} if plan.author else {}
    config["history"] = [*told, step]
    encoded = msgspec.json.encode(config)
    try:
        parse_configuration(encoded, this_machine(), len(below.manifest.layers) + 1)
    except BadManifest as error:
        raise Invalid(f"the image {error}", (Fault("/changes", str(error)),)) from error
    return encoded


def _told(history: object, layers: int) -> list[Any]:
    """What is told of the layers below, and of those that nothing is told of nothing: each step is found by counting."""
    told = history if isinstance(history, list) else []
    steps = [each for each in told if not (isinstance(each, dict) and each.get("empty_layer"))]
    return [*told, *({} for _ in range(layers - len(steps)))]


def _run(former: object, changes: RunChanges) -> dict[str, Any]:
    run = dict(former) if isinstance(former, dict) else {}
    wanted = {
        "Entrypoint": changes.entrypoint,
        "Cmd": changes.cmd,
        "User": changes.user,
        "WorkingDir": changes.workdir,
    }
    run |= {key: value for key, value in wanted.items() if value is not None}
    if changes.env:
        env = dict(word.partition("=")[::2] for word in run.get("Env") or ())
        run["Env"] = [f"{name}={value}" for name, value in (env | changes.env).items()]
    if changes.labels:
        labels = run.get("Labels")
        run["Labels"] = {**(labels if isinstance(labels, dict) else {}), **changes.labels}
    return run
