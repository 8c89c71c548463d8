"""A socket to a command: its input and output as they come, in a terminal or without.

Nothing is gathered for a slow client: what it does not take stays in the command's pipe, and the command waits.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from sandboxd.api.answers import encode
from sandboxd.api.body import parse_json
from sandboxd.api.conversion import read_struct
from sandboxd.api.key_watch import watch_key
from sandboxd.api.parts import Call
from sandboxd.api.problems import HttpRefused, problem_of
from sandboxd.api.sandbox_requests import connected_spec_of, signal_named
from sandboxd.api.sandbox_schemas import TerminalRequest
from sandboxd.api.sandbox_views import exec_view
from sandboxd.api.sandboxes import live_of
from sandboxd.api.validate import invalid
from sandboxd.errors import Fault, Malformed, Refused
from sandboxd.isolation.spec import TerminalSize
from sandboxd.jobs import Stream
from sandboxd.sandboxes.execs import Exec
from sandboxd.sandboxes.live import LiveSandbox
from sandboxd.sandboxes.terminals import Line

PATH = "/v1/sandboxes/{sandbox_id}/exec/ws"
FIRST_SECONDS = 15.0
"""In which the client must say what to run."""
DONE, POLICY = 1000, 1008
"""Close codes (RFC 6455, 7.4.1): it is over; the client said what cannot be done."""
_PREFIX = {Stream.STDOUT: b"\x01", Stream.STDERR: b"\x02"}


async def only_as_socket(call: Call) -> Response:
    """GET /v1/sandboxes/{sandbox_id}/exec/ws without an upgrade"""
    raise HttpRefused(
        HTTPStatus.UPGRADE_REQUIRED,
        "This is a WebSocket (RFC 6455).",
        code="upgrade_required",
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )


async def connect(call: Call, socket: WebSocket) -> None:
    """Start the command that the first message asks for, and pass on until it is over or the client leaves."""
    live = await live_of(call)
    live.check_running()
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        try:
            execution = await _start(call, socket, live)
        except Refused as error:
            await _refuse(call, socket, error)
            return
        try:
            await _attend(call, socket, execution)
        except Refused as error:
            await _refuse(call, socket, error)
        finally:
            await asyncio.shield(execution.hang_up())


async def _start(call: Call, socket: WebSocket, live: LiveSandbox) -> Exec:
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            first = await _receive(socket)
    except TimeoutError:
        raise Malformed(f"No command was named within {FIRST_SECONDS:g} s.") from None
    if not isinstance(first, str):
        raise Malformed("The first message must be text: what to run.")
    spec = connected_spec_of(
        parse_json(first.encode()),
        live.record.plan,
        ceilings=call.parts.ceilings,
        own_ceilings=call.parts.tenants.of(call.tenant).ceilings,
    )
    execution = await live.start_exec(spec, connected=True)
    await execution.started.wait()
    return execution


async def _attend(call: Call, socket: WebSocket, execution: Exec) -> None:
    """Pass on what the command and the client say. Raises Refused, WebSocketDisconnect."""
    if execution.result is None:
        await _say(socket, {"type": "started", "id": execution.id})
    passing = [
        asyncio.ensure_future(_pass_on(socket, stream, line))
        for stream, line in execution.lines.items()
    ]
    listening = asyncio.ensure_future(_listen(socket, execution))
    ending = asyncio.ensure_future(_end(execution, passing))
    watching = asyncio.ensure_future(watch_key(call))
    try:
        waiting = (ending, listening, watching)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if ending not in done:
            for task in done:
                task.result()  # Each of them ends by raising.
            return
        ending.result()
        view = await exec_view(execution, with_output=False)
        await _say(socket, {"type": "exit", "exec": view})
        await socket.close(DONE)
    finally:
        tasks = (ending, listening, watching, *passing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _end(execution: Exec, passing: Sequence["asyncio.Future[None]"]) -> None:
    """The command is over, and all that it wrote is passed on."""
    await execution.ended.wait()
    for line in execution.lines.values():
        line.finish()
    for each in passing:
        await each


async def _pass_on(socket: WebSocket, stream: Stream, line: Line) -> None:
    while piece := await line.read():
        await socket.send_bytes(_PREFIX[stream] + piece)


async def _listen(socket: WebSocket, execution: Exec) -> None:
    """Raises WebSocketDisconnect when the client leaves, and Refused for what makes no sense."""
    while True:
        said = await _receive(socket)
        if isinstance(said, bytes):
            if execution.input is not None:
                await execution.input.write(said)
        else:
            _obey(execution, parse_json(said.encode()))


def _obey(execution: Exec, message: Any) -> None:
    match message:
        case {"type": "resize", **size}:
            request, faults = read_struct(size, TerminalRequest)
            if faults:
                raise invalid(faults)
            if execution.spec.terminal is not None and execution.input is not None:
                execution.input.resize(TerminalSize(request.rows, request.columns))
        case {"type": "signal", "signal": str(name)} if number := signal_named(name):
            execution.signal(number)
        case {"type": "end_of_input"}:
            if execution.spec.terminal is None and execution.input is not None:
                execution.input.close()
        case _:
            raise invalid([Fault("/type", "is not resize, signal or end_of_input as it must be")])


async def _receive(socket: WebSocket) -> str | bytes:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    text: str | None = message.get("text")
    content: bytes = message.get("bytes") or b""
    return content if text is None else text


async def _say(socket: WebSocket, value: object) -> None:
    await socket.send_text(encode(value).decode())


async def _refuse(call: Call, socket: WebSocket, error: Refused) -> None:
    problem = problem_of(error, path=call.scope["path"], request_id=call.request_id)
    text = bytes(problem.body).decode()
    await socket.send_text(f'{{"type":"problem","problem":{text}}}')
    await socket.close(POLICY)
