"""The server's side of a connection, with limits that uvicorn leaves open: how long and how large a request's head may be,
how long an answer may lie there unread, and how many connections there are.

Without them a client that sends nothing, or a byte a minute, holds a connection for ever, one header without an end
fills the memory, one that does not read its answers keeps them in it, and connections take the descriptors that jobs need.
"""

import asyncio
import fcntl
import re
import socket
import struct
import sys
import termios
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_SECONDS = 15.0
"""From the connection, or the first byte of a further request, to the end of its head."""
HEAD_BYTES = 64 * 2**10
STALL_SECONDS = 30.0
"""A client that reads nothing of what is there for it for so long is cut off."""
OVER_LIMIT = "over_limit"
"""In the scope's state of requests on a connection that was one too many: they are to be refused."""
AUTHORITY = "authority"
"""In the scope's state: the authority that an absolute request target names (RFC 9112, 3.2.2)."""
WHOLE = "whole"
"""In the scope's state: the whole body is here, and nothing is to be waited for."""
MOST_TOLD = 64
"""So many connections over the limit are kept until they are told so; any more are closed at once."""
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")


class _CutsOff(asyncio.Protocol):
    """Cuts a client off that reads nothing of what is there for it. Comes before the protocol of a kind of connection."""

    stall_seconds = STALL_SECONDS
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _stall_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading(self._unread_bytes())

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_stall()
        super().connection_lost(exc)

    def _await_reading(self, unread: int) -> None:
        self._end_stall()
        self._stall_timer = self.loop.call_later(self.stall_seconds, self._check_stall, unread)

    def _check_stall(self, unread_before: int) -> None:
        unread = self._unread_bytes()
        if unread < unread_before:  # slow, but it reads
            self._await_reading(unread)
        else:
            # Without this the kernel would keep what it has for a client that is gone for minutes.
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def _unread_bytes(self) -> int:
        """What lies here and in the kernel (unix(7), tcp(7): SIOCOUTQ): that alone shrinks with each byte read."""
        connection = self.transport.get_extra_info("socket")
        queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _end_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


class _OneWrite:
    """What one answer is written to: its head goes out together with what follows in the same turn of the loop.

    Apart, each would be a system call and a segment of its own.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self._begun = False

    def write(self, piece: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._head = piece
            self._loop.call_soon(self._flush)
        elif self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines((head, piece))
        else:
            self._transport.write(piece)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)


class SocketConnection(_CutsOff, WebSocketsSansIOProtocol):
    """Give this class to uvicorn as `ws`. It takes over a transport whose every unread byte pauses writing."""

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()  # What is left to be sent would be waited for.


class Connection(_CutsOff, HttpToolsProtocol):
    """Give this class to uvicorn as `http`."""

    head_seconds = HEAD_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn would let them in, however many, and refuse their requests, in plain text.
        self._most_connections, self.limit_concurrency = self.limit_concurrency, None
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # From the first byte that the kernel does not take: else up to 64 KiB could lie there for ever.
        transport.set_write_buffer_limits(high=0)
        if self._most_connections is not None:
            over = len(self.connections) - self._most_connections
            if over > MOST_TOLD:
                transport.abort()
                return
            if over > 0:
                self.app_state = {**self.app_state, OVER_LIMIT: True}
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()  # also for what does not begin a message yet, such as empty lines
        super().data_received(data)
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._end_head()
        absolute = _ABSOLUTE.match(self.url)
        if absolute is not None:
            self.scope["state"][AUTHORITY] = absolute[1]
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self.cycle.transport = cast(asyncio.Transport, _OneWrite(self.transport, self.loop))

    def on_message_complete(self) -> None:
        self.scope["state"][WHOLE] = True
        super().on_message_complete()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._head_bytes = 0

    def _refuse_head(self) -> None:
        self._end_head()
        if not self.transport.is_closing():
            self.transport.write(
                STATUS_LINE[431] + b"content-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()
