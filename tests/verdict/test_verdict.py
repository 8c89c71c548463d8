"""From what happened to what the record says: each ending has its state, its reason and a sentence with figures."""

import math
import signal
from typing import Any

import msgspec
import pytest

from sandboxd.isolation.spec import Exit
from sandboxd.jobs import Component, JobError, JobSpec, Reason, State
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.usage import CgroupUsage
from sandboxd.running.verdict import Outcome, result_of, signal_name

LIMITS = Limits(
    cpus=1.0,
    memory_bytes=256 * 2**20,
    pids=64,
    disk_bytes=2**26,
    wall_seconds=10.0,
    cpu_seconds=2.0,
    output_bytes=16_000_000,
    network_bytes=1_000_000,
    open_files=1024,
)
SPEC = JobSpec(image="host", command=("program",), limits=LIMITS)


def ended(code: int | None = None, signal: int | None = None, cpu: float = 0.5) -> Exit:
    return Exit(
        at=7.5,
        code=code,
        signal=signal,
        cpu_user_seconds=cpu,
        cpu_system_seconds=0.0,
        max_rss_bytes=2**20,
        alone=True,
    )


def outcome(**facts: Any) -> Outcome:
    plain: dict[str, Any] = {
        "limits": SPEC.limits,
        "command": SPEC.command,
        "workdir": SPEC.workdir,
        "claimed_at": 4.0,
        "started_at": 101.0,
        "command_started": 5.0,
    }
    return Outcome(**{**plain, "command_ended": 7.5, **facts})


@pytest.mark.parametrize(
    ("facts", "state", "reason", "sentence"),
    [
        ({"exit": ended(0)}, "succeeded", "exited", None),
        ({"exit": ended(1)}, "failed", "exited", "exited with status 1"),
        ({"exit": ended(signal=11)}, "failed", "signalled", "SIGSEGV (signal 11)"),
        ({"stopped_by": Reason.WALL_SECONDS}, "timed_out", "wall_seconds", "10 s of wall time"),
        ({"stopped_by": Reason.CPU_SECONDS}, "timed_out", "cpu_seconds", "2 s of CPU time"),
        ({"stopped_by": Reason.IDLE_SECONDS}, "timed_out", "idle_seconds", "nothing for 86400 s"),
        ({"stopped_by": Reason.OUTPUT_BYTES}, "output_limit", "output_bytes", "more than 16 MB"),
        (
            {
                "stopped_by": Reason.NETWORK_BYTES,
                "received_bytes": 900_000,
                "sent_bytes": 100_000,
            },
            "network_limit",
            "network_bytes",
            "more than 1 MB over the network; 900 kB were received, 100 kB sent",
        ),
        ({"stopped_by": Reason.CANCELLED_BY_CLIENT}, "cancelled", "cancelled_by_client", "cancel"),
        ({"stopped_by": Reason.CLIENT_GONE}, "cancelled", "client_gone", "cancel"),
        ({"stopped_by": Reason.SHUTDOWN}, "error", "shutdown", "shut down"),
        ({"stopped_by": Reason.LOG_FAILED}, "error", "log_failed", "output"),
        ({"oom_kills": 1}, "out_of_memory", "memory", "268.4 MB of memory; the kernel killed 1"),
        ({"exit": ended(0), "oom_kills": 2}, "out_of_memory", "memory", "killed 2 processes"),
        ({}, "error", "sandbox_failed", "without telling"),
    ],
)
def test_each_ending_has_its_state_reason_and_sentence(
    facts: dict[str, Any], state: str, reason: str, sentence: str | None
) -> None:
    result = result_of(outcome(**facts))

    assert (result.state, result.reason) == (state, reason)
    assert (result.error is None) == (sentence is None)
    if result.error is not None and sentence is not None:
        assert sentence in result.error.message


def test_who_stopped_it_comes_before_how_it_died() -> None:
    result = result_of(outcome(stopped_by=Reason.WALL_SECONDS, exit=ended(signal=9), oom_kills=1))

    assert result.reason is Reason.WALL_SECONDS
    assert result.exit.timed_out
    assert result.exit.oom_killed


