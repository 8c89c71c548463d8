"""Reading a log that may still grow: from where, in which pieces, and when to wait."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from sandboxd.jobs import Stream
from sandboxd.store.logs import JobLog, StoredLog

PIECE_BYTES = 64 * 2**10
MOST_PIECES = 2048
"""So many single bytes of a stream that alternates with the other are gathered in a few milliseconds."""
HEARTBEAT_SECONDS = 15.0
_RECORD_BYTES = 160
"""What a piece costs in an answer beside its content."""


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
) -> AsyncIterator[list[Piece]]:
    """The log from `offset` of both streams, in batches; an empty one each time that nothing came for HEARTBEAT_SECONDS.

    Without `follow`, it ends with what is there now. With `whole_characters` no piece ends within a UTF-8 character,
    if waiting or cutting can prevent it.
    """
    stop = None if follow else log.size()
    while True:
        growing = follow and not log.closed
        seen = log.size() if stop is None else stop
        found = _pieces(log, offset, seen, stream, whole_characters, growing)
        while batch := _batch(found):
            yield batch
            offset = batch[-1].end
            await asyncio.sleep(0)  # a long log must not hold up everybody else
        if not growing:
            return
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await log.wait_changed(seen)
        except TimeoutError:
            yield []


async def contents(
    log: ReadableLog, offset: int, *, stream: Stream | None, follow: bool
) -> AsyncIterator[bytes]:
    """The bytes of one stream or of both, from `offset` of both streams; with `follow` until the log is closed."""
    stop = None if follow else log.size(stream)
    position = offset if stream is None else log.index.own_offset(stream, offset)
    while True:
        growing = follow and not log.closed
        seen = log.size()
        async for part in part_by_part(
            log, stream, position, log.size(stream) if stop is None else stop
        ):
            yield part
            position += len(part)
        if not growing:
            return
        await log.wait_changed(seen)


async def part_by_part(
    log: ReadableLog, stream: Stream | None, start: int, end: int
) -> AsyncIterator[bytes]:
    """The bytes from `start` to `end` of one stream, by its own offsets, or of both."""
    while start < end and (part := _part(log, stream, start, min(PIECE_BYTES, end - start))):
        yield part
        start += len(part)
        await asyncio.sleep(0)


def _part(log: ReadableLog, stream: Stream | None, start: int, size: int) -> bytes:
    """Up to `size` bytes: as many as there are at once."""
    if stream is None:
        return log.read(start, size)
    return log.read_stream(stream, start, size, most_pieces=MOST_PIECES)


def _pieces(
    log: ReadableLog,
    offset: int,
    seen: int,
    stream: Stream | None,
    whole_characters: bool,
    growing: bool,
) -> Iterator[Piece]:
    """What lies between two offsets of the merged log."""
    block, block_start = b"", 0  # read at once: a chunk may be a single byte
    for chunk in log.chunks(offset, stream):
        offset, end = max(offset, chunk.offset), min(chunk.offset + chunk.size, seen)
        while offset < end:
            size = min(PIECE_BYTES, end - offset)
            if offset + size > block_start + len(block):
                block, block_start = log.read(offset, min(PIECE_BYTES, seen - offset)), offset
            content = block[offset - block_start : offset - block_start + size]
            if whole_characters:
                complete = complete_length(content)
                if complete == 0 and growing and end == seen:
                    return  # a part of a character at the very end: the rest may come
                content = content[: complete or None]
            if not content:
                return
            yield Piece(chunk.stream, chunk.time, offset, content)
            offset += len(content)
        if chunk.offset + chunk.size >= seen:
            return


def _batch(found: Iterator[Piece]) -> list[Piece]:
    """The next pieces, as many as make one send."""
    batch: list[Piece] = []
    weight = 0
    while weight < PIECE_BYTES and (piece := next(found, None)) is not None:
        batch.append(piece)
        weight += len(piece.content) + _RECORD_BYTES
    return batch


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
    end = position = log.size(stream)
    if lines == 0:
        return log.size()
    while position > 0:
        if stream is None:
            start = max(0, position - PIECE_BYTES)
            content = log.read(start, position - start)
        else:
            start = log.index.start_before(stream, position, PIECE_BYTES, MOST_PIECES)
            content = log.read_stream(stream, start, position - start)
        stop = len(content)
        if position == end and content.endswith(b"\n"):
            stop -= 1  # the newline that ends the last line begins none
        while (newline := content.rfind(b"\n", 0, stop)) >= 0:
            lines -= 1
            if lines == 0:
                found = start + newline + 1
                return found if stream is None else log.index.merged_offset(stream, found)
            stop = newline
        position = start
        await asyncio.sleep(0)  # a long way back must not hold up everybody else
    return 0
