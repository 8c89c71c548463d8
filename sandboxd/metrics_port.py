"""A port that answers `GET /metrics` and nothing else, in threads, so that a scrape never stops the event loop.

Whoever reaches it needs no key. So it takes a few connections, each for a few seconds and one request: it can neither
use up the descriptors that jobs need nor be kept from Prometheus for long.
"""

import contextlib
import http
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

MOST_CONNECTIONS = 16
DEADLINE_SECONDS = 15.0
"""For a whole exchange; longer than the service may take to tell its figures, and than a scrape's usual time-out."""
_LOOK_SECONDS = 0.5

Render = Callable[[str], tuple[bytes, str]]
"""From an Accept header to the exposition and its content type."""


def serve(
    host: str,
    port: int,
    render: Render,
    *,
    most_connections: int = MOST_CONNECTIONS,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> Callable[[], None]:
    """Begin to serve. Returns what ends it. Raises OSError."""
    server = _Server(host, port, render, most_connections, deadline_seconds)
    thread = threading.Thread(
        target=server.serve_forever, args=(_LOOK_SECONDS,), name="metrics", daemon=True
    )
    thread.start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


class _Server(ThreadingTCPServer):
    """A thread for each connection, and a place for so many."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, host: str, port: int, render: Render, most_connections: int, deadline_seconds: float
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.render = render
        self._most_connections = most_connections
        self._deadline_seconds = deadline_seconds
        self._open: dict[socket.socket, float] = {}
        """Connection to the moment at which it is cut."""
        super().__init__((host, port), _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is a place; socketserver closes the connection if not."""
        return len(self._open) < self._most_connections

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open[request] = time.monotonic() + self._deadline_seconds
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        super().close_request(request)
        self._open.pop(request, None)

    def service_actions(self) -> None:
        """Called after each connection and every half second: cut those whose time is over."""
        now = time.monotonic()
        for connection, deadline in list(self._open.items()):
            if now >= deadline:
                # Its thread, which may read or write, sees the end and closes it.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody who goes away in the middle is no event."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so the connection ends with the answer."""

    server: _Server
    server_version = "sandboxd"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(http.HTTPStatus.NOT_FOUND)
            return
        body, content_type = self.server.render(self.headers.get("Accept", ""))
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape is no event."""
