"""Builds every part once and connects them: the only wiring.

settings ─ host ─ cgroups ─ launcher ─ pool ─ images ─ runner ─┐
                                          store ─ metrics ─────┴─ scheduler ─ API
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import TimeoutError as SnapshotTimeoutError
from pathlib import Path
from typing import Any

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from sandboxd import __version__
from sandboxd.api.app import create_api
from sandboxd.api.validate import job_spec_of
from sandboxd.errors import HostNotReady, SandboxdError
from sandboxd.ids import new_id
from sandboxd.images import host as host_image
from sandboxd.images.catalogue import Images
from sandboxd.isolation import idmap
from sandboxd.isolation.features import Feature, Status, probe_features
from sandboxd.isolation.pool import Pool
from sandboxd.isolation.sandbox import Launcher
from sandboxd.isolation.spec import NetworkMode
from sandboxd.jobs import Job, JobSpec, Reason, State, Stream
from sandboxd.metrics import Metrics, Snapshot
from sandboxd.quotas.cgroups import Cgroup, open_cgroups
from sandboxd.quotas.host import CgroupVersion, Host, probe_host
from sandboxd.quotas.limits import Limits
from sandboxd.runner import Runner, Stop, sandbox_spec
from sandboxd.scheduler import Scheduler
from sandboxd.settings import IsolationSettings, LogSettings, Settings
from sandboxd.settings_loader import Loaded
from sandboxd.store import migrate
from sandboxd.store.sqlite import SqliteStore

logger = structlog.get_logger(__name__)

_SNAPSHOT_SECONDS = 5.0
_SWITCH_SECONDS = 0.0005


class Isolation:
    """The parts that run commands: launcher, cgroups, pool, images, runner."""

    def __init__(
        self, settings: Settings, *, state: Path, images_directory: Path, parked: int
    ) -> None:
        """`state` holds what lasts no longer than this process. Raises HostNotReady, SandboxFailed."""
        isolation = settings.isolation
        self._run = run = state / "run"
        shutil.rmtree(run, ignore_errors=True)
        (run / "stage").mkdir(parents=True, mode=0o700)
        self.host = probe_host()
        self.ceilings = ceilings_of(settings.ceilings, self.host)
        instance = hashlib.sha256(os.fsencode(state.absolute())).hexdigest()[:16]
        self.cgroups = open_cgroups(self.host, instance=instance)
        ids = idmap.find_range()
        mode = idmap.choose(isolation.id_map, ids)
        memory = self.host.controllers["memory"]
        self.launcher = Launcher(
            stage=run / "stage",
            ids=ids if mode is idmap.IdMapMode.RANGE else None,
            show_cgroup=memory.version is CgroupVersion.V2,
        )
        self.pool = self._make_pool(isolation, parked)
        self.images = Images(images_directory, run / "host", self.launcher, self._make_cgroup)
        self.runner = Runner(
            self.pool,
            self.images,
            walls=self.launcher.walls,
            enforcement=self.cgroups.enforcement,
            best_effort=isolation.best_effort,
            cpu_count=self.host.cpus,
        )

    def _make_pool(self, isolation: IsolationSettings, parked: int) -> Pool[Cgroup]:
        return Pool(
            self.launcher,
            self._make_cgroup,
            per_shape=parked,
            shapes=isolation.parked_shapes,
            idle_seconds=isolation.parked_idle_seconds,
        )

    def _make_cgroup(self) -> Cgroup:
        return self.cgroups.create(new_id("sbx"))

    async def close(self) -> None:
        """End every sandbox, then remove what they were made of."""
        await self.pool.close()
        await self.launcher.close()
        self.images.close()
        self.cgroups.close()
        shutil.rmtree(self._run, ignore_errors=True)


class Service:
    """The whole service, running."""

    def __init__(self, settings: Settings, isolation: Isolation, store: SqliteStore) -> None:
        self.settings = settings
        self.isolation = isolation
        self.store = store
        self.images = isolation.images
        self.features: list[Feature] = []
        self.slots = settings.scheduler.slots or 2 * isolation.host.cpus
        self._loop = asyncio.get_running_loop()

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, settings: Settings) -> AsyncIterator["Service"]:
        """Build all parts, run until the block ends, then end in good order.

        Raises HostNotReady (what the host lacks, and what mends it), SandboxFailed.
        """
        data = Path(settings.store.data_dir)
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        await asyncio.to_thread(migrate.upgrade, migrate.sqlite_url(settings.store.database))
        store = await SqliteStore.open(
            settings.store.database, inline_log_bytes=settings.store.inline_log_bytes
        )
        try:
            # Only now: the store's lock says that no other service uses this directory.
            isolation = Isolation(
                settings,
                state=data,
                images_directory=data / "images",
                parked=settings.isolation.parked_sandboxes,
            )
            service = cls(settings, isolation, store)
            try:
                await service._begin(data)
                yield service
            finally:
                await service._end()
        finally:
            await store.close()

    async def _begin(self, data: Path) -> None:
        self.features = await asyncio.to_thread(probe_features)
        self.metrics = Metrics(
            {feature.name: feature.status is not Status.MISSING for feature in self.features},
            self._snapshot,
        )
        await self.isolation.launcher.start()
        self.scheduler = Scheduler(
            self.store,
            self.isolation.runner,
            self.metrics,
            owner=new_id("node"),
            slots=self.slots,
            max_queued=self.settings.scheduler.max_queued,
            log_directory=data / "logs",
            inline_log_bytes=self.settings.store.inline_log_bytes,
        )
        await self.images.sweep()
        await self.scheduler.start()
        image = await self.images.resolve(host_image.NAME)
        self.isolation.pool.prepare(sandbox_spec(image, default_spec(self.settings.limits)))

    async def _end(self) -> None:
        if hasattr(self, "scheduler"):
            await self.scheduler.close(self.settings.server.shutdown_grace_seconds)
        await self.isolation.close()

    def api(self) -> ASGIApp:
        """The HTTP API of this service."""
        settings = self.settings
        return create_api(
            scheduler=self.scheduler,
            store=self.store,
            images=self.images,
            system=self.system,
            metrics=self.metrics,
            settings=settings.server,
            limits=settings.limits,
            ceilings=self.isolation.ceilings,
            check=self.isolation.runner.check,
            readiness=self.readiness,
        )

    def system(self) -> dict[str, Any]:
        """What `GET /v1/system` answers."""
        host = self.isolation.host
        walls = self.isolation.launcher.walls(NetworkMode.NONE)
        pool = self.isolation.pool
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
                "network_modes": [str(mode) for mode in NetworkMode],
                "features": [
                    {"name": f.name, "status": f.status, "detail": f.detail} for f in self.features
                ],
            },
            "enforcement": self.isolation.cgroups.enforcement,
            "limits": {"default": self.settings.limits, "most": self.isolation.ceilings},
            "capacity": {**self.scheduler.capacity(), "parked": pool.parked},
        }

    def readiness(self) -> dict[str, Any]:
        """What `GET /readyz` answers: whether a job that comes now could run."""
        launcher = self.isolation.launcher.alive
        return {"ready": launcher, "checks": {"launcher": launcher}}

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
        capacity, pool = self.scheduler.capacity(), self.isolation.pool
        return Snapshot(
            jobs=counts,
            oldest_waiting_seconds=time.time() - waiting_since if waiting_since else 0.0,
            drift=conservation.drift,
            slots=capacity["slots"],
            slots_busy=capacity["busy"],
            parked=pool.parked,
            pool_hits=pool.hits,
            pool_misses=pool.misses,
        )


class Embedded:
    """The parts of a service without its API and its record, for one command of `sandboxd run` or `sandboxd images`."""

    def __init__(self, settings: Settings, isolation: Isolation) -> None:
        self._settings = settings
        self._isolation = isolation
        self.images = isolation.images

    async def run_once(
        self, request: dict[str, Any], *, stdin_fd: int, stdout_fd: int, stderr_fd: int
    ) -> Job:
        """Run the job of a request (as for `POST /v1/jobs`) with these descriptors as its standard streams.

        Cancelling the calling task cancels the job; the job comes back all the same. Raises Invalid, NotFound.
        """
        runner = self._isolation.runner
        spec = job_spec_of(
            request,
            defaults=self._settings.limits,
            ceilings=self._isolation.ceilings,
            check=runner.check,
        )
        await self.images.resolve(spec.image)
        now = time.time()
        job = Job(
            id=new_id("job"),
            tenant="default",
            spec=spec,
            state=State.STARTING,
            reason=Reason.CLAIMED,
            attempt=1,
            created_at=now,
            queued_at=now,
        )
        targets = {Stream.STDOUT: stdout_fd, Stream.STDERR: stderr_fd}
        passed = _Passed(targets, spec.limits.output_bytes)
        stop = Stop()
        attempt = asyncio.ensure_future(runner.run(job, stop, passed.write, stdin_fd=stdin_fd))
        try:
            await asyncio.shield(attempt)
        except asyncio.CancelledError:
            stop(Reason.CANCELLED_BY_CLIENT, grace_seconds=2.0, message="interrupted")
        result = await attempt
        await stop.gone()
        return Job(
            id=job.id,
            tenant=job.tenant,
            spec=spec,
            state=result.state,
            reason=result.reason,
            attempt=1,
            created_at=now,
            queued_at=now,
            started_at=result.started_at,
            finished_at=time.time(),
            result=result,
        )


class _Passed:
    """Output that goes straight on to descriptors of this process, up to the job's limit."""

    def __init__(self, targets: dict[Stream, int], limit_bytes: int) -> None:
        self._targets = targets
        self._left = limit_bytes

    def write(self, stream: Stream, piece: bytes) -> bool:
        """Write it on; False when the limit is reached or nobody reads any more."""
        kept = memoryview(piece)[: self._left]
        self._left -= len(kept)
        rest = kept
        try:
            while rest:
                rest = rest[os.write(self._targets[stream], rest) :]
        except BrokenPipeError:
            return False
        return len(kept) == len(piece)


