"""What tenants may have and have used, and how many requests one may send."""

import re
import time
from collections.abc import Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from sandboxd.api.answers import json_answer, no_content
from sandboxd.api.body import parse_json, read_body, require_json
from sandboxd.api.conversion import read_struct
from sandboxd.api.parts import Call, Parts, Principal
from sandboxd.api.query import rfc3339
from sandboxd.api.schemas import (
    HourView,
    KeyQuotasView,
    MeteredView,
    QuotasView,
    StorageView,
    TenantRequest,
    TenantView,
    UsageList,
)
from sandboxd.api.validate import invalid, limits_asked
from sandboxd.errors import Fault, NotAllowed, NotFound, QuotaExceeded
from sandboxd.images.documents.references import is_reference, parse_reference
from sandboxd.images.puller import check_registry
from sandboxd.isolation.spec import NetworkMode
from sandboxd.quotas.limits import Limits, LimitsAsked, settle
from sandboxd.quotas.tenants import (
    HOUR_SECONDS,
    METERED,
    WINDOWS,
    Holder,
    Quotas,
    Rate,
    TenantQuotas,
    Whose,
    first_hour,
    seconds_left,
)

_MAX_BODY_BYTES = 64 * 2**10
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
RATES = "rates"
"""Key of the scope's state: how the caller's requests stand, for the answer's headers."""
_POLICY = "requests"
_RATE_NAMES = {Holder.TENANT: "requests", Holder.KEY: "key_requests"}
_MOST_HOURS = 24 * 366


def count_request(parts: Parts, principal: Principal, scope: Scope) -> None:
    """Take one of the requests that the key and its tenant have left. Raises QuotaExceeded (`rate_limited`)."""
    rates = parts.tenants.take_request(principal.tenant, principal.key_id)
    scope["state"][RATES] = rates
    for holder, rate in rates.items():
        if not rate.allowed:
            whose = " with this key" if holder is Holder.KEY else ""
            raise QuotaExceeded(
                f"More than {rate.most} requests{whose} in {rate.window_seconds} s.",
                code="rate_limited",
                policy=_POLICY,
                of=holder,
                retry_after_seconds=rate.reset_seconds,
            )


def rate_headers(rates: Mapping[Holder, Rate]) -> list[tuple[bytes, bytes]]:
    """draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4."""
    named = [(_RATE_NAMES[holder], rate) for holder, rate in rates.items()]
    policies = [f'"{name}";q={rate.most};w={rate.window_seconds}' for name, rate in named]
    now = [f'"{name}";r={rate.left};t={rate.reset_seconds}' for name, rate in named]
    return [
        (b"ratelimit-policy", ", ".join(policies).encode()),
        (b"ratelimit", ", ".join(now).encode()),
    ]


def check_allowed(call: Call, *, image: str, network_mode: NetworkMode, runtime: str) -> None:
    """Raises NotAllowed for what the caller's tenant or key may not use, and for registries that the operator closed."""
    if is_reference(image):
        check_registry(parse_reference(image), call.parts.image_settings)
    bounds = call.parts.tenants.bounds(call.tenant, call.principal.key_id)
    for holder, quotas in ((Holder.TENANT, bounds.tenant), (Holder.KEY, bounds.key)):
        if quotas is None:
            continue
        bans = quotas.forbids(image=image, network_mode=network_mode, runtime=runtime)
        if bans:
            whose = "This key" if holder is Holder.KEY else "Your tenant"
            detail = "; ".join(f"{ban.pointer}: {ban.reason}" for ban in bans)
            raise NotAllowed(
                f"{whose} may not use this: {detail}.", policy=bans[0].policy, of=holder
            )


async def quotas(call: Call) -> Response:
    """GET /v1/quotas"""
    now = time.time()
    tenant, key_id = call.tenant, call.principal.key_id
    mine, of_key = call.parts.tenants.of(tenant), call.parts.tenants.of_key(key_id)
    key = None
    if of_key is not None and key_id is not None:
        metered = await _metered(call, Whose(Holder.KEY, key_id), of_key, now)
        key = KeyQuotasView(id=key_id, quotas=of_key, metered=metered)
    metered = await _metered(call, Whose(Holder.TENANT, tenant), mine, now)
    used_bytes = await call.parts.store.stored_bytes(tenant)
    storage = StorageView(used_bytes=used_bytes, most_bytes=mine.storage_bytes or None)
    return json_answer(
        QuotasView(tenant=tenant, quotas=mine, metered=metered, storage=storage, key=key)
    )


async def _metered(call: Call, whose: Whose, quotas: Quotas, now: float) -> list[MeteredView]:
    table = await call.parts.store.used_and_reserved(whose, now)
    return [
        MeteredView(
            quota=f"{what}_per_{window}",
            used=table[what][window],
            most=quotas.most(what, window) or None,
            since=rfc3339(first_hour(window, now) * HOUR_SECONDS),
            until=rfc3339(now + seconds_left(window, now)),
        )
        for what in METERED
        for window in WINDOWS
    ]


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
    views = [
        HourView(
            hour=rfc3339(each.hour * HOUR_SECONDS),
            jobs=each.jobs,
            cpu_seconds=each.cpu_seconds,
            memory_byte_seconds=each.memory_byte_seconds,
        )
        for each in hours
    ]
    stored = await call.parts.store.stored_bytes(call.tenant)
    return json_answer(UsageList(data=views, storage_bytes=stored))


async def show(call: Call) -> Response:
    """GET /v1/tenants/{name}"""
    name = _name_of(call)
    return json_answer(TenantView(name=name, quotas=call.parts.tenants.of(name)))


async def put(call: Call) -> Response:
    """PUT /v1/tenants/{name}"""
    name = _name_of(call)
    require_json(call.scope)
    body = await read_body(call.scope, call.receive, max_bytes=_MAX_BODY_BYTES)
    request, faults = read_struct(parse_json(body), TenantRequest)
    ceilings = limits_asked(request.ceilings, "/ceilings", faults)
    faults += _above_the_operators(ceilings, call.parts.ceilings)
    if faults:
        raise invalid(faults)
    fields = msgspec.structs.asdict(request) | {"ceilings": ceilings}
    wished = TenantQuotas(**fields)
    await call.parts.tenants.put(name, wished)
    return json_answer(TenantView(name=name, quotas=wished))


def _above_the_operators(ceilings: LimitsAsked, operators: Limits) -> list[Fault]:
    _, faults = settle(ceilings, operators, operators)
    return [
        fault._replace(pointer=fault.pointer.replace("/limits", "/ceilings", 1)) for fault in faults
    ]


async def reset(call: Call) -> Response:
    """DELETE /v1/tenants/{name}"""
    await call.parts.tenants.put(_name_of(call), None)
    return no_content()


def _name_of(call: Call) -> str:
    name = call.parameters["name"]
    if _NAME.fullmatch(name) is None:
        raise NotFound("This cannot be the name of a tenant.")
    return name
