"""The jobs and requests that make the attempts: few jobs, each with what it must not have more of."""

import os
from collections.abc import Callable, Collection, Sequence
from importlib import resources
from typing import Any, NamedTuple

from sandboxd.attack import program
from sandboxd.attack.catalogue import BY_NAME, ROWS
from sandboxd.attack.verdict import (
    Answer,
    Finding,
    Outcome,
    Refusal,
    ended_as,
    refused,
    reported,
    require_ended,
)
from sandboxd.jobs import Reason, State

Request = dict[str, Any]
"""The body of a `POST /v1/jobs`."""

PARTS = ("look", "limits")
"""Of `program`; what else there is, is of `burden`."""
LABELS = {"purpose": "attack"}
KEEP_SECONDS = 3600
"""How long the records stay, for whoever wants to look at one."""
WALL_SECONDS = 30
SOON_SECONDS = 15.0
"""What is left behind would stay for 30 s, should nobody end it."""


class Task(NamedTuple):
    """One step of the plan: requests that are made one after the other, and who judges what came of them."""

    title: str
    names: tuple[str, ...]
    """The attempts that it makes."""
    requests: tuple[Request, ...]
    judge: Callable[[Sequence[Answer]], list[Finding]]


def make_plan(image: str, rows: Collection[int] = (), *, runtime: str | None = None) -> list[Task]:
    """All tasks, or those that the rows need, for jobs of a runtime. What takes longest comes first."""
    tasks = [
        _ends("outstay", image, ["outstay"], {State.TIMED_OUT: Reason.WALL_SECONDS}, wall_seconds=1),
        _spin(image),
        *_looks(image),
        _reports("limits", image, tuple(program.LIMITS), ["limits"], pids=24, disk="4Mi", open_files=64),
        _ends("memory", image, ["memory"], {State.OUT_OF_MEMORY: Reason.MEMORY}, memory="48Mi"),
        _ends("shm-memory", image, ["shm"], {State.OUT_OF_MEMORY: Reason.MEMORY}, memory="32Mi"),
        _ends("output", image, ["flood"], {State.OUTPUT_LIMIT: Reason.OUTPUT_BYTES}, output_bytes="64Ki"),
        _ends("left-processes", image, ["detach"], {State.SUCCEEDED: Reason.EXITED}),
        _marks(image),
        _workdir(image),
        *_wishes(image),
    ]  # fmt: skip
    if runtime is not None:
        named = {"runtime": runtime}
        tasks = [
            task._replace(requests=tuple(request | named for request in task.requests))
            for task in tasks
        ]
    return [task for task in tasks if not rows or rows_of(task) & set(rows)]


def rows_of(task: Task) -> set[int]:
    """The rows of docs/attacks.md that a task tries something of."""
    return {BY_NAME[name].row for name in task.names}


def unknown_rows(rows: Collection[int]) -> list[int]:
    """Those of which nothing is tried here."""
    return sorted(set(rows) - set(ROWS))


def job(image: str, words: Sequence[str], **limits: float | str) -> Request:
    """A job that runs `program` or `burden`, which comes by its standard input."""
    return {
        "image": image,
        "command": ["python3", "-I", "-", *words],
        "stdin": text_of("program" if words[0] in PARTS else "burden"),
        "labels": LABELS,
        "ttl_seconds": KEEP_SECONDS,
        "limits": {"wall_seconds": WALL_SECONDS, **limits},
    }


def text_of(module: str) -> str:
    """What runs inside."""
    return (resources.files("sandboxd.attack") / f"{module}.py").read_text(encoding="utf-8")


def _looks(image: str) -> list[Task]:
    """As the image's own user, and as root inside, who must find nothing more."""
    names = tuple(program.LOOK)
    as_root = {**job(image, ["look"]), "user": "0:0"}
    return [
        Task("looking around", names, (job(image, ["look"]),), _report_judge(names)),
        Task("looking around as root", names, (as_root,), _report_judge(names)),
    ]


