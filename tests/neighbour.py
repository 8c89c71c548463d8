"""Fixtures of tests that run jobs: after each, nothing may be left of its jobs; beside some, a neighbour works."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from running_service import RunningService
from waiting import TIME_FACTOR

from sandboxd.client import Client, Job

NEIGHBOUR_SECONDS = 20.0 * TIME_FACTOR
"""Its work takes a fraction of a second alone; on a machine that does much else it may take longer, but not this long."""
_WORK = (
    "import hashlib\nh = b''\nfor _ in range(50000): h = hashlib.sha256(h).digest()\nprint(h.hex())"
)
_RESULT = "100240991be23d08d171a1afaf7bb7b4d6522ea9388456c1b0f06f05ca12a483\n"


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test of the shared service: no process, cgroup or slot beyond the parked sandboxes'."""
    if "real_service" not in request.fixturenames:
        yield
        return
    service: RunningService = request.getfixturevalue("real_service")
    client: Client = request.getfixturevalue("client")
    yield
    service.assert_nothing_left(client)


@pytest.fixture
def neighbour(client: Client) -> Iterator[None]:
    """Another's jobs, one after the other for as long as the test goes on: each must come to its right result."""
    over = threading.Event()

    def work() -> list[Job]:
        done: list[Job] = []
        while not done or not over.is_set():
            done.append(client.run(["python3", "-c", _WORK], limits={"memory": "64Mi"}))
        return done

    with ThreadPoolExecutor(1) as pool:
        jobs = pool.submit(work)
        try:
            yield
        finally:
            over.set()
        for job in jobs.result(timeout=2 * NEIGHBOUR_SECONDS):
            assert job.state == "succeeded", job.error
            assert job.text == _RESULT
            assert job.usage is not None
            assert job.usage.wall_seconds < NEIGHBOUR_SECONDS
