"""The body of a request: read up to a limit and parsed as strict JSON, each trick with its own answer."""

import asyncio
import itertools
import json
import math
import re
from http import HTTPStatus
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from sandboxd.api.connections import WHOLE
from sandboxd.api.problems import HttpRefused
from sandboxd.errors import Malformed, TooLarge

BODY_TIMEOUT_SECONDS = 120.0
"""A body that has not arrived by then is not waited for (a slow client must not hold a request for ever)."""
MAX_NUMBER_DIGITS = 40
"""Longer numbers are not numbers that anybody means; Python's own limit would be 4300 digits."""
MAX_VALUES = 100_000
"""In a body of more than a mebibyte, where values cost most: a value of two bytes takes sixty of memory, and all take time."""
_COUNTED_FROM_BYTES = 2**20

_UP_TO_A_VALUE = re.compile(rb'(?:[^"\[{,]++|"(?:[^"\\]++|\\.)*+"?)*+(?:[\[{,]|\Z)', re.DOTALL)
"""Every value but the first of all stands after a bracket, a brace or a comma that is in no string."""
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


async def read_body(
    scope: Scope,
    receive: Receive,
    *,
    max_bytes: int,
    timeout_seconds: float = BODY_TIMEOUT_SECONDS,
) -> bytes:
    """The whole body, at most `max_bytes`; nothing more is read when it turns out to be longer.

    Raises TooLarge, HttpRefused (408, 415 for a content coding) and ClientDisconnect.
    """
    if (declared_size(scope) or 0) > max_bytes:
        raise too_large(max_bytes)
    refuse_coding(scope)
    if scope.get("state", {}).get(WHOLE):
        return await _receive_all(receive, max_bytes)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _receive_all(receive, max_bytes)
    except TimeoutError as error:
        raise too_slow(f"The body did not arrive within {timeout_seconds:g} s.") from error


def too_slow(detail: str) -> HttpRefused:
    """The refusal (408) of a body that does not come in time. Its connection is of no use any more."""
    return HttpRefused(
        HTTPStatus.REQUEST_TIMEOUT,
        detail,
        code="body_timeout",
        headers={"Connection": "close"},
    )


def declared_size(scope: Scope) -> int | None:
    """What Content-Length says, if it says anything."""
    declared = _header(scope, b"content-length")
    return int(declared[:20]) if declared is not None and declared.isdigit() else None


def refuse_coding(scope: Scope) -> None:
    """Raises HttpRefused (415) for a body that is compressed."""
    coding = _header(scope, b"content-encoding")
    if coding is not None and coding.lower() != b"identity":
        raise HttpRefused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "Compressed bodies are not accepted.",
            code="unsupported_content_encoding",
            headers={"Accept-Encoding": "identity"},
        )


def media_type_of(scope: Scope) -> str:
    """What the body calls itself, in lower case and without parameters; empty if it does not say."""
    content_type = (_header(scope, b"content-type") or b"").decode("latin-1")
    return content_type.partition(";")[0].strip().lower()


async def _receive_all(receive: Receive, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise too_large(max_bytes)
        pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def require_json(scope: Scope, *, or_else: tuple[str, ...] = ()) -> None:
    """`or_else`: what else the resource takes. Raises HttpRefused (415) unless the body calls itself JSON in UTF-8."""
    content_type = (_header(scope, b"content-type") or b"").decode("latin-1")
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise HttpRefused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The body must be {' or '.join(('application/json in UTF-8', *or_else))}.",
            code="unsupported_media_type",
            headers={"Accept": ", ".join(("application/json", *or_else))},
        )


def parse_json(body: bytes) -> Any:
    """The value of a JSON text (RFC 8259), refusing what parsers disagree about.

    Duplicate keys, NaN and infinities, numbers of absurd length, lone surrogates, other encodings than UTF-8
    and nesting beyond the interpreter's stack are Malformed. The standard library's parser is used because it
    shows duplicate keys, which msgspec does not.
    """
    if not body:
        raise Malformed("The body is empty: a JSON object is expected.", code="body_empty")
    if len(body) > _COUNTED_FROM_BYTES and _has_too_many_values(body):
        raise Malformed(f"The body has more than {MAX_VALUES} values.", code="too_many_values")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"The body is not UTF-8 (at byte {error.start}).") from error
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise Malformed(
            f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from error
    except RecursionError as error:
        raise Malformed("The body is nested too deeply.") from error
    if _ESCAPED_SURROGATE.search(text):
        _refuse_lone_surrogates(value)
    return value


def _has_too_many_values(body: bytes) -> bool:
    """In one pass that ends at the first value too many."""
    places = _UP_TO_A_VALUE.finditer(body)  # the end of the body is the last, and is found twice
    return next(itertools.islice(places, MAX_VALUES + 2, None), None) is not None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Malformed(f"The key {_shown(key)} occurs twice in one object.")
            seen.add(key)
    return members


def _refuse_constant(word: str) -> NoReturn:
    raise Malformed(f"{word} is not a JSON value.")


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise Malformed(f"The number {digits[:20]}… has more than {MAX_NUMBER_DIGITS} digits.")
    return int(digits)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise Malformed(f"The number {digits[:20]} is out of range.")
    return number


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_constant=_refuse_constant,
    parse_int=_parse_integer,
    parse_float=_parse_float,
)


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Malformed(
            "The body has a lone surrogate escape: it stands for no character."
        ) from error


def _shown(key: str) -> str:
    return json.dumps(key[:40])


def _header(scope: Scope, name: bytes) -> bytes | None:
    for header, value in scope["headers"]:
        if header == name:
            return bytes(value)
    return None


def too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is over the limit of {max_bytes} bytes.", code="body_too_large")
