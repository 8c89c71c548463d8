"""Jobs of several steps, each run once or for many inputs, in one sandbox."""

import json
import shutil
from typing import Any

import pytest
from running_service import RunningService
from waiting import TIME_FACTOR

from sandboxd.client import Client, InvalidRequest, Job

DOUBLE = "import sys; print(2 * int(sys.stdin.read()))"
C_SOURCE = (
    '#include <stdio.h>\nint main(void) { long n; scanf("%ld", &n); printf("%ld\\n", 2 * n); }\n'
)


def shell(script: str, **more: Any) -> dict[str, Any]:
    return {"command": ["sh", "-c", script], **more}


def doubling(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"command": ["python3", "-c", DOUBLE], "inputs": list(inputs), **more}


def verdicts(job: Job, step: int = 0) -> list[str | None]:
    return [str(run.verdict) if run.verdict else run.state for run in job.steps[step].inputs]


def message(job: Job) -> str:
    assert job.error is not None
    return job.error.message


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc in image host")
def test_compile_once_and_run_many_inputs(client: Client) -> None:
    """What online judges do, in one request."""
    job = client.run(
        steps=[
            shell("cat > a.c && gcc -O1 -o a a.c", name="compile", stdin=C_SOURCE),
            {
                "name": "run",
                "command": ["./a"],
                "inputs": [{"stdin": str(n), "expected": f"{2 * n}\n"} for n in range(20)],
            },
        ],
        limits={"memory": "256Mi"},
    )

    assert (job.state, job.error) == ("succeeded", None)
    assert [step.name for step in job.steps] == ["compile", "run"]
    assert verdicts(job, 1) == ["accepted"] * 20
    assert job.steps[1].accepted == 20


def test_each_step_has_its_own_end_usage_and_output(client: Client) -> None:
    job = client.run(
        steps=[
            shell("echo one; echo err >&2; exit 0"),
            shell("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo two"),
            shell("read word; echo $word $FIRST $SECOND; pwd", stdin="three", env={"SECOND": "2"}),
        ],
        env={"FIRST": "1"},
        workdir="/work/here",
    )

    assert job.state == "succeeded", job.error
    assert [step.text for step in job.steps] == ["one\n", "two\n", "three 1 2\n/work/here\n"]
    assert job.steps[0].stderr == b"err\n"
    cpu = [step.usage.cpu_seconds for step in job.steps if step.usage]
    assert cpu[1] > 5 * cpu[0]
    assert job.stdout == b"one\ntwo\nthree 1 2\n/work/here\n"
    assert job.usage is not None
    assert job.usage.cpu_seconds >= sum(cpu) * 0.9


def test_memory_is_counted_for_each_run(client: Client) -> None:
    grow = "x = b'x' * (100 << 20)"
    job = client.run(steps=[{"command": ["python3", "-c", grow]}, shell("true")])

    peaks = [step.usage.memory_peak_bytes for step in job.steps if step.usage]
    assert peaks[0] > 100 << 20
    assert peaks[1] < 50 << 20
    assert job.usage is not None
    assert job.usage.memory_peak_bytes is not None
    # On v2 the job's is of a cgroup of its own, above the run's.
    if job.enforcement["limits"]["memory"] == "cgroup1":
        assert job.usage.memory_peak_bytes == peaks[0]
    assert 100 << 20 < job.usage.memory_peak_bytes < 150 << 20


def test_the_first_failure_ends_the_job_and_is_its_end(client: Client) -> None:
    job = client.run(steps=[shell("true"), shell("exit 7", name="bad"), shell("echo never")])

    assert (job.state, job.reason, job.exit_code) == ("failed", "exited", 7)
    assert message(job) == 'step 2 "bad": the command exited with status 7'
    assert [step.state for step in job.steps] == ["succeeded", "failed", None]


