"""Exit codes of `sandboxd run` are those that a shell user expects."""

import pytest

from sandboxd.cli.endings import Ending, exit_code_of, sentence_of
from sandboxd.jobs import Component, ExitStatus, JobError, Reason, State


def ending(
    state: State,
    reason: Reason = Reason.EXITED,
    *,
    code: int | None = None,
    signal: str | None = None,
    error: JobError | None = None,
) -> Ending:
    return Ending(state, reason, ExitStatus(code=code, signal=signal), error)


@pytest.mark.parametrize(
    ("ended", "exit_code"),
    [
        (ending(State.SUCCEEDED, code=0), 0),
        (ending(State.FAILED, code=1), 1),
        (ending(State.FAILED, code=255), 255),
        (ending(State.FAILED, Reason.SIGNALLED, signal="SIGSEGV"), 139),
        (ending(State.FAILED, Reason.SIGNALLED, signal="SIGKILL"), 137),
        (ending(State.FAILED, Reason.SIGNALLED, signal="SIGRTMIN+3"), 137),
        (ending(State.FAILED, Reason.COMMAND_NOT_FOUND), 127),
        (ending(State.FAILED, Reason.COMMAND_NOT_EXECUTABLE), 126),
        (ending(State.FAILED, Reason.WORKDIR_UNUSABLE), 125),
        (ending(State.TIMED_OUT, Reason.WALL_SECONDS, signal="SIGKILL"), 124),
        (ending(State.TIMED_OUT, Reason.CPU_SECONDS, signal="SIGKILL"), 124),
        (ending(State.OUT_OF_MEMORY, Reason.MEMORY, signal="SIGKILL"), 137),
        (ending(State.OUTPUT_LIMIT, Reason.OUTPUT_BYTES, signal="SIGKILL"), 137),
        (ending(State.CANCELLED, Reason.CANCELLED_BY_CLIENT, signal="SIGTERM"), 143),
        (ending(State.EXPIRED, Reason.QUEUE_SECONDS), 125),
        (ending(State.ERROR, Reason.SANDBOX_FAILED), 125),
        (ending(State.RUNNING, Reason.STARTED), 125),
    ],
)
def test_each_ending_has_its_exit_code(ended: Ending, exit_code: int) -> None:
    assert exit_code_of(ended) == exit_code


def test_every_state_has_an_exit_code() -> None:
    for state in State:
        assert 0 <= exit_code_of(ending(state, Reason.INTERNAL, code=0)) <= 255


@pytest.mark.parametrize(("number", "exit_code"), [(2, 130), (15, 143), (1, 129)])
def test_a_job_that_we_cancelled_on_a_signal_ends_as_that_signal(
    number: int, exit_code: int
) -> None:
    ended = ending(State.CANCELLED, Reason.CANCELLED_BY_CLIENT, code=0)

    assert exit_code_of(ended, interrupted_by=number) == exit_code


def test_a_limit_is_explained_in_a_sentence_with_its_remedy() -> None:
    error = JobError(component=None, code="memory", message="over 1 MB", remediation="ask for more")

    sentence = sentence_of(ending(State.OUT_OF_MEMORY, Reason.MEMORY, error=error))

    assert sentence == "over 1 MB (ask for more)"


def test_a_command_that_exits_by_itself_has_said_enough() -> None:
    error = JobError(component=Component.API, code="exited", message="exit code 1")

    assert sentence_of(ending(State.FAILED, code=1, error=error)) is None
