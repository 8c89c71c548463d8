"""What came of each attempt, judged from what came back and nothing else. Fails closed: no answer is not a wall."""

import enum
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sandboxd.attack.catalogue import BY_NAME, Probe
from sandboxd.errors import SandboxdError
from sandboxd.jobs import Reason, State


class Outcome(enum.StrEnum):
    STOPPED = "stopped"
    NOT_STOPPED = "not_stopped"
    NOT_TRIED = "not_tried"
    """There was nothing to try it with or on, and the reason is told."""
    NO_ANSWER = "no_answer"
    """It was to be tried, and nothing is known of how it ended."""


PASSING = frozenset({Outcome.STOPPED, Outcome.NOT_TRIED})
_WORST_FIRST = (Outcome.NOT_STOPPED, Outcome.NO_ANSWER, Outcome.STOPPED, Outcome.NOT_TRIED)


class AttackImpossible(SandboxdError):
    """Nothing can be tried this way; the message says what is missing."""


class Ended(NamedTuple):
    """How a job ended."""

    state: State
    reason: Reason
    seconds: float
    """From the command's start until the record was closed: its output is complete by then."""
    output: str
    message: str = ""
    """Of the record's error, where there is one."""


class Refusal(NamedTuple):
    """A request that was not accepted."""

    detail: str


Answer = Ended | Refusal


class Finding(NamedTuple):
    """What came of one attempt."""

    name: str
    outcome: Outcome
    seen: str

    @property
    def probe(self) -> Probe:
        return BY_NAME[self.name]


def reported(answer: Answer, names: Iterable[str]) -> list[Finding]:
    """What the program inside said of each attempt. Of those that it said nothing of, nothing is known."""
    ended = require_ended(answer)
    said = _reports(ended.output)
    return [_finding(name, said.get(name), ended) for name in names]


def ended_as(
    answer: Answer,
    name: str,
    wanted: Mapping[State, Reason],
    *,
    within_seconds: float | None = None,
) -> Finding:
    """Stopped if the record tells one of these ends, for this reason, and soon enough."""
    ended = require_ended(answer)
    seen = f"{ended.state} ({ended.reason}) after {ended.seconds:.1f} s"
    if ended.state is State.ERROR:
        return Finding(name, Outcome.NO_ANSWER, f"{seen}: {ended.message}")
    in_time = within_seconds is None or ended.seconds < within_seconds
    as_wanted = wanted.get(ended.state) is ended.reason
    return Finding(name, Outcome.STOPPED if as_wanted and in_time else Outcome.NOT_STOPPED, seen)


def refused(answers: Mapping[str, Answer], name: str) -> Finding:
    """Stopped if each of these requests was refused."""
    accepted = [wish for wish, answer in answers.items() if not isinstance(answer, Refusal)]
    if accepted:
        return Finding(name, Outcome.NOT_STOPPED, "accepted: " + ", ".join(accepted))
    return Finding(name, Outcome.STOPPED, f"{len(answers)} requests refused")


def require_ended(answer: Answer) -> Ended:
    """Raises AttackImpossible for a job that was not accepted, or that has no Python to run."""
    if isinstance(answer, Refusal):
        raise AttackImpossible(f"the job that tries this was refused: {answer.detail}")
    if answer.reason in (Reason.COMMAND_NOT_FOUND, Reason.COMMAND_NOT_EXECUTABLE):
        raise AttackImpossible(
            "the image has no python3, which the attempts are written in: name another by --image"
        )
    return answer


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for each attempt, in the order of the rows: of several the worst."""
    by_name: dict[str, Finding] = {}
    for finding in findings:
        other = by_name.get(finding.name)
        if other is None or _rank(finding) < _rank(other):
            by_name[finding.name] = finding
    return [by_name[name] for name in BY_NAME if name in by_name]


def passed(findings: Iterable[Finding]) -> bool:
    """Whether everything that could be tried was stopped, and something was."""
    outcomes = {finding.outcome for finding in findings}
    return Outcome.STOPPED in outcomes and outcomes <= PASSING


def by_row(findings: Iterable[Finding]) -> dict[int, Outcome]:
    """The worst outcome of each row's attempts."""
    rows: dict[int, Outcome] = {}
    for finding in findings:
        row = finding.probe.row
        rows[row] = min(rows.get(row, finding.outcome), finding.outcome, key=_WORST_FIRST.index)
    return rows


def counts(outcomes: Iterable[Outcome]) -> dict[Outcome, int]:
    """How many there are of each."""
    found = dict.fromkeys(Outcome, 0)
    for outcome in outcomes:
        found[outcome] += 1
    return found


def _rank(finding: Finding) -> int:
    return _WORST_FIRST.index(finding.outcome)


def _reports(output: str) -> dict[str, dict[str, Any]]:
    said = {}
    for line in output.splitlines():
        try:
            report = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(report, dict) and isinstance(report.get("name"), str):
            said[report["name"]] = report
    return said


def _finding(name: str, report: Mapping[str, Any] | None, ended: Ended) -> Finding:
    if report is None:
        seen = f"the job ended as {ended.state} ({ended.reason}) before. {ended.message}".strip()
        return Finding(name, Outcome.NO_ANSWER, seen)
    seen = str(report.get("seen", ""))
    try:
        outcome = Outcome(report.get("verdict", ""))
    except ValueError:
        return Finding(name, Outcome.NO_ANSWER, f"an unknown verdict: {report.get('verdict')!r}")
    if outcome is Outcome.NOT_TRIED and seen.startswith("broke: "):
        return Finding(name, Outcome.NO_ANSWER, seen)
    return Finding(name, outcome, seen)
