"""The API as one ASGI application, put together from the parts that it is handed."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.routing import BaseRoute, Router, WebSocketRoute
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from sandboxd.addresses import parse_address
from sandboxd.api import docs, exec_socket, openapi
from sandboxd.api.answers import encode
from sandboxd.api.auth import BearerKeys, LocalOnly, NoAuthentication
from sandboxd.api.middleware import Envelope
from sandboxd.api.parts import (
    Authentication,
    Documents,
    Images,
    Metrics,
    Parts,
    Progress,
    Scheduler,
    Store,
)
from sandboxd.api.resources import Resource, Route, SocketResource
from sandboxd.api.routes import METRICS_ROUTE, ROUTES
from sandboxd.api.validate import Check
from sandboxd.errors import NotFound
from sandboxd.files.content import Contents
from sandboxd.images.puller import Puller
from sandboxd.quotas.limits import Limits
from sandboxd.sandboxes.registry import Sandboxes
from sandboxd.settings import FilesSettings, ImagesSettings, ServerSettings
from sandboxd.tenants import Tenants


def create_api(
    *,
    scheduler: Scheduler,
    progress: Progress,
    store: Store,
    images: Images,
    artifacts: Contents,
    uploads: Contents,
    files: FilesSettings,
    system: Callable[[], dict[str, Any]],
    metrics: Metrics | None,
    settings: ServerSettings,
    limits: Limits,
    ceilings: Limits,
    check: Check,
    readiness: Callable[[], Awaitable[dict[str, Any]]],
    tenants: Tenants,
    one_tenant: bool = False,
    image_settings: ImagesSettings = ImagesSettings(),  # noqa: B008 (a value)
    puller: Puller | None = None,
    sandboxes: Sandboxes | None = None,
) -> ASGIApp:
    """The whole API.

    `check` tells what this host cannot do for a job, as faults. `readiness` answers `{"ready": bool, …}`. With
    `metrics` there is also /metrics, for keys with the scope admin. With `one_tenant` a second one gets no keys.
    """
    table = ROUTES if metrics is None else (*ROUTES, METRICS_ROUTE)
    document = openapi.build_document(table)
    parts = Parts(
        scheduler=scheduler,
        progress=progress,
        sandboxes=sandboxes,
        store=store,
        images=images,
        image_settings=image_settings,
        puller=puller,
        artifacts=artifacts,
        uploads=uploads,
        files=files,
        system=system,
        metrics=metrics,
        settings=settings,
        limits=limits,
        ceilings=ceilings,
        check=check,
        readiness=readiness,
        documents=Documents(openapi=encode(document), page=docs.render(document).encode("utf-8")),
        tenants=tenants,
        one_tenant=one_tenant,
    )
    authentication: Authentication = BearerKeys(store) if settings.auth else NoAuthentication()
    guard = None if settings.auth else LocalOnly(parse_address(settings.listen))
    return Envelope(_Paths(table, parts, authentication), metrics=metrics, guard=guard)


class _Paths:
    """All resources: one whose path has no parameters is looked up, the others are tried one after the other."""

    def __init__(
        self, table: tuple[Route, ...], parts: Parts, authentication: Authentication
    ) -> None:
        by_path: dict[str, list[Route]] = {}
        for route in table:
            by_path.setdefault(route.path, []).append(route)
        resources = {
            path: Resource(routes, parts, authentication) for path, routes in by_path.items()
        }
        self._plain = {path: each for path, each in resources.items() if "{" not in path}
        others: list[BaseRoute] = [
            StarletteRoute(path, each)
            for path, each in resources.items()
            if path not in self._plain
        ]
        socket = SocketResource(exec_socket.connect, exec_socket.PATH, parts, authentication)
        others.append(WebSocketRoute(exec_socket.PATH, socket))
        # A path with a slash at its end is another path: it is not there, rather than redirected.
        self._others = Router(routes=others, redirect_slashes=False, default=_not_found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        resource = self._plain.get(scope["path"]) if scope["type"] == "http" else None
        if resource is None:
            await self._others(scope, receive, send)
        else:
            scope["path_params"] = {}
            await resource(scope, receive, send)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] in ("http", "websocket"):
        raise NotFound("There is nothing at this path.")
