"""What the client says and hears about images, as `protocol` has it for jobs."""

import json
from collections.abc import Sequence
from typing import Generic, TypeVar
from urllib.parse import quote

import msgspec

from sandboxd.client.files import Upload
from sandboxd.client.protocol import (
    UPLOAD_PATIENCE_SECONDS,
    Conversation,
    Request,
    ask,
    decode,
    exchange,
    get_request,
    refusal_type,
)
from sandboxd.client.types import (
    ClientError,
    ConnectionFailed,
    HistoryStep,
    Image,
    ImageDetail,
    LayerProgress,
    Problem,
    Pruned,
    Pushed,
)

_JSON = {"content-type": "application/json"}
_TAR = {"content-type": "application/x-tar"}
_IMPORT_PATIENCE_SECONDS = 1800.0
"""An archive is unpacked, layer by layer, before the service answers."""

Last = TypeVar("Last")


def images() -> Conversation[list[Image]]:
    """The images that jobs can name."""
    page = yield from ask(get_request("/v1/images"), _ImageList)
    return page.data


def image(name: str) -> Conversation[ImageDetail]:
    """One of them, with what it is made of."""
    return (yield from ask(get_request(image_path(name)), ImageDetail))


def image_history(name: str) -> Conversation[list[HistoryStep]]:
    """How it was made, the first step first."""
    page = yield from ask(get_request(image_path(name, "/history")), _HistoryList)
    return page.data


def remove_image(name: str) -> Conversation[None]:
    """Remove it."""
    yield from exchange(
        Request("DELETE", image_path(name), patience_seconds=UPLOAD_PATIENCE_SECONDS)
    )


def prune_images(everything: bool, unused_seconds: float | None) -> Conversation[Pruned]:
    """Remove what no image needs any more, and images that nobody uses."""
    wished = {"all": everything} | (
        {} if unused_seconds is None else {"unused_seconds": unused_seconds}
    )
    request = _post("/v1/images/prune", wished)
    return (yield from ask(request._replace(patience_seconds=UPLOAD_PATIENCE_SECONDS), Pruned))


def tag_image(source: str, target: str) -> Conversation[Image]:
    """Give it another name."""
    return (yield from ask(_post(image_path(source, "/tag"), {"name": target}), Image))


def load_images(archive: Upload, name: str | None) -> Conversation[list[Image]]:
    """Make images of all that is in an archive."""
    query = [] if name is None else [("name", name)]
    page = yield from ask(_upload("/v1/images/load", query, archive), _ImageList)
    return page.data


def import_image(name: str, archive: Upload) -> Conversation[Image]:
    """Make an image of a root file system."""
    return (yield from ask(_upload("/v1/images/import", [("name", name)], archive), Image))


def archive_request(name: str, form: str) -> Request:
    """What to ask for to get an image as an archive."""
    request = get_request(image_path(name, "/archive"), [("format", form)])
    return request._replace(patience_seconds=UPLOAD_PATIENCE_SECONDS)


class ProgressReader(Generic[Last]):
    """Hears how far the layers of an image are, and what came of it."""

    def __init__(self, request: Request, last: str, kind: type[Last]) -> None:
        """`last`: the event that ends it, which brings a `kind`."""
        self._request = request
        self._last = last
        self._kind = kind
        self._ended = False

    def request(self) -> Request:
        headers = {**self._request.headers, "accept": "text/event-stream"}
        return self._request._replace(headers=headers)

    def read(self, event: str, data: str) -> LayerProgress | Last | None:
        """What an event brings, if it is one that we know. Raises what the problem means."""
        if event == self._last:
            self._ended = True
            return decode(data.encode(), self._kind)
        match event:
            case "layer":
                return decode(data.encode(), LayerProgress)
            case "problem":
                problem = decode(data.encode(), Problem)
                raise refusal_type(problem.status)(problem)
            case _:
                return None

    def closed(self) -> None:
        """The stream is over. Raises ConnectionFailed if it was not at its end."""
        if not self._ended:
            raise ConnectionFailed("what tells how far the image is broke off")


def pull_reader(reference: str, pull: str) -> ProgressReader[Image]:
    """Have an image fetched."""
    request = _post("/v1/images/pull", {"image": reference, "pull": pull})
    return ProgressReader(request, "image", Image)


def push_reader(name: str, destination: str | None) -> ProgressReader[Pushed]:
    """Have an image sent to a registry."""
    wished = {} if destination is None else {"destination": destination}
    return ProgressReader(_post(image_path(name, "/push"), wished), "pushed", Pushed)


def image_path(name: str, rest: str = "") -> str:
    """Raises ClientError: "../keys" must not lead elsewhere."""
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ClientError(f'"{name}" is not the name of an image')
    return f"/v1/images/{quote(name, safe='/:@')}{rest}"


def _post(path: str, body: object) -> Request:
    return Request("POST", path, headers=_JSON, body=json.dumps(body).encode())


def _upload(path: str, query: Sequence[tuple[str, str]], archive: Upload) -> Request:
    return Request(
        "POST",
        path,
        query,
        headers=_TAR,
        upload=archive,
        patience_seconds=_IMPORT_PATIENCE_SECONDS,
    )


class _ImageList(msgspec.Struct):
    data: list[Image]


class _HistoryList(msgspec.Struct):
    data: list[HistoryStep]
