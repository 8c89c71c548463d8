"""What requests and answers about images say."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sandboxd.api.image_archive_schemas import PushedView
from sandboxd.api.schemas import Answer, ImageView, Request
from sandboxd.jobs import PullPolicy


class PullRequest(Request, frozen=True, kw_only=True):
    """An image to fetch."""

    image: Annotated[
        str,
        Meta(
            description="`[REGISTRY[:PORT]/]PATH[:TAG][@DIGEST]`; without a registry one of docker.io.",
            examples=["docker.io/library/python:3.13-slim"],
        ),
    ]
    pull: Annotated[
        PullPolicy,
        Meta(description="`always`: ask the registry; `missing`: only if the image is not here."),
    ] = PullPolicy.ALWAYS


class LayerProgressView(Answer, frozen=True, kw_only=True):
    """How far a layer is."""

    digest: str
    done_bytes: int
    size_bytes: int
    cached: Annotated[bool, Meta(description="It was here before.")]


class PullLine(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a pull or a push: how far a layer is; at the end the image or what the registry has, or the problem."""

    layer: LayerProgressView | None = None
    image: ImageView | None = None
    pushed: PushedView | None = None
    problem: Annotated[
        Any, Meta(description="As RFC 9457 has it: the pull failed after the answer had begun.")
    ] = None


class ImageConfigView(Answer, frozen=True, kw_only=True):
    """How the image's author wants it run."""

    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: Annotated[dict[str, str], Meta(description="With the HOME of its user.")]
    user: Annotated[str, Meta(description="As numbers: looked up when it was pulled.")]
    workdir: str
    stop_signal: Annotated[str, Meta(description="What asks its programs to end.")]
    labels: dict[str, str]


class LayerView(Answer, frozen=True, kw_only=True):
    """A layer as its registry has it, compressed or not."""

    digest: str
    size_bytes: int
    media_type: str


class ImageDetailView(ImageView, frozen=True, kw_only=True):
    """An image with what it is made of."""

    last_used_at: Annotated[
        str | None, Meta(description="Null: not noted, as for the machine's own.")
    ]
    config_digest: str | None
    config: Annotated[
        ImageConfigView | None,
        Meta(description="Null: it was imported, or is the machine's own, and says nothing."),
    ]
    layers: Annotated[list[LayerView], Meta(description="The lowest first.")]
    tenants: Annotated[
        tuple[str, ...] | msgspec.UnsetType,
        Meta(
            description="For keys with the scope admin: whose own credentials its registry accepted for it; empty: everybody may use it."
        ),
    ] = msgspec.UNSET


class PruneRequest(Request, frozen=True, kw_only=True):
    """What is to go besides what no image needs any more."""

    all: Annotated[bool, Meta(description="Every image that is not in use.")] = False
    unused_seconds: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Every image that nobody has used for so long."),
    ] = None


class PrunedView(Answer, frozen=True, kw_only=True):
    """What went."""

    images: Annotated[tuple[str, ...], Meta(description="Their names.")]
    trees: int
    blobs: int
    freed_bytes: int
    not_removed: Annotated[int, Meta(description="Leftovers that could not be removed now.")]
