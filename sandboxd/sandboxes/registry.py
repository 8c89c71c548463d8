"""The sandboxes of this service that live until they are told to end.

Each holds a slot for as long as it lives, and with it the memory and processors that a slot stands for. None
outlives the service: the record of those that a dead one had says so.
"""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import msgspec
import structlog

from sandboxd.admission import Occupant
from sandboxd.background import Background
from sandboxd.errors import Conflict, SandboxdError, Unavailable
from sandboxd.ids import new_id
from sandboxd.images.committing import CommitPlan, commit
from sandboxd.images.puller import Puller
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation.places import Taken
from sandboxd.isolation.pool import Pool
from sandboxd.jobs import Image, Job
from sandboxd.metrics import Metrics
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.quotas.limits import Limits
from sandboxd.running.shapes import shape_of
from sandboxd.sandbox_values import (
    SandboxPage,
    SandboxPlan,
    SandboxReason,
    SandboxRecord,
    SandboxState,
)
from sandboxd.sandboxes.live import PACK_SECONDS, LiveSandbox
from sandboxd.scheduling.rooms import Rooms
from sandboxd.settings import SandboxSettings
from sandboxd.store.sqlite import SqliteStore

logger = structlog.get_logger(__name__)


_MOST_OVERHEAD_BYTES = 2048
"""What an archive has of a file besides its content, names of unusual length apart."""
_SLOT_SECONDS = 10.0
"""How long a new sandbox waits for a slot."""


