"""The steps of a job: one command after the other in one sandbox, each once or for every case."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from sandboxd.errors import SandboxFailed
from sandboxd.isolation.places import Taken
from sandboxd.isolation.pool import Pool
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import Command, NetworkMode, NotMade, Then
from sandboxd.jobs import (
    Difference,
    JobError,
    JobSpec,
    Reason,
    Result,
    RunResult,
    Span,
    State,
    Stream,
    Verdict,
)
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.quotas.limits import LEAST, Limits
from sandboxd.running.commands import (
    PartStop,
    Sink,
    StepStop,
    Stop,
    note_stop,
    open_streams,
    run_command,
)
from sandboxd.running.comparing import first_difference
from sandboxd.running.counting import Counting
from sandboxd.running.verdict import Outcome, result_of
from sandboxd.steps import Case, Comparison, Step, StopPolicy

CHECKER_SAYS_BYTES = 1000
_MOST_COMPARED_BYTES = 16 * 2**20
"""What is compared is in the service's memory meanwhile."""
_CHECKER_FILES = ("/tmp/case/input", "/tmp/case/output", "/tmp/case/expected")  # noqa: S108 (inside)


class Ground(NamedTuple):
    """Where a job of steps runs."""

    taken: Taken[Cgroup]
    pool: Pool[Cgroup]
    spec: JobSpec
    base: Command
    """What every command of the job has: the image's and the job's environment, directory and limits."""
    make_files: Callable[[Sandbox, Mapping[str, bytes]], Awaitable[NotMade | None]]
    """Put the job's files, and these, into another sandbox."""
    cpu_count: int
    counting: Counting


