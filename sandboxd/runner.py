"""One job: image, cgroup, sandbox, command, result.

`run` never raises for what a program or a sandbox does: whatever happens to a job is a `Result`.
"""

import asyncio
import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from sandboxd.commands import (
    PassedDescriptor,
    Sink,
    StepStop,
    Stop,
    note_stop,
    open_streams,
    run_command,
)
from sandboxd.errors import Fault, Refused, SandboxdError, SandboxFailed
from sandboxd.files.content import StorageFailed
from sandboxd.files.transfers import Transfers
from sandboxd.images.catalogue import Images
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation.egress import Connection
from sandboxd.isolation.pool import Pool, Taken
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import (
    NATIVE,
    Command,
    NetworkMode,
    NotMade,
    OciRuntime,
    SandboxSpec,
    Then,
    Walls,
)
from sandboxd.jobs import (
    Component,
    Job,
    JobError,
    JobSpec,
    PassedOver,
    Reason,
    Result,
    RunResult,
)
from sandboxd.networks import Networks, denied_of
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.quotas.limits import Limits
from sandboxd.stepping import Ground, Steps
from sandboxd.verdict import Outcome, result_of, result_of_steps

_INODE_BYTES = 4096
_LEAST_INODES = 1024


class NotAccepted(Exception):
    """The job was not written down after all: nothing of it ran."""