class Sandboxes:
    """Makes sandboxes, finds them, writes down how they ended."""

    def __init__(
        self,
        store: SqliteStore,
        rooms: Rooms,
        pool: Pool[Cgroup],
        puller: Puller,
        metrics: Metrics,
        settings: SandboxSettings,
        *,
        log_directory: Path,
        inline_log_bytes: int,
    ) -> None:
        """`log_directory` lasts no longer than this process."""
        self._store = store
        self._rooms = rooms
        self._pool = pool
        self._puller = puller
        self._metrics = metrics
        self.settings = settings
        self._log_directory = log_directory
        self.spool_directory = log_directory.parent / "spool"
        """For files that are under way."""
        self._inline_log_bytes = inline_log_bytes
        self._most = settings.most or max(1, rooms.whole.slots // 2)
        self._live: dict[str, LiveSandbox] = {}
        self._tenants: dict[str, str] = {}
        """Id to tenant of each that lives or is being made."""
        self._held: dict[str, Occupant] = {}
        """Id to the room that each has."""
        self._ends: dict[str, asyncio.Task[None]] = {}
        self._background = Background()
        self._closed = False

    # Life of the service

    async def start(self) -> None:
        """Nothing of a dead service's lives any more."""
        lost = await self._store.end_all_sandboxes(time.time())
        if lost:
            logger.warning("sandboxes ended with a former service", sandboxes=lost)

    async def close(self) -> None:
        """End all of them and write it down."""
        self._closed = True
        for live in list(self._live.values()):
            live.end(SandboxReason.SHUTDOWN, "the service was shut down")
        while waiting := [*self._ends.values(), *self._background.tasks]:
            await asyncio.wait(waiting)

    def counts(self) -> dict[SandboxState, int]:
        """Those that live, by state."""
        counts = dict.fromkeys(
            (SandboxState.CREATING, SandboxState.RUNNING, SandboxState.PAUSED), 0
        )
        for sandbox_id in self._tenants:
            live = self._live.get(sandbox_id)
            counts[live.record.state if live else SandboxState.CREATING] += 1
        return counts

    def capacity(self) -> dict[str, int]:
        """How many live, and how many may."""
        return {"sandboxes": len(self._tenants), "most": self._most}

    # What the API asks

    async def create(
        self,
        tenant: str,
        plan: SandboxPlan,
        *,
        request_id: str | None,
        key_id: str | None = None,
    ) -> SandboxRecord:
        """A new sandbox that stands, with its image pulled first where that has to be.

        Raises NotFound, Invalid (image), Unavailable (registry, no room), QuotaExceeded, SandboxFailed.
        """
        self._rooms.check_not_draining()
        self._check_room(tenant)
        image = await self._puller.ready(plan.image, tenant, plan.pull, lambda _: None)
        self._rooms.check_not_draining()
        self._check_room(tenant)
        record = SandboxRecord(
            id=new_id("sbx"),
            tenant=tenant,
            plan=plan,
            state=SandboxState.CREATING,
            reason=SandboxReason.REQUESTED,
            created_at=time.time(),
            image_digest=image.digest,
            request_id=request_id,
        )
        self._tenants[record.id] = tenant
        # A client that goes away leaves a sandbox like any other: it ends when it is idle for long enough.
        return await asyncio.shield(self._background.spawn(self._create(record, image, key_id)))

    async def _create(
        self, record: SandboxRecord, image: ResolvedImage, key_id: str | None
    ) -> SandboxRecord:
        try:
            self._held[record.id] = await self._rooms.hold(
                record.tenant,
                record.plan.limits,
                until=time.time() + record.plan.ttl_seconds,
                timeout_seconds=_SLOT_SECONDS,
                key_id=key_id,
            )
        except BaseException:
            del self._tenants[record.id]
            raise
        try:
            await self._store.create_sandbox(record)
            return await self._make(record, image)
        except BaseException as error:
            self._rooms.release(self._held.pop(record.id))
            del self._tenants[record.id]
            failed = msgspec.structs.replace(
                record,
                state=SandboxState.ENDED,
                reason=SandboxReason.CREATE_FAILED,
                message=str(error),
                ended_at=time.time(),
            )
            with contextlib.suppress(SandboxdError):
                await self._store.change_sandbox(failed)
            raise

    async def _make(self, record: SandboxRecord, image: ResolvedImage) -> SandboxRecord:
        plan = record.plan
        taken = await self._pool.take(shape_of(image, plan.user, plan.limits))
        try:
            taken.place.apply(plan.limits)
            record = msgspec.structs.replace(
                record,
                state=SandboxState.RUNNING,
                reason=SandboxReason.CREATED,
                started_at=time.time(),
            )
            await self._store.change_sandbox(record)
        except BaseException:
            self._pool.discard(taken)
            raise
        self._watch(record, image, taken)
        self._metrics.sandbox_created()
        logger.info("sandbox created", sandbox_id=record.id, tenant=record.tenant, warm=taken.warm)
        return record

    def _watch(
        self, record: SandboxRecord, image: ResolvedImage, taken: Taken[Cgroup]
    ) -> LiveSandbox:
        """From here on it lives until it ends, which is then written down."""
        live = self._live[record.id] = LiveSandbox(
            record,
            image,
            taken,
            self._metrics,
            most_execs=self.settings.most_execs,
            log_directory=self._log_directory,
            inline_log_bytes=self._inline_log_bytes,
        )
        end = asyncio.get_running_loop().create_task(self._see_end(live))
        self._ends[record.id] = end
        end.add_done_callback(lambda _: self._ends.pop(record.id, None))
        if self._closed:
            live.end(SandboxReason.SHUTDOWN)
        return live

    async def _see_end(self, live: LiveSandbox) -> None:
        record = await live.ended()
        self._pool.discard(live.taken)
        try:
            await self._store.change_sandbox(record)
        except SandboxdError as error:
            # The next start finds it unended, and ends it.
            logger.warning("end of sandbox not written", sandbox_id=record.id, error=str(error))
        del self._live[record.id]
        del self._tenants[record.id]
        self._rooms.release(self._held.pop(record.id))
        self._metrics.sandbox_ended(record.reason)
        logger.info(
            "sandbox ended",
            sandbox_id=record.id,
            tenant=record.tenant,
            reason=record.reason,
            execs=record.execs,
        )

    @property
    def most_seconds(self) -> float:
        """How long the sandbox of a job may be kept."""
        return self.settings.most_ttl_seconds

    async def keep(self, job: Job, image: ResolvedImage, taken: Taken[Cgroup], why: str) -> str:
        """Take over the sandbox of a job that failed, paused, for as long as the job said. Its id.

        Raises Unavailable (no room), Conflict; then it is still the caller's.
        """
        seconds = job.spec.keep_on_failure_seconds or 0.0
        self._rooms.check_not_draining()
        self._check_room(job.tenant)
        now = time.time()
        record = SandboxRecord(
            id=new_id("sbx"),
            tenant=job.tenant,
            plan=SandboxPlan(
                image=job.spec.image,
                pull=job.spec.pull,
                env=job.spec.env,
                workdir=job.spec.workdir,
                user=job.spec.user,
                limits=job.spec.limits,
                labels=job.spec.labels,
                idle_seconds=seconds,
                ttl_seconds=seconds,
            ),
            state=SandboxState.RUNNING,
            reason=SandboxReason.JOB_FAILED,
            message=f"{job.id}: {why}",
            created_at=now,
            started_at=now,
            image_digest=image.digest,
            request_id=job.request_id,
        )
        self._tenants[record.id] = record.tenant
        self._held[record.id] = self._rooms.enter(job, until=now + seconds)
        try:
            await self._store.create_sandbox(record)
        except BaseException:
            self._rooms.release(self._held.pop(record.id))
            del self._tenants[record.id]
            raise
        live = self._watch(record, image, taken)
        with contextlib.suppress(Conflict):  # It has no process but init: it is as quiet without.
            await live.pause(SandboxReason.JOB_FAILED)
        with contextlib.suppress(SandboxdError):
            await self._changed(live)
        return record.id

    async def get(self, tenant: str, sandbox_id: str) -> SandboxRecord:
        """As it is now. Raises NotFound."""
        live = self._live.get(sandbox_id)
        if live is not None and live.record.tenant == tenant:
            return msgspec.structs.replace(live.record, usage=live.usage(), execs=live.execs)
        return await self._store.get_sandbox(tenant, sandbox_id)

    async def list(
        self, tenant: str, *, states: frozenset[SandboxState], limit: int, cursor: str | None
    ) -> SandboxPage:
        """A tenant's sandboxes, newest first."""
        return await self._store.list_sandboxes(tenant, states=states, limit=limit, cursor=cursor)

    async def live(self, tenant: str, sandbox_id: str) -> LiveSandbox:
        """One that lives. Raises NotFound, and Conflict if it has ended."""
        live = self._live.get(sandbox_id)
        if live is None or live.record.tenant != tenant:
            record = await self._store.get_sandbox(tenant, sandbox_id)
            if record.state is SandboxState.CREATING:
                raise Conflict("the sandbox is being made", code="sandbox_creating")
            raise Conflict(f"the sandbox has ended ({record.reason})", code="sandbox_ended")
        return live

    async def pause(self, tenant: str, sandbox_id: str) -> SandboxRecord:
        """Stop all its processes. Raises NotFound, Conflict."""
        live = await self.live(tenant, sandbox_id)
        await live.pause()
        return await self._changed(live)

    async def resume(self, tenant: str, sandbox_id: str) -> SandboxRecord:
        """Let its processes go on. Raises NotFound, Conflict."""
        live = await self.live(tenant, sandbox_id)
        await live.resume()
        return await self._changed(live)

    async def commit(self, tenant: str, sandbox_id: str, plan: CommitPlan) -> Image:
        """Make an image of what its commands changed above its own. Raises NotFound, Conflict, Invalid, SandboxFailed."""
        live = await self.live(tenant, sandbox_id)
        live.check_running()
        spec, record = live.taken.sandbox.spec, live.record
        if spec.runtime is not None:
            detail = f"its commands were started by {spec.runtime.name}, which keeps their files"
            raise Conflict(detail, code="cannot_pack")
        most_bytes = spec.scratch_bytes + spec.scratch_inodes * _MOST_OVERHEAD_BYTES
        # A client that goes away leaves the image like any other; init, once asked, has to be heard to the end.
        return await asyncio.shield(
            self._background.spawn(
                commit(
                    self._puller.images,
                    record.plan.image,
                    record.image_digest,
                    lambda output: live.pack(output, most_bytes=most_bytes, stop=plan.stop),
                    plan,
                    tenant=tenant or None,
                    most_bytes=most_bytes,
                    seconds=PACK_SECONDS,
                )
            )
        )

    async def change(
        self,
        tenant: str,
        sandbox_id: str,
        limits: Limits,
        **times: Any,
    ) -> SandboxRecord:
        """Other limits and times, see LiveSandbox.change. Raises NotFound, Conflict, Unavailable (no room)."""
        live = await self.live(tenant, sandbox_id)
        async with live.resizing:
            await self._change(live, limits, times)
        return await self._changed(live)

    async def _change(self, live: LiveSandbox, limits: Limits, times: dict[str, Any]) -> None:
        sandbox_id = live.record.id
        live.check_alive()
        plan = live.record.plan
        ttl_seconds = times.get("ttl_seconds") or plan.ttl_seconds
        until = (live.record.started_at or time.time()) + ttl_seconds
        held = self._held[sandbox_id]
        self._held[sandbox_id] = self._rooms.change(held, limits, until=until)
        try:
            await live.change(limits, **times)
        except BaseException:
            if now := self._held.get(sandbox_id):
                self._held[sandbox_id] = self._rooms.change(
                    now, plan.limits, until=held.until, in_any_case=True
                )
            raise

    async def _changed(self, live: LiveSandbox) -> SandboxRecord:
        if live.record.id in self._live and live.record.state is not SandboxState.ENDED:
            await self._store.change_sandbox(live.record)
        return await self.get(live.record.tenant, live.record.id)

    async def delete(self, tenant: str, sandbox_id: str) -> SandboxRecord | None:
        """End it, and return when it is gone. None: it had ended before, and its record is gone now. Raises NotFound."""
        live = self._live.get(sandbox_id)
        if live is not None and live.record.tenant == tenant:
            lived = live.record.state is not SandboxState.ENDED
            live.end(SandboxReason.DELETED)
            if end := self._ends.get(sandbox_id):
                await asyncio.shield(end)  # Until its end is written.
            if lived:
                return live.record
        record = await self._store.get_sandbox(tenant, sandbox_id)
        if record.state is not SandboxState.ENDED:
            raise Conflict("the sandbox is being made or ended", code="sandbox_creating")
        await self._store.forget_sandbox(tenant, sandbox_id)
        return None

    def _check_room(self, tenant: str) -> None:
        mine = sum(each == tenant for each in self._tenants.values())
        most_of_one = self.settings.most_per_tenant or self._most
        if mine >= most_of_one or len(self._tenants) >= self._most:
            detail = f"{mine} sandboxes of yours and {len(self._tenants)} in all live already"
            raise Unavailable(detail, code="too_many_sandboxes", retry_after_seconds=5)
