"""A load generator: the same request again and again on a number of connections, each answer looked at. One process, one thread."""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import uvloop
from service import WentWrongError

DEADLINE_SECONDS = 600.0


class Answer(NamedTuple):
    status: int
    body: bytes


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def rate(
    port: int, request: bytes, *, connections: int, count: int, good: Callable[[Answer], bool]
) -> float:
    """Answers a second. Raises WentWrongError if one of them is not `good`."""
    return uvloop.run(_rate(port, request, connections, count, good))


async def _rate(
    port: int, request: bytes, connections: int, count: int, good: Callable[[Answer], bool]
) -> float:
    loop = asyncio.get_running_loop()
    run = _Run(request, count, good, loop.create_future())
    opened = [
        await loop.create_connection(lambda: _Connection(run), "127.0.0.1", port)
        for _ in range(connections)
    ]
    began = time.perf_counter()
    for _, connection in opened:
        connection.ask()
    async with asyncio.timeout(DEADLINE_SECONDS):
        wrong = await run.over
    seconds = time.perf_counter() - began
    for transport, _ in opened:
        transport.close()
    if wrong is not None:
        raise WentWrongError(f"an answer is not what it should be: {wrong}")
    return count / seconds


class _Run:
    """What all connections share."""

    def __init__(
        self,
        request: bytes,
        count: int,
        good: Callable[[Answer], bool],
        over: "asyncio.Future[Answer | None]",
    ) -> None:
        self.request = request
        self.to_ask = count
        self.to_come = count
        self.good = good
        self.over = over

    def came(self, answer: Answer) -> None:
        self.to_come -= 1
        if not self.good(answer):
            self.end(answer)
        elif self.to_come == 0:
            self.end(None)

    def end(self, wrong: Answer | None) -> None:
        if not self.over.done():
            self.over.set_result(wrong)


class _Connection(asyncio.Protocol):
    """Asks, waits for the whole answer, asks again."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._got = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def ask(self) -> None:
        if self._run.to_ask:
            self._run.to_ask -= 1
            self._transport.write(self._run.request)

    def data_received(self, content: bytes) -> None:
        self._got += content
        head, blank, body = self._got.partition(b"\r\n\r\n")
        if not blank:
            return
        status = int(head[9:12])
        _, _, length = head.lower().partition(b"\r\ncontent-length:")
        size = int(length.split(b"\r\n", 1)[0])
        if len(body) < size:
            return
        self._got = b""
        self._run.came(Answer(status, body))
        self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        self._run.end(Answer(0, b"the connection was closed"))
