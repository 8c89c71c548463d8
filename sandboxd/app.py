"""Builds every part once and connects them. (What only the scheduler works with, it builds itself.)

settings ─ host ─ cgroups ─ launcher ─ pool ─ images ─ runner ─┐
                                          store ─ metrics ─────┴─ scheduling ─ API
"""

import asyncio
import contextlib
import gc
import math
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import TimeoutError as SnapshotTimeoutError
from pathlib import Path
from typing import Any

import structlog
import uvloop
from starlette.types import ASGIApp

from sandboxd import __version__
from sandboxd.addresses import parse_address
from sandboxd.admission import Room
from sandboxd.api.app import create_api
from sandboxd.api.validate import job_spec_of
from sandboxd.attack_gate import AttackGate
from sandboxd.errors import HostNotReady, SandboxdError, Unavailable
from sandboxd.execution import Execution, serves_one_tenant
from sandboxd.ids import new_id
from sandboxd.images import host as host_image
from sandboxd.images.puller import Puller
from sandboxd.isolation.features import Feature, Status, probe_features
from sandboxd.isolation.spec import NATIVE, NetworkMode
from sandboxd.jobs import JobSpec
from sandboxd.log_format import configure_logging
from sandboxd.metrics import Metrics, Snapshot
from sandboxd.quotas.host import Host
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.pressure import Pressure
from sandboxd.running.shapes import sandbox_spec
from sandboxd.sandboxes.registry import Sandboxes
from sandboxd.scheduling.progress import Progress
from sandboxd.scheduling.rooms import Rooms
from sandboxd.scheduling.scheduler import Scheduler
from sandboxd.server import Server, connection_limit, open_listener, raise_open_files
from sandboxd.settings import Settings
from sandboxd.settings_loader import Loaded
from sandboxd.store.sqlite import SqliteStore
from sandboxd.store.upgrade import upgrade
from sandboxd.tenants import Tenants
from sandboxd.webhooks import Webhooks

logger = structlog.get_logger(__name__)

_SNAPSHOT_SECONDS = 5.0
_LOOP_LAG_SECONDS = 1.0
_SWITCH_SECONDS = 0.0005
_STORE_CHECK_SECONDS = 1.0
_STORE_SECONDS = 2.0
"""A store that takes longer to write nothing cannot take jobs."""


