"""One job: image, cgroup, sandbox, command, result.

`run` never raises for what a program or a sandbox does: whatever happens to a job is a `Result`.
"""

import asyncio
import contextlib
import errno
import math
import os
import signal
import time
from collections.abc import Callable, Iterator

from sandboxd.errors import Fault, Refused, SandboxdError, SandboxFailed
from sandboxd.images.catalogue import Images
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation.pool import Pool, Taken
from sandboxd.isolation.sandbox import Process
from sandboxd.isolation.spec import Command, Exit, NetworkMode, SandboxSpec, Unusable, Walls
from sandboxd.isolation.streams import Drain, Feed, PassThrough
from sandboxd.jobs import (
    Component,
    Job,
    JobError,
    JobSpec,
    Reason,
    Result,
    Stream,
)
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.quotas.limits import Limits
from sandboxd.verdict import Outcome, result_of

_STUCK_SECONDS = 30.0
"""A killed sandbox that is not gone by then is stuck in the kernel; the job does not wait for it any longer."""
_INODE_BYTES = 4096
_LEAST_INODES = 1024

Sink = Callable[[Stream, bytes], bool]
"""Takes output; False when no more is kept."""


class NotAccepted(Exception):
    """The job was not written down after all: nothing of it ran."""


class Stop:
    """The handle by which a running job is stopped. Whoever stops it says why; the first reason counts."""

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self.message: str | None = None
        self.alone = False
        """The command is over and left no process behind: only init is still to go, which is ours."""
        self.at = math.inf
        """time.monotonic() of the first stop."""
        self._taken: Taken[Cgroup] | None = None
        self._process: Process | None = None
        self._grace_seconds = 0.0

    def __call__(
        self, reason: Reason, *, grace_seconds: float = 0.0, message: str | None = None
    ) -> None:
        """TERM to the command, KILL to the sandbox after the grace; at once if there is none."""
        if self.reason is None:
            self.reason = reason
            self.message = message
            self.at = time.monotonic()
            self._grace_seconds = grace_seconds
            if self._taken is not None:
                self._carry_out(self._taken)
        elif self._taken is not None and grace_seconds == 0:
            self._taken.sandbox.kill()

    async def gone(self) -> bool:
        """Wait until no process of the job is left. False: one is stuck in the kernel."""
        if self._taken is None or self.alone:
            return True
        try:
            async with asyncio.timeout(_STUCK_SECONDS):
                await self._taken.sandbox.dead()
        except TimeoutError:
            return False
        return True

    def attach(self, taken: Taken[Cgroup], process: Process) -> None:
        """The command runs: a stop that was wished before is carried out now."""
        self._taken = taken
        self._process = process
        if self.reason is not None:
            self._carry_out(taken)

    def _carry_out(self, taken: Taken[Cgroup]) -> None:
        loop = asyncio.get_running_loop()
        if self._grace_seconds > 0 and self._process is not None:
            self._process.signal(signal.SIGTERM)
            loop.call_later(self._grace_seconds, taken.sandbox.kill)
        else:
            taken.sandbox.kill()
        loop.call_later(self._grace_seconds + _STUCK_SECONDS, taken.sandbox.abandon)


