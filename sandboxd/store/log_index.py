"""Which part of a merged log belongs to which stream, and when it came."""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

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

    def chunks(self, offset: int = 0) -> Iterator[Chunk]:
        """The chunks that end after `offset` of the merged log."""
        for number in range(max(0, bisect_right(self._offsets, offset) - 1), len(self._offsets)):
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
        index = cls()
        whole = len(records) - len(records) % RECORD.size
        chunks = [found for found in RECORD.iter_unpack(records[:whole]) if found[0] < size]
        ends = [*(offset for offset, _, _ in chunks), size][1:]
        for (offset, time, number), end in zip(chunks, ends, strict=True):
            index.add(_STREAMS[number], time, end - offset)
        return index

    def _chunk(self, number: int) -> Chunk:
        following = number + 1
        end = self._offsets[following] if following < len(self._offsets) else self._size
        offset = self._offsets[number]
        return Chunk(_STREAMS[self._streams[number]], self._times[number], offset, end - offset)
