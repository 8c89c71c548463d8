"""The parts that run commands, built and connected: launcher, cgroups, pool, images, runner.

    settings ─ host ─ cgroups ─ launcher ─ pool ─ images ─ runner

The service has one set of them; so has each command line that runs something without a service (`embedded`).
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sandboxd.api.validate import job_spec_of
from sandboxd.files.content import CHUNK_BYTES, Contents
from sandboxd.files.transfers import Transfers
from sandboxd.ids import new_id
from sandboxd.images.catalogue import Images
from sandboxd.images.puller import Puller
from sandboxd.images.registries.accesses import open_accesses
from sandboxd.isolation import idmap
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.places import Taken
from sandboxd.isolation.pool import Pool
from sandboxd.jobs import Artifact, InputFile, Job, Reason, State, Stream
from sandboxd.networks import Networks
from sandboxd.quotas.cgroups import Cgroup, open_cgroups
from sandboxd.quotas.disks import HOST_FILES, find_disks
from sandboxd.quotas.host import CgroupVersion, Host, probe_host
from sandboxd.quotas.limits import Limits
from sandboxd.running.commands import Stop, machine_of
from sandboxd.running.fetching import Meanwhile
from sandboxd.running.runner import Runner
from sandboxd.settings import IsolationSettings, Settings
from sandboxd.settings_runtimes import oci_runtimes

_IMAGE_MEMORY_BYTES = 2**30
"""The page cache of what is unpacked counts, too: the kernel writes it out and goes on."""
_IMAGE_PIDS = 8
_OPERATOR = ""
"""Whose the jobs of the command line are: no tenant's."""
_MOST_SAMPLED_PIDS = 512


class Execution:
    """The parts that run commands: launcher, cgroups, pool, images, runner."""

    def __init__(
        self,
        settings: Settings,
        *,
        state: Path,
        images_directory: Path,
        parked: int,
        blanks: int = 0,
    ) -> None:
        """`state` holds what lasts no longer than this process. Raises HostNotReady, SandboxFailed."""
        isolation = settings.isolation
        self._run = run = state / "run"
        shutil.rmtree(run, ignore_errors=True)
        (run / "stage").mkdir(parents=True, mode=0o700)
        self.host = probe_host()
        self._image_limits = msgspec.structs.replace(
            settings.limits,
            cpus=float(self.host.cpus),
            memory_bytes=_IMAGE_MEMORY_BYTES,
            pids=_IMAGE_PIDS,
            io_bytes_per_second=0,
        )
        instance = hashlib.sha256(os.fsencode(state.absolute())).hexdigest()[:16]
        disks = find_disks((str(images_directory), str(state), HOST_FILES))
        rates = settings.limits.io_bytes_per_second or settings.ceilings.io_bytes_per_second
        self.cgroups = open_cgroups(
            self.host,
            instance=instance,
            delegated=isolation.cgroups == "auto",
            disks=() if disks.untold else disks.numbers,
            with_blkio=bool(rates),
            with_cpuset=isolation.cpusets,
        )
        self.ceilings = ceilings_of(
            settings.ceilings, self.host, counts_swap=self.cgroups.counts_swap
        )
        if self.cgroups.samples_memory:
            # A look at a job takes the longer the more processes it has.
            most = min(self.ceilings.pids, _MOST_SAMPLED_PIDS)
            self.ceilings = msgspec.structs.replace(self.ceilings, pids=most)
        ids = idmap.find_range()
        mode = idmap.choose(isolation.id_map, ids)
        memory = self.host.controllers["memory"]
        self.launcher = Launcher(
            stage=run / "stage",
            ids=ids if mode is idmap.IdMapMode.RANGE else None,
            show_cgroup=memory.version is CgroupVersion.V2,
            counted=not self.cgroups.samples_memory,
        )
        self.pool = self._make_pool(settings, parked, blanks)
        self.images = Images(
            images_directory,
            run / "host",
            self.launcher,
            self._make_image_cgroup,
            budget_bytes=settings.images.max_bytes,
        )
        registries = settings.registries
        self.puller = Puller(
            self.images,
            settings.images,
            lambda tenant: open_accesses(registries, settings.images, tenant or ""),
        )
        self.uploads = Contents(state / "uploads", min_free_bytes=settings.files.min_free_bytes)
        self.artifacts = Contents(state / "artifacts", min_free_bytes=settings.files.min_free_bytes)
        self._transfers = Transfers(
            uploads=self.uploads,
            artifacts=self.artifacts,
            most_bytes=settings.files.max_artifact_bytes,
            most_entries=settings.files.max_artifacts,
            seconds=settings.files.transfer_seconds,
        )
        self.networks = Networks(settings.network)
        self.runner = Runner(
            self.pool,
            self.puller,
            self._transfers,
            walls=self.launcher.walls,
            enforcement=self.cgroups.enforcement,
            best_effort=isolation.best_effort,
            cpu_count=self.host.cpus,
            id_count=self.launcher.ids.size if self.launcher.ids else 0,
            runtimes=oci_runtimes(settings),
            networks=self.networks,
        )

    def _make_pool(self, settings: Settings, parked: int, blanks: int) -> Pool[Cgroup]:
        isolation = settings.isolation
        limits = settings.limits
        usual = machine_of(self.cgroups.likely_cpus(limits), limits)

        def set_usual_limits(taken: Taken[Cgroup]) -> None:
            """Most jobs have them: then there is nothing left to write."""
            if taken.sandbox.spec.runtime is None:
                taken.place.prepare(limits)
                taken.sandbox.show(usual)

        return Pool(
            self.launcher,
            self._make_cgroup,
            make_ready=set_usual_limits,
            per_shape=parked,
            shapes=isolation.parked_shapes,
            idle_seconds=isolation.parked_idle_seconds,
            blanks=blanks,
        )

    def _make_cgroup(self) -> Cgroup:
        return self.cgroups.create(new_id("sbx"))

    def _make_image_cgroup(self) -> Cgroup:
        """For a sandbox that unpacks or removes an image: limited before it is there, since no command comes later.

        What the archive holds is somebody else's, and so is what becomes of the program that reads it.
        """
        cgroup = self._make_cgroup()
        try:
            cgroup.apply(self._image_limits)
        except BaseException:
            cgroup.remove()
            raise
        return cgroup

    async def close(self) -> None:
        """End every sandbox, then remove what they were made of."""
        await self.puller.close()
        await self.pool.close()
        self._transfers.close()
        await self.launcher.close()
        self.images.close()
        self.cgroups.close()
        shutil.rmtree(self._run, ignore_errors=True)