@contextlib.asynccontextmanager
async def embedded(settings: Settings) -> AsyncIterator[Embedded]:
    """The parts that run a command, for the length of the block; several processes may have theirs at once.

    Images are those of the data directory. Raises HostNotReady, SandboxFailed.
    """
    images = Path(settings.store.data_dir) / "images"
    images.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="sandboxd-") as state:
        isolation = Isolation(settings, state=Path(state), images_directory=images, parked=0)
        try:
            yield Embedded(settings, isolation)
        finally:
            await isolation.close()


def default_spec(limits: Limits) -> JobSpec:
    """The job that asks for nothing special: its shape is parked from the start."""
    return JobSpec(image=host_image.NAME, command=("true",), limits=limits)


def ceilings_of(ceilings: Limits, host: Host) -> Limits:
    """The operator's ceilings, but never more than the host has."""
    return Limits(
        cpus=min(ceilings.cpus, host.cpus),
        memory_bytes=min(ceilings.memory_bytes, host.memory_bytes),
        pids=ceilings.pids,
        disk_bytes=min(ceilings.disk_bytes, host.memory_bytes),
        wall_seconds=ceilings.wall_seconds,
        cpu_seconds=ceilings.cpu_seconds,
        output_bytes=ceilings.output_bytes,
        open_files=min(ceilings.open_files, host.rlimits["nofile"][1]),
    )


