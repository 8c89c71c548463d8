"""How `sandboxd attack` judges what came back: nothing is called stopped that was not seen to be."""

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.attack import plan, program, verdict
from sandboxd.attack.catalogue import BY_NAME, PROBES, ROWS
from sandboxd.attack.conduct import conduct
from sandboxd.attack.verdict import AttackImpossible, Ended, Finding, Outcome, Refusal
from sandboxd.jobs import Reason, State

TREE = Path(__file__).parents[2]
ordinary_user = pytest.mark.skipif(os.geteuid() == 0, reason="what it tries is not for root")


def ended(
    output: str = "", state: State = State.SUCCEEDED, reason: Reason = Reason.EXITED
) -> Ended:
    return Ended(state, reason, 0.5, output)


def line(name: str, outcome: str, seen: str = "EPERM") -> str:
    return json.dumps({"name": name, "verdict": outcome, "seen": seen}) + "\n"


def test_what_the_program_said_is_what_is_reported() -> None:
    said = line("bpf", "stopped") + line("perf", "not_stopped", "done") + line("ids", "not_tried")

    findings = verdict.reported(ended(said), ["bpf", "perf", "ids"])

    assert [f.outcome for f in findings] == [
        Outcome.STOPPED,
        Outcome.NOT_STOPPED,
        Outcome.NOT_TRIED,
    ]
    assert findings[1].seen == "done"


@pytest.mark.parametrize(
    "output",
    [
        "",
        "not json\n",
        '"stopped"\n',
        '{"name": "bpf"}\n',
        line("bpf", "fine"),
        line("perf", "stopped"),
        line("bpf", "not_tried", "broke: TypeError: x"),
        line("bpf", "stopped")[:-4],
    ],
)
def test_without_a_whole_report_nothing_is_called_stopped(output: str) -> None:
    (finding,) = verdict.reported(ended(output), ["bpf"])

    assert finding.outcome is Outcome.NO_ANSWER
    assert not verdict.passed([finding])


def test_a_job_that_ends_otherwise_than_the_limit_demands_was_not_stopped() -> None:
    wanted = {State.OUT_OF_MEMORY: Reason.MEMORY}
    oom = ended(state=State.OUT_OF_MEMORY, reason=Reason.MEMORY)

    assert verdict.ended_as(oom, "memory", wanted).outcome is Outcome.STOPPED
    for state, reason in (
        (State.SUCCEEDED, Reason.EXITED),
        (State.FAILED, Reason.EXITED),
        (State.TIMED_OUT, Reason.WALL_SECONDS),
    ):
        other = ended(state=state, reason=reason)
        assert verdict.ended_as(other, "memory", wanted).outcome is Outcome.NOT_STOPPED


def test_an_end_that_comes_late_was_not_stopped() -> None:
    late = ended()._replace(seconds=20.0)

    finding = verdict.ended_as(
        late, "left-processes", {State.SUCCEEDED: Reason.EXITED}, within_seconds=8
    )

    assert finding.outcome is Outcome.NOT_STOPPED


def test_a_failure_of_the_service_is_no_answer() -> None:
    failed = ended(state=State.ERROR, reason=Reason.SANDBOX_FAILED)

    finding = verdict.ended_as(failed, "memory", {State.OUT_OF_MEMORY: Reason.MEMORY})

    assert finding.outcome is Outcome.NO_ANSWER


def test_one_accepted_request_is_enough() -> None:
    answers = {"a": Refusal("no"), "b": ended(), "c": Refusal("no")}

    finding = verdict.refused(answers, "wishes")

    assert (finding.outcome, finding.seen) == (Outcome.NOT_STOPPED, "accepted: b")


def test_an_image_without_python_is_told() -> None:
    with pytest.raises(AttackImpossible, match="no python3"):
        verdict.reported(ended(state=State.FAILED, reason=Reason.COMMAND_NOT_FOUND), ["bpf"])


