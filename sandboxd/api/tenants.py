"""What tenants may have and have used, and how many requests one may send."""

import re
import time

from starlette.responses import Response
from starlette.types import Scope

from sandboxd.api.answers import json_answer, list_answer, no_content
from sandboxd.api.body import parse_json, read_body, require_json
from sandboxd.api.conversion import read_struct
from sandboxd.api.parts import Call, Parts
from sandboxd.api.query import rfc3339
from sandboxd.api.schemas import HourView, MeteredView, QuotasView, TenantView
from sandboxd.api.validate import invalid
from sandboxd.errors import Fault, Forbidden, NotFound, QuotaExceeded
from sandboxd.isolation.spec import NetworkMode
from sandboxd.quotas.tenants import (
    HOUR_SECONDS,
    METERED,
    WINDOWS,
    Rate,
    TenantQuotas,
    first_hour,
    seconds_left,
)

_MAX_BODY_BYTES = 64 * 2**10
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
RATE = "rate"
"""Key of the scope's state: how the caller's requests stand, for the answer's headers."""
_POLICY = "requests"
_MOST_HOURS = 24 * 366


def count_request(parts: Parts, tenant: str, scope: Scope) -> None:
    """Take one of the requests that the tenant has left. Raises QuotaExceeded (`rate_limited`)."""
    rate = parts.tenants.take_request(tenant)
    if rate is None:
        return
    scope["state"][RATE] = rate
    if not rate.allowed:
        raise QuotaExceeded(
            f"More than {rate.most} requests in {rate.window_seconds} s.",
            code="rate_limited",
            policy=_POLICY,
            retry_after_seconds=rate.reset_seconds,
        )


def rate_headers(rate: Rate) -> list[tuple[bytes, bytes]]:
    """draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4."""
    policy = f'"{_POLICY}";q={rate.most};w={rate.window_seconds}'
    now = f'"{_POLICY}";r={rate.left};t={rate.reset_seconds}'
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", now.encode())]


def check_allowed(call: Call, *, image: str, network_mode: NetworkMode, runtime: str) -> None:
    """Raises Forbidden for what the caller's tenant may not use."""
    forbidden = call.parts.tenants.of(call.tenant).forbids(
        image=image, network_mode=network_mode, runtime=runtime
    )
    if forbidden:
        detail = "; ".join(f"{pointer}: {reason}" for pointer, reason in forbidden)
        raise Forbidden(f"Your tenant may not use this: {detail}.", code="not_allowed")


async def quotas(call: Call) -> Response:
    """GET /v1/quotas"""
    now = time.time()
    mine = call.parts.tenants.of(call.tenant)
    table = await call.parts.store.used_and_reserved(call.tenant, now)
    metered = [
        MeteredView(
            quota=f"{what}_per_{window}",
            used=table[what][window],
            most=mine.most(what, window) or None,
            since=rfc3339(first_hour(window, now) * HOUR_SECONDS),
            until=rfc3339(now + seconds_left(window, now)),
        )
        for what in METERED
        for window in WINDOWS
    ]
    return json_answer(QuotasView(tenant=call.tenant, quotas=mine, metered=metered))


async def usage(call: Call) -> Response:
    """GET /v1/usage"""
    query = call.query.reader()
    now = time.time()
    since, until = query.time("since"), query.time("until")
    query.done()
    first = first_hour("month", now) if since is None else int(since // HOUR_SECONDS)
    end = int((now if until is None else until) // HOUR_SECONDS) + 1
    if end - first > _MOST_HOURS:
        raise invalid([Fault("/since", f"more than {_MOST_HOURS} hours before the end")])
    hours = await call.parts.store.uses(call.tenant, first, end)
    return list_answer(
        [
            HourView(
                hour=rfc3339(each.hour * HOUR_SECONDS),
                jobs=each.jobs,
                cpu_seconds=each.cpu_seconds,
                memory_byte_seconds=each.memory_byte_seconds,
            )
            for each in hours
        ]
    )


async def show(call: Call) -> Response:
    """GET /v1/tenants/{name}"""
    name = _name_of(call)
    return json_answer(TenantView(name=name, quotas=call.parts.tenants.of(name)))


async def put(call: Call) -> Response:
    """PUT /v1/tenants/{name}"""
    name = _name_of(call)
    require_json(call.scope)
    body = await read_body(call.scope, call.receive, max_bytes=_MAX_BODY_BYTES)
    wished, faults = read_struct(parse_json(body), TenantQuotas)
    if faults:
        raise invalid(faults)
    await call.parts.tenants.put(name, wished)
    return json_answer(TenantView(name=name, quotas=wished))


async def reset(call: Call) -> Response:
    """DELETE /v1/tenants/{name}"""
    await call.parts.tenants.put(_name_of(call), None)
    return no_content()


def _name_of(call: Call) -> str:
    name = call.parameters["name"]
    if _NAME.fullmatch(name) is None:
        raise NotFound("This cannot be the name of a tenant.")
    return name
