"""Answers to a request for a part (RFC 9110, 14): of a log, of a file."""

from http import HTTPStatus

from sandboxd.api.headers import ByteRange, Unsatisfiable, parse_range
from sandboxd.api.problems import HttpRefused


def requested_range(
    header: str, size_bytes: int, what: str
) -> tuple[ByteRange, int, dict[str, str]]:
    """The part of `size_bytes` that is asked for, the status of the answer and its headers.

    Raises HttpRefused (416) if there is no such part; `what` has so many bytes, for people.
    """
    headers = {"Accept-Ranges": "bytes"}
    try:
        part = parse_range(header, size_bytes)
    except Unsatisfiable as error:
        raise HttpRefused(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"The {what} has {size_bytes} bytes.",
            code="range_not_satisfiable",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        ) from error
    if part is None:
        return ByteRange(0, size_bytes), HTTPStatus.OK, headers
    headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size_bytes}"
    return part, HTTPStatus.PARTIAL_CONTENT, headers
