"""What the tests with real jobs of each runtime share."""

import textwrap
from typing import Any, Protocol

from sandboxd.client import Job


class Run(Protocol):
    """Run a command with the runtime that is tested."""

    def __call__(self, *argv: str, **options: Any) -> Job: ...


def python(code: str) -> tuple[str, ...]:
    return ("python3", "-c", textwrap.dedent(code))


def end_of(job: Job) -> tuple[str, str, int | None, str | None]:
    assert job.exit is not None
    return job.state, job.reason, job.exit.code, job.exit.signal
