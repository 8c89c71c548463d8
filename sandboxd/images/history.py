"""What the author of an image says of it besides how it is run: how it was made, and labels. Untrusted text, for people."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from sandboxd.errors import Invalid
from sandboxd.images.catalogue import Images
from sandboxd.images.contents import Contents, in_rfc3339, read_documents
from sandboxd.images.documents.manifests import Descriptor

_MOST_ENTRIES = 1024
_LONGEST_TEXT = 256 * 2**10

_Text = Annotated[str, Meta(max_length=_LONGEST_TEXT)]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of how an image was made."""

    created: str | None = None
    """As the author wrote it: a time in RFC 3339, if it is one."""
    created_by: str = ""
    comment: str = ""
    layer: str | None = None
    """Digest of the layer that it made; None: it made none."""
    size_bytes: int = 0
    """Of that layer as it is kept, compressed or not."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    created: _Text | None = None
    created_by: _Text | None = None
    comment: _Text | None = None
    empty_layer: bool = False


class _Labelled(msgspec.Struct, frozen=True, kw_only=True):
    labels: dict[str, _Text | None] | None = msgspec.field(name="Labels", default=None)


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    config: _Labelled | None = None
    history: Annotated[tuple[_Entry, ...], Meta(max_length=_MOST_ENTRIES)] | None = None


def read_history(images: Images, name: str, tenant: str | None = None) -> tuple[Step, ...]:
    """The first step first; as a tenant may know of it; None: the operator.

    Raises NotFound, Conflict (`host`, or something of the image is not there), Invalid (what it says makes no sense).
    """
    contents = read_documents(images, name, tenant)
    if contents is None:
        record = images.record(name, tenant)
        created = in_rfc3339(record.created_at)
        step = Step(
            created=created, created_by="sandboxd images import", size_bytes=record.size_bytes
        )
        return (step,)
    return tuple(_steps(_read(contents).history or (), contents.manifest.layers))


def labels_of(contents: Contents) -> dict[str, str]:
    """Raises Invalid."""
    config = _read(contents).config
    labels = (config.labels if config else None) or {}
    return {key: value or "" for key, value in labels.items()}


def _read(contents: Contents) -> _Told:
    try:
        return msgspec.json.decode(contents.config, type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fact = f"the configuration of {contents.record.name} is not valid: {error}"
        raise Invalid(fact, code="bad_image") from error


def _steps(entries: Sequence[_Entry], layers: Sequence[Descriptor]) -> list[Step]:
    left = list(layers)
    steps = []
    for entry in entries:
        layer = None if entry.empty_layer or not left else left.pop(0)
        steps.append(
            Step(
                created=entry.created,
                created_by=entry.created_by or "",
                comment=entry.comment or "",
                layer=layer.digest if layer else None,
                size_bytes=layer.size if layer else 0,
            )
        )
    # A history that tells of too few layers, or of none.
    return [*steps, *(Step(layer=layer.digest, size_bytes=layer.size) for layer in left)]