class Embedded:
    """The parts of a service without its API and its record, for one command of `sandboxd run` or `sandboxd images`."""

    def __init__(self, settings: Settings, execution: Execution) -> None:
        self._settings = settings
        self._execution = execution
        self.images = execution.images
        self.puller = execution.puller

    async def run_once(
        self,
        request: dict[str, Any],
        *,
        files: Mapping[str, Path] | None = None,
        stdin_fd: int | None,
        stdout_fd: int,
        stderr_fd: int,
        meanwhile: Meanwhile = Meanwhile(),  # noqa: B008 (a value)
    ) -> Job:
        """Run the job of a request (as for `POST /v1/jobs`) with these descriptors as its standard streams.

        Without `stdin_fd` the input is the request's own. `files`: path inside to a file here, beside the request's own.

        `meanwhile` hears of an image that has to come first.

        Cancelling the calling task cancels the job; the job comes back all the same. Raises Invalid, NotFound.
        """
        runner = self._execution.runner
        job_id = new_id("job")
        uploaded = await asyncio.to_thread(self._bring, job_id, files or {})
        spec = job_spec_of(
            request,
            defaults=self._settings.limits,
            ceilings=self._execution.ceilings,
            check=runner.check,
            command_of=self.images.command_of,
            uploaded=uploaded,
            images=self._settings.images,
        )
        await self.puller.at_hand(spec.image, None, spec.pull)
        now = time.time()
        job = Job(
            id=job_id,
            tenant=_OPERATOR,
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
        running = runner.run(job, stop, passed.write, stdin_fd=stdin_fd, meanwhile=meanwhile)
        attempt = asyncio.ensure_future(running)
        try:
            await asyncio.shield(attempt)
        except asyncio.CancelledError:
            stop(Reason.CANCELLED_BY_CLIENT, grace_seconds=2.0, message="interrupted")
        result = await attempt
        await stop.gone()
        return msgspec.structs.replace(
            job,
            state=result.state,
            reason=result.reason,
            started_at=result.started_at,
            finished_at=time.time(),
            result=result,
        )

    def _bring(self, job_id: str, files: Mapping[str, Path]) -> tuple[InputFile, ...]:
        """Copy files to where those of uploads are."""
        if not files:
            return ()
        brought = []
        with contextlib.closing(self._execution.uploads.create(job_id)) as writer:
            for path, source in files.items():
                offset = writer.size_bytes
                with source.open("rb") as file:
                    mode = os.fstat(file.fileno()).st_mode & 0o777
                    while piece := file.read(CHUNK_BYTES):
                        writer.write(piece)
                size_bytes = writer.size_bytes - offset
                brought.append(
                    InputFile(path=path, mode=mode, size_bytes=size_bytes, offset=offset)
                )
        return tuple(brought)

    def content_of(self, job: Job, artifact: Artifact) -> Iterator[bytes]:
        """What a file that a job left has in it. Raises OSError."""
        if artifact.size_bytes:
            with contextlib.closing(self._execution.artifacts.open(job.id)) as reader:
                yield from reader.pieces(artifact.offset, artifact.size_bytes)


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
    # What comes and goes is in a temporary directory, beside which no record needs space.
    files = msgspec.structs.replace(settings.files, min_free_bytes=0)
    settings = msgspec.structs.replace(settings, files=files)
    with tempfile.TemporaryDirectory(prefix="sandboxd-") as state:
        execution = Execution(settings, state=Path(state), images_directory=images, parked=0)
        try:
            yield Embedded(settings, execution)
        finally:
            await execution.close()


def serves_one_tenant(isolation: IsolationSettings) -> bool:
    """Whether the jobs of two tenants would share the service's own id, and the operator did not accept that.

    Limits that the kernel keeps per id, and its checks of who may signal whom, would be shared as well.
    """
    if isolation.single_id_many_tenants or isolation.id_map == "range":
        return False
    return idmap.choose(isolation.id_map, idmap.find_range()) is idmap.IdMapMode.SINGLE


def ceilings_of(ceilings: Limits, host: Host, *, counts_swap: bool) -> Limits:
    """The operator's ceilings, but never more than the host has, and no swap that nothing limits."""
    return Limits(
        cpus=min(ceilings.cpus, host.cpus),
        memory_bytes=min(ceilings.memory_bytes, host.memory_bytes),
        pids=ceilings.pids,
        disk_bytes=min(ceilings.disk_bytes, host.memory_bytes),
        wall_seconds=ceilings.wall_seconds,
        cpu_seconds=ceilings.cpu_seconds,
        output_bytes=ceilings.output_bytes,
        open_files=min(ceilings.open_files, host.rlimits["nofile"][1]),
        idle_seconds=ceilings.idle_seconds,
        network_bytes=ceilings.network_bytes,
        swap_bytes=min(ceilings.swap_bytes, host.swap_bytes) if counts_swap else 0,
        io_bytes_per_second=ceilings.io_bytes_per_second,
    )