class Service:
    """The whole service, running."""

    def __init__(
        self,
        settings: Settings,
        execution: Execution,
        store: SqliteStore,
        features: list[Feature],
    ) -> None:
        self.settings = settings
        self.execution = execution
        self.store = store
        self.features = features
        self._loop = asyncio.get_running_loop()
        self._store_writable = True
        self._store_checked_at = -math.inf
        there = {feature.name: feature.status is not Status.MISSING for feature in features}
        for controller in execution.host.controllers.values():
            there[f"cgroup {controller.name}"] = controller.directory is not None
        self.metrics = Metrics(there, self._snapshot)
        execution.puller.on_end = self.metrics.pulled
        self.tenants = Tenants(store, settings.quotas, told=bool(settings.webhooks.url))
        self.rooms = Rooms(room_of(settings, execution.host), self.tenants)
        self.progress = Progress(store)
        self.scheduler = Scheduler(
            store,
            execution.runner,
            self.metrics,
            owner=new_id("node"),
            rooms=self.rooms,
            progress=self.progress,
            pressure=Pressure(
                Path(settings.store.data_dir),
                min_free_memory_bytes=settings.scheduler.min_free_memory_bytes,
                min_free_disk_bytes=settings.scheduler.min_free_disk_bytes,
            ),
            tenants=self.tenants,
            max_queued=settings.scheduler.max_queued,
            uploads=execution.uploads,
            artifacts=execution.artifacts,
            log_directory=Path(settings.store.data_dir) / "logs",
            inline_log_bytes=settings.store.inline_log_bytes,
        )
        self.webhooks: Webhooks | None = None
        if settings.webhooks.url:
            self.webhooks = Webhooks(store, self.metrics, settings.webhooks)
            self.tenants.on_told = self.webhooks.look
        self.attack_gate = AttackGate(
            settings.isolation.attack_at_start,
            self.scheduler,
            self.progress,
            self.metrics,
            lambda request: job_spec_of(
                request,
                defaults=settings.limits,
                ceilings=execution.ceilings,
                check=execution.runner.check,
            ),
        )

        self.sandboxes = Sandboxes(
            store,
            self.rooms,
            execution.pool,
            execution.puller,
            self.metrics,
            settings.sandboxes,
            log_directory=Path(settings.store.data_dir) / "run" / "execs",
            inline_log_bytes=settings.store.inline_log_bytes,
        )
        execution.runner.keeper = self.sandboxes

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, settings: Settings) -> AsyncIterator["Service"]:
        """Build all parts, run until the block ends, then end in good order.

        Raises HostNotReady (what the host lacks, and what mends it), SandboxFailed.
        """
        data = Path(settings.store.data_dir)
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = settings.store.database
        await asyncio.to_thread(upgrade, database)
        async with contextlib.AsyncExitStack() as parts:
            inline_log_bytes = settings.store.inline_log_bytes
            store = await SqliteStore.open(database, inline_log_bytes=inline_log_bytes)
            parts.push_async_callback(store.close)
            if settings.server.auth and serves_one_tenant(settings.isolation):
                await _refuse_many_tenants(store)
            # Only now: the store's lock says that no other service uses this directory.
            execution = Execution(
                settings,
                state=data,
                images_directory=data / "images",
                parked=settings.isolation.parked_sandboxes,
                blanks=settings.isolation.blank_sandboxes,
            )
            parts.push_async_callback(execution.close)
            features = await asyncio.to_thread(
                probe_features,
                id_map=settings.isolation.id_map,
                show_cgroup=execution.launcher.show_cgroup,
                egress=settings.network.egress == "on",
            )
            service = cls(settings, execution, store, features)
            await service._begin()
            parts.push_async_callback(
                service.scheduler.close, settings.server.shutdown_grace_seconds
            )
            parts.push_async_callback(service.sandboxes.close)
            measuring = asyncio.create_task(service._measure_loop_lag())
            parts.callback(measuring.cancel)
            if service.webhooks is not None:
                delivering = asyncio.create_task(service.webhooks.run())
                parts.callback(delivering.cancel)
            attacking = asyncio.create_task(service.attack_gate.run())
            parts.callback(attacking.cancel)
            yield service

    async def _begin(self) -> None:
        images = self.execution.images
        await self.execution.launcher.start()
        for path, reason in (await images.sweep()).items():
            logger.warning("leftover not removed", path=str(path), error=reason)
        await self.tenants.start()
        await self.sandboxes.start()
        await self.scheduler.start()
        image = await images.resolve(host_image.NAME)
        self.execution.pool.prepare(sandbox_spec(image, default_spec(self.settings.limits)))

    async def _measure_loop_lag(self) -> None:
        """For ever: how late the loop comes back to something is how late it comes to a client."""
        while True:
            due = time.monotonic() + _LOOP_LAG_SECONDS
            await asyncio.sleep(_LOOP_LAG_SECONDS)
            self.metrics.loop_lag(max(0.0, time.monotonic() - due))

    def api(self) -> ASGIApp:
        """The HTTP API of this service."""
        settings = self.settings
        return create_api(
            scheduler=self.scheduler,
            progress=self.progress,
            sandboxes=self.sandboxes,
            store=self.store,
            images=self.execution.images,
            image_settings=settings.images,
            puller=self.execution.puller,
            artifacts=self.execution.artifacts,
            uploads=self.execution.uploads,
            files=settings.files,
            system=self.system,
            metrics=self.metrics,
            settings=settings.server,
            limits=settings.limits,
            ceilings=self.execution.ceilings,
            check=self.execution.runner.check,
            readiness=self.readiness,
            one_tenant=serves_one_tenant(settings.isolation),
            tenants=self.tenants,
        )

    def system(self) -> dict[str, Any]:
        """What `GET /v1/system` answers."""
        host = self.execution.host
        walls = self.execution.launcher.walls(NetworkMode.NONE)
        pool, capacity = self.execution.pool, self.scheduler.capacity()
        return {
            "version": __version__,
            "host": {
                "kernel": host.kernel_release,
                "cpus": host.cpus,
                "memory_bytes": host.memory_bytes,
            },
            "isolation": {
                "id_map": walls.id_map,
                "namespaces": walls.namespaces,
                "seccomp": walls.seccomp_digest,
                "network_modes": self.execution.networks.modes,
                "runtimes": [NATIVE, *sorted(self.settings.runtimes)],
                "features": [
                    {"name": f.name, "status": f.status, "detail": f.detail} for f in self.features
                ],
            },
            "enforcement": self.execution.cgroups.enforcement,
            "limits": {"default": self.settings.limits, "most": self.execution.ceilings},
            "capacity": {
                "slots": capacity.room.slots,
                "busy": capacity.busy,
                "pulling": capacity.pulling,
                "held": capacity.held,
                "queued": capacity.queued,
                "memory_bytes": capacity.room.memory_bytes,
                "memory_bytes_in_use": capacity.in_use.memory_bytes,
                "cpus": capacity.room.millicpus / 1000,
                "cpus_in_use": capacity.in_use.millicpus / 1000,
                **self.sandboxes.capacity(),
                "parked": pool.parked,
                "blank": pool.blank,
            },
        }

    async def readiness(self) -> dict[str, Any]:
        """What `GET /readyz` answers: whether a job that comes now could run."""
        checks = {
            "launcher": self.execution.launcher.alive,
            "store": await self._store_is_writable(),
            "accepting": not self.rooms.draining,
        }
        if self.settings.isolation.attack_at_start == "gate":
            checks["attack"] = self.attack_gate.closed is None
        ready = all(checks.values())
        if (code := self.attack_gate.closed) is not None:
            return {"ready": ready, "code": code, "checks": checks}
        return {"ready": ready, "checks": checks}

    async def _store_is_writable(self) -> bool:
        """What was found is good for a second: anybody may ask, and to find it out costs a write."""
        if time.monotonic() >= self._store_checked_at + _STORE_CHECK_SECONDS:
            self._store_checked_at = time.monotonic()
            try:
                async with asyncio.timeout(_STORE_SECONDS):
                    await self.store.check_writable()
                self._store_writable = True
            except (Unavailable, TimeoutError):
                self._store_writable = False
        return self._store_writable

    def _snapshot(self) -> Snapshot | None:
        """The figures for a scrape, asked for by a thread that is not the event loop's."""
        future = asyncio.run_coroutine_threadsafe(self._take_snapshot(), self._loop)
        try:
            return future.result(_SNAPSHOT_SECONDS)
        except (SandboxdError, SnapshotTimeoutError):
            return None

    async def _take_snapshot(self) -> Snapshot:
        counts = await self.store.counts()
        waiting_since = await self.store.oldest_waiting()
        conservation = await self.store.conservation()
        capacity, pool = self.scheduler.capacity(), self.execution.pool
        return Snapshot(
            jobs=counts,
            oldest_waiting_seconds=time.time() - waiting_since if waiting_since else 0.0,
            drift=conservation.drift,
            room=capacity.room,
            in_use=capacity.in_use,
            slots_busy=capacity.busy,
            parked=pool.parked,
            blank=pool.blank,
            pool_hits=pool.hits,
            pool_misses=pool.misses,
            pool_blanks=pool.blanks_used,
            sandboxes=self.sandboxes.counts(),
            image_hits=self.execution.puller.hits,
            webhook_backlog=await self.store.undelivered_events(),
        )