class Runner:
    """Runs jobs on this host."""

    def __init__(
        self,
        pool: Pool[Cgroup],
        images: Images,
        transfers: Transfers,
        *,
        walls: Callable[[NetworkMode, OciRuntime | None], Walls],
        enforcement: dict[str, str],
        best_effort: bool,
        cpu_count: int,
        id_count: int,
        networks: Networks,
        runtimes: Mapping[str, OciRuntime] = MappingProxyType({}),
    ) -> None:
        """`enforcement`: limit to what enforces it here, as `quotas.cgroups` says.

        `id_count`: user and group ids that exist in a sandbox, from 0 on; 0 where one id is mapped to whatever is asked.
        """
        self._pool = pool
        self._images = images
        self._transfers = transfers
        self._walls = walls
        self._enforcement = enforcement
        self._best_effort = best_effort
        self._cpu_count = cpu_count
        self._id_count = id_count
        self._runtimes = runtimes
        self._networks = networks

    def check(self, spec: JobSpec) -> list[Fault]:
        """What this host cannot give: limits that nothing enforces, and minimums that are not met."""
        faults = []
        if not self._best_effort:
            for limit, word in self._enforcement.items():
                if word == "none":
                    detail = f"this host cannot enforce {limit}; see `sandboxd doctor`"
                    faults.append(Fault(f"/limits/{limit}", detail))
        if self._id_count and spec.user is not None and max(spec.user) >= self._id_count:
            faults.append(
                Fault("/user", f"ids in a sandbox are from 0 to {self._id_count - 1} here")
            )
        faults += self._check_runtime(spec)
        faults += self._networks.check(spec.network)
        offered = self._offered(spec)
        for name, least in spec.require.items():
            if name not in offered:
                detail = f"unknown; known are {', '.join(sorted(offered))}"
                faults.append(Fault(f"/require/{name}", detail))
            elif not _satisfies(offered[name], least):
                detail = f"this host offers {offered[name]!r}, not {least!r}"
                faults.append(Fault(f"/require/{name}", detail))
        return faults

    def _check_runtime(self, spec: JobSpec) -> list[Fault]:
        """Whether the runtime is there, and can do what the job asks for."""
        if spec.runtime == NATIVE:
            return []
        runtime = self._runtimes.get(spec.runtime)
        if runtime is None:
            known = ", ".join([NATIVE, *sorted(self._runtimes)])
            return [Fault("/runtime", f"there is no such runtime here; there are: {known}")]
        if not os.access(runtime.path, os.X_OK):
            return [Fault("/runtime", f"{spec.runtime} is not installed on this host")]
        if not self._id_count:
            detail = "without subordinate ids only the native runtime works; see `sandboxd doctor`"
            return [Fault("/runtime", detail)]
        egress = spec.network.mode is NetworkMode.EGRESS
        asked = {
            "steps": spec.steps,
            "files": spec.files,
            "outputs": spec.outputs,
            "network/mode": egress,
        }
        return [
            Fault(f"/{name}", f"needs the runtime {NATIVE}, not {spec.runtime}")
            for name, value in asked.items()
            if value
        ]

    def _offered(self, spec: JobSpec) -> dict[str, str]:
        walls = self._walls(spec.network.mode, None)
        return {**self._enforcement, "network": walls.network, "id_map": walls.id_map}

    async def run(
        self,
        job: Job,
        stop: Stop,
        sink: Sink,
        *,
        accepted: "asyncio.Future[None] | None" = None,
        on_start: Callable[[float], None] = lambda _: None,
        on_run: Callable[[RunResult], None] = lambda _: None,
        stdin_fd: int | None = None,
    ) -> Result:
        """Run the command of a job to its end.

        With `accepted` the sandbox is made ready at once, but the command starts only when that is done; what it raises
        (NotAccepted) is raised.

        `sink` gets the output as it comes, `on_start` the Unix time at which the (first) command started, `on_run` how each
        run of a step ended. With `stdin_fd` that descriptor is passed through instead of the job's own input. The last of
        the sandbox may still be going when this returns: `stop.gone()` waits for it.
        """
        outcome = Outcome(
            limits=job.spec.limits,
            command=job.spec.command,
            workdir=job.spec.workdir,
            claimed_at=time.monotonic(),
            queue_seconds=max(0.0, time.time() - job.queued_at),
            cpu_by_rlimit=self._enforcement.get("cpu_seconds") == "rlimit",
        )
        taken: Taken[Cgroup] | None = None
        runs: list[RunResult] = []

        def note_run(run: RunResult) -> None:
            runs.append(run)
            on_run(run)

        connection: Connection | None = None
        try:
            image = await self._images.resolve(job.spec.image)
            outcome.image_digest = image.digest
            taken = await self._pool.take(sandbox_spec(image, job.spec, self._runtimes))
            outcome.warm = taken.warm
            if stop.reason is None:
                connection = await self._networks.connect(
                    job.spec.network, taken.sandbox, taken.place.adopt
                )
                if taken.sandbox.spec.runtime is None:
                    taken.place.apply(job.spec.limits)
                attempt = _Attempt(job, image, taken, outcome, stop, sink, accepted, on_start)
                if job.spec.steps:
                    await self._run_steps(attempt, note_run)
                else:
                    await self._run_alone(attempt, stdin_fd)
                await self._collect_files(attempt)
        except Refused as error:
            outcome.failure = JobError(
                component=Component.IMAGE, code=error.code, message=error.detail
            )
        except StorageFailed as error:
            outcome.failure = JobError(
                component=Component.STORAGE, code=Reason.FILES_FAILED, message=str(error)
            )
        except (SandboxdError, OSError) as error:
            outcome.failure = _isolation_error(error)
        finally:
            if taken is not None:
                await _disconnect(taken, connection, outcome)
                outcome.oom_kills = taken.place.oom_kills()
                outcome.usage = taken.place.read()
                self._pool.discard(taken)
        note_stop(outcome, stop)
        outcome.enforcement = self._record(job.spec)
        if job.spec.steps:
            return result_of_steps(outcome, job.spec.steps, tuple(runs))
        return result_of(outcome)

    async def _run_alone(self, attempt: "_Attempt", stdin_fd: int | None) -> None:
        """The one command of a job, with which its sandbox ends unless the job's files are still to be read."""
        job, outcome = attempt.job, attempt.outcome
        wants_files = bool(job.spec.outputs)
        stop = StepStop(attempt.stop) if wants_files else attempt.stop
        stdin = job.spec.stdin if stdin_fd is None else PassedDescriptor(stdin_fd)
        with open_streams(stdin, outcome, stop, attempt.sink) as streams:
            if attempt.accepted is not None:
                await attempt.accepted
            if not await self._place_files(attempt):
                return
            await run_command(
                attempt.taken,
                self._command(job, attempt.image),
                outcome,
                stop,
                streams,
                then=Then.CLEAR if wants_files else Then.END,
                cpu_count=self._cpu_count,
                on_start=attempt.on_start,
            )
        if wants_files:
            note_stop(outcome, attempt.stop, stop)

    async def _run_steps(self, attempt: "_Attempt", on_run: Callable[[RunResult], None]) -> None:
        job, outcome = attempt.job, attempt.outcome
        if attempt.accepted is not None:
            await attempt.accepted
        if not await self._place_files(attempt):
            return

        def note_start(started_at: float) -> None:
            outcome.started_at = started_at
            attempt.on_start(started_at)

        async def make_files(sandbox: Sandbox) -> NotMade | None:
            return await self._transfers.place(sandbox, job, attempt.workdir)

        ground = Ground(
            taken=attempt.taken,
            pool=self._pool,
            spec=job.spec,
            base=self._command(job, attempt.image),
            make_files=make_files,
            cpu_count=self._cpu_count,
            cpu_by_rlimit=outcome.cpu_by_rlimit,
        )
        steps = Steps(ground, attempt.stop, attempt.sink, on_start=note_start, on_run=on_run)
        try:
            await steps.run()
        finally:
            outcome.command_started, outcome.command_ended = steps.began, steps.ended
            outcome.output_bytes = sum(steps.sizes.values())

    async def _place_files(self, attempt: "_Attempt") -> bool:
        """Make the job's files. False: no command is to run."""
        job, outcome, stop = attempt.job, attempt.outcome, attempt.stop
        if not job.spec.files:
            return True
        stop.attach(attempt.taken, None)
        try:
            outcome.not_made = await self._transfers.place(
                attempt.taken.sandbox, job, attempt.workdir
            )
        except SandboxFailed:
            if stop.reason is None:
                raise
        return outcome.not_made is None and stop.reason is None

    async def _collect_files(self, attempt: "_Attempt") -> None:
        """Keep what the job is to leave, also if its command failed or was stopped by a limit."""
        job, outcome, stop = attempt.job, attempt.outcome, attempt.stop
        if not job.spec.outputs or outcome.command_started is None:
            return
        if not attempt.taken.sandbox.alive:
            outcome.passed_over = (PassedOver(path="", reason="sandbox_gone"),)
            return
        outcome.artifacts, outcome.passed_over = await self._transfers.collect(
            attempt.taken.sandbox,
            job,
            attempt.workdir,
            stopped=lambda: stop.reason is not None,
        )

    def _command(self, job: Job, image: ResolvedImage) -> Command:
        """The command, with the image's defaults under what the job says, and the caller's trace."""
        spec = job.spec
        trace = {"TRACEPARENT": job.traceparent} if job.traceparent else {}
        rlimits = {"nofile": spec.limits.open_files}
        if self._enforcement.get("cpu_seconds") == "rlimit":
            rlimits["cpu"] = math.ceil(spec.limits.cpu_seconds)
        return Command(
            argv=spec.command,
            env={**image.env, **trace, **spec.env},
            workdir=spec.workdir or image.workdir,
            rlimits=rlimits,
        )

    def _record(self, spec: JobSpec) -> dict[str, object]:
        """What enforced each limit and which walls stood: each job's record says it."""
        walls = self._walls(spec.network.mode, self._runtimes.get(spec.runtime))
        return {
            "limits": dict(self._enforcement),
            "walls": {
                "id_map": walls.id_map,
                "namespaces": list(walls.namespaces),
                "seccomp": walls.seccomp_digest,
                "no_new_privileges": walls.no_new_privileges,
                "capabilities": list(walls.capabilities),
                "network": walls.network,
                "runtime": spec.runtime,
            },
            **self._networks.record(spec.network),
        }