class Steps:
    """The runs of one job, made one after the other."""

    def __init__(
        self,
        ground: Ground,
        stop: Stop,
        sink: Sink,
        *,
        on_start: Callable[[float], None],
        on_run: Callable[[RunResult], None],
    ) -> None:
        self._ground = ground
        self._spec = ground.spec
        self._stop = stop
        self._sink = sink
        self._on_start = on_start
        self._on_run = on_run
        self.sizes = dict.fromkeys(Stream, 0)
        self.checkers_cpu_seconds = 0.0
        """What programs that judge used: the job's, too."""
        """Of what came so far, by stream: where the next run begins in the log."""
        self.began: float | None = None
        """time.monotonic() of the first run's start."""
        self.ended: float | None = None
        """Of the last run's end."""

    async def run(self) -> None:
        """Run until all is done or a failure ends it. Raises SandboxFailed."""
        for number, step in enumerate(self._spec.steps):
            good = await self._run_step(number, step)
            if not self._may_go_on or not (good or step.continue_on_failure):
                return

    async def _run_step(self, number: int, step: Step) -> bool:
        good = True
        for case_number, case in _cases_of(step):
            ended = await self._run_once(number, step, case_number, case)
            self._on_run(ended)
            self._stop_if_used_up(ended)
            good = good and ended.good
            if not self._may_go_on or not (ended.good or step.stop is StopPolicy.NEVER):
                break
        return good

    def _stop_if_used_up(self, ended: RunResult) -> None:
        """What the job has used up ends it, whatever its steps say of failures."""
        if self._stop.reason is not None:
            return
        if self._left_seconds() <= 0:
            self._stop(Reason.WALL_SECONDS)
        elif not ended.good and self._left_cpu_seconds() <= 0:
            self._stop(Reason.CPU_SECONDS)

    @property
    def _may_go_on(self) -> bool:
        """A job that was stopped, or whose sandbox died, has no next run."""
        return self._stop.reason is None and self._ground.taken.sandbox.alive

    def _left_seconds(self) -> float:
        """Of the job's wall time, which all its runs share."""
        used = 0.0 if self.began is None else time.monotonic() - self.began
        return self._spec.limits.wall_seconds - used

    async def _run_once(
        self, number: int, step: Step, case_number: int | None, case: Case
    ) -> RunResult:
        outcome = self._outcome(step, case)
        if case.expected is not None:
            most = min(outcome.limits.output_bytes, _MOST_COMPARED_BYTES)
            outcome.limits = msgspec.structs.replace(outcome.limits, output_bytes=most)
        stop = StepStop(self._stop)
        output = _Output(self, outcome.limits.output_bytes, keep=case.expected is not None)
        with open_streams(case.stdin, outcome, stop, output.receive) as streams:
            meter = await run_command(
                self._ground.taken,
                self._command(step, case),
                outcome,
                stop,
                streams,
                then=Then.CLEAR,
                cpu_count=self._ground.cpu_count,
                counting=self._ground.counting.start(),
                on_start=self._note_start,
            )
        self.ended = outcome.command_ended
        outcome.oom_kills = meter.oom_kills()
        outcome.usage = meter.end()
        note_stop(outcome, self._stop, stop)
        ended = _run_result(number, case_number, outcome, output.spans())
        if case.expected is None or not ended.good:
            return ended
        if case.checker.comparison is Comparison.PROGRAM:
            return await self._judged_by_program(ended, case, case.expected, bytes(output.kept))
        # In a thread: there may be a great deal of it, and nobody else is to wait meanwhile.
        difference = await asyncio.to_thread(
            first_difference, case.expected, bytes(output.kept), case.checker
        )
        return _judged(ended, difference)

    def _outcome(self, step: Step, case: Case) -> Outcome:
        # The network counts for the whole job.
        counted = 0 if self._spec.network.mode is NetworkMode.NONE else None
        return Outcome(
            limits=self._limits(step),
            command=(*step.command, *case.args),
            workdir=step.workdir or self._ground.base.workdir,
            claimed_at=time.monotonic(),
            warm=self._ground.taken.warm,
            received_bytes=counted,
            sent_bytes=counted,
        )

    def _limits(self, step: Step) -> Limits:
        """The step's own, as far as the job has so much left."""
        job, own = self._spec.limits, step.limits
        left_output = max(0, job.output_bytes - sum(self.sizes.values()))
        return msgspec.structs.replace(
            job,
            wall_seconds=min(own.wall_seconds or job.wall_seconds, self._left_seconds()),
            cpu_seconds=min(own.cpu_seconds or job.cpu_seconds, self._left_cpu_seconds()),
            output_bytes=left_output if own.output_bytes is None else own.output_bytes,
        )

    def _left_cpu_seconds(self) -> float:
        used = (self._ground.taken.place.cpu_seconds() or 0.0) + self.checkers_cpu_seconds
        return self._spec.limits.cpu_seconds - used

    def _command(self, step: Step, case: Case) -> Command:
        base = self._ground.base
        return base._replace(
            argv=(*step.command, *case.args),
            env={**base.env, **step.env, **case.env},
            workdir=step.workdir or base.workdir,
        )

    def _note_start(self, started_at: float) -> None:
        if self.began is None:
            self.began = time.monotonic()
            self._on_start(started_at)

    def keep(self, stream: Stream, piece: bytes) -> None:
        """Into the job's log, whose limit is the job's."""
        self.sizes[stream] += len(piece)
        if not self._sink(stream, piece):
            self._stop(Reason.OUTPUT_BYTES)

    async def _judged_by_program(
        self, ended: RunResult, case: Case, expected: bytes, printed: bytes
    ) -> RunResult:
        """Let the user's program decide, in a sandbox of the same shape that nothing ran in before."""
        taken = await self._ground.pool.take(
            self._ground.taken.sandbox.spec._replace(network=NetworkMode.NONE)
        )
        try:
            taken.place.apply(self._spec.limits)
            if self._spec.cpuset:
                taken.place.pin(self._spec.cpuset)
            given = dict(zip(_CHECKER_FILES, (case.stdin, printed, expected), strict=True))
            not_made = await self._ground.make_files(taken.sandbox, given)
            if not_made is not None:
                why = f"{not_made.path}, for the checker: {os.strerror(not_made.errno)}"
                raise SandboxFailed("make files", why)
            return await self._checked(ended, case, taken)
        finally:
            self.checkers_cpu_seconds += taken.place.read().cpu_seconds or 0.0
            # Whoever stops the job from here on means its own sandbox again.
            self._stop.attach(self._ground.taken, None)
            self._ground.pool.discard(taken)

    async def _checked(self, ended: RunResult, case: Case, taken: Taken[Cgroup]) -> RunResult:
        command = (*case.checker.command, *_CHECKER_FILES)
        limits = msgspec.structs.replace(
            self._spec.limits,
            wall_seconds=self._left_seconds(),
            cpu_seconds=max(LEAST.cpu_seconds, self._left_cpu_seconds()),
        )
        outcome = Outcome(
            limits=limits,
            command=command,
            workdir=self._ground.base.workdir,
            claimed_at=time.monotonic(),
        )
        said = bytearray()

        def hear(_: Stream, piece: bytes) -> bool:
            said.extend(piece[: CHECKER_SAYS_BYTES - len(said)])
            return outcome.output_bytes <= limits.output_bytes

        stop = PartStop(self._stop)
        with open_streams(b"", outcome, stop, hear) as streams:
            await run_command(
                taken,
                self._ground.base._replace(argv=command),
                outcome,
                stop,
                streams,
                then=Then.END,
                cpu_count=self._ground.cpu_count,
                counting=contextlib.nullcontext(taken.place),
                on_start=lambda _: None,
            )
        outcome.oom_kills = taken.place.oom_kills()
        note_stop(outcome, self._stop, stop)
        return _judged_by(ended, result_of(outcome), said.decode("utf-8", "replace").strip())