async def _refuse_many_tenants(store: SqliteStore) -> None:
    """Raises HostNotReady if the keys that are not revoked belong to more than one tenant."""
    tenants = sorted({key.tenant for key in await store.list_keys() if key.revoked_at is None})
    if len(tenants) > 1:
        raise HostNotReady(
            f"there are keys of {len(tenants)} tenants ({', '.join(tenants[:5])}), and without subordinate ids one service is "
            "for one tenant, since all jobs have the same id: run `sandboxd setup` as root, revoke the keys of all tenants "
            "but one (`sandboxd keys revoke`), or accept it with isolation.single_id_many_tenants"
        )


def room_of(settings: Settings, host: Host) -> Room:
    """What all that runs at once may have, by the settings."""
    chosen = settings.scheduler
    slots = chosen.slots or 2 * host.cpus
    cpus = chosen.cpu_ratio * host.cpus or max(host.cpus, slots * settings.limits.cpus)
    return Room(slots, int(chosen.memory_ratio * host.memory_bytes), math.ceil(1000 * cpus))


def default_spec(limits: Limits) -> JobSpec:
    """The job that asks for nothing special: its shape is parked from the start."""
    return JobSpec(image=host_image.NAME, command=("true",), limits=limits)


def serve(loaded: Loaded) -> None:
    """Run the service until SIGINT or SIGTERM. Raises HostNotReady, SandboxFailed."""
    # The store's thread waits for the interpreter lock after each commit: at most so long, not for the usual 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    configure_logging(loaded.settings.log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(loaded.settings))