def test_of_two_findings_the_worst_counts_and_rows_are_in_order() -> None:
    findings = [
        Finding("perf", Outcome.STOPPED, ""),
        Finding("groups", Outcome.STOPPED, ""),
        Finding("perf", Outcome.NOT_STOPPED, "as root"),
        Finding("groups", Outcome.NOT_TRIED, ""),
    ]

    merged = verdict.merged(findings)

    assert [(f.name, f.outcome) for f in merged] == [
        ("groups", Outcome.STOPPED),
        ("perf", Outcome.NOT_STOPPED),
    ]


@pytest.mark.parametrize(
    ("outcomes", "passed"),
    [
        ([], False),
        ([Outcome.STOPPED], True),
        ([Outcome.STOPPED, Outcome.NOT_TRIED], True),
        ([Outcome.NOT_TRIED], False),
        ([Outcome.STOPPED, Outcome.NOT_STOPPED], False),
        ([Outcome.STOPPED, Outcome.NO_ANSWER], False),
    ],
)
def test_it_passes_only_if_something_was_stopped_and_nothing_was_not(
    outcomes: list[Outcome], passed: bool
) -> None:
    findings = [Finding("bpf", outcome, "") for outcome in outcomes]

    assert verdict.passed(findings) is passed


def test_the_plan_makes_every_attempt_of_the_catalogue_and_no_other() -> None:
    planned = {name for task in plan.make_plan("host") for name in task.names}

    assert planned == set(BY_NAME)
    assert len(BY_NAME) == len(PROBES)


def test_every_row_is_one_of_the_documented_attacks() -> None:
    documented = set(
        map(int, re.findall(r"^\| (\d+) \|", (TREE / "docs/attacks.md").read_text(), re.MULTILINE))
    )

    assert set(ROWS) <= documented
    assert len(ROWS) >= 30


@pytest.mark.parametrize("module", ["program", "burden"])
def test_what_runs_inside_is_python_that_old_images_understand(module: str) -> None:
    ast.parse(plan.text_of(module), feature_version=(3, 8))


def test_rows_choose_the_tasks_that_they_need() -> None:
    async def carry(request: plan.Request) -> verdict.Answer:
        raise AssertionError(f"there is nothing to do, and yet: {request}")

    tasks = plan.make_plan("host", [46])

    assert [task.title for task in tasks] == ["output"]
    assert asyncio.run(conduct([], carry)) == []


def test_what_cannot_be_carried_out_ends_everything_with_its_reason() -> None:
    async def carry(request: plan.Request) -> verdict.Answer:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(conduct(plan.make_plan("host"), carry))


@ordinary_user
def test_outside_a_sandbox_the_same_program_says_what_is_not_stopped() -> None:
    """An ordinary process may do all this: a program that called it stopped would be worth nothing."""
    ran = subprocess.run(
        [sys.executable, "-I", "-", "look"],
        input=plan.text_of("program"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    findings = {f.name: f for f in verdict.reported(ended(ran.stdout), program.LOOK)}
    assert {f.outcome for f in findings.values()} >= {Outcome.STOPPED, Outcome.NOT_STOPPED}
    assert Outcome.NO_ANSWER not in {f.outcome for f in findings.values()}
    for name in (
        "file-handles",
        "filter",
        "host-mounts",
        "masked-paths",
        "mounts",
        "namespace-limit",
        "namespaces",
        "no-new-privileges",
        "processes",
        "set-id",
        "terminal-injection",
    ):
        assert findings[name].outcome is Outcome.NOT_STOPPED, findings[name]


@ordinary_user
def test_outside_a_sandbox_limits_do_not_stop_the_same_program(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-I", "-", "limits"],
        input=plan.text_of("program"),
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    findings = verdict.reported(ended(ran.stdout), program.LIMITS)
    assert {f.outcome for f in findings} == {Outcome.NOT_STOPPED}
    assert list(tmp_path.iterdir()) == []
