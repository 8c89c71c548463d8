"""Answers: JSON from values, with the headers that steer caches and clients."""

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

_encoder = msgspec.json.Encoder()


def encode(value: object) -> bytes:
    """The value as JSON."""
    return _encoder.encode(value)


def json_answer(
    value: object, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> Response:
    return Response(encode(value), status, headers, media_type="application/json")


def no_content() -> Response:
    return Response(status_code=HTTPStatus.NO_CONTENT)


def list_answer(data: list[Any]) -> Response:
    """A list that always fits on one page."""
    return json_answer({"data": data})
