"""One job: image, cgroup, sandbox, command, result.

`run` never raises for what a program or a sandbox does: whatever happens to a job is a `Result`.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec
import structlog

from sandboxd.cpu_lists import format_cpu_list
from sandboxd.errors import Fault, Invalid, SandboxdError
from sandboxd.files.transfers import Transfers
from sandboxd.images.puller import Puller
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation.egress import Connection
from sandboxd.isolation.places import Taken
from sandboxd.isolation.pool import Pool
from sandboxd.isolation.spec import (
    NATIVE,
    Command,
    NetworkMode,
    OciRuntime,
    Walls,
)
from sandboxd.jobs import (
    Job,
    JobSpec,
    Reason,
    Result,
    RunResult,
    State,
)
from sandboxd.networks import Networks
from sandboxd.quotas.affinity import own_cpus
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.running.attempt import Attempt, Means, disconnect, failures_noted
from sandboxd.running.commands import (
    Sink,
    Stop,
    note_stop,
    show_use,
)
from sandboxd.running.fetching import Meanwhile, fetch
from sandboxd.running.sampling import Samples
from sandboxd.running.shapes import sandbox_spec
from sandboxd.running.verdict import Outcome, result_of, result_of_steps

logger = structlog.get_logger(__name__)


class NotAccepted(Exception):
    """The job was not written down after all: nothing of it ran."""


_KEPT = frozenset({State.FAILED, State.TIMED_OUT, State.OUT_OF_MEMORY, State.OUTPUT_LIMIT})
"""Ends of a job's own doing, after which its sandbox may be of interest. (One with egress does not outlive its firewall.)"""


class Keeper(Protocol):
    """Takes over sandboxes of jobs that failed."""

    @property
    def most_seconds(self) -> float: ...

    async def keep(self, job: Job, image: ResolvedImage, taken: Taken[Cgroup], why: str) -> str:
        """The id of what is now a sandbox like any other. Raises SandboxdError; then it is still the caller's."""
        ...


