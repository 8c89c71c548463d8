"""How a job's end looks to a shell: an exit code, and a sentence where the code alone would puzzle."""

import signal
from typing import NamedTuple, assert_never

from sandboxd.jobs import ExitStatus, JobError, Reason, State

TIMED_OUT = 124
"""As timeout(1)."""
OWN_FAILURE = 125
"""sandboxd failed, not the command; as env(1), timeout(1) and `docker run`."""
NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNAL_BASE = 128
"""Plus the signal's number, as shells."""


class Ending(NamedTuple):
    """What is known of a job that has ended."""

    state: State
    reason: Reason
    exit: ExitStatus | None
    error: JobError | None


def exit_code_of(ending: Ending, *, interrupted_by: int | None = None) -> int:
    """The exit code that a shell user expects. `interrupted_by` is the signal on which we cancelled the job."""
    if ending.reason is Reason.COMMAND_NOT_FOUND:
        return NOT_FOUND
    if ending.reason is Reason.COMMAND_NOT_EXECUTABLE:
        return NOT_EXECUTABLE
    match ending.state:
        case State.SUCCEEDED | State.FAILED:
            return _own_code(ending.exit)
        case State.OUT_OF_MEMORY | State.OUTPUT_LIMIT | State.NETWORK_LIMIT:
            return SIGNAL_BASE + signal.SIGKILL
        case State.TIMED_OUT:
            return TIMED_OUT
        case State.CANCELLED:
            return SIGNAL_BASE + (interrupted_by or signal.SIGTERM)
        case State.EXPIRED | State.ERROR:
            return OWN_FAILURE
        case State.QUEUED | State.RETRYING | State.STARTING | State.RUNNING:
            return OWN_FAILURE  # it has not ended, and we no longer wait
    assert_never(ending.state)


def sentence_of(ending: Ending) -> str | None:
    """What to tell the user beyond the exit code, None where the command's own words must do."""
    if ending.error is None or ending.reason is Reason.EXITED:
        return None
    sentence = ending.error.message
    if ending.error.remediation:
        sentence = f"{sentence} ({ending.error.remediation})"
    return sentence


def _own_code(status: ExitStatus | None) -> int:
    if status is None:
        return OWN_FAILURE
    if status.signal is not None:
        return SIGNAL_BASE + signal_number(status.signal)
    return OWN_FAILURE if status.code is None else status.code


def signal_number(name: str) -> int:
    """The number of `SIGSEGV`; SIGKILL's for one that this system does not name (real-time signals)."""
    try:
        return signal.Signals[name]
    except KeyError:
        return signal.SIGKILL