def test_a_step_may_fail_where_that_was_said(client: Client) -> None:
    job = client.run(steps=[shell("exit 1", continue_on_failure=True), shell("echo on")])

    assert (job.state, job.error, job.steps[1].text) == ("succeeded", None, "on\n")


def test_a_wrong_answer_fails_the_job_and_shows_the_difference(client: Client) -> None:
    job = client.run(
        steps=[
            doubling(
                {"stdin": "1", "expected": "2"},
                {"stdin": "2", "expected": "5", "name": "wrong"},
                {"stdin": "3", "expected": "6"},
            )
        ]
    )

    assert (job.state, job.reason) == ("failed", "wrong_answer")
    assert message(job) == "step 1, case 2 \"wrong\": line 1: expected '5', printed '4'"
    assert verdicts(job) == ["accepted", "wrong_answer", None]
    difference = job.steps[0].inputs[1].difference
    assert difference is not None
    assert (difference.line, difference.expected, difference.printed) == (1, "5", "4")


def test_all_inputs_run_where_that_was_said(client: Client) -> None:
    inputs = [
        {"stdin": "1", "expected": "2"},
        {"stdin": "x", "expected": "0"},
        {"stdin": "2", "expected": "5"},
        {"stdin": "3", "expected": "6"},
        {"stdin": "4"},
    ]
    job = client.run(steps=[doubling(*inputs, stop="never"), shell("echo never")])

    assert verdicts(job) == ["accepted", "failed", "wrong_answer", "accepted", "succeeded"]
    assert job.steps[0].accepted == 3
    assert job.steps[1].state is None
    assert message(job).startswith("step 1, case 2: the command exited with status 1")


def test_args_and_environment_of_an_input(client: Client) -> None:
    step = shell('echo "$0 $1 $WHO"', inputs=[{"args": ["a", "b"], "env": {"WHO": "me"}}])
    job = client.run(steps=[step])

    assert job.steps[0].inputs[0].text == "a b me\n"


def test_what_a_step_leaves_running_does_not_live_to_see_the_next(client: Client) -> None:
    job = client.run(
        steps=[
            shell("setsid sh -c 'sleep 1.5; echo late > /work/late' & exit 0"),
            shell("sleep 2; ls /work; cat /proc/[0-9]*/comm | grep -c sleep || true"),
        ]
    )

    assert job.steps[1].text == "0\n"


def test_a_run_over_its_time_is_stopped_and_the_next_one_goes_on(client: Client) -> None:
    spin = shell("trap '' TERM; echo began; setsid sleep 100 & while :; do :; done")
    job = client.run(
        steps=[
            {**spin, "limits": {"wall_seconds": 3 * TIME_FACTOR}, "continue_on_failure": True},
            {**spin, "limits": {"cpu_seconds": 0.2 * TIME_FACTOR}, "continue_on_failure": True},
            shell("echo on"),
        ]
    )

    assert job.state == "succeeded", job.error
    assert [step.state for step in job.steps] == ["timed_out", "timed_out", "succeeded"]
    assert [step.reason for step in job.steps] == ["wall_seconds", "cpu_seconds", "exited"]
    assert [step.text for step in job.steps] == ["began\n", "began\n", "on\n"]


def test_all_runs_share_the_job_s_wall_time(client: Client) -> None:
    """Each alone would have enough of it, all together would not."""
    sleeping = shell(f"sleep {0.4 * TIME_FACTOR}", inputs=[{}] * 10, stop="never")
    job = client.run(steps=[sleeping], limits={"wall_seconds": 2 * TIME_FACTOR})

    assert (job.state, job.reason) == ("timed_out", "wall_seconds")
    states = [run.state for run in job.steps[0].inputs]
    ended = states.index("timed_out")
    assert 1 <= ended <= 5
    assert set(states[:ended]) == {"succeeded"}