def _reports(
    title: str, image: str, names: tuple[str, ...], words: list[str], **limits: float | str
) -> Task:
    return Task(title, names, (job(image, words, **limits),), _report_judge(names))


def _report_judge(names: tuple[str, ...]) -> Callable[[Sequence[Answer]], list[Finding]]:
    return lambda answers: reported(answers[-1], names)


def _ends(
    name: str, image: str, words: list[str], wanted: dict[State, Reason], **limits: float | str
) -> Task:
    """A job whose end is the answer."""
    return Task(
        name,
        (name,),
        (job(image, words, **limits),),
        lambda answers: [ended_as(answers[0], name, wanted, within_seconds=SOON_SECONDS)],
    )


def _spin(image: str) -> Task:
    """Where processor time is counted by process, not by job, the process is killed and the job ends by itself."""
    name = "processor-time"

    def judge(answers: Sequence[Answer]) -> list[Finding]:
        ended = require_ended(answers[0])
        if ended.state is State.SUCCEEDED and ended.output.strip() == "it was killed":
            return [Finding(name, Outcome.STOPPED, "the process was killed")]
        if ended.reason is Reason.WALL_SECONDS:
            return [Finding(name, Outcome.NO_ANSWER, "the machine had no time for it")]
        return [ended_as(ended, name, {State.TIMED_OUT: Reason.CPU_SECONDS})]

    return Task(name, (name,), (job(image, ["spin"], cpu_seconds=0.5),), judge)


def _marks(image: str) -> Task:
    """Two jobs: what the first leaves the second must not find."""
    mark = f"mark-{os.urandom(8).hex()}"
    requests = (job(image, ["leave", mark]), job(image, ["find", mark]))

    def judge(answers: Sequence[Answer]) -> list[Finding]:
        first = require_ended(answers[0])
        if first.output.strip() != "left":
            return [Finding("marks", Outcome.NO_ANSWER, f"the first job ended as {first.state}")]
        return reported(answers[1], ("marks",))

    return Task("marks", ("marks",), requests, judge)


def _workdir(image: str) -> Task:
    request = job(image, ["look"]) | {"command": ["pwd"], "workdir": "/proc/self/fd/7"}

    def judge(answers: Sequence[Answer]) -> list[Finding]:
        answer = answers[0]
        if isinstance(answer, Refusal):
            return [refused({"workdir": answer}, "workdir")]
        wanted = {State.FAILED: Reason.WORKDIR_UNUSABLE}
        return [ended_as(answer, "workdir", wanted)]

    return Task("workdir", ("workdir",), (request,), judge)


def _wishes(image: str) -> list[Task]:
    """Requests that nobody must accept. Should one be, it runs true(1)."""
    plain = {"image": image, "command": ["true"], "labels": LABELS, "ttl_seconds": KEEP_SECONDS}
    wishes: dict[str, dict[str, Request]] = {
        "users": {word: {"user": word} for word in ("-1", "4294967296", "0x0", "1000:", "\uff11")},
        "sysctls": {"sysctls": {"sysctls": {"kernel.core_pattern": "|/bin/true"}}},
        "wishes": {
            name: {name: value}
            for name, value in {
                "privileged": True,
                "binds": ["/:/host"],
                "devices": ["/dev/kmsg"],
                "cap_add": ["ALL"],
                "pid_mode": "host",
                "security_opt": ["seccomp=unconfined"],
                "cgroup_parent": "../../",
            }.items()
        },
        "sizes": {
            "5,000 arguments": {"command": ["true", *["x"] * 5000]},
            "an argument of 200 kB": {"command": ["true", "x" * 200_000]},
        },
    }

    def task(name: str, requests: dict[str, Request]) -> Task:
        return Task(
            name,
            (name,),
            tuple(plain | request for request in requests.values()),
            lambda answers: [refused(dict(zip(requests, answers, strict=True)), name)],
        )

    return [task(name, requests) for name, requests in wishes.items()]
