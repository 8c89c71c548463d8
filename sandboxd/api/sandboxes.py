"""Sandboxes over HTTP: make, list, show, change, pause, resume, end; commands in them, waited for, followed, stopped."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from sandboxd.api.answers import encode, json_answer, list_answer, no_content
from sandboxd.api.body import parse_json, read_body, require_json
from sandboxd.api.hanging_up import while_connected
from sandboxd.api.headers import parse_prefer
from sandboxd.api.key_watch import KeyedStream
from sandboxd.api.log_reader import pieces
from sandboxd.api.parts import Call
from sandboxd.api.query import DEFAULT_PAGE, MAX_PAGE
from sandboxd.api.sandbox_requests import exec_spec_of, patch_of, sandbox_plan_of, signal_of
from sandboxd.api.sandbox_schemas import SandboxList
from sandboxd.api.sandbox_views import exec_view, sandbox_view
from sandboxd.api.schemas import EndView
from sandboxd.api.sse import comment, event, parse_last_event_id
from sandboxd.api.streams import SSE, log_event
from sandboxd.api.tenants import check_allowed
from sandboxd.api.views import exit_view
from sandboxd.errors import NotFound
from sandboxd.isolation.spec import NATIVE, NetworkMode
from sandboxd.jobs import Reason
from sandboxd.sandbox_values import SandboxState
from sandboxd.sandboxes.execs import Exec
from sandboxd.sandboxes.live import LiveSandbox
from sandboxd.sandboxes.registry import Sandboxes

_MAX_SMALL_BODY_BYTES = 2 * 2**20
"""Of requests that carry no input, but may carry an environment."""
_UNBUFFERED = {"X-Accel-Buffering": "no"}


async def create(call: Call) -> Response:
    """POST /v1/sandboxes"""
    body = await read_body(call.scope, call.receive, max_bytes=_MAX_SMALL_BODY_BYTES)
    if body:
        require_json(call.scope)
    parts, sandboxes = call.parts, sandboxes_of(call)
    plan = sandbox_plan_of(
        parse_json(body) if body else {},
        defaults=parts.limits,
        ceilings=parts.ceilings,
        check=parts.check,
        settings=sandboxes.settings,
        own_ceilings=parts.tenants.of(call.tenant).ceilings,
        images=parts.image_settings,
    )
    check_allowed(call, image=plan.image, network_mode=NetworkMode.NONE, runtime=NATIVE)
    making = sandboxes.create(
        call.tenant, plan, request_id=call.request_id, key_id=call.principal.key_id
    )
    record = await while_connected(call, making)
    call.scope["state"]["sandbox_id"] = record.id
    headers = {"Location": f"/v1/sandboxes/{record.id}"}
    return json_answer(sandbox_view(record), HTTPStatus.CREATED, headers)


async def list_(call: Call) -> Response:
    """GET /v1/sandboxes"""
    query = call.query.reader()
    states = query.words("state", SandboxState)
    limit = query.integer("limit", least=1, most=MAX_PAGE) or DEFAULT_PAGE
    cursor = query.cursor("cursor", prefix="sbx")
    query.done()
    page = await sandboxes_of(call).list(call.tenant, states=states, limit=limit, cursor=cursor)
    answer = SandboxList(
        data=[sandbox_view(record) for record in page.items],
        next_cursor=page.next_cursor,
        has_more=page.next_cursor is not None,
    )
    return json_answer(answer, headers=call.query.next_page("/v1/sandboxes", page.next_cursor))


async def show(call: Call) -> Response:
    """GET /v1/sandboxes/{sandbox_id}"""
    record = await sandboxes_of(call).get(call.tenant, call.parameters["sandbox_id"])
    return json_answer(sandbox_view(record))


async def change(call: Call) -> Response:
    """PATCH /v1/sandboxes/{sandbox_id}"""
    require_json(call.scope)
    body = await read_body(call.scope, call.receive, max_bytes=_MAX_SMALL_BODY_BYTES)
    live = await live_of(call)
    sandboxes = sandboxes_of(call)
    changes = patch_of(
        parse_json(body),
        live.record.plan,
        ceilings=call.parts.ceilings,
        settings=sandboxes.settings,
        own_ceilings=call.parts.tenants.of(call.tenant).ceilings,
    )
    record = await sandboxes.change(call.tenant, live.record.id, **changes)
    return json_answer(sandbox_view(record))


async def delete(call: Call) -> Response:
    """DELETE /v1/sandboxes/{sandbox_id}"""
    record = await sandboxes_of(call).delete(call.tenant, call.parameters["sandbox_id"])
    return no_content() if record is None else json_answer(sandbox_view(record))


async def pause(call: Call) -> Response:
    """POST /v1/sandboxes/{sandbox_id}/pause"""
    record = await sandboxes_of(call).pause(call.tenant, call.parameters["sandbox_id"])
    return json_answer(sandbox_view(record))


async def resume(call: Call) -> Response:
    """POST /v1/sandboxes/{sandbox_id}/resume"""
    record = await sandboxes_of(call).resume(call.tenant, call.parameters["sandbox_id"])
    return json_answer(sandbox_view(record))


# Commands


async def start_exec(call: Call) -> Response:
    """POST /v1/sandboxes/{sandbox_id}/exec"""
    require_json(call.scope)
    parts = call.parts
    body = await read_body(call.scope, call.receive, max_bytes=parts.settings.max_body_bytes)
    live = await live_of(call)
    spec = exec_spec_of(
        parse_json(body),
        live.record.plan,
        ceilings=parts.ceilings,
        own_ceilings=parts.tenants.of(call.tenant).ceilings,
    )
    execution = await live.start_exec(spec)
    path = f"/v1/sandboxes/{live.record.id}/execs/{execution.id}"
    if call.media_type == SSE:
        headers = {**_UNBUFFERED, "Location": path}
        return KeyedStream(call, _events(execution, 0), headers=headers, media_type=SSE)
    if parse_prefer(call.header(b"prefer")).respond_async:
        headers = {"Location": path, "Preference-Applied": "respond-async"}
        return json_answer(
            await exec_view(execution, with_output=False), HTTPStatus.ACCEPTED, headers
        )
    keep = call.header(b"sandboxd-on-disconnect").strip().lower() == "continue"
    try:
        await while_connected(call, execution.ended.wait())
    except ClientDisconnect:
        if not keep:
            execution.stop(Reason.CLIENT_GONE, message="the client hung up")
        raise
    return json_answer(await exec_view(execution), headers={"Location": path})


async def list_execs(call: Call) -> Response:
    """GET /v1/sandboxes/{sandbox_id}/execs"""
    live = await live_of(call)
    return list_answer([await exec_view(each, with_output=False) for each in live.list_execs()])


async def show_exec(call: Call) -> Response:
    """GET /v1/sandboxes/{sandbox_id}/execs/{exec_id}"""
    query = call.query.reader()
    wait_seconds = query.seconds("wait")
    query.done()
    execution = await exec_of(call)
    if call.media_type == SSE:
        last = parse_last_event_id(call.header(b"last-event-id"))
        if last is not None and last.ended:
            return no_content()  # tells an EventSource to stop coming back
        offset = last.offset if last else 0
        return KeyedStream(call, _events(execution, offset), headers=_UNBUFFERED, media_type=SSE)
    if wait_seconds:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(wait_seconds, call.parts.settings.max_wait_seconds)):
                await while_connected(call, execution.ended.wait())
    return json_answer(await exec_view(execution))


async def signal_exec(call: Call) -> Response:
    """POST /v1/sandboxes/{sandbox_id}/execs/{exec_id}/signal"""
    require_json(call.scope)
    body = await read_body(call.scope, call.receive, max_bytes=_MAX_SMALL_BODY_BYTES)
    number = signal_of(parse_json(body))
    execution = await exec_of(call)
    execution.signal(number)
    return json_answer(await exec_view(execution, with_output=False), HTTPStatus.ACCEPTED)


async def stop_exec(call: Call) -> Response:
    """DELETE /v1/sandboxes/{sandbox_id}/execs/{exec_id}"""
    execution = await exec_of(call)
    if execution.result is None:
        execution.stop(Reason.CANCELLED_BY_CLIENT, message="cancelled by the client")
        execution.signal(signal.SIGKILL)
    return json_answer(await exec_view(execution, with_output=False), HTTPStatus.ACCEPTED)


def sandboxes_of(call: Call) -> Sandboxes:
    """Raises NotFound where there are none."""
    if call.parts.sandboxes is None:
        raise NotFound("There are no sandboxes here.")
    return call.parts.sandboxes


async def live_of(call: Call) -> LiveSandbox:
    """The sandbox of the path. Raises NotFound, and Conflict if it has ended."""
    sandbox_id = call.parameters["sandbox_id"]
    call.scope["state"]["sandbox_id"] = sandbox_id
    return await sandboxes_of(call).live(call.tenant, sandbox_id)


async def exec_of(call: Call) -> Exec:
    """The command of the path. Raises NotFound, Conflict."""
    return (await live_of(call)).get_exec(call.parameters["exec_id"])


async def _events(execution: Exec, offset: int) -> AsyncIterator[bytes]:
    """The output as events, as of a job's log, until the command is over."""
    reached = offset
    async for batch in pieces(
        execution.log, offset, stream=None, follow=True, whole_characters=True
    ):
        if batch:
            reached = batch[-1].end
            yield b"".join(log_event(piece) for piece in batch)
        else:
            yield comment("waiting")
    await execution.ended.wait()
    result = execution.result
    end = EndView(
        state=execution.state,
        reason=execution.reason,
        attempt=1,
        exit=exit_view(result.exit) if result else None,
    )
    yield event("end", f"{reached}-end", encode(end))