class Runner:
    """Runs jobs on this host."""

    def __init__(
        self,
        pool: Pool[Cgroup],
        images: Images,
        *,
        walls: Callable[[NetworkMode], Walls],
        enforcement: dict[str, str],
        best_effort: bool,
        cpu_count: int,
        id_count: int,
    ) -> None:
        """`enforcement`: limit to what enforces it here, as `quotas.cgroups` says.

        `id_count`: user and group ids that exist in a sandbox, from 0 on; 0 where one id is mapped to whatever is asked.
        """
        self._pool = pool
        self._images = images
        self._walls = walls
        self._enforcement = enforcement
        self._best_effort = best_effort
        self._cpu_count = cpu_count
        self._id_count = id_count

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
        offered = self._offered()
        for name, least in spec.require.items():
            if name not in offered:
                detail = f"unknown; known are {', '.join(sorted(offered))}"
                faults.append(Fault(f"/require/{name}", detail))
            elif not _satisfies(offered[name], least):
                detail = f"this host offers {offered[name]!r}, not {least!r}"
                faults.append(Fault(f"/require/{name}", detail))
        return faults

    def _offered(self) -> dict[str, str]:
        walls = self._walls(NetworkMode.NONE)
        return {**self._enforcement, "network": walls.network, "id_map": walls.id_map}

    async def run(
        self,
        job: Job,
        stop: Stop,
        sink: Sink,
        *,
        accepted: "asyncio.Future[None] | None" = None,
        on_start: Callable[[float], None] = lambda _: None,
        stdin_fd: int | None = None,
    ) -> Result:
        """Run the command of a job to its end.

        With `accepted` the sandbox is made ready at once, but the command starts only when that is done; what it raises
        (NotAccepted) is raised.

        `sink` gets the output as it comes, `on_start` the Unix time at which the command started. With `stdin_fd` that
        descriptor is passed through instead of the job's own input. The last of the sandbox may still be going when this
        returns: `stop.gone()` waits for it.
        """
        outcome = Outcome(
            job=job,
            claimed_at=time.monotonic(),
            queue_seconds=max(0.0, time.time() - job.queued_at),
            cpu_by_rlimit=self._enforcement.get("cpu_seconds") == "rlimit",
        )
        taken: Taken[Cgroup] | None = None
        try:
            image = await self._images.resolve(job.spec.image)
            outcome.image_digest = image.digest
            taken = await self._pool.take(sandbox_spec(image, job.spec))
            outcome.warm = taken.warm
            if stop.reason is None:
                taken.place.apply(job.spec.limits)
                with _open_streams(outcome, stop, sink, stdin_fd) as streams:
                    if accepted is not None:
                        await accepted
                    await self._run_in(taken, image, outcome, stop, streams, on_start)
        except Refused as error:
            outcome.failure = JobError(
                component=Component.IMAGE, code=error.code, message=error.detail
            )
        except (SandboxdError, OSError) as error:
            outcome.failure = _isolation_error(error)
        finally:
            if taken is not None:
                outcome.oom_kills = taken.place.oom_kills()
                outcome.usage = taken.place.read()
                self._pool.discard(taken)
        if stop.reason is not None and not _came_too_late(stop, outcome.exit):
            outcome.stopped_by, outcome.stop_message = stop.reason, stop.message
        outcome.enforcement = self._record()
        return result_of(outcome)

    async def _run_in(
        self,
        taken: Taken[Cgroup],
        image: ResolvedImage,
        outcome: Outcome,
        stop: Stop,
        streams: "_Streams",
        on_start: Callable[[float], None],
    ) -> None:
        """The command's own time: from its start until its output is complete."""
        limits = outcome.job.spec.limits
        command = self._command(outcome.job, image)
        process = await taken.sandbox.run(command, streams.theirs)
        streams.close_theirs()
        if isinstance(process, Unusable):
            outcome.unusable = process
            return
        outcome.command_started = process.started_at
        outcome.started_at = time.time() - (time.monotonic() - process.started_at)
        on_start(outcome.started_at)
        stop.attach(taken, process)
        with self._time_limits(taken.place, limits, stop):
            outcome.exit = await process.exited()
        outcome.command_ended = outcome.exit.at if outcome.exit else time.monotonic()
        stop.alone = outcome.exit is not None and outcome.exit.alone
        # With init everything in the sandbox dies, so both streams end: the log is complete before init is gone.
        await streams.ended()

    @contextlib.contextmanager
    def _time_limits(self, cgroup: Cgroup, limits: Limits, stop: Stop) -> Iterator[None]:
        """Stop the job when its wall time or its CPU time is used up."""
        loop = asyncio.get_running_loop()
        wall = loop.call_later(limits.wall_seconds, stop, Reason.WALL_SECONDS)
        watch = self._watch_cpu(cgroup, limits, stop)
        try:
            yield
        finally:
            wall.cancel()
            if watch is not None:
                watch.cancel()

    def _watch_cpu(self, cgroup: Cgroup, limits: Limits, stop: Stop) -> "asyncio.Task[None] | None":
        """A task that ends the job when its CPU time is used up; None where it cannot be before the wall time is."""
        rate = min(limits.cpus, self._cpu_count)
        if limits.cpu_seconds >= limits.wall_seconds * rate or cgroup.cpu_seconds() is None:
            return None

        async def watch() -> None:
            while True:
                left = limits.cpu_seconds - (cgroup.cpu_seconds() or 0.0)
                if left <= 0:
                    stop(Reason.CPU_SECONDS)
                    return
                # The earliest moment at which it can be used up: there is nothing to see before.
                await asyncio.sleep(max(left / rate, 0.005))

        return asyncio.get_running_loop().create_task(watch())

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

    def _record(self) -> dict[str, object]:
        """What enforced each limit and which walls stood: each job's record says it."""
        walls = self._walls(NetworkMode.NONE)
        return {
            "limits": dict(self._enforcement),
            "walls": {
                "id_map": walls.id_map,
                "namespaces": list(walls.namespaces),
                "seccomp": walls.seccomp_digest,
                "no_new_privileges": walls.no_new_privileges,
                "capabilities": list(walls.capabilities),
                "network": walls.network,
            },
        }


