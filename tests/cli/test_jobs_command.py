"""`sandboxd jobs`, `system` and `images list` on a service."""

import json
import re
from pathlib import Path

import pytest
from api_service import Service
from command_line import Outcome, sandboxd, sandboxd_on_terminal

from sandboxd.client import Client, Job


def jobs(service: Service, *words: str) -> Outcome:
    return sandboxd("jobs", *words, SANDBOXD_URL=service.url)


@pytest.fixture(scope="module")
def job(service: Service) -> Job:
    with Client(service.url) as client:
        return client.run(["sh", "-c", "echo out; echo err >&2; exit 3"], labels={"test": "jobs"})


def test_jobs_are_listed_in_stable_columns(service: Service, job: Job) -> None:
    ended = jobs(service, "list", "--label", "test=jobs")

    head, line = ended.output.splitlines()
    assert head.split("\t") == ["job", "state", "created", "took", "image", "command"]
    assert line.split("\t")[:2] == [job.id, "failed"]


def test_jobs_are_listed_as_json(service: Service, job: Job) -> None:
    (listed,) = json.loads(jobs(service, "list", "--label", "test=jobs", "--json").output)

    assert listed["id"] == job.id
    assert listed["exit"]["code"] == 3


def test_no_job_is_said_beside_the_output(service: Service) -> None:
    ended = jobs(service, "list", "--state", "out_of_memory")

    assert ended == (0, "", "no jobs\n")


def test_a_limit_and_all(service: Service, job: Job) -> None:
    with Client(service.url) as client:
        for _ in range(2):
            client.run(["true"], labels={"test": "many"})

    assert len(jobs(service, "list", "--limit", "2").output.splitlines()) == 3
    assert len(jobs(service, "list", "--all").output.splitlines()) >= 4


def test_a_terminal_shows_the_whole_id_and_the_state_in_colour(service: Service, job: Job) -> None:
    shown = sandboxd_on_terminal("jobs", "list", "--label", "test=jobs", SANDBOXD_URL=service.url)

    assert job.id in shown.output
    assert "\x1b[31mfailed" in shown.output


def test_a_terminal_of_80_columns_shows_each_job_on_one_line(service: Service) -> None:
    with Client(service.url) as client:
        job = client.run(["echo", "word " * 40, "the end"], labels={"test": "narrow"})

    shown = sandboxd_on_terminal(
        "jobs", "list", "--label", "test=narrow", columns=80, NO_COLOR="1", SANDBOXD_URL=service.url
    )

    (line,) = [line for line in shown.output.splitlines() if line.startswith("job_")]
    name, state, created, took, _ = line.split(maxsplit=4)
    assert (name, state) == (job.id, "succeeded")
    assert re.fullmatch(r"\d\d:\d\d:\d\dZ|\d{4}-\d\d-\d\d", created)
    assert float(took) >= 0
    assert line.rstrip().endswith("…")
    assert len(line.rstrip()) <= 80


def test_one_job_is_shown(service: Service, job: Job) -> None:
    lines = jobs(service, "show", job.id).output.splitlines()

    assert f"id\t{job.id}" in lines
    assert "state\tfailed" in lines
    assert "exit code\t3" in lines
    assert "label test\tjobs" in lines
    assert json.loads(jobs(service, "show", job.id, "--json").output)["id"] == job.id


def test_logs_go_to_the_streams_that_they_came_from(service: Service, job: Job) -> None:
    assert jobs(service, "logs", job.id) == (0, "out\n", "err\n")
    assert jobs(service, "logs", "--stream", "stderr", "-f", job.id) == (0, "", "err\n")


def test_logs_are_told_as_json_lines(service: Service, job: Job) -> None:
    lines = jobs(service, "logs", "--json", job.id).output.splitlines()

    assert sorted(json.loads(line)["data"] for line in lines) == ["err\n", "out\n"]


def test_logs_are_followed_to_the_end(service: Service, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Client(service.url) as client:
        script = f"echo a; while [ ! -e {gate} ]; do sleep 0.01; done; echo b"
        running = client.submit(["sh", "-c", script])
    gate.touch()

    assert jobs(service, "logs", "-f", running.id).output == "a\nb\n"


def test_a_job_is_cancelled_and_waited_for(service: Service) -> None:
    with Client(service.url) as client:
        running = client.submit(["sleep", "60"])

    ended = jobs(service, "cancel", running.id, "--grace-seconds", "0", "--reason", "enough")

    assert ended.output == f"{running.id}\tcancelled\n"


def test_events_are_shown_in_order(service: Service, job: Job) -> None:
    lines = jobs(service, "events", job.id).output.splitlines()

    assert lines[0].split("\t")[:3] == ["time", "state", "reason"]
    assert [line.split("\t")[1] for line in lines[1:]][-1] == "failed"


def test_a_record_is_deleted(service: Service) -> None:
    with Client(service.url) as client:
        ended_job = client.run(["true"])

    assert jobs(service, "delete", ended_job.id).output == f"{ended_job.id}\tdeleted\n"
    gone = jobs(service, "show", ended_job.id)
    assert gone.code == 1
    assert gone.errors.startswith("sandboxd: ")
    assert gone.errors.count("\n") == 1


def test_what_a_command_is_called_has_no_power_over_the_terminal(service: Service) -> None:
    with Client(service.url) as client:
        client.run(["sh", "-c", "true \x1b[2J\n\t"], labels={"test": "escape"})

    (_, line) = jobs(service, "list", "--label", "test=escape").output.splitlines()
    assert line.endswith("sh -c true \\x1b[2J\\n\\t")


def test_the_service_and_its_images_are_shown(service: Service) -> None:
    system = sandboxd("system", "--url", service.url)
    images = sandboxd("images", "list", "--url", service.url)

    assert "version\ttest" in system.output
    assert images.output.splitlines()[1].startswith("host\t")


def test_a_key_is_asked_for_where_one_is_needed(tmp_path: Path) -> None:
    with Service(auth=True).running(tmp_path) as guarded:
        refused = sandboxd("jobs", "list", "--url", guarded.url)
        key = guarded.make_key()
        accepted = sandboxd("jobs", "list", "--url", guarded.url, SANDBOXD_KEY=key)
        made = sandboxd("keys", "create", "ci", "--url", guarded.url, SANDBOXD_KEY=key)

    assert refused.code == 1
    assert "SANDBOXD_KEY" in refused.errors
    assert accepted.code == 0
    assert made.output.startswith("sbx_")