class Runner:
    """Runs jobs on this host."""

    def __init__(
        self,
        pool: Pool[Cgroup],
        puller: Puller,
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
        self._means = Means(pool, transfers, cpu_count)
        self._puller = puller
        self._walls = walls
        self._enforcement = enforcement
        self._best_effort = best_effort
        self._id_count = id_count
        self._runtimes = runtimes
        self._networks = networks
        self.keeper: Keeper | None = None
        """None: sandboxes of jobs that failed are not kept."""

    def check(self, spec: JobSpec) -> list[Fault]:
        """What this host cannot give: limits that nothing enforces, and minimums that are not met."""
        faults = []
        if not self._best_effort:
            for limit, word in self._enforcement.items():
                if word == "none" and _is_asked_for(limit, spec):
                    detail = f"this host cannot enforce {limit}; see `sandboxd doctor`"
                    place = "/cpuset" if limit == "cpuset" else f"/limits/{limit}"
                    faults.append(Fault(place, detail))
        if self._id_count and spec.user is not None and max(spec.user) >= self._id_count:
            faults.append(
                Fault("/user", f"ids in a sandbox are from 0 to {self._id_count - 1} here")
            )
        faults += self._check_cpuset(spec)
        faults += self._check_runtime(spec)
        faults += self._networks.check(spec.network)
        faults += self._check_keeping(spec)
        offered = self._offered(spec) if spec.require else {}
        for name, least in spec.require.items():
            if name not in offered:
                detail = f"unknown; known are {', '.join(sorted(offered))}"
                faults.append(Fault(f"/require/{name}", detail))
            elif not _satisfies(offered[name], least):
                detail = f"this host offers {offered[name]!r}, not {least!r}"
                faults.append(Fault(f"/require/{name}", detail))
        return faults

    def _check_cpuset(self, spec: JobSpec) -> list[Fault]:
        """Whether there are such CPUs, and enough of them for the rate."""
        if not spec.cpuset:
            return []
        ours = own_cpus()
        if not set(spec.cpuset) <= set(ours):
            return [Fault("/cpuset", f"the CPUs here are {format_cpu_list(ours)}")]
        if spec.limits.cpus > len(spec.cpuset):
            detail = f"{spec.limits.cpus} is more than the {len(spec.cpuset)} of `cpuset`"
            return [Fault("/limits/cpus", detail)]
        return []

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
        if self._enforcement["memory"] == "sampled":
            detail = "without cgroups only the native runtime works; see `sandboxd doctor`"
            return [Fault("/runtime", detail)]
        egress = spec.network.mode is NetworkMode.EGRESS
        asked = {
            "steps": spec.steps,
            "files": spec.files,
            "outputs": spec.outputs,
            "keep_on_failure_seconds": spec.keep_on_failure_seconds,
            "changes": spec.changes,
            "network/mode": egress,
        }
        return [
            Fault(f"/{name}", f"needs the runtime {NATIVE}, not {spec.runtime}")
            for name, value in asked.items()
            if value
        ]

    def _check_keeping(self, spec: JobSpec) -> list[Fault]:
        seconds, place = spec.keep_on_failure_seconds, "/keep_on_failure_seconds"
        if seconds is None:
            return []
        if self.keeper is None:
            return [Fault(place, "needs a running service")]
        most = self.keeper.most_seconds
        return [] if 0 < seconds <= most else [Fault(place, f"{seconds} is not from 0 to {most}")]

    def _offered(self, spec: JobSpec) -> dict[str, str]:
        walls = self._walls(spec.network.mode, None)
        return {**self._limits(spec), "network": walls.network, "id_map": walls.id_map}

    def _limits(self, spec: JobSpec) -> dict[str, str]:
        """What enforces each limit of this job."""
        return {**self._enforcement, **self._networks.enforcement(spec.network)}

    async def run(
        self,
        job: Job,
        stop: Stop,
        sink: Sink,
        *,
        accepted: "asyncio.Future[None] | None" = None,
        samples: Samples | None = None,
        on_start: Callable[[float], None] = lambda _: None,
        on_run: Callable[[RunResult], None] = lambda _: None,
        meanwhile: Meanwhile = Meanwhile(),  # noqa: B008 (a value)
        stdin_fd: int | None = None,
    ) -> Result:
        """Run the command of a job to its end, in its image, which is pulled first where that has to be.

        With `accepted` the sandbox is made ready at once, but the command starts only when that is done; what it raises
        (NotAccepted) is raised. None: nothing has to be waited for.

        `samples` is filled while it runs. `sink` gets the output as it comes, `on_start` the Unix time at which the (first) command started, `on_run` how each
        run of a step ended, `meanwhile` of the image that has to come. With `stdin_fd` that descriptor is passed through instead of the job's own input. The last of
        the sandbox may still be going when this returns: `stop.gone()` waits for it.
        """
        outcome = Outcome(
            limits=job.spec.limits,
            command=job.spec.command,
            workdir=job.spec.workdir,
            claimed_at=time.monotonic(),
            queue_seconds=max(0.0, time.time() - job.queued_at),
        )
        runs: list[RunResult] = []

        def note_run(run: RunResult) -> None:
            runs.append(run)
            on_run(run)

        attempt: Attempt | None = None
        kept = None
        try:
            with failures_noted(outcome):
                image = await fetch(self._puller, job, outcome, stop, meanwhile)
                if image is not None:
                    stop.signal = job.spec.stop_signal or image.stop_signal
                    command = self._command(job, image, outcome)
                    taken = await self._means.pool.take(
                        sandbox_spec(image, job.spec, self._runtimes)
                    )
                    outcome.warm = taken.warm
                    attempt = Attempt(
                        means=self._means,
                        job=job,
                        image=image,
                        command=command,
                        taken=taken,
                        outcome=outcome,
                        stop=stop,
                        sink=sink,
                        accepted=accepted,
                        on_start=on_start,
                    )
                    await self._carry_out(attempt, note_run, stdin_fd, samples)
            note_stop(outcome, stop)
            outcome.enforcement = self._record(job.spec)
            if job.spec.steps:
                result = result_of_steps(outcome, job.spec.steps, tuple(runs))
            else:
                result = result_of(outcome)
            if attempt is not None:
                kept = await self._keep(attempt, result)
        finally:
            if attempt is not None and kept is None:
                self._means.pool.discard(attempt.taken, quiet=stop.alone)
        return result if kept is None else msgspec.structs.replace(result, kept_sandbox=kept)

    async def _carry_out(
        self,
        attempt: Attempt,
        on_run: Callable[[RunResult], None],
        stdin_fd: int | None,
        samples: Samples | None,
    ) -> None:
        job, taken, outcome = attempt.job, attempt.taken, attempt.outcome
        connection: Connection | None = None
        try:
            if attempt.stop.reason is not None:
                return
            connection = await self._networks.connect(
                job.spec.network,
                taken.sandbox,
                taken.place.adopt,
                most_bytes=job.spec.limits.network_bytes,
                on_used_up=lambda: attempt.stop(Reason.NETWORK_BYTES),
            )
            if taken.sandbox.spec.runtime is None:
                taken.place.apply(job.spec.limits)
            taken.place.weigh(job.spec.priority)
            if job.spec.cpuset:
                taken.place.pin(job.spec.cpuset)
            if samples is not None:
                samples.start(taken.place.now, lambda now: show_use(taken.sandbox, now))
            if job.spec.steps:
                await attempt.run_steps(on_run)
            else:
                await attempt.run_alone(stdin_fd)
            await attempt.collect_files()
        finally:
            if samples is not None:
                samples.stop()
            await disconnect(taken, connection, outcome, attempt.stop)
            outcome.usage = taken.place.read().plus_cpu(outcome.checkers_cpu_seconds)
            outcome.oom_kills = outcome.usage.oom_kills or 0

    async def _keep(self, attempt: Attempt, result: Result) -> str | None:
        """Hand the sandbox of a job that failed over to who keeps it for a while, if the job says so. Its id from then on."""
        job, taken = attempt.job, attempt.taken
        wanted = job.spec.keep_on_failure_seconds is not None and result.state in _KEPT
        if self.keeper is None or not wanted or not taken.sandbox.alive:
            return None
        try:
            kept = await self.keeper.keep(job, attempt.image, taken, result.reason)
        except SandboxdError as error:
            logger.warning("sandbox not kept", job_id=job.id, error=str(error))
            return None
        attempt.stop.detach()
        return kept

    def _command(self, job: Job, image: ResolvedImage, outcome: Outcome) -> Command:
        """The command, with the image's defaults under what the job says, and the caller's trace. Raises Invalid."""
        spec = job.spec
        outcome.image_digest = image.digest
        if not spec.command and not spec.steps:
            outcome.image_command = outcome.command = image.command(spec.args)
            if not outcome.command:
                raise Invalid("the image does not say what it runs", code="no_command")
        trace = {"TRACEPARENT": job.traceparent} if job.traceparent else {}
        rlimits = {"nofile": spec.limits.open_files}
        return Command(
            argv=outcome.command,
            env={**image.env, **trace, **spec.env},
            workdir=spec.workdir or image.workdir,
            rlimits=rlimits,
        )

    def _record(self, spec: JobSpec) -> dict[str, object]:
        """What enforced each limit and which walls stood: each job's record says it."""
        walls = self._walls(spec.network.mode, self._runtimes.get(spec.runtime))
        return {
            "limits": self._limits(spec),
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


def _is_asked_for(limit: str, spec: JobSpec) -> bool:
    """Whether the job has this limit at all."""
    if limit == "cpuset":
        return bool(spec.cpuset)
    return limit != "io_bytes_per_second" or spec.limits.io_bytes_per_second > 0


def _satisfies(offered: str, least: str) -> bool:
    """Whether what a host offers is at least what a job demands. `cgroup` means v1 or v2."""
    if offered == least or (least == "cgroup" and offered in ("cgroup1", "cgroup2")):
        return True
    if least == "single":
        return offered == "range"
    return False
