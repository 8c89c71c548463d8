"""A socket to a command in a sandbox, on asyncio: its input, its output, its end."""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from sandboxd.client.protocol import Answer, refusal_of
from sandboxd.client.sandbox_protocol import sandbox_path
from sandboxd.client.sandbox_types import ExecResult
from sandboxd.client.types import ConnectionFailed, NotTheService
from sandboxd.jobs import Stream

_STREAMS = {1: Stream.STDOUT, 2: Stream.STDERR}
_CONNECT_SECONDS = 10.0
_LARGEST_PIECE = 2**20


class CommandSocket:
    """A command that somebody is connected to."""

    def __init__(self, connection: ClientConnection, where: str) -> None:
        """For `connected` only."""
        self._connection = connection
        self._where = where
        self.result: ExecResult | None = None
        """How it ended, once the output is over."""

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        """What it writes, until it is over. Raises ConnectionFailed, and what a refusal means."""
        try:
            async for message in self._connection:
                if isinstance(message, bytes):
                    yield _STREAMS.get(message[0], Stream.STDOUT), message[1:]
                    continue
                said = json.loads(message)
                if said.get("type") == "exit":
                    self.result = msgspec.convert(said["exec"], ExecResult)
                elif said.get("type") == "problem":
                    body = json.dumps(said["problem"]).encode()
                    raise refusal_of(Answer(int(said["problem"]["status"]), {}, body))
        except ConnectionClosed as error:
            raise ConnectionFailed(f"{self._where}: the connection broke ({error})") from error
        except (ValueError, KeyError, IndexError, msgspec.ValidationError) as error:
            raise NotTheService(f"what came is not of this API: {error}") from error
        if self.result is None:
            raise ConnectionFailed(f"{self._where}: the connection ended before the command did")

    async def write(self, content: bytes) -> None:
        """Give it input. Nothing happens if it is over."""
        for start in range(0, len(content), _LARGEST_PIECE):
            await self._send(content[start : start + _LARGEST_PIECE])

    async def end_input(self) -> None:
        """It has all of its input."""
        await self._tell({"type": "end_of_input"})

    async def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size."""
        await self._tell({"type": "resize", "rows": rows, "columns": columns})

    async def signal(self, name: str) -> None:
        """Send a signal to its process group."""
        await self._tell({"type": "signal", "signal": name})

    async def _tell(self, message: dict[str, Any]) -> None:
        await self._send(json.dumps(message))

    async def _send(self, message: str | bytes) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(message)


@contextlib.asynccontextmanager
async def connected(
    url: str,
    key: str | None,
    sandbox_id: str,
    command: Sequence[str],
    **options: Any,
) -> AsyncIterator[CommandSocket]:
    """A command in a sandbox, for the length of the block; leaving it hangs up.

    `options` as of the API's ConnectRequest. Raises ConnectionFailed, and what a refusal means.
    """
    path = sandbox_path(sandbox_id, "/exec/ws")
    wish: dict[str, Any] = {
        "additional_headers": {"Authorization": f"Bearer {key}"} if key else {},
        "compression": None,
        "max_size": 2 * _LARGEST_PIECE,
        "open_timeout": _CONNECT_SECONDS,
        "close_timeout": 1,
    }
    try:
        if url.startswith("unix:"):
            socket_path = url.removeprefix("unix:").removeprefix("//")
            opening = unix_connect(socket_path, f"ws://sandboxd{path}", **wish)
        else:
            opening = connect(f"ws{url.removeprefix('http').rstrip('/')}{path}", proxy=None, **wish)
        async with opening as connection:
            await connection.send(json.dumps({"command": list(command), **options}))
            yield CommandSocket(connection, url)
    except InvalidStatus as error:
        response = error.response
        answer = Answer(response.status_code, {}, bytes(response.body or b""))
        raise refusal_of(answer) from error
    except (OSError, WebSocketException, TimeoutError) as error:
        raise ConnectionFailed(f"{url}: {error}") from error
