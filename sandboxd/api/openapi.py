"""The OpenAPI 3.1 document, made from the table of routes and the wire schemas."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

import sandboxd
from sandboxd.api import problems
from sandboxd.api.image_schemas import PullLine
from sandboxd.api.parts import Call
from sandboxd.api.problems import Problem
from sandboxd.api.resources import PUBLIC, Parameter, Reply, Route
from sandboxd.api.schemas import EndView, LogRecord

_PATH_PARAMETER = re.compile(r"\{(\w+)\}")
_DESCRIPTION = """\
Runs commands in rootless sandboxes and keeps what came of them.

Sizes are bytes (requests also take `"128Mi"`), durations are seconds, times are RFC 3339 in UTC. Every refusal is a
problem (RFC 9457) with a stable `code`, and with every fault of the request at once, each with its JSON pointer.
"""


async def document(call: Call) -> Response:
    """GET /openapi.json"""
    return Response(call.parts.documents.openapi, media_type="application/json")


def build_document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document as a JSON value."""
    types = list(dict.fromkeys([*_types_of(routes), Problem, LogRecord, EndView, PullLine]))
    references, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    # What no type of a member can say.
    components["JobRequest"]["anyOf"] = [{"required": ["command"]}, {"required": ["steps"]}]
    schema_of = dict(zip(types, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sandboxd",
            "version": sandboxd.__version__,
            "summary": "A rootless sandbox runner.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": group} for group in dict.fromkeys(route.group for route in routes)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "sbx_…",
                    "description": "Made by `sandboxd keys create`. Not needed where the service runs without auth.",
                }
            },
            "responses": {
                "Problem": {
                    "description": "The request was refused, or failed.",
                    "content": {problems.MEDIA_TYPE: {"schema": schema_of[Problem]}},
                }
            },
        },
    }


def _types_of(routes: Iterable[Route]) -> Iterable[Any]:
    for route in routes:
        if route.request is not None:
            yield route.request
        for reply in route.replies:
            yield from (body for body in (reply.body, reply.or_body) if body is not None)


def _operation(route: Route, schema_of: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    module = route.handler.__module__.rpartition(".")[2]
    operation: dict[str, Any] = {
        "operationId": f"{module}_{route.handler.__name__.rstrip('_')}",
        "tags": [route.group],
        "summary": route.summary,
        "security": _security(route),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PATH_PARAMETER.findall(route.template)
        ]
        + [_parameter(parameter) for parameter in route.parameters],
        "responses": {str(int(reply.status)): _reply(reply, schema_of) for reply in route.replies}
        | {"default": {"$ref": "#/components/responses/Problem"}},
    }
    if route.description:
        operation["description"] = route.description
    if route.request is not None:
        operation["requestBody"] = {
            "required": not route.request_optional,
            "content": {"application/json": {"schema": schema_of[route.request]}}
            | {
                media_type: {"schema": dict(schema)}
                for media_type, schema in route.other_requests.items()
            },
        }
    return operation


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.scope == PUBLIC:
        return []
    return [{"key": [route.scope] if route.scope else []}]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": False,
        "schema": dict(parameter.schema or {"type": "string"}),
    }


def _reply(reply: Reply, schema_of: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": reply.description}
    if reply.body is not None:
        schema = schema_of[reply.body]
        if reply.or_body is not None:
            schema = {"anyOf": [schema, schema_of[reply.or_body]]}
        answer["content"] = {
            media_type: {"schema": schema if "json" in media_type else {"type": "string"}}
            for media_type in reply.media_types
        }
    elif reply.media_types != ("application/json",):
        answer["content"] = {
            media_type: {"schema": {"type": "string"}} for media_type in reply.media_types
        }
    return answer
