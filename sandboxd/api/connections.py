"""The server's side of a connection, with limits that uvicorn leaves open: how long and how large a request's head may be,
and how many connections there are.

Without them a client that sends nothing, or a byte a minute, holds a connection for ever, one header without an end
fills the memory, and connections take the descriptors that jobs need.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_SECONDS = 15.0
"""From the connection, or the first byte of a further request, to the end of its head."""
HEAD_BYTES = 64 * 2**10
OVER_LIMIT = "over_limit"
"""In the scope's state of requests on a connection that was one too many: they are to be refused."""
MOST_TOLD = 64
"""So many connections over the limit are kept until they are told so; any more are closed at once."""


class Connection(HttpToolsProtocol):
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
        super().on_headers_complete()

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
