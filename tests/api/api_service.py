"""The API under a real uvicorn on a loopback port, with a real store, in a thread of its own."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import uvicorn
from plain_scheduler import PlainImages, PlainScheduler

from sandboxd.api.app import create_api
from sandboxd.api.auth import SCOPES, new_key
from sandboxd.api.connections import Connection
from sandboxd.errors import Fault
from sandboxd.files.content import Contents
from sandboxd.jobs import JobSpec
from sandboxd.quotas.tenants import TenantQuotas
from sandboxd.settings import CEILINGS, DEFAULT_LIMITS, FilesSettings, ServerSettings
from sandboxd.store.sqlite import SqliteStore
from sandboxd.store.upgrade import upgrade
from sandboxd.tenants import Tenants

Result = TypeVar("Result")


class RecordedMetrics:
    """Remembers the requests that it is told of."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int]] = []

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.requests.append((method, route, status))

    def render(self, accept: str) -> tuple[bytes, str]:
        return b"# EOF\n", "text/plain; version=0.0.4"


class Service:
    """A running API."""

    def __init__(
        self, *, slots: int = 4, connection: type[Connection] = Connection, **settings: Any
    ) -> None:
        self.settings = ServerSettings(**{"auth": False} | settings)
        self.metrics = RecordedMetrics()
        self.images: Any = PlainImages()
        self.ready: dict[str, Any] = {"ready": True}
        self.store: SqliteStore
        self.scheduler: PlainScheduler
        self.port = 0
        self._slots = slots
        self._connection = connection
        self._loop: asyncio.AbstractEventLoop
        self._server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, operation: Callable[[], Awaitable[Result]]) -> Result:
        """Do something on the service's own loop."""

        async def operate() -> Result:
            return await operation()

        return asyncio.run_coroutine_threadsafe(operate(), self._loop).result(30)

    def client(self, key: str | None = None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30)

    def make_key(
        self, *, tenant: str = "default", scopes: tuple[str, ...] = SCOPES, **more: Any
    ) -> str:
        text, record = new_key(tenant=tenant, name="test", scopes=scopes, now=0.0, **more)
        self.run(lambda: self.store.create_key(record))
        return text

    @contextlib.contextmanager
    def running(self, directory: Path) -> Iterator["Service"]:
        started = threading.Event()
        thread = threading.Thread(target=self._run, args=(directory, started))
        thread.start()
        assert started.wait(30)
        assert self.port, "the service did not start"
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(setattr, self._server, "should_exit", True)
            thread.join(30)
            assert not thread.is_alive()

    def _run(self, directory: Path, started: threading.Event) -> None:
        try:
            asyncio.run(self._serve(directory, started))
        finally:
            started.set()  # also where it never came to that

    async def _readiness(self) -> dict[str, Any]:
        return self.ready

    async def _serve(self, directory: Path, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        database = directory / "sandboxd.db"
        upgrade(database)
        self.store = await SqliteStore.open(database, inline_log_bytes=64 * 2**10)
        self.scheduler = PlainScheduler(self.store, directory / "logs", slots=self._slots)
        api = create_api(
            scheduler=self.scheduler,
            progress=self.scheduler,
            store=self.store,
            images=self.images,
            artifacts=Contents(directory / "artifacts", min_free_bytes=0),
            uploads=Contents(directory / "uploads", min_free_bytes=0),
            files=FilesSettings(max_upload_bytes=8 * 2**20),
            system=lambda: {"version": "test"},
            metrics=self.metrics,
            settings=self.settings,
            limits=DEFAULT_LIMITS,
            ceilings=CEILINGS,
            check=refuse_gpu,
            readiness=self._readiness,
            tenants=Tenants(self.store, TenantQuotas()),
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            _announced(api, started),
            http=self._connection,
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _QuietServer(config)
        await self._server.serve(sockets=[listener])
        await self.scheduler.close()
        await self.store.close()


class _QuietServer(uvicorn.Server):
    """Leaves signals alone: it does not run in the main thread."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def refuse_gpu(spec: JobSpec) -> list[Fault]:
    """What this "host" cannot enforce."""
    return [
        Fault(f"/require/{name}", "this host cannot enforce it")
        for name in spec.require
        if name == "gpu"
    ]


def _announced(api: Any, started: threading.Event) -> Any:
    """The API, which tells when the server has started it."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            started.set()
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await api(scope, receive, send)

    return application


def exchange(port: int, request: bytes) -> bytes:
    """Send exactly these bytes and read until the server closes; the client's side stays open."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer
