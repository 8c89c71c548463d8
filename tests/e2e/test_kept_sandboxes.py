"""The sandbox of a job that failed, kept for its owner to look into."""

from typing import Any

import httpx2
import pytest
from running_service import RunningService
from waiting import TIME_FACTOR, wait_for

from sandboxd.client import Client, InvalidRequest, Job

FAILING = "echo evidence > /work/left; sleep 1000 & exit 3"


def look(http: httpx2.Client, job: Job, *command: str) -> Any:
    path = f"/v1/sandboxes/{job.kept_sandbox}"
    assert http.post(f"{path}/resume").status_code == 200
    return http.post(f"{path}/exec", json={"command": list(command)}).json()


def test_what_a_failed_job_left_can_be_looked_at(
    client: Client, real_service: RunningService
) -> None:
    job = client.run(["sh", "-c", FAILING], keep_on_failure_seconds=60, labels={"of": "me"})

    assert (job.state, job.exit_code) == ("failed", 3)
    with real_service.http() as http:
        path = f"/v1/sandboxes/{job.kept_sandbox}"
        view = http.get(path).json()
        assert (view["state"], view["reason"], view["labels"]) == (
            "paused",
            "job_failed",
            {"of": "me"},
        )
        assert view["message"] == f"{job.id}: exited"
        assert look(http, job, "cat", "/work/left")["stdout"] == "evidence\n"
        left = "cat /proc/[0-9]*/comm | grep -c sleep"
        assert look(http, job, "sh", "-c", left)["stdout"] == "0\n"
        http.delete(path)


@pytest.mark.parametrize(
    ("command", "limits", "state"),
    [
        ("echo x > /work/left; sleep 100", {"wall_seconds": 3 * TIME_FACTOR}, "timed_out"),
        ("echo x > /work/left; yes", {"output_bytes": 1000}, "output_limit"),
    ],
)
def test_a_job_that_met_a_limit_is_kept_too(
    client: Client, real_service: RunningService, command: str, limits: Any, state: str
) -> None:
    job = client.run(["sh", "-c", command], limits=limits, keep_on_failure_seconds=60)

    assert job.state == state
    with real_service.http() as http:
        assert look(http, job, "cat", "/work/left")["stdout"] == "x\n"
        http.delete(f"/v1/sandboxes/{job.kept_sandbox}")


def test_the_sandbox_of_failed_steps_is_kept(client: Client, real_service: RunningService) -> None:
    steps = [{"command": ["sh", "-c", "echo made > made"]}, {"command": ["false"]}]
    job = client.run(steps=steps, keep_on_failure_seconds=60)

    with real_service.http() as http:
        assert look(http, job, "cat", "/work/made")["stdout"] == "made\n"
        http.delete(f"/v1/sandboxes/{job.kept_sandbox}")


def test_nothing_is_kept_of_a_job_that_went_well_or_was_cancelled(client: Client) -> None:
    well = client.run(["true"], keep_on_failure_seconds=60)
    assert (well.state, well.kept_sandbox) == ("succeeded", None)

    running = client.submit(["sleep", "100"], keep_on_failure_seconds=60)
    client.cancel(running.id, grace_seconds=0)
    assert client.wait(running.id).kept_sandbox is None


def test_it_is_gone_when_its_time_is_over(client: Client, real_service: RunningService) -> None:
    job = client.run(["false"], keep_on_failure_seconds=0.5)

    with real_service.http() as http:
        path = f"/v1/sandboxes/{job.kept_sandbox}"
        wait_for(lambda: http.get(path).json()["state"] == "ended", "its end")
        assert http.get(path).json()["reason"] in ("ttl_seconds", "idle_seconds")


@pytest.mark.parametrize("seconds", [0, -1, 1e9])
def test_for_how_long_is_bounded(client: Client, seconds: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.submit(["true"], keep_on_failure_seconds=seconds)

    (fault,) = caught.value.problem.errors
    assert fault.pointer == "/keep_on_failure_seconds"
