"""What is not a job: the system, keys, the caller, health, metrics."""

import asyncio
import time
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from sandboxd.api.answers import json_answer, list_answer, no_content
from sandboxd.api.auth import SCOPES, new_key
from sandboxd.api.body import parse_json, read_body, require_json
from sandboxd.api.conversion import read_struct
from sandboxd.api.parts import Call
from sandboxd.api.schemas import HealthView, IdentityView, KeyRequest, NewKeyView
from sandboxd.api.validate import invalid
from sandboxd.api.views import key_view
from sandboxd.errors import Fault, NotFound

MAX_BODY_BYTES = 64 * 2**10


async def system(call: Call) -> Response:
    """GET /v1/system"""
    return json_answer(call.parts.system())


async def whoami(call: Call) -> Response:
    """GET /v1/whoami"""
    principal = call.principal
    return json_answer(
        IdentityView(tenant=principal.tenant, scopes=principal.scopes, key_id=principal.key_id)
    )


async def list_keys(call: Call) -> Response:
    """GET /v1/keys"""
    return list_answer([key_view(key) for key in await call.parts.store.list_keys()])


async def create_key(call: Call) -> Response:
    """POST /v1/keys"""
    require_json(call.scope)
    body = await read_body(call.scope, call.receive, max_bytes=MAX_BODY_BYTES)
    request, faults = read_struct(parse_json(body), KeyRequest)
    faults += [
        Fault(f"/scopes/{index}", f"is not a scope: {', '.join(SCOPES)}")
        for index, scope in enumerate(request.scopes)
        if scope not in SCOPES
    ]
    if faults:
        raise invalid(faults)
    now = time.time()
    text, key = new_key(
        tenant=request.tenant,
        name=request.name,
        scopes=tuple(dict.fromkeys(request.scopes)),
        now=now,
        expires_at=None if request.ttl_seconds is None else now + request.ttl_seconds,
        quotas=request.quotas,
    )
    await call.parts.store.create_key(key, one_tenant=call.parts.one_tenant)
    call.parts.tenants.note_key(key)
    view = NewKeyView(**msgspec.structs.asdict(key_view(key)), key=text)
    return json_answer(view, HTTPStatus.CREATED)


async def revoke_key(call: Call) -> Response:
    """DELETE /v1/keys/{key_id}"""
    key_id = call.parameters["key_id"]
    if not await call.parts.store.revoke_key(key_id, time.time()):
        raise NotFound("There is no such key.")
    call.authentication.forget(key_id)
    return no_content()


async def livez(call: Call) -> Response:
    """GET /livez"""
    return json_answer(HealthView(status="ok"))


async def readyz(call: Call) -> Response:
    """GET /readyz"""
    readiness = await call.parts.readiness()
    if readiness.get("ready", False):
        return json_answer(readiness)
    return json_answer(readiness, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"})


async def metrics(call: Call) -> Response:
    """GET /metrics"""
    if call.parts.metrics is None:
        raise NotFound("There are no metrics here.")
    exposition, content_type = await asyncio.to_thread(
        call.parts.metrics.render, call.header(b"accept")
    )
    return Response(exposition, headers={"Content-Type": content_type})
