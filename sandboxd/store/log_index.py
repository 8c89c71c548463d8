"""Which part of a merged log belongs to which stream, and when it came."""

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate, compress
from operator import sub
from typing import Any, NamedTuple

from sandboxd.jobs import Stream

MAX_ENTRIES = 262_144
"""A job that changes streams more often is treated as one that wrote too much."""
RECORD = struct.Struct("<qdB")
"""One chunk as stored: offset in the merged log, Unix time in seconds, number of the stream.

Its size is not written: it ends where the next one begins, so that a record is final before its bytes come.
"""
_STREAMS = tuple(Stream)


class Chunk(NamedTuple):
    """A run of bytes of one stream."""

    stream: Stream
    time: float
    """When its first byte came, Unix time in seconds."""
    offset: int
    """In the merged log."""
    size: int


class LogIndex:
    """The chunks of one log, in order of arrival."""

    def __init__(self) -> None:
        self._size = 0
        self._offsets = array("q")
        self._times = array("d")
        self._streams = bytearray()
        self._own_sizes = dict.fromkeys(Stream, 0)
        self._own_offsets = {stream: array("q") for stream in Stream}
        """Where each chunk begins in its own stream, and below, which chunk it is."""
        self._own_chunks = {stream: array("q") for stream in Stream}

    def __len__(self) -> int:
        return len(self._offsets)

    def size(self, stream: Stream | None = None) -> int:
        """Bytes of one stream or of both."""
        return self._size if stream is None else self._own_sizes[stream]

    @property
    def encoded_bytes(self) -> int:
        """How long all records are together."""
        return len(self) * RECORD.size

    def size_within(self, kept_bytes: int) -> int:
        """How many of the first bytes of the merged log fit into so many together with their records."""
        numbers = range(len(self))
        # Of a chunk at least one byte must fit behind its record.
        chunks = bisect_left(
            numbers,
            kept_bytes,
            key=lambda number: self._offsets[number] + (number + 1) * RECORD.size,
        )
        if not chunks:
            return 0
        end = self._offsets[chunks] if chunks < len(self) else self._size
        return min(end, kept_bytes - chunks * RECORD.size)

    def extends(self, stream: Stream, time: float, within_seconds: float) -> bool:
        """Whether bytes of this stream belong to the last chunk: the same stream, at about the same time."""
        if not self._offsets or _STREAMS[self._streams[-1]] is not stream:
            return False
        return 0 <= time - self._times[-1] < within_seconds

    def add(self, stream: Stream, time: float, size: int, extends: bool = False) -> None:
        """Count `size` bytes, as part of the last chunk (`extends`) or as a new one."""
        if not extends:
            self._own_offsets[stream].append(self._own_sizes[stream])
            self._own_chunks[stream].append(len(self._offsets))
            self._offsets.append(self._size)
            self._times.append(time)
            self._streams.append(_STREAMS.index(stream))
        self._size += size
        self._own_sizes[stream] += size

    def chunks(self, offset: int = 0, stream: Stream | None = None) -> Iterator[Chunk]:
        """The chunks, of one stream or of both, that end after `offset` of the merged log."""
        first = max(0, bisect_right(self._offsets, offset) - 1)
        if stream is None:
            numbers: Iterator[int] = iter(range(first, len(self._offsets)))
        else:
            own_chunks = self._own_chunks[stream]
            start = bisect_left(own_chunks, first)
            numbers = (own_chunks[position] for position in range(start, len(own_chunks)))
        for number in numbers:
            chunk = self._chunk(number)
            if chunk.offset + chunk.size > offset:
                yield chunk

    def pieces(self, stream: Stream, offset: int, size: int) -> Iterator[Chunk]:
        """The parts of the merged log that make up `size` bytes of one stream from its own `offset`."""
        own_offsets, own_chunks = self._own_offsets[stream], self._own_chunks[stream]
        position = max(0, bisect_right(own_offsets, offset) - 1)
        while size > 0 and position < len(own_chunks):
            chunk = self._chunk(own_chunks[position])
            skipped = offset - own_offsets[position]
            taken = min(size, chunk.size - skipped)
            if taken > 0:
                yield Chunk(stream, chunk.time, chunk.offset + skipped, taken)
                offset += taken
                size -= taken
            position += 1

    def own_offset(self, stream: Stream, offset: int) -> int:
        """How many bytes of one stream come before `offset` of the merged log."""
        following = bisect_right(self._own_chunks[stream], bisect_right(self._offsets, offset) - 1)
        if following == 0:
            return 0
        chunk = self._chunk(self._own_chunks[stream][following - 1])
        into = min(chunk.size, offset - chunk.offset)
        return self._own_offsets[stream][following - 1] + into

    def merged_offset(self, stream: Stream, own_offset: int) -> int:
        """Where in the merged log the byte lies that has `own_offset` in its stream; the end if there is none."""
        if own_offset >= self._own_sizes[stream]:
            return self._size
        position = bisect_right(self._own_offsets[stream], own_offset) - 1
        within = own_offset - self._own_offsets[stream][position]
        return self._offsets[self._own_chunks[stream][position]] + within

    def start_before(self, stream: Stream, own_end: int, size: int, most_pieces: int) -> int:
        """The own offset, at most `size` before `own_end`, from which at most `most_pieces` pieces lead there."""
        own_offsets = self._own_offsets[stream]
        first = max(0, bisect_left(own_offsets, own_end) - most_pieces)
        return max(0, own_end - size, own_offsets[first] if own_offsets else 0)

    def encode(self) -> bytes:
        """All records."""
        return b"".join(map(RECORD.pack, self._offsets, self._times, self._streams))

    @staticmethod
    def record(stream: Stream, time: float, offset: int) -> bytes:
        """The record of a chunk that begins at `offset`."""
        return RECORD.pack(offset, time, _STREAMS.index(stream))

    @classmethod
    def decode(cls, records: bytes, size: int) -> "LogIndex":
        """The index of a merged log of `size` bytes.

        A record of bytes that never came, or a part of one, as a killed process leaves it, is left out.
        """
        # Column by column, each in one call: a loop over a full index would take a second.
        index = cls()
        whole = len(records) - len(records) % RECORD.size
        offsets = _column("q", records[:whole], 0)
        known = bisect_left(offsets, size)
        index._size = size if known else 0
        index._offsets = offsets[:known]
        index._times = _column("d", records[:whole], 8)[:known]
        index._streams = bytearray(records[16 : whole : RECORD.size][:known])
        sizes = array("q", map(sub, [*index._offsets[1:], size], index._offsets))
        for number, stream in enumerate(_STREAMS):
            own = index._streams.translate(bytes(number == other for other in range(256)))
            own_sizes = array("q", compress(sizes, own))
            index._own_chunks[stream] = array("q", compress(range(known), own))
            index._own_offsets[stream] = array("q", accumulate(own_sizes, initial=0))[:-1]
            index._own_sizes[stream] = sum(own_sizes)
        return index

    def _chunk(self, number: int) -> Chunk:
        following = number + 1
        end = self._offsets[following] if following < len(self._offsets) else self._size
        offset = self._offsets[number]
        return Chunk(_STREAMS[self._streams[number]], self._times[number], offset, end - offset)


def _column(code: str, records: bytes, place: int) -> "array[Any]":
    """The numbers of eight bytes that lie at `place` of each record, little-endian."""
    numbers = bytearray(len(records) // RECORD.size * 8)
    for byte in range(8):
        numbers[byte::8] = records[place + byte :: RECORD.size]
    column: array[Any] = array(code, bytes(numbers))
    if sys.byteorder == "big":
        column.byteswap()
    return column
