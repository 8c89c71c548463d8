"""From a route's row in the table to what runs: methods, authentication, scopes, parameters; then the handler."""

import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from sandboxd.api.auth import JOBS_WRITE, require_scope
from sandboxd.api.headers import best_media_type
from sandboxd.api.parts import Authentication, Call, Parts, Principal
from sandboxd.api.problems import HttpRefused
from sandboxd.api.query import parse_query
from sandboxd.api.tenants import count_request
from sandboxd.errors import NotFound
from sandboxd.ids import is_id

PUBLIC = "public"
"""In place of a scope: no key is needed."""

Handler = Callable[[Call], Awaitable[Response]]
SocketHandler = Callable[[Call, WebSocket], Awaitable[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A query parameter or a header, for people."""

    name: str
    description: str
    place: str = "query"
    schema: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One way in which a request can be answered."""

    status: int
    description: str
    body: type | None = None
    or_body: type | None = None
    """Another shape that the body may have."""
    media_types: tuple[str, ...] = ("application/json",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One row of the table: everything that is to be known of a method of a path."""

    method: str
    path: str
    handler: Handler
    group: str
    summary: str
    description: str = ""
    scope: str | None
    """The scope that is needed; None: any key; PUBLIC: no key."""
    request: type | None = None
    """The Struct of the JSON body."""
    request_optional: bool = False
    other_requests: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Other media types that the body may have, to their schemas."""
    parameters: tuple[Parameter, ...] = ()
    replies: tuple[Reply, ...]

    @property
    def template(self) -> str:
        """The path for people: without how a parameter is matched."""
        return self.path.replace(":path}", "}")

    @property
    def media_types(self) -> tuple[str, ...]:
        """All forms in which it answers well, in our order of preference."""
        bodies = (
            reply.media_types
            for reply in self.replies
            if reply.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        )
        return tuple(dict.fromkeys(itertools.chain.from_iterable(bodies)))


class Resource:
    """All methods of one path, as an ASGI application.

    The order is fixed: method, key, scope, path and query, and only then the handler, which reads the body.
    """

    def __init__(self, routes: list[Route], parts: Parts, authentication: Authentication) -> None:
        self._parts = parts
        self._authentication = authentication
        self._template = routes[0].template
        self._routes = {route.method: route for route in routes}
        if "GET" in self._routes:
            self._routes["HEAD"] = self._routes["GET"]
        self._media_types = {route.method: route.media_types for route in routes}
        self._known_parameters = {
            route.method: frozenset(
                parameter.name.removesuffix("KEY")
                for parameter in route.parameters
                if parameter.place == "query"
            )
            for route in routes
        }
        self._allow = ", ".join(sorted([*self._routes, "OPTIONS"]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        state["route"] = self._template
        method = scope["method"]
        if method == "OPTIONS":
            answer = Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": self._allow})
            await answer(scope, receive, send)
            return
        route = self._routes.get(method)
        if route is None:
            raise HttpRefused(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{method[:20]} is not a method of this resource.",
                code="method_not_allowed",
                headers={"Allow": self._allow},
            )
        answer = await route.handler(await self._call(route, scope, receive))
        await answer(scope, receive, send)  # the server leaves the body out for HEAD

    async def _call(self, route: Route, scope: Scope, receive: Receive) -> Call:
        state = scope["state"]
        principal = _NOBODY
        if route.scope is not PUBLIC:
            principal = await self._authentication.principal(scope)
            state["tenant"] = principal.tenant
            count_request(self._parts, principal, scope)
            require_scope(principal, route.scope)
        parameters: dict[str, str] = scope["path_params"]
        media_type = _media_type_for(self._media_types[route.method], scope)
        _check_ids(parameters)
        state["job_id"] = parameters.get("job_id")
        known = self._known_parameters[route.method]
        query = parse_query(scope["query_string"], known)
        if query.unknown and not known:
            query.reader().done()  # handlers without parameters read none
        return Call(
            parts=self._parts,
            authentication=self._authentication,
            scope=scope,
            receive=receive,
            principal=principal,
            parameters=parameters,
            query=query,
            media_type=media_type,
            request_id=state["request_id"],
            traceparent=state["traceparent"],
        )


class SocketResource:
    """A path for sockets, as an ASGI application: key, scope, ids, then the handler, which accepts it."""

    def __init__(
        self, handler: SocketHandler, path: str, parts: Parts, authentication: Authentication
    ) -> None:
        self._handler = handler
        self._path = path
        self._parts = parts
        self._authentication = authentication

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        state["route"] = self._path
        principal = await self._authentication.principal(scope)
        state["tenant"] = principal.tenant
        count_request(self._parts, principal, scope)
        require_scope(principal, JOBS_WRITE)
        _check_ids(scope["path_params"])
        call = Call(
            parts=self._parts,
            authentication=self._authentication,
            scope=scope,
            receive=receive,
            principal=principal,
            parameters=scope["path_params"],
            query=parse_query(scope["query_string"], ()),
            media_type="",
            request_id=state["request_id"],
            traceparent=state["traceparent"],
        )
        call.query.reader().done()
        await self._handler(call, WebSocket(scope, receive, send))


def _media_type_for(offered: tuple[str, ...], scope: Scope) -> str:
    """What the client likes best of the forms in which a route answers (RFC 9110, 12.5.1); empty if there are none.

    Raises HttpRefused (406) if it takes none of them. Problems are sent whatever it takes.
    """
    if not offered:
        return ""
    accept = b", ".join(value for name, value in scope["headers"] if name == b"accept")
    media_type = best_media_type(accept.decode("latin-1"), offered)
    if media_type is None:
        raise HttpRefused(
            HTTPStatus.NOT_ACCEPTABLE,
            f"The answer comes as {', '.join(offered)}.",
            code="not_acceptable",
        )
    return media_type


_PREFIXES = {"sandbox": "sbx", "exec": "exe"}
"""Of ids, where they are not the name of what they are the id of."""
_NOBODY = Principal(tenant="", scopes=())


def _check_ids(parameters: Mapping[str, str]) -> None:
    """Raises NotFound for what cannot be an id at all, so that no handler sees it."""
    for name, value in parameters.items():
        kind, is_suffix, _ = name.partition("_id")
        if is_suffix and not is_id(value, _PREFIXES.get(kind, kind)):
            raise NotFound(f"There is no such {kind}.")
