"""Request headers that steer a call: Prefer, Idempotency-Key, traceparent, If-None-Match, Accept, Range."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sandboxd.errors import Malformed

MAX_IDEMPOTENCY_KEY = 255

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_WAIT = re.compile(r'wait\s*=\s*"?([0-9]{1,6})"?')
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_QUALITY = re.compile(r"q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


Headers = Mapping[bytes, list[bytes]]
"""By name in lower case, each with every value that was given."""


def headers_by_name(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return found


class Preference(NamedTuple):
    """What a client prefers (RFC 7240)."""

    wait_seconds: float | None = None
    respond_async: bool = False


def parse_prefer(header: str) -> Preference:
    """Preferences that we know; others, and those that cannot be read, are ignored as RFC 7240 says."""
    wait_seconds: float | None = None
    respond_async = False
    for word in header.split(","):
        word = word.strip().lower()
        if (match := _WAIT.fullmatch(word)) and wait_seconds is None:
            wait_seconds = float(match[1])
        elif word == "respond-async":
            respond_async = True
    return Preference(wait_seconds, respond_async)


def parse_idempotency_key(header: str) -> str | None:
    """The key, quoted (as a structured field's string) or bare; None if there is none.

    Raises Malformed.
    """
    if not header:
        return None
    key = header
    if key.startswith('"'):
        key = key[1:-1] if len(key) >= 2 and key.endswith('"') else ""
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY or not (key.isascii() and key.isprintable()):
        raise Malformed(
            f"Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters, quoted or bare.",
            code="idempotency_key_malformed",
        )
    return key


def parse_traceparent(header: str) -> str | None:
    """A W3C trace context of version 00 exactly; anything else counts as absent, as the standard says."""
    match = _TRACEPARENT.fullmatch(header)
    if match is None or not match[1].strip("0") or not match[2].strip("0"):
        return None
    return header


def trace_id_of(traceparent: str) -> str:
    return traceparent[3:35]


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Whether If-None-Match names this entity (weak comparison, RFC 9110, 13.1.2)."""
    if if_none_match.strip() == "*":
        return True
    return etag in [word.strip().removeprefix("W/") for word in if_none_match.split(",")]


def best_media_type(accept: str, offered: tuple[str, ...]) -> str | None:
    """The one of `offered` (in our order of preference) that the client likes best; None: it takes none of them."""
    if not accept:
        return offered[0]
    ranges = [_media_range(word) for word in accept.split(",")]
    best: str | None = None
    best_quality = 0.0
    for media_type in offered:
        quality = _quality_of(media_type, ranges)
        if quality > best_quality:
            best, best_quality = media_type, quality
    return best


def _media_range(word: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in word.split(";"))
    for parameter in parameters:
        if match := _QUALITY.fullmatch(parameter):
            return name, float(match[1])
    return name, 1.0


def _quality_of(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """The quality that the most specific range gives to a media type (RFC 9110, 12.5.1)."""
    family = media_type.partition("/")[0]
    for name in (media_type, f"{family}/*", "*/*"):
        for range_name, quality in ranges:
            if range_name == name:
                return quality
    return 0.0


class ByteRange(NamedTuple):
    """From `start` on, and not including `end`."""

    start: int
    end: int


class Unsatisfiable(Exception):
    """The range lies outside the bytes that there are (416)."""


def parse_range(header: str, size: int) -> ByteRange | None:
    """The one range that was asked for; None: send everything (no range, or one that we may ignore).

    Raises Unsatisfiable.
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start = int(match[1])
        end = min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size or start >= end:
        raise Unsatisfiable
    return ByteRange(start, end)