def test_all_runs_share_the_job_s_processor_time(client: Client) -> None:
    """Also where each may fail: what is used up ends the job."""
    spin = shell("while :; do :; done", continue_on_failure=True)
    job = client.run(steps=[spin, spin, shell("echo on")], limits={"cpu_seconds": 0.5})

    assert (job.state, job.reason) == ("timed_out", "cpu_seconds")
    assert [step.state for step in job.steps] == ["timed_out", None, None]


def test_a_run_that_writes_too_much_ends_alone(client: Client) -> None:
    flood = shell("yes", limits={"output_bytes": 1000}, continue_on_failure=True)
    job = client.run(steps=[flood, shell("echo on")])

    assert [step.state for step in job.steps] == ["output_limit", "succeeded"]
    assert len(job.steps[0].stdout) == 1000
    assert job.steps[1].text == "on\n"


def test_what_is_compared_is_bounded_whatever_the_job_may_write(client: Client) -> None:
    step = shell("head -c 20000000 /dev/zero", inputs=[{"expected": ""}])
    job = client.run(steps=[step], limits={"output_bytes": "64Mi"})

    assert (job.state, job.steps[0].inputs[0].state) == ("output_limit", "output_limit")
    assert len(client.read_log(job.id)) == 16 * 2**20


def test_all_runs_share_the_job_s_output(client: Client) -> None:
    step = shell("head -c 600 /dev/zero", inputs=[{}, {}, {}], stop="never")
    job = client.run(steps=[step], limits={"output_bytes": 1000})

    assert (job.state, job.reason) == ("output_limit", "output_bytes")
    assert len(job.stdout) == 1000


def test_a_run_out_of_memory_is_told_as_such(client: Client) -> None:
    hog = {"command": ["python3", "-c", "x = bytearray(1 << 30)"], "name": "hog"}
    job = client.run(steps=[shell("true"), hog, shell("true")], limits={"memory": "64Mi"})

    assert (job.state, job.reason) == ("out_of_memory", "memory")
    assert message(job).startswith('step 2 "hog": ')
    assert [step.state for step in job.steps] == ["succeeded", "out_of_memory", None]


@pytest.mark.parametrize(
    ("program", "state", "verdict"),
    [
        (
            "import sys; sys.exit(open(sys.argv[2]).read() != open(sys.argv[3]).read())",
            "succeeded",
            "accepted",
        ),
        ("print('not even'); raise SystemExit(1)", "succeeded", "wrong_answer"),
        ("raise SystemExit(3)", "failed", None),
        ("import os; os.abort()", "failed", None),
    ],
)
def test_a_program_of_the_user_s_judges(
    client: Client, program: str, state: str, verdict: str | None
) -> None:
    checker = {"comparison": "program", "command": ["python3", "-c", program]}
    case = {"stdin": "21", "expected": "42\n"}
    job = client.run(steps=[doubling(case, checker=checker)])

    run = job.steps[0].inputs[0]
    assert (run.state, run.verdict) == (state, verdict)
    if verdict == "wrong_answer":
        assert message(job) == "step 1, case 1: not even"
    if state == "failed":
        assert run.reason == "checker_failed"


def test_files_of_the_job_are_there_for_steps_and_for_the_judging_program(client: Client) -> None:
    judge = "import sys; sys.exit(0 if 'ok' in open(sys.argv[2]).read() else 1)"
    job = client.run(
        steps=[
            shell(
                "cat word",
                inputs=[{"expected": ""}],
                checker={"comparison": "program", "command": ["python3", "judge.py"]},
            )
        ],
        files={"word": "ok", "judge.py": judge},
        outputs=["word"],
    )

    assert verdicts(job) == ["accepted"], job.error


def test_a_judging_program_sees_nothing_of_the_sandbox_that_it_judges(client: Client) -> None:
    look = (
        "import os, sys; print(sorted(os.listdir('/work')), open(sys.argv[1]).read()); sys.exit(1)"
    )
    checker = {"comparison": "program", "command": ["python3", "-c", look]}
    job = client.run(
        steps=[
            shell("echo planted > /work/planted"),
            shell("cat", inputs=[{"stdin": "in", "expected": "in"}], checker=checker),
        ]
    )

    assert message(job) == "step 2, case 1: [] in"


