"""A service that plays a script, one answer per connection: for what a good service never does."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Script(NamedTuple):
    """Where the service listens, and what it heard until now."""

    url: str
    heard: list[str]
    """The head of each request."""


@contextmanager
def scripted_service(*answers: bytes) -> Iterator[Script]:
    """Each connection is sent its answer, as it stands, and closed. An empty answer hangs up without a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        script = Script(f"http://127.0.0.1:{listener.getsockname()[1]}", [])

        def play() -> None:
            for answer in answers:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # closed: the test asked less often than the script is long
                with connection:
                    script.heard.append(_read_request(connection))
                    connection.sendall(answer)

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield script
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer(body: str, *headers: str, status: str = "200 OK") -> bytes:
    """A whole HTTP answer, after which the connection closes."""
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", "Connection: close", *headers))
    return f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode()


def broken_stream(*events: str) -> bytes:
    """Server-sent events, and then nothing where more should come (the last chunk is missing)."""
    body = "".join(events).encode()
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return head.encode() + b"%x\r\n%b\r\n" % (len(body), body)


def _read_request(connection: socket.socket) -> str:
    """The head of the request; its body is read and forgotten."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    size = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            size = int(line.partition(b":")[2])
    while len(body) < size:
        body += connection.recv(65_536)
    return head.decode()