class _Output:
    """What one run writes: counted, cut at its own limit, passed on to the job's log."""

    def __init__(self, steps: Steps, limit_bytes: int, *, keep: bool) -> None:
        self._steps = steps
        self._left = limit_bytes
        self._keep = keep
        self._before = dict(steps.sizes)
        self.kept = bytearray()
        """The standard output, where it is to be compared."""

    def receive(self, stream: Stream, piece: bytes) -> bool:
        """False: that was more than this run may write."""
        fits = piece[: self._left]
        self._left -= len(fits)
        if fits:
            self._steps.keep(stream, fits)
        if self._keep and stream is Stream.STDOUT:
            self.kept += fits
        return len(fits) == len(piece)

    def spans(self) -> dict[Stream, Span]:
        return {
            stream: Span(offset=before, size_bytes=self._steps.sizes[stream] - before)
            for stream, before in self._before.items()
        }


def _cases_of(step: Step) -> Iterator[tuple[int | None, Case]]:
    """A step without cases has one of its own input, which has no number."""
    if not step.cases:
        yield None, Case(stdin=step.stdin)
    else:
        yield from enumerate(step.cases)


def _run_result(
    step: int, case: int | None, outcome: Outcome, spans: dict[Stream, Span]
) -> RunResult:
    result = result_of(outcome)
    return RunResult(
        step=step,
        case=case,
        state=result.state,
        reason=result.reason,
        exit=result.exit,
        usage=result.usage,
        error=result.error,
        started_at=result.started_at,
        stdout=spans[Stream.STDOUT],
        stderr=spans[Stream.STDERR],
    )


def _judged(ended: RunResult, difference: Difference | None) -> RunResult:
    verdict = Verdict.ACCEPTED if difference is None else Verdict.WRONG_ANSWER
    return msgspec.structs.replace(ended, verdict=verdict, difference=difference)


def _judged_by(ended: RunResult, checker: Result, said: str) -> RunResult:
    """0 is accepted, 1 is a wrong answer, all else is the checker's own failure."""
    if checker.state is State.SUCCEEDED:
        return msgspec.structs.replace(ended, verdict=Verdict.ACCEPTED)
    if checker.reason is Reason.EXITED and checker.exit.code == 1:
        wrong = JobError(component=None, code=Reason.WRONG_ANSWER, message=said or "wrong answer")
        return msgspec.structs.replace(ended, verdict=Verdict.WRONG_ANSWER, error=wrong)
    why = checker.error.message if checker.error else checker.state
    failed = JobError(
        component=None, code=Reason.CHECKER_FAILED, message=f"the checker failed: {why}; {said}"
    )
    return msgspec.structs.replace(
        ended, state=State.FAILED, reason=Reason.CHECKER_FAILED, error=failed
    )
