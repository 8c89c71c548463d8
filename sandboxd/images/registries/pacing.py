"""What a registry sends is taken in no faster than the rest of the service goes on.

h11 takes apart what one read brought without a pause: 64 KiB of interim answers (RFC 9110, 15.2), of 28 bytes each, hold up the
event loop for a seventh of a second, and there is no end to how many may come. So until an answer has begun little is read at once,
and not much in all.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sandboxd.errors import Unavailable

_READ_BYTES = 2048
_MOST_BYTES_BEFORE_AN_ANSWER = 256 * 2**10
"""More than h11 takes for one head, which is 100 KiB."""
_TURN = 32
"""Pieces that are taken before others have their turn."""
_CRUMBS = 1000
_LEAST_BYTES_ON_AVERAGE = 64


class _Pace:
    """Reading from one connection."""

    def __init__(self, stream: Any) -> None:
        self._read, self._write = stream.read, stream.write
        self._read_bytes = 0
        self._has_begun = False

    def answer_begins(self) -> None:
        """From now on it is read as it comes."""
        self._has_begun = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self._has_begun:
            return bytes(await self._read(max_bytes, timeout))
        content = bytes(await self._read(min(max_bytes, _READ_BYTES), timeout))
        self._read_bytes += len(content)
        if self._read_bytes > _MOST_BYTES_BEFORE_AN_ANSWER:
            detail = f"the registry sent {self._read_bytes} bytes and no answer"
            raise Unavailable(detail, code="registry_failed")
        return content

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._has_begun, self._read_bytes = False, 0
        await self._write(buffer, timeout)


async def pace_connection(event: str, info: Mapping[str, Any]) -> None:
    """To be the `trace` of a request, which is told of each connection that is made for it."""
    if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
        stream = info["return_value"]
        pace = _Pace(stream)
        stream.read, stream.write, stream.answer_begins = pace.read, pace.write, pace.answer_begins


async def paced(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of an answer. Raises Unavailable if they are crumbs."""
    count = size = 0
    async for piece in pieces:
        count += 1
        size += len(piece)
        if count >= _CRUMBS and size < count * _LEAST_BYTES_ON_AVERAGE:
            detail = f"the registry sent {count} pieces of {size // count} bytes each"
            raise Unavailable(detail, code="registry_failed")
        if count % _TURN == 0:
            await asyncio.sleep(0)
        yield piece
