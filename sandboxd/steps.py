"""A job of several steps: commands that run one after the other in one sandbox, each once or for many inputs.

A step with `cases` runs once for each of them. A case may say what the command should print and how that is compared.
"""

import enum

import msgspec


class Comparison(enum.StrEnum):
    """How what a command printed is compared with what was expected."""

    EXACT = "exact"
    """Byte for byte."""
    TRIMMED = "trimmed"
    """Line by line, without white space at the ends of lines and without empty lines at the end."""
    TOKENS = "tokens"
    """Word by word, whatever white space is between them."""
    FLOATS = "floats"
    """As tokens, but two numbers may differ by the tolerance, absolutely or relatively."""
    PROGRAM = "program"
    """By a program of the user's, in a sandbox of its own."""


class StopPolicy(enum.StrEnum):
    """When the cases of a step are no longer gone on with."""

    FIRST_FAILURE = "first_failure"
    NEVER = "never"


class Checker(msgspec.Struct, frozen=True, kw_only=True):
    """How a case is judged."""

    comparison: Comparison = Comparison.TRIMMED
    tolerance: float = 1e-6
    """For floats."""
    command: tuple[str, ...] = ()
    """For a program: it gets the paths of three files, input, output and expected. 0: accepted; 1: wrong answer."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a step."""

    name: str | None = None
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    """Appended to the step's command."""
    env: dict[str, str] = {}
    expected: bytes | None = None
    """What the command should print; None: nothing is compared."""
    checker: Checker = Checker()


class StepLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a step's command may use; None: what the job has left."""

    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    output_bytes: int | None = None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A command of a job, run once or for each case."""

    name: str | None = None
    command: tuple[str, ...]
    stdin: bytes = b""
    env: dict[str, str] = {}
    workdir: str | None = None
    limits: StepLimits = StepLimits()
    continue_on_failure: bool = False
    cases: tuple[Case, ...] = ()
    stop: StopPolicy = StopPolicy.FIRST_FAILURE
