"""Where there are no subordinate ids: the same walls but one, and the record says so."""

from collections.abc import Iterator

import httpx2
import pytest
from running_service import RunningService, running_service

from sandboxd.client import Client


@pytest.fixture(scope="module")
def single(prepared_host: None) -> Iterator[RunningService]:
    with running_service(isolation_id_map="single", isolation_parked_sandboxes=1) as service:
        yield service


@pytest.fixture
def single_client(single: RunningService) -> Iterator[Client]:
    with single.client() as connected:
        yield connected
        single.assert_nothing_left(connected)


def test_a_job_runs_and_its_record_says_how(single_client: Client) -> None:
    job = single_client.run(["sh", "-c", "id -u; grep -E 'CapEff|Seccomp:' /proc/self/status"])

    assert job.state == "succeeded", job.error
    assert job.text.split() == ["1000", "CapEff:", "0000000000000000", "Seccomp:", "2"]
    assert job.enforcement["walls"]["id_map"] == "single"
    assert single_client.system()["isolation"]["id_map"] == "single"


@pytest.mark.parametrize("user", ["0", "1000", "65534"])
def test_a_job_can_still_be_any_one_user(single_client: Client, user: str) -> None:
    script = "id -u; touch f && stat -c %u f; touch /usr/x"

    job = single_client.run(["sh", "-c", script], user=user)

    assert job.text.split() == [user, user]
    assert b"Read-only file system" in job.stderr or b"Permission denied" in job.stderr


def test_limits_hold_all_the_same(single_client: Client) -> None:
    hog = ["python3", "-c", "b'x' * 2**30"]

    assert single_client.run(hog, limits={"memory": "32Mi"}).state == "out_of_memory"
    assert single_client.run(["sleep", "600"], limits={"wall_seconds": 0.2}).state == "timed_out"


def test_a_job_cannot_signal_or_see_the_service_whose_id_it_has(
    single: RunningService, single_client: Client
) -> None:
    script = "kill -s KILL -1; cat /proc/1/environ; ls /proc"

    job = single_client.run(["bash", "-c", script])

    assert str(single.process.pid) not in job.text.split()
    assert single.process.poll() is None


def test_a_job_that_demands_more_is_refused(single: RunningService) -> None:
    request = {"image": "host", "command": ["true"], "require": {"id_map": "range"}}

    answer = httpx2.post(f"{single.url}/v1/jobs", json=request)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/require/id_map"]
