"""One attempt at a job, in the sandbox that it got: its files, its command or its steps, what it leaves."""

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sandboxd.errors import Refused, SandboxdError, SandboxFailed
from sandboxd.files.content import StorageFailed
from sandboxd.files.transfers import Transfers
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation.egress import Connection
from sandboxd.isolation.places import Taken
from sandboxd.isolation.pool import Pool
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import Command, NotMade, Then
from sandboxd.jobs import Component, Job, JobError, PassedOver, Reason, RunResult
from sandboxd.networks import denied_of
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.running.commands import (
    PassedDescriptor,
    Sink,
    StepStop,
    Stop,
    note_stop,
    open_streams,
    run_command,
)
from sandboxd.running.counting import Counting
from sandboxd.running.stepping import Ground, Steps
from sandboxd.running.verdict import Outcome


class Means(NamedTuple):
    """What every attempt works with."""

    pool: Pool[Cgroup]
    transfers: Transfers
    cpu_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A job on its way. What becomes of it is in `outcome`."""

    means: Means
    job: Job
    image: ResolvedImage
    command: Command
    """What the job runs, or what each of its steps begins with."""
    taken: Taken[Cgroup]
    outcome: Outcome
    stop: Stop
    sink: Sink
    accepted: "asyncio.Future[None] | None"
    """Done when the job is on the disk: nothing of it runs before. None: it runs at once."""
    on_start: Callable[[float], None]

    @property
    def workdir(self) -> str:
        return self.job.spec.workdir or self.image.workdir

    async def run_alone(self, stdin_fd: int | None) -> None:
        """The one command of a job, with which its sandbox ends unless something of it is still wanted."""
        job, outcome = self.job, self.outcome
        wanted = job.spec.outputs or job.spec.changes
        stays = bool(wanted) or job.spec.keep_on_failure_seconds is not None
        stop = StepStop(self.stop) if stays else self.stop
        stdin = job.spec.stdin if stdin_fd is None else PassedDescriptor(stdin_fd)
        with open_streams(stdin, outcome, stop, self.sink) as streams:
            if self.accepted is not None:
                await self.accepted
            if not await self._place_files():
                return
            await run_command(
                self.taken,
                self.command,
                outcome,
                stop,
                streams,
                then=Then.CLEAR if stays else Then.END,
                cpu_count=self.means.cpu_count,
                counting=contextlib.nullcontext(self.taken.place),
                on_start=self.on_start,
            )
        if stays:
            note_stop(outcome, self.stop, stop)

    async def run_steps(self, on_run: Callable[[RunResult], None]) -> None:
        """Each step's command in its turn."""
        counting = Counting(self.taken.place, alone=True)
        counting.prepare()
        if self.accepted is not None:
            await self.accepted
        try:
            if await self._place_files():
                await self._run_steps(counting, on_run)
        finally:
            if self.job.spec.keep_on_failure_seconds is not None:
                await counting.settled()  # Whoever keeps the sandbox goes on from there.

    async def _run_steps(self, counting: Counting, on_run: Callable[[RunResult], None]) -> None:
        job, outcome = self.job, self.outcome

        def note_start(started_at: float) -> None:
            outcome.started_at = started_at
            self.on_start(started_at)

        async def make_files(sandbox: Sandbox, more: Mapping[str, bytes]) -> NotMade | None:
            return await self.means.transfers.place(sandbox, job, self.workdir, more)

        ground = Ground(
            taken=self.taken,
            pool=self.means.pool,
            spec=job.spec,
            base=self.command,
            make_files=make_files,
            cpu_count=self.means.cpu_count,
            counting=counting,
        )
        steps = Steps(ground, self.stop, self.sink, on_start=note_start, on_run=on_run)
        try:
            await steps.run()
        finally:
            outcome.command_started, outcome.command_ended = steps.began, steps.ended
            outcome.output_bytes = sum(steps.sizes.values())
            outcome.checkers_cpu_seconds = steps.checkers_cpu_seconds

    async def _place_files(self) -> bool:
        """Make the job's files. False: no command is to run."""
        job, outcome, stop = self.job, self.outcome, self.stop
        if not job.spec.files:
            return True
        stop.attach(self.taken, None)
        try:
            outcome.not_made = await self.means.transfers.place(
                self.taken.sandbox, job, self.workdir
            )
        except SandboxFailed:
            if stop.reason is None:
                raise
        return outcome.not_made is None and stop.reason is None

    async def collect_files(self) -> None:
        """Keep what the job is to leave, and tell what it changed, also if its command failed or was stopped by a limit."""
        job, outcome, stop = self.job, self.outcome, self.stop
        if outcome.command_started is None or not (job.spec.outputs or job.spec.changes):
            return
        if not self.taken.sandbox.alive:
            if job.spec.outputs:
                outcome.passed_over = (PassedOver(path="", reason="sandbox_gone"),)
            return
        if job.spec.changes:
            outcome.changes = await self.means.transfers.changes(
                self.taken.sandbox, self.image.trees, stopped=lambda: stop.reason is not None
            )
        if not job.spec.outputs:
            return
        outcome.artifacts, outcome.passed_over = await self.means.transfers.collect(
            self.taken.sandbox,
            job,
            self.workdir,
            stopped=lambda: stop.reason is not None,
        )


@contextlib.contextmanager
def failures_noted(outcome: Outcome) -> Iterator[None]:
    """What we or the host fail at within is the job's failure, and goes no further."""
    try:
        yield
    except Refused as error:
        outcome.failure = JobError(component=Component.IMAGE, code=error.code, message=error.detail)
    except StorageFailed as error:
        outcome.failure = JobError(
            component=Component.STORAGE, code=Reason.FILES_FAILED, message=str(error)
        )
    except (SandboxdError, OSError) as error:
        outcome.failure = _isolation_error(error)


async def disconnect(
    taken: Taken[Cgroup], connection: Connection | None, outcome: Outcome, stop: Stop
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
        if traffic.used_up and stop.reason is None:  # The command was over before we heard of it.
            stop(Reason.NETWORK_BYTES)


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
