"""From what happened to what the record says: the one place where a job's state, reason and sentence are decided.

Pure: an `Outcome` goes in, a `Result` comes out.
"""

import errno
import os
import signal
from dataclasses import dataclass, field
from typing import Any, assert_never

import msgspec

from sandboxd.isolation.spec import Exit, NotMade, Unusable
from sandboxd.jobs import (
    Artifact,
    Changes,
    Component,
    Denied,
    Difference,
    ExitStatus,
    JobError,
    PassedOver,
    Reason,
    Result,
    RunResult,
    State,
    Usage,
    Verdict,
)
from sandboxd.quantities import format_bytes
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.usage import CgroupUsage
from sandboxd.steps import Step


@dataclass(kw_only=True)
class Outcome:
    """What is known of one command, filled in while it goes on."""

    limits: Limits
    command: tuple[str, ...]
    workdir: str | None
    claimed_at: float
    """Monotonic seconds, as all times here but `started_at`."""
    queue_seconds: float = 0.0
    away_seconds: float = 0.0
    """Since it was claimed, in which its image came and it waited for room again."""
    pull_seconds: float = 0.0
    warm: bool = False
    image_digest: str | None = None
    image_command: tuple[str, ...] | None = None
    """What the image runs of its own accord, where that is what ran."""
    started_at: float | None = None
    """Unix time at which the command started."""
    command_started: float | None = None
    command_ended: float | None = None
    exit: Exit | None = None
    """None: init did not tell (it was killed), or the command never ran."""
    unusable: Unusable | None = None
    not_made: NotMade | None = None
    failure: JobError | None = None
    """We or the host failed."""
    stopped_by: Reason | None = None
    stop_message: str | None = None
    oom_kills: int = 0
    checkers_cpu_seconds: float = 0.0
    """Of a job of steps: what the programs that judged it used, each in a sandbox of its own."""
    usage: CgroupUsage = field(default_factory=CgroupUsage)
    enforcement: dict[str, Any] = field(default_factory=dict)
    received_bytes: int | None = 0
    """By the network; None: not known."""
    sent_bytes: int | None = 0
    denied: tuple[Denied, ...] = ()
    output_bytes: int = 0
    """What was kept of both streams."""
    last_output: float = 0.0
    """When something was read of them last; before that, when the command started."""
    artifacts: tuple[Artifact, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    changes: Changes | None = None


def result_of(outcome: Outcome) -> Result:
    """How the attempt ended."""
    state, reason = _decide(outcome)
    return Result(
        state=state,
        reason=reason,
        exit=_exit_status(outcome, state),
        usage=_usage(outcome),
        error=_explain(outcome, state, reason),
        enforcement=outcome.enforcement,
        image_digest=outcome.image_digest,
        command=outcome.image_command,
        started_at=outcome.started_at,
        artifacts=outcome.artifacts,
        artifact_count=len(outcome.artifacts),
        artifacts_passed_over=outcome.passed_over,
        changes=outcome.changes,
        denied=_denied(outcome),
    )


def result_of_steps(
    outcome: Outcome, steps: tuple[Step, ...], runs: tuple[RunResult, ...]
) -> Result:
    """How a job of steps ended: as its first run that was not good and that mattered, else well.

    `outcome` is what is known of the whole: who stopped it, what failed, what all runs together used.
    """
    deciding = next((run for run in runs if _decides(run, steps)), None)
    whole = outcome.stopped_by or outcome.failure or outcome.not_made
    result = result_of(outcome)
    if whole is None and runs:
        result = msgspec.structs.replace(
            result,
            state=State.SUCCEEDED,
            reason=Reason.EXITED,
            exit=runs[-1].exit,
            error=None,
        )
        if deciding is not None:
            result = _as_run_ended(result, deciding, steps)
    usage = msgspec.structs.replace(result.usage, memory_peak_bytes=_peak_of_all(result, runs))
    return msgspec.structs.replace(result, usage=usage, runs=runs)


def _peak_of_all(result: Result, runs: tuple[RunResult, ...]) -> int | None:
    """The kernel's own figure is from the last run's start on, where it could be restarted."""
    usages = [result.usage, *(run.usage for run in runs)]
    peaks = [usage.memory_peak_bytes for usage in usages if usage.memory_peak_bytes is not None]
    return max(peaks, default=None)


def _decides(run: RunResult, steps: tuple[Step, ...]) -> bool:
    # A run that took the sandbox with it ended the job, whatever its step says of failures.
    lost = run.exit.code is None and run.exit.signal is None and run.state is State.ERROR
    return not run.good and (lost or not steps[run.step].continue_on_failure)


def _as_run_ended(result: Result, run: RunResult, steps: tuple[Step, ...]) -> Result:
    wrong = run.verdict is Verdict.WRONG_ANSWER
    reason = Reason.WRONG_ANSWER if wrong else run.reason
    why = run.error.message if run.error else _wrong_answer(run.difference)
    return msgspec.structs.replace(
        result,
        state=State.FAILED if wrong else run.state,
        reason=reason,
        exit=run.exit,
        error=JobError(
            component=run.error.component if run.error else None,
            code=reason,
            message=f"{_name_of(run, steps)}: {why}",
            remediation=run.error.remediation if run.error else None,
        ),
    )


def _name_of(run: RunResult, steps: tuple[Step, ...]) -> str:
    """`step 2 "run", case 1 "small"`, counted from 1 as people do."""
    step = steps[run.step]
    words = f"step {run.step + 1}" + (f' "{step.name}"' if step.name else "")
    if run.case is not None:
        name = step.cases[run.case].name
        words += f", case {run.case + 1}" + (f' "{name}"' if name else "")
    return words


def _wrong_answer(difference: Difference | None) -> str:
    if difference is None:
        return "wrong answer"
    expected, printed = difference.expected, difference.printed
    return f"line {difference.line}: expected {expected!r}, printed {printed!r}"


def _decide(outcome: Outcome) -> tuple[State, Reason]:
    """Who stopped it comes first: a signal never tells why. Then the kernel's own count of memory kills."""
    if outcome.stopped_by is not None and outcome.failure is None:
        return _state_of_stop(outcome.stopped_by), outcome.stopped_by
    if outcome.oom_kills:
        return State.OUT_OF_MEMORY, Reason.MEMORY
    if outcome.failure is not None:
        at_fault = outcome.failure.component
        return State.ERROR, _REASONS_OF_FAILURES.get(at_fault, Reason.SANDBOX_FAILED)
    if outcome.not_made is not None:
        return State.FAILED, Reason.FILE_UNUSABLE
    if outcome.unusable is not None:
        return State.FAILED, _unusable_reason(outcome.unusable)
    if outcome.exit is None:
        return State.ERROR, Reason.SANDBOX_FAILED
    if outcome.exit.signal is not None:
        return State.FAILED, Reason.SIGNALLED
    return (State.FAILED if outcome.exit.code else State.SUCCEEDED), Reason.EXITED


def _state_of_stop(reason: Reason) -> State:
    match reason:
        case Reason.WALL_SECONDS | Reason.CPU_SECONDS | Reason.IDLE_SECONDS:
            return State.TIMED_OUT
        case Reason.MEMORY:
            return State.OUT_OF_MEMORY
        case Reason.OUTPUT_BYTES:
            return State.OUTPUT_LIMIT
        case Reason.NETWORK_BYTES:
            return State.NETWORK_LIMIT
        case Reason.CANCELLED_BY_CLIENT | Reason.CLIENT_GONE | Reason.SANDBOX_ENDED:
            return State.CANCELLED
        case Reason.SHUTDOWN | Reason.SERVICE_LOST | Reason.INTERNAL | Reason.LOG_FAILED:
            return State.ERROR
        case (
            Reason.SUBMITTED
            | Reason.CLAIMED
            | Reason.IMAGE_PULL_STARTED
            | Reason.IMAGE_PULLED
            | Reason.STARTED
            | Reason.RETRY
            | Reason.EXITED
            | Reason.SIGNALLED
            | Reason.COMMAND_NOT_FOUND
            | Reason.COMMAND_NOT_EXECUTABLE
            | Reason.WORKDIR_UNUSABLE
            | Reason.WRONG_ANSWER
            | Reason.CHECKER_FAILED
            | Reason.FILE_UNUSABLE
            | Reason.QUEUE_SECONDS
            | Reason.SANDBOX_FAILED
            | Reason.IMAGE_FAILED
            | Reason.FILES_FAILED
        ):
            raise ValueError(f"nobody stops a job because of {reason}")
        case _:
            assert_never(reason)


def _unusable_reason(unusable: Unusable) -> Reason:
    if unusable.what == "workdir":
        return Reason.WORKDIR_UNUSABLE
    if unusable.errno in (errno.ENOENT, errno.ENOTDIR):
        return Reason.COMMAND_NOT_FOUND
    return Reason.COMMAND_NOT_EXECUTABLE


def _exit_status(outcome: Outcome, state: State) -> ExitStatus:
    ended = outcome.exit
    killed = outcome.started_at is not None and ended is None
    number = ended.signal if ended else (signal.SIGKILL if killed else None)
    return ExitStatus(
        code=ended.code if ended else None,
        signal=signal_name(number) if number else None,
        oom_killed=outcome.oom_kills > 0 or outcome.stopped_by is Reason.MEMORY,
        timed_out=state is State.TIMED_OUT,
        # What the kernel had killed already, the service only tidied up.
        stopped_by=None if outcome.oom_kills else outcome.stopped_by,
    )


def signal_name(number: int) -> str:
    """`SIGSEGV` for 11; real-time signals as `SIGRTMIN+2`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def _usage(outcome: Outcome) -> Usage:
    used, ended = outcome.usage, outcome.exit
    user, system = used.cpu_user_seconds, used.cpu_system_seconds
    total, peak = used.cpu_seconds, used.memory_peak_bytes
    if ended is not None:
        # Without a cgroup: what wait4(2) says of the command and the children that it waited for.
        user = ended.cpu_user_seconds if user is None else user
        system = ended.cpu_system_seconds if system is None else system
        total = ended.cpu_user_seconds + ended.cpu_system_seconds if total is None else total
        peak = ended.max_rss_bytes if peak is None else peak
    started = outcome.command_started
    wall = outcome.command_ended - started if started and outcome.command_ended else 0.0
    return Usage(
        cpu_seconds=total,
        cpu_user_seconds=user,
        cpu_system_seconds=system,
        cpu_throttled_seconds=used.cpu_throttled_seconds,
        memory_peak_bytes=peak,
        pids_peak=used.pids_peak,
        io_read_bytes=used.io_read_bytes,
        io_write_bytes=used.io_write_bytes,
        net_rx_bytes=outcome.received_bytes,
        net_tx_bytes=outcome.sent_bytes,
        cpu_pressure_seconds=used.cpu_pressure_seconds,
        memory_pressure_seconds=used.memory_pressure_seconds,
        io_pressure_seconds=used.io_pressure_seconds,
        wall_seconds=wall,
        queue_seconds=outcome.queue_seconds,
        pull_seconds=outcome.pull_seconds,
        setup_seconds=started - outcome.claimed_at - outcome.away_seconds if started else 0.0,
        warm=outcome.warm,
    )


def _denied(outcome: Outcome) -> tuple[Denied, ...]:
    refused = outcome.usage.forks_refused
    if not refused:
        return outcome.denied
    return (*outcome.denied, Denied(kind="pids", count=refused))


def _explain(outcome: Outcome, state: State, reason: Reason) -> JobError | None:
    """One sentence with figures for every end but success."""
    if state is State.SUCCEEDED:
        return None
    if outcome.failure is not None and state is State.ERROR:
        return outcome.failure
    message = _sentence(outcome, reason, outcome.limits)
    at_fault = _COMPONENTS.get(reason, Component.ISOLATION) if state is State.ERROR else None
    return JobError(
        component=at_fault, code=reason, message=message, remediation=_REMEDIES.get(reason)
    )


def _sentence(outcome: Outcome, reason: Reason, limits: Limits) -> str:  # noqa: C901 (a table)
    size = outcome.output_bytes
    kept = f"{format_bytes(size)} of output" if size else "no output"
    used = outcome.usage
    cpu = f"{used.cpu_seconds:.2f} s of CPU time used" if used.cpu_seconds is not None else ""
    match reason:
        case Reason.EXITED:
            status = outcome.exit.code if outcome.exit else "?"
            return _join(f"the command exited with status {status}", _refused_forks(outcome))
        case Reason.SIGNALLED:
            number = outcome.exit.signal if outcome.exit and outcome.exit.signal else 0
            ended = f"the command was ended by {signal_name(number)} (signal {number})"
            return _join(ended, _refused_forks(outcome))
        case Reason.WALL_SECONDS:
            return _join(f"still running after {limits.wall_seconds:g} s of wall time", cpu, kept)
        case Reason.CPU_SECONDS:
            return _join(f"used up its {limits.cpu_seconds:g} s of CPU time", cpu, kept)
        case Reason.IDLE_SECONDS:
            return _join(f"wrote nothing for {limits.idle_seconds:g} s", cpu, kept)
        case Reason.MEMORY:
            peak = used.memory_peak_bytes
            asked = f"reached {format_bytes(peak)} of " if peak is not None else "used up "
            count = "process" if outcome.oom_kills == 1 else "processes"
            killed = f"the kernel killed {outcome.oom_kills} {count}" if outcome.oom_kills else ""
            return _join(f"{asked}{format_bytes(limits.memory_bytes)} of memory", killed, kept)
        case Reason.OUTPUT_BYTES:
            most = format_bytes(limits.output_bytes)
            return f"wrote more than {most} of output; the first {most} are kept"
        case Reason.NETWORK_BYTES:
            most = format_bytes(limits.network_bytes)
            return _join(f"wanted to move more than {most} over the network", _moved(outcome), kept)
        case Reason.COMMAND_NOT_FOUND | Reason.COMMAND_NOT_EXECUTABLE | Reason.WORKDIR_UNUSABLE:
            return _unusable_sentence(outcome)
        case Reason.FILE_UNUSABLE:
            return _not_made_sentence(outcome)
        case Reason.CANCELLED_BY_CLIENT | Reason.CLIENT_GONE | Reason.SANDBOX_ENDED:
            return _join(outcome.stop_message or "cancelled", cpu, kept)
        case Reason.LOG_FAILED:
            return _join(outcome.stop_message or "its output could not be kept", kept)
        case Reason.SHUTDOWN:
            return _join("the service was shut down while it ran", kept)
        case Reason.SANDBOX_FAILED:
            return "the sandbox ended without telling how the command ended"
        case _:
            return str(reason).replace("_", " ")


def _unusable_sentence(outcome: Outcome) -> str:
    unusable = outcome.unusable
    assert unusable is not None  # noqa: S101 (for the type checker: the reasons say so)
    why = errno.errorcode.get(unusable.errno, str(unusable.errno))
    if unusable.what == "workdir":
        return f"chdir {outcome.workdir or 'to the working directory'}: {why}"
    return f"exec {outcome.command[0][:200]}: {why}"


def _not_made_sentence(outcome: Outcome) -> str:
    not_made = outcome.not_made
    assert not_made is not None  # noqa: S101 (for the type checker: the reasons say so)
    sentence = f"the file {not_made.path[:200]} cannot be made: {os.strerror(not_made.errno)}"
    if not_made.errno != errno.ENOSPC:
        return sentence
    return f"{sentence}; limits.disk is {format_bytes(outcome.limits.disk_bytes)}"


def _refused_forks(outcome: Outcome) -> str:
    refused, most = outcome.usage.forks_refused, outcome.limits.pids
    if not refused:
        return ""
    return f"more than {most} processes were refused {refused} time{'' if refused == 1 else 's'}"


def _moved(outcome: Outcome) -> str:
    received, sent = outcome.received_bytes, outcome.sent_bytes
    if received is None or sent is None:
        return ""
    return f"{format_bytes(received)} were received, {format_bytes(sent)} sent"


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


_REASONS_OF_FAILURES: dict[Component | None, Reason] = {
    Component.IMAGE: Reason.IMAGE_FAILED,
    Component.STORAGE: Reason.FILES_FAILED,
}
_COMPONENTS = {Reason.LOG_FAILED: Component.STORAGE, Reason.SHUTDOWN: Component.QUEUE}
_REMEDIES: dict[Reason, str] = {
    Reason.WALL_SECONDS: "ask for more limits.wall_seconds",
    Reason.CPU_SECONDS: "ask for more limits.cpu_seconds",
    Reason.IDLE_SECONDS: "ask for more limits.idle_seconds, or write something now and then",
    Reason.MEMORY: "ask for more limits.memory",
    Reason.OUTPUT_BYTES: "ask for more limits.output_bytes, or write less",
    Reason.NETWORK_BYTES: "ask for more limits.network_bytes",
    Reason.COMMAND_NOT_FOUND: "give a program that is in the image, by path or by a name in PATH",
}