def test_binary_input_output_and_expectation(client: Client) -> None:
    content = bytes(range(256)) * 50
    exact = {"comparison": "exact"}
    job = client.run(
        steps=[shell("cat", inputs=[{"stdin": content, "expected": content}], checker=exact)]
    )

    assert verdicts(job) == ["accepted"]


def test_runs_are_told_as_they_end(client: Client, real_service: RunningService) -> None:
    seconds = (0.1, 0.2, 5 * TIME_FACTOR)
    slow = shell("sleep $0; echo $0", inputs=[{"args": [str(each)]} for each in seconds])
    job = client.submit(steps=[slow])
    seen = []
    with real_service.http() as http:
        headers = {"Accept": "text/event-stream"}
        path = f"/v1/jobs/{job.id}/steps?follow=true"
        with http.stream("GET", path, headers=headers) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    seen.append(json.loads(line[5:]))
                if len(seen) == 2:
                    break
    now = client.get(job.id)
    client.cancel(job.id, grace_seconds=0)

    assert [(run["step"], run["input"], run["stdout"]) for run in seen] == [
        (0, 0, "0.1\n"),
        (0, 1, "0.2\n"),
    ]
    assert [run.state for run in now.steps[0].inputs] == ["succeeded", "succeeded", None]
    ended = client.wait(job.id)
    assert (ended.state, ended.steps[0].inputs[2].state) == ("cancelled", "cancelled")


def test_the_input_of_steps_is_on_the_record(client: Client, real_service: RunningService) -> None:
    """A retry has it too, though answers do not show it."""
    first = client.run(steps=[doubling({"stdin": "4", "expected": "8"})])
    with real_service.http() as http:
        again = client.wait(http.post(f"/v1/jobs/{first.id}/retry").json()["id"])

    assert verdicts(again) == ["accepted"]
    listed = client.list(limit=1).data[0]
    assert (listed.id, listed.steps) == (again.id, ())


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({"steps": [{"command": []}]}, "/steps/0/command"),
        ({"steps": [shell("true")], "command": ["true"]}, "/command"),
        ({"steps": [shell("true")], "stdin": "x"}, "/stdin"),
        ({"steps": [shell("true", env={"A=B": ""})]}, "/steps/0/env/A=B"),
        ({"steps": [shell("true", workdir="here")]}, "/steps/0/workdir"),
        ({"steps": [shell("true", limits={"wall_seconds": 1e6})]}, "/steps/0/limits/wall_seconds"),
        ({"steps": [shell("true", stdin="x", inputs=[{}])]}, "/steps/0/stdin"),
        ({"steps": [shell("true", inputs=[{"args": ["\0"]}])]}, "/steps/0/inputs/0/args/0"),
        (
            {"steps": [shell("true", inputs=[{"stdin": {"base64": "?"}}])]},
            "/steps/0/inputs/0/stdin/base64",
        ),
        ({"steps": [shell("true", checker={"comparison": "program"})]}, "/steps/0/checker/command"),
        ({"steps": [shell("true", checker={"command": ["x"]})]}, "/steps/0/checker/command"),
        (
            {"steps": [shell("true", checker={"comparison": "vague"})]},
            "/steps/0/checker/comparison",
        ),
        ({"steps": [shell("true", inputs=[{}] * 1001)]}, "/steps"),
        ({"steps": [shell("true")] * 51}, "/steps"),
        ({"steps": [shell("true", inptus=[])]}, "/steps/0/inptus"),
    ],
)
def test_each_fault_of_steps_is_told_at_its_place(
    client: Client, request_: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.submit(request_.pop("command", ()), **request_)

    assert [fault.pointer for fault in caught.value.problem.errors] == [pointer]