def sandbox_spec(image: ResolvedImage, spec: JobSpec) -> SandboxSpec:
    """The shape of the sandbox that a job needs."""
    uid, gid = spec.user or image.user
    return SandboxSpec(
        rootfs=image.rootfs,
        binds=image.binds,
        writable=image.writable,
        scratch_bytes=spec.limits.disk_bytes,
        scratch_inodes=max(_LEAST_INODES, spec.limits.disk_bytes // _INODE_BYTES),
        uid=uid,
        gid=gid,
    )


class _Streams:
    """The three pipes of a command: the service's ends at work, the command's ends to hand over."""

    def __init__(self, feed: Feed | PassThrough, out: Drain, err: Drain, theirs: list[int]) -> None:
        self._ours = (feed, out, err)
        self._out, self._err = out, err
        self.theirs = theirs
        """Descriptors for the command's input, output and error output."""

    async def ended(self) -> None:
        """Wait for the end of both outputs. Raises SandboxFailed if it does not come."""
        try:
            async with asyncio.timeout(_STUCK_SECONDS):
                await self._out.ended()
                await self._err.ended()
        except TimeoutError:
            raise SandboxFailed("end", "a process is stuck in the kernel") from None

    def close_theirs(self) -> None:
        """The command has them now: only its ends keep the pipes open."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """Close what is still open."""
        self.close_theirs()
        for stream in self._ours:
            stream.close()


@contextlib.contextmanager
def _open_streams(
    outcome: Outcome, stop: Stop, sink: Sink, stdin_fd: int | None
) -> Iterator[_Streams]:
    spec = outcome.job.spec

    def receive(stream: Stream, piece: bytes) -> None:
        outcome.output_bytes += len(piece)
        if not sink(stream, piece):
            outcome.output_bytes = spec.limits.output_bytes
            stop(Reason.OUTPUT_BYTES)

    command_in, feed_end = os.pipe()
    out_end, command_out = os.pipe()
    err_end, command_err = os.pipe()
    streams = _Streams(
        Feed(feed_end, spec.stdin) if stdin_fd is None else PassThrough(stdin_fd, feed_end),
        Drain(out_end, lambda piece: receive(Stream.STDOUT, piece)),
        Drain(err_end, lambda piece: receive(Stream.STDERR, piece)),
        [command_in, command_out, command_err],
    )
    with contextlib.closing(streams):
        yield streams


def _came_too_late(stop: Stop, ended: Exit | None) -> bool:
    """Whether the command had ended by itself when it was stopped. (Its output may be over the limit all the same.)"""
    return ended is not None and ended.at <= stop.at and stop.reason is not Reason.OUTPUT_BYTES


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
