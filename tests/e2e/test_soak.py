"""Many jobs: none lost, none doubled, and the service is as it was before."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from running_service import RunningService, running_service

from sandboxd.client import Client, Job

IN_A_ROW = 1000
AT_ONCE, MANY = 50, 500
WARM_UP = 200
MORE_MEMORY_BYTES = 16 * 2**20
"""The interpreter's and SQLite's own ups and downs; a leak of one page a job would be a third of this."""
MORE_DESCRIPTORS = 8
"""Connections that the client's pool keeps and readers of the database that were not open yet."""


class Footprint(NamedTuple):
    memory_bytes: int
    descriptors: int
    launcher_descriptors: int
    cgroups: int


def footprint(service: RunningService) -> Footprint:
    pid, launcher = service.process.pid, service.launcher()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Footprint(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir(f"/proc/{pid}/fd")),
        launcher.num_fds(),
        len(service.job_cgroups()),
    )


def run(client: Client, number: int) -> Job:
    return client.run(["echo", str(number)], labels={"soak": str(number)})


@pytest.mark.thorough
@pytest.mark.timeout(240)
def test_1000_jobs_in_a_row_and_500_by_50_at_once_leave_the_service_as_it_was(
    prepared_host: None,
) -> None:
    with running_service() as service:
        with service.client() as client, ThreadPoolExecutor(AT_ONCE) as pool:
            # First what is reached once and kept: connections, threads, caches.
            list(pool.map(lambda number: run(client, -number), range(1, WARM_UP + 1)))
            service.assert_nothing_left(client)
            before = footprint(service)

            ended = [run(client, number) for number in range(IN_A_ROW)]
            ended += pool.map(lambda number: run(client, number), range(IN_A_ROW, IN_A_ROW + MANY))

            service.assert_nothing_left(client)
            after = footprint(service)
            on_record = list(client.list_all(limit=200))
        with service.http() as http:
            metrics = http.get("/metrics").text

    numbers = range(IN_A_ROW + MANY)
    assert {job.state for job in ended} == {"succeeded"}
    assert [job.text for job in ended] == [f"{number}\n" for number in numbers]
    assert {job.attempt for job in on_record} == {1}
    recorded = [int(job.labels["soak"]) for job in on_record]
    assert sorted(recorded) == list(range(-WARM_UP, 0)) + list(numbers)
    assert len({job.id for job in on_record}) == len(on_record)
    assert "\nsandboxd_queue_conservation_drift 0.0\n" in metrics
    assert after.cgroups == before.cgroups, (before, after)
    assert after.descriptors - before.descriptors <= MORE_DESCRIPTORS, (before, after)
    assert after.launcher_descriptors == before.launcher_descriptors, (before, after)
    assert after.memory_bytes - before.memory_bytes <= MORE_MEMORY_BYTES, (before, after)