async def _serve(settings: Settings) -> None:
    open_files = raise_open_files()
    listener = open_listener(settings.server.listen)
    async with Service.start(settings) as service:
        close_metrics = _serve_metrics(service.metrics, settings.server.metrics_listen)
        most_connections = connection_limit(
            open_files,
            slots=service.rooms.whole.slots,
            parked=settings.isolation.parked_sandboxes * settings.isolation.parked_shapes
            + settings.isolation.blank_sandboxes,
            egress=settings.network.egress == "on",
        )
        server = Server(service.api(), settings.server, most_connections=most_connections)
        loop = asyncio.get_running_loop()
        ending = _Ending(
            service.scheduler,
            service.sandboxes,
            service.execution.puller,
            server,
            settings.server.shutdown_grace_seconds,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ending.begin)
        _announce(service)
        gc.collect()
        gc.freeze()  # What the service consists of is not looked at again with each full collection.
        try:
            await server.serve(sockets=[listener])
        finally:
            await asyncio.to_thread(close_metrics)
    logger.info("stopped")


class _Ending:
    """How the service ends: first it takes no more jobs, and answers everything else while running ones end.

    The port closes only then, so that a client is refused with a reason and finds out how its job ended.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        sandboxes: Sandboxes,
        puller: Puller,
        server: Server,
        grace_seconds: float,
    ) -> None:
        self._scheduler = scheduler
        self._sandboxes = sandboxes
        self._puller = puller
        self._server = server
        self._grace_seconds = grace_seconds
        self._task: asyncio.Task[None] | None = None
        self._at_once = asyncio.Event()

    def begin(self) -> None:
        """A signal asks for the end; the second time without grace, and without waiting for requests."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._end())
        else:
            self._at_once.set()
            self._server.stop(at_once=True)

    async def _end(self) -> None:
        logger.info("draining", grace_seconds=self._grace_seconds)
        drained = asyncio.ensure_future(self._scheduler.drain(self._grace_seconds))
        at_once = asyncio.ensure_future(self._at_once.wait())
        await asyncio.wait((drained, at_once), return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        at_once.cancel()
        try:
            await self._sandboxes.close()
            await self._scheduler.close(0)
            await self._puller.close()
        finally:
            self._server.stop(at_once=self._at_once.is_set())


def _serve_metrics(metrics: Metrics, listen: str) -> Callable[[], None]:
    if not listen:
        return lambda: None
    address = parse_address(listen)
    try:
        return metrics.serve(address.host, address.port)
    except OSError as error:
        raise HostNotReady(f"cannot serve metrics on {listen}: {error.strerror}") from error


def _announce(service: Service) -> None:
    settings = service.settings
    for feature in service.features:
        if feature.status is not Status.OK:
            logger.warning(
                "host", feature=feature.name, detail=feature.detail, remedy=feature.remedy
            )
    if not settings.server.auth:
        logger.warning("no authentication: whoever reaches this address may run commands")
    logger.info(
        "serving",
        version=__version__,
        listen=settings.server.listen,
        metrics=settings.server.metrics_listen or None,
        data_dir=settings.store.data_dir,
        id_map=service.execution.launcher.walls(NetworkMode.NONE).id_map,
        slots=service.rooms.whole.slots,
    )
