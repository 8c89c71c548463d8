"""Reading a log that may still grow: from where, in which pieces, and when to wait."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import takewhile
from typing import NamedTuple

from sandboxd.jobs import Stream
from sandboxd.store.log_index import Chunk
from sandboxd.store.logs import JobLog, StoredLog

PIECE_BYTES = 64 * 2**10
HEARTBEAT_SECONDS = 15.0


ReadableLog = JobLog | StoredLog
"""A job's output, whether the job still runs or not."""


class Piece(NamedTuple):
    """Some bytes of one stream."""

    stream: Stream
    time: float
    """When the chunk that it is part of began, Unix time in seconds."""
    offset: int
    """In the merged log."""
    content: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.content)


async def pieces(
    log: ReadableLog, offset: int, *, stream: Stream | None, follow: bool, whole_characters: bool
) -> AsyncIterator[Piece | None]:
    """The log from `offset` of both streams; None each time that nothing came for HEARTBEAT_SECONDS.

    Without `follow`, it ends with what is there now. With `whole_characters` no piece ends within a UTF-8 character,
    if waiting or cutting can prevent it.
    """
    stop = None if follow else log.size()
    while True:
        seen = log.size() if stop is None else stop
        growing = follow and not log.closed
        for chunk in _chunks(log, offset, seen):
            end = min(chunk.offset + chunk.size, seen)
            if stream is not None and chunk.stream is not stream:
                offset = end
                continue
            while offset < end:
                content = log.read(offset, min(PIECE_BYTES, end - offset))
                if whole_characters:
                    complete = complete_length(content)
                    if complete == 0 and growing and end == seen:
                        break  # a part of a character at the very end: the rest may come
                    content = content[: complete or None]
                yield Piece(chunk.stream, chunk.time, offset, content)
                offset += len(content)
        if stop is not None or (log.closed and offset >= log.size()):
            return
        if log.closed:
            continue
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await log.wait_changed(seen)
        except TimeoutError:
            yield None


def complete_length(content: bytes) -> int:
    """How many bytes are left when an unfinished UTF-8 character at the end is cut off."""
    for back in range(1, min(3, len(content)) + 1):
        byte = content[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(content) - back if back < length else len(content)
    return len(content)


def offset_since(log: ReadableLog, since: float) -> int:
    """Where the first chunk begins that came at this time or later (Unix time in seconds)."""
    low, high = 0, log.size()
    while low < high:
        chunk = next(iter(log.chunks((low + high) // 2)))
        if chunk.time >= since:
            high = chunk.offset
        else:
            low = chunk.offset + chunk.size
    return low


async def offset_of_tail(log: ReadableLog, stream: Stream | None, lines: int) -> int:
    """Where the last `lines` lines begin, in the merged log. Read backwards, in pieces."""
    position = log.size()
    if lines == 0:
        return position
    last = True  # the newline that ends the last line begins none
    while position > 0:
        start = max(0, position - PIECE_BYTES)
        content = log.read(start, position - start)
        for low, high in reversed(_spans(log, stream, start, position)):
            stop = high
            if last:
                last = False
                stop -= content[high - 1 - start] == ord("\n")
            while (newline := content.rfind(b"\n", low - start, stop - start)) >= 0:
                lines -= 1
                if lines == 0:
                    return start + newline + 1
                stop = start + newline
        position = start
        await asyncio.sleep(0)  # a long way back must not hold up everybody else
    return 0


def _spans(log: ReadableLog, stream: Stream | None, start: int, end: int) -> list[tuple[int, int]]:
    """The parts from `start` to `end` of the merged log that belong to the stream."""
    return [
        (max(chunk.offset, start), min(chunk.offset + chunk.size, end))
        for chunk in _chunks(log, start, end)
        if stream is None or chunk.stream is stream
    ]


def _chunks(log: ReadableLog, start: int, end: int) -> Iterator[Chunk]:
    """The chunks of which some part lies between two offsets of the merged log."""
    return takewhile(lambda chunk: chunk.offset < end, log.chunks(start))