class _Attempt(NamedTuple):
    """A job on its way, with the sandbox that it got."""

    job: Job
    image: ResolvedImage
    taken: Taken[Cgroup]
    outcome: Outcome
    stop: Stop
    sink: Sink
    accepted: "asyncio.Future[None] | None"
    """Done when the job is on the disk: nothing of it runs before."""
    on_start: Callable[[float], None]

    @property
    def workdir(self) -> str:
        return self.job.spec.workdir or self.image.workdir


def sandbox_spec(
    image: ResolvedImage,
    spec: JobSpec,
    runtimes: Mapping[str, OciRuntime] = MappingProxyType({}),
) -> SandboxSpec:
    """The shape of the sandbox that a job needs."""
    return shape_of(image, spec.user, spec.limits)._replace(
        network=spec.network.mode,
        runtime=None if spec.runtime == NATIVE else _runtime(spec.runtime, runtimes),
    )


def shape_of(image: ResolvedImage, user: tuple[int, int] | None, limits: Limits) -> SandboxSpec:
    """The shape of a sandbox for this user (None: the image's own) and with room for this much on its disk."""
    uid, gid = user or image.user
    return SandboxSpec(
        rootfs=image.rootfs,
        binds=image.binds,
        writable=image.writable,
        scratch_bytes=limits.disk_bytes,
        scratch_inodes=max(_LEAST_INODES, limits.disk_bytes // _INODE_BYTES),
        uid=uid,
        gid=gid,
    )


def _runtime(name: str, runtimes: Mapping[str, OciRuntime]) -> OciRuntime:
    """Raises SandboxFailed if it is no longer there: the job was accepted before the service was started anew."""
    runtime = runtimes.get(name)
    if runtime is None:
        raise SandboxFailed("runtime", f"{name} is not configured any more")
    return runtime


async def _disconnect(
    taken: Taken[Cgroup], connection: Connection | None, outcome: Outcome
) -> None:
    """What the command left behind in the sandbox dies first: nothing of it outlives its firewall."""
    if connection is None:
        return
    taken.sandbox.kill()
    outcome.received_bytes = outcome.sent_bytes = None
    with contextlib.suppress(SandboxFailed):
        traffic = await connection.close()
        outcome.received_bytes = traffic.received_bytes
        outcome.sent_bytes = traffic.sent_bytes
        outcome.denied = denied_of(traffic)


def _satisfies(offered: str, least: str) -> bool:
    """Whether what a host offers is at least what a job demands. `cgroup` means v1 or v2."""
    if offered == least or (least == "cgroup" and offered in ("cgroup1", "cgroup2")):
        return True
    if least == "single":
        return offered == "range"
    return False


def _isolation_error(error: Exception) -> JobError:
    if isinstance(error, SandboxFailed):
        return JobError(
            component=Component.ISOLATION,
            code="sandbox_failed",
            message=f"the sandbox could not be built or broke: {error}",
            remediation="run `sandboxd doctor` on the host",
        )
    number = getattr(error, "errno", None)
    return JobError(
        component=Component.ISOLATION,
        code=errno.errorcode.get(number, "os_error").lower() if number else "sandbox_failed",
        message=f"the host could not run the job: {error}",
    )
