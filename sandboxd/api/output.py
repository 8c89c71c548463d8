"""A job's output as answers show it: text where it is text, else base64."""

import base64
from typing import NamedTuple

from sandboxd.api.log_reader import ReadableLog, part_by_part
from sandboxd.api.schemas import Base64, StreamsView, StreamView
from sandboxd.errors import NotFound
from sandboxd.jobs import Span, Stream

INLINE_BYTES = 64 * 2**10
"""So much of each stream is in the answer itself; the logs have the rest."""


class Output(NamedTuple):
    """What an answer shows of a job's output."""

    stdout: str | Base64
    stderr: str | Base64
    streams: StreamsView


async def output_of(log: ReadableLog) -> Output:
    """The first part of both streams.

    Raises NotFound if the log was removed meanwhile.
    """
    try:
        stdout, stdout_view = await _inline(log, Stream.STDOUT)
        stderr, stderr_view = await _inline(log, Stream.STDERR)
    except FileNotFoundError as error:
        raise NotFound("The log is gone.", code="log_gone") from error
    return Output(stdout, stderr, StreamsView(stdout=stdout_view, stderr=stderr_view))


async def _inline(log: ReadableLog, stream: Stream) -> tuple[str | Base64, StreamView]:
    whole = Span(offset=0, size_bytes=log.size(stream))
    return await inline(log, stream, whole, INLINE_BYTES, truncated=log.truncated(stream))


async def inline(
    log: ReadableLog, stream: Stream, span: Span, most_bytes: int, *, truncated: bool
) -> tuple[str | Base64, StreamView]:
    """The first part of a part of one stream.

    Raises FileNotFoundError if the log was removed meanwhile.
    """
    closed, size = log.closed, span.size_bytes
    parts = part_by_part(log, stream, span.offset, span.offset + min(size, most_bytes))
    piece = b"".join([part async for part in parts])
    text: str | Base64
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError as error:
        cut = len(piece) < size or truncated or not closed
        if cut and len(piece) - error.start < 4 and error.reason == "unexpected end of data":
            piece = piece[: error.start]  # only a character that was cut in two
            text = piece.decode("utf-8")
        else:
            text = Base64(base64=base64.b64encode(piece).decode("ascii"))
    return text, StreamView(size_bytes=size, inline_bytes=len(piece), truncated=truncated)