def serve(loaded: Loaded) -> None:
    """Run the service until SIGINT or SIGTERM."""
    # The store's thread waits for the interpreter lock after each commit: at most so long, not for the usual 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    configure_logging(loaded.settings.log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(loaded.settings))


async def _serve(settings: Settings) -> None:
    async with Service.start(settings) as service:
        close_metrics = _serve_metrics(service.metrics, settings.server.metrics_listen)
        server = _Server(_uvicorn_config(service.api(), settings))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.stop)
        _announce(service)
        try:
            await server.serve()
        finally:
            await asyncio.to_thread(close_metrics)
        if not server.started:
            raise HostNotReady(f"cannot listen on {settings.server.listen}")
    logger.info("stopped")


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process before the jobs are settled."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Take no more requests and end; the second time without waiting for those under way."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _uvicorn_config(api: ASGIApp, settings: Settings) -> uvicorn.Config:
    listen = settings.server.listen
    where: dict[str, Any] = {}
    if listen.startswith("unix:"):
        where["uds"] = listen.removeprefix("unix:")
    else:
        host, _, port = listen.rpartition(":")
        where["host"], where["port"] = host.strip("[]"), int(port)
    return uvicorn.Config(
        api,
        **where,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.server.shutdown_grace_seconds) or 1,
    )


def _serve_metrics(metrics: Metrics, listen: str) -> Any:
    if not listen:
        return lambda: None
    host, _, port = listen.rpartition(":")
    try:
        return metrics.serve(host.strip("[]"), int(port))
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
        id_map=service.isolation.launcher.walls(NetworkMode.NONE).id_map,
        slots=service.slots,
    )


def configure_logging(settings: LogSettings) -> None:
    """One line per event on standard error: for people on a terminal, JSON elsewhere."""
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    if as_json:
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if as_json else structlog.dev.set_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