def test_a_job_that_was_seen_to_have_too_much_memory_is_out_of_memory() -> None:
    result = result_of(outcome(exit=ended(signal=signal.SIGKILL), stopped_by=Reason.MEMORY))

    assert (result.state, result.reason) == (State.OUT_OF_MEMORY, Reason.MEMORY)
    assert result.exit.oom_killed
    assert result.error is not None
    assert "the kernel" not in result.error.message


@pytest.mark.parametrize(
    ("reason", "component"),
    [
        (Reason.SHUTDOWN, Component.QUEUE),
        (Reason.LOG_FAILED, Component.STORAGE),
    ],
)
def test_the_platforms_fault_names_its_component(reason: Reason, component: Component) -> None:
    error = result_of(outcome(stopped_by=reason)).error

    assert error is not None
    assert error.component is component


def test_a_programs_own_end_is_no_components_fault() -> None:
    error = result_of(outcome(exit=ended(3))).error

    assert error is not None
    assert error.component is None


def test_a_failure_of_ours_is_told_as_it_is() -> None:
    failure = JobError(
        component=Component.ISOLATION, code="sandbox_failed", message="pivot_root: EPERM"
    )

    result = result_of(outcome(failure=failure, started_at=None, command_started=None))

    assert (result.state, result.reason) == (State.ERROR, Reason.SANDBOX_FAILED)
    assert result.error == failure
    assert result.started_at is None


def test_the_cgroups_figures_come_before_those_of_wait4() -> None:
    usage = CgroupUsage(
        cpu_seconds=1.5, cpu_user_seconds=1.0, cpu_system_seconds=0.5, memory_peak_bytes=10
    )

    with_cgroup = result_of(outcome(exit=ended(0), usage=usage)).usage
    without = result_of(outcome(exit=ended(0))).usage

    assert (with_cgroup.cpu_seconds, with_cgroup.memory_peak_bytes) == (1.5, 10)
    assert (without.cpu_seconds, without.memory_peak_bytes) == (0.5, 2**20)


def test_times_are_from_the_command_and_not_from_us() -> None:
    usage = result_of(outcome(exit=ended(0), queue_seconds=0.25)).usage

    assert math.isclose(usage.wall_seconds, 2.5)
    assert math.isclose(usage.setup_seconds, 1.0)
    assert usage.queue_seconds == 0.25


def test_real_time_signals_have_names_too() -> None:
    assert signal_name(signal.SIGRTMIN + 3) == "SIGRTMIN+3"
    assert signal_name(11) == "SIGSEGV"


NEVER_STOPS = {
    Reason.SUBMITTED,
    Reason.CLAIMED,
    Reason.IMAGE_PULL_STARTED,
    Reason.IMAGE_PULLED,
    Reason.STARTED,
    Reason.RETRY,
    Reason.EXITED,
    Reason.SIGNALLED,
    Reason.COMMAND_NOT_FOUND,
    Reason.COMMAND_NOT_EXECUTABLE,
    Reason.WORKDIR_UNUSABLE,
    Reason.WRONG_ANSWER,
    Reason.CHECKER_FAILED,
    Reason.FILE_UNUSABLE,
    Reason.QUEUE_SECONDS,
    Reason.SANDBOX_FAILED,
    Reason.IMAGE_FAILED,
    Reason.FILES_FAILED,
}


@pytest.mark.parametrize("reason", sorted(set(Reason) - NEVER_STOPS))
def test_every_reason_to_stop_a_job_has_a_state_and_a_sentence(reason: Reason) -> None:
    result = result_of(outcome(stopped_by=reason))

    assert result.reason is reason
    assert result.error is not None
    assert msgspec.json.encode(result)


@pytest.mark.parametrize("reason", sorted(NEVER_STOPS))
def test_a_reason_that_stops_nothing_is_a_bug_of_ours(reason: Reason) -> None:
    with pytest.raises(ValueError, match=reason):
        result_of(outcome(stopped_by=reason))
