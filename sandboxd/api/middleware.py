"""What surrounds every request: its id, its trace, its path's form, its problem if it fails, its one log line."""

import re
import time
from http import HTTPStatus
from typing import Any

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandboxd.api.auth import LocalOnly
from sandboxd.api.connections import AUTHORITY, OVER_LIMIT
from sandboxd.api.headers import Headers, headers_by_name, parse_traceparent
from sandboxd.api.parts import Metrics
from sandboxd.api.problems import TooManyConnections, is_internal, problem_of
from sandboxd.api.tenants import RATES, rate_headers
from sandboxd.errors import BrokenOff, Malformed, QuotaExceeded
from sandboxd.ids import new_id

log = structlog.get_logger("sandboxd.api")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,128}")
_TRICKY_ESCAPE = re.compile(rb"%(?:2[eEfF5]|5[cC]|[01][0-9a-fA-F]|7[fF])")
"""Escaped . / % \\ and control characters: none of our paths needs them, and they are how paths are confused."""
_IMAGES = b"/v1/images/"
"""Below it are names with slashes in them, which clients may escape."""
_ESCAPED_SLASH = re.compile(rb"%2[fF]")
_TRICKY_PATH = re.compile(rb"//|/\.{1,2}(?:/|\Z)|\\")

_DEFAULT_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
"""Set where the answer has not set its own."""

UNROUTED = "unmatched"
"""The route in the metrics of requests that met none: their raw paths must not become labels."""


class Envelope:
    """Pure ASGI middleware around the router.

    It leaves `request_id` and `traceparent` in the scope's state for the handlers, and reads `route` from there.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics | None, guard: LocalOnly | None) -> None:
        self._app = app
        self._metrics = metrics
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: _Exchange
        if scope["type"] == "http":
            exchange = _Exchange(scope, send)
        elif scope["type"] == "websocket":
            scope["method"] = (
                "GET"  # Refused like any other request, with a problem in place of the upgrade.
            )
            exchange = _SocketExchange(scope, send)
        else:
            await self._app(scope, receive, send)
            return
        try:
            if exchange.state.get(OVER_LIMIT):
                raise TooManyConnections
            _check_origin(exchange.headers, exchange.state.get(AUTHORITY))
            _check_path(exchange.raw_path)
            if self._guard is not None:
                self._guard.check(scope)
            await self._app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or 499  # nobody is left to be answered
        except Exception as error:  # noqa: BLE001 the last line of defence: whatever it is becomes a problem
            if isinstance(error, QuotaExceeded) and self._metrics is not None:
                self._metrics.over_quota(error.policy)
            await exchange.fail(error, receive)
        finally:
            self._record(exchange)

    def _record(self, exchange: "_Exchange") -> None:
        seconds = time.perf_counter() - exchange.started
        route = exchange.state.get("route", UNROUTED)
        if self._metrics is not None:
            self._metrics.request(exchange.scope["method"], route, exchange.status, seconds)
        log.info(
            "request",
            request_id=exchange.request_id,
            method=exchange.scope["method"],
            path=exchange.raw_path.decode("ascii", "backslashreplace"),
            route=route,
            status=exchange.status,
            seconds=round(seconds, 6),
            tenant=exchange.state.get("tenant"),
            job_id=exchange.state.get("job_id"),
            sandbox_id=exchange.state.get("sandbox_id"),
        )


class _Exchange:
    """One request and its answer, as far as it was sent."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.started = time.perf_counter()
        self.status = 0
        self.headers = headers_by_name(scope["headers"])
        self.raw_path = _raw_path(scope)
        self.request_id = _request_id(self.headers)
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.state["request_id"] = self.request_id
        self.state["traceparent"] = _traceparent(self.headers)
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            headers = message["headers"] = list(message.get("headers", []))
            present = {name for name, _ in headers}
            headers += [header for header in _DEFAULT_HEADERS if header[0] not in present]
            headers.append((b"x-request-id", self.request_id.encode("ascii")))
            if rates := self.state.get(RATES):
                headers += rate_headers(rates)
        await self._send(message)

    async def fail(self, error: Exception, receive: Receive) -> None:
        """Answer with the problem that `error` is; if the answer had begun, break it off."""
        if is_internal(error):
            log.error(
                "request failed",
                request_id=self.request_id,
                job_id=self.state.get("job_id"),
                exc_info=error,
            )
        if self.status:
            raise BrokenOff from None  # the server closes the connection: the client sees it is not whole
        problem = problem_of(error, path=self.scope["path"], request_id=self.request_id)
        await problem(self.scope, receive, self.send)


class _SocketExchange(_Exchange):
    """One socket, as far as it came."""

    async def send(self, message: Message) -> None:
        if message["type"] == "websocket.accept":
            self.status = HTTPStatus.SWITCHING_PROTOCOLS
            request_id = (b"x-request-id", self.request_id.encode("ascii"))
            message = {**message, "headers": [*message.get("headers", []), request_id]}
        await self._send(message)

    async def fail(self, error: Exception, receive: Receive) -> None:
        if is_internal(error):
            log.error("socket failed", request_id=self.request_id, exc_info=error)
        if self.status:
            await self._send({"type": "websocket.close", "code": 1011, "reason": "internal"})
            return
        problem = problem_of(error, path=self.scope["path"], request_id=self.request_id)
        self.status = problem.status_code
        headers = [*problem.raw_headers, (b"x-request-id", self.request_id.encode("ascii"))]
        start = {"type": "websocket.http.response.start", "status": self.status}
        await self._send({**start, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": problem.body})


def _check_origin(headers: Headers, authority: bytes | None) -> None:
    """Raises Malformed where a proxy in front of us and we could take the request for different ones."""
    hosts = headers.get(b"host", [])
    if len(hosts) > 1 or len(headers.get(b"origin", [])) > 1:
        raise Malformed("Host and Origin may be there once only.", code="header_repeated")
    if authority is not None and [authority.lower()] != [host.strip().lower() for host in hosts]:
        raise Malformed("The target of the request and Host differ.", code="target_malformed")


def _check_path(raw_path: bytes) -> None:
    """Raises Malformed for a path that two readers could read differently."""
    if raw_path.startswith(_IMAGES):
        raw_path = _ESCAPED_SLASH.sub(b"/", raw_path)
    if _TRICKY_ESCAPE.search(raw_path) or _TRICKY_PATH.search(raw_path):
        raise Malformed(
            'The path must not have empty, "." or ".." parts, backslashes, or escapes of such.',
            code="path_malformed",
        )


def _raw_path(scope: Scope) -> bytes:
    """The path as it was sent: escaped, so that it can neither hide a part nor break a log line."""
    raw_path: bytes | None = scope.get("raw_path")
    return raw_path if raw_path is not None else scope["path"].encode("utf-8")


def _request_id(headers: Headers) -> str:
    value, *_ = headers.get(b"x-request-id", [b""])
    return value.decode("ascii") if _REQUEST_ID.fullmatch(value) else new_id("req")


def _traceparent(headers: Headers) -> str | None:
    values = headers.get(b"traceparent", [])
    return parse_traceparent(values[0].decode("latin-1")) if len(values) == 1 else None
