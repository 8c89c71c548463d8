"""What requests and answers say about images on their way to others and from them."""

from typing import Annotated

from msgspec import Meta, field

from sandboxd.api.schemas import Answer, Request

_NAME = Meta(
    description="A reference, or a word without `/`, `:` and `@`.",
    examples=["registry.example/team/tools:2"],
)
_Words = Annotated[tuple[str, ...] | None, Meta(description="Left out: as it was.")]
_Text = Annotated[str, Meta(max_length=4096)]


class TagRequest(Request, frozen=True, kw_only=True):
    """Another name for an image."""

    name: Annotated[str, _NAME]


class PushRequest(Request, frozen=True, kw_only=True):
    """Where an image is to go."""

    destination: Annotated[
        str | None, Meta(description="A reference; left out: what the image is called.")
    ] = None


class PushedView(Answer, frozen=True, kw_only=True):
    """What a registry has now."""

    reference: str
    digest: str
    size_bytes: int


class StepOfHistoryView(Answer, frozen=True, kw_only=True):
    """One step of how an image was made, in its author's words."""

    created: Annotated[str | None, Meta(description="As the author wrote it.")]
    created_by: str
    comment: str
    layer: Annotated[str | None, Meta(description="Digest of the layer it made; null: none.")]
    size_bytes: Annotated[int, Meta(description="Of that layer, as it is kept.")]


class ImageHistory(Answer, frozen=True, kw_only=True):
    """How an image was made, the first step first."""

    data: list[StepOfHistoryView]


class RunChangesRequest(Request, frozen=True, kw_only=True):
    """What is to be different in how the image is run."""

    entrypoint: _Words = None
    cmd: _Words = None
    env: Annotated[dict[str, str], Meta(description="Added to those of the image.")] = field(
        default_factory=dict
    )
    user: Annotated[str | None, Meta(description="`USER[:GROUP]`, names or numbers.")] = None
    workdir: Annotated[str | None, Meta(description="Absolute path inside.")] = None
    labels: Annotated[dict[str, str], Meta(description="Added to those of the image.")] = field(
        default_factory=dict
    )


class CommitRequest(Request, frozen=True, kw_only=True):
    """An image to be made of a sandbox."""

    name: Annotated[str, _NAME]
    changes: RunChangesRequest = RunChangesRequest()
    comment: _Text = ""
    author: _Text = ""
    stop: Annotated[
        bool, Meta(description="Stop its commands (SIGSTOP) while its files are read.")
    ] = True
