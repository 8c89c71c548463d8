"""The host is never promised twice: jobs wait until what they need is free, in turn, and say what they wait for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import httpx2
import psutil
import pytest
from running_service import RunningService, running_service
from sandbox_client import service_of_two_tenants
from waiting import wait_for

from sandboxd.client import Client

pytestmark = pytest.mark.usefixtures("prepared_host")

MEMORY_BYTES = 2**30


@contextmanager
def service_with_a_gigabyte(**settings: Any) -> Iterator[RunningService]:
    """Eight slots, of which four have room for the usual limits on memory."""
    ratio = (MEMORY_BYTES + 2**20) / psutil.virtual_memory().total
    chosen = {"scheduler_memory_ratio": f"{ratio:.9f}", "scheduler_slots": 8} | settings
    with running_service(flags=("--no-auth",), **chosen) as service:
        yield service


@pytest.fixture
def small_host() -> Iterator[RunningService]:
    with service_with_a_gigabyte() as service:
        yield service


def submit(client: Client, command: list[str], **limits: Any) -> str:
    return client.submit(command, limits=limits).id


def waiting(http: httpx2.Client, job_id: str) -> Any:
    return http.get(f"/v1/jobs/{job_id}").json().get("waiting")


def until_running(http: httpx2.Client, *job_ids: str) -> None:
    for job_id in job_ids:
        wait_for(
            lambda job_id=job_id: http.get(f"/v1/jobs/{job_id}").json()["state"] == "running",
            "it runs",
        )


def test_a_job_waits_for_memory_and_says_so(small_host: RunningService) -> None:
    with small_host.client() as client, small_host.http() as http:
        running = [submit(client, ["sleep", "600"]) for _ in range(4)]
        until_running(http, *running)
        capacity = client.system()["capacity"]
        fifth, sixth = submit(client, ["true"]), submit(client, ["true"])
        wait_for(lambda: waiting(http, fifth)["for"] == "memory", "it waits for memory")
        seen, behind = waiting(http, fifth), waiting(http, sixth)
        client.cancel(running[0], grace_seconds=0)
        ended = [client.wait(job_id) for job_id in (fifth, sixth)]
        for job_id in running:
            client.cancel(job_id, grace_seconds=0)

    assert capacity["memory_bytes_in_use"] == MEMORY_BYTES
    assert (seen["position"], behind["position"]) == (0, 1)
    # At the latest when the running ones have used up their time.
    latest = datetime.fromisoformat(seen["expected_start_at"]).timestamp()
    assert 0 < latest - time.time() < 61
    assert [job.state for job in ended] == ["succeeded"] * 2


def test_a_job_waits_for_cpus_and_says_so() -> None:
    with (
        service_with_a_gigabyte(scheduler_cpu_ratio="1.0") as service,
        service.client() as client,
        service.http() as http,
    ):
        cpus = psutil.cpu_count()
        whole = submit(client, ["sleep", "600"], cpus=cpus)
        until_running(http, whole)
        second = submit(client, ["true"], cpus=0.5)
        wait_for(lambda: waiting(http, second)["for"] == "cpus", "it waits for CPUs")
        client.cancel(whole, grace_seconds=0)
        assert client.wait(second).state == "succeeded"


def test_a_large_job_is_not_overtaken_for_ever(small_host: RunningService) -> None:
    with small_host.client() as client, small_host.http() as http:
        small = [submit(client, ["sleep", "600"]) for _ in range(4)]
        until_running(http, *small)
        large = submit(client, ["true"], memory=str(MEMORY_BYTES))
        wait_for(lambda: waiting(http, large)["for"] == "memory", "it waits")
        # Each could start as soon as one of the first four ends, and would hold the large one up.
        later = [submit(client, ["true"]) for _ in range(12)]
        # This one is over before the large one can start in any case.
        quick = submit(client, ["true"], wall_seconds=10, memory="8Mi")
        for job_id in small:
            client.cancel(job_id, grace_seconds=0)
        jobs = {job_id: client.wait(job_id) for job_id in (large, quick, *later)}

    assert {job.state for job in jobs.values()} == {"succeeded"}
    started = {job_id: job.started_at for job_id, job in jobs.items()}
    assert all(started[large] < started[job_id] for job_id in later)


def test_tenants_take_turns_whoever_came_first(prepared_host: None) -> None:
    with (
        service_of_two_tenants("--slots", "1") as (service, keys),
        service.client(keys[0]) as first,
        service.client(keys[1]) as second,
    ):
        many = [submit(first, ["sleep", "0.05"]) for _ in range(20)]
        one = second.wait(submit(second, ["true"]))
        ended = [first.wait(job_id) for job_id in many]

    before = [job for job in ended if job.started_at < one.started_at]
    assert len(before) < 15


def test_jobs_wait_while_the_host_itself_has_too_little_memory(prepared_host: None) -> None:
    with (
        running_service(scheduler_min_free_memory_bytes="100Ti") as service,
        service.client() as client,
        service.http() as http,
    ):
        job = submit(client, ["true"])
        wait_for(lambda: waiting(http, job)["for"] == "free_memory", "it waits for free memory")
        client.cancel(job)


def test_no_job_is_taken_while_the_disk_is_too_full(prepared_host: None) -> None:
    with running_service(scheduler_min_free_disk_bytes="100Ti") as service, service.http() as http:
        answer = http.post("/v1/jobs", json={"image": "host", "command": ["true"]})
        jobs = http.get("/v1/jobs").json()["data"]

    assert (answer.status_code, answer.json()["code"]) == (503, "disk_low")
    assert int(answer.headers["retry-after"]) > 0
    assert jobs == []


def test_a_sandbox_has_its_room_until_it_ends(small_host: RunningService) -> None:
    with small_host.client() as client, small_host.http() as http:
        body = {"image": "host", "limits": {"memory": "768Mi"}}
        sandbox = http.post("/v1/sandboxes", json=body).json()["id"]
        running = submit(client, ["sleep", "600"])
        until_running(http, running)
        waits = submit(client, ["true"])
        wait_for(lambda: waiting(http, waits)["for"] == "memory", "it waits for memory")

        larger = http.patch(f"/v1/sandboxes/{sandbox}", json={"limits": {"memory": "1Gi"}})
        smaller = http.patch(f"/v1/sandboxes/{sandbox}", json={"limits": {"memory": "512Mi"}})
        freed = client.wait(waits)
        in_use = client.system()["capacity"]["memory_bytes_in_use"]
        http.delete(f"/v1/sandboxes/{sandbox}")
        client.cancel(running, grace_seconds=0)
        wait_for(
            lambda: client.system()["capacity"]["memory_bytes_in_use"] == 0, "all is given back"
        )

    assert (larger.status_code, larger.json()["code"]) == (503, "no_room")
    assert smaller.status_code == 200
    assert freed.state == "succeeded"
    assert in_use == 3 * 2**28
