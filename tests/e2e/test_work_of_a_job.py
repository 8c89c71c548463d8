"""What one small job makes the machine do: system calls, processes, page faults, waits for the disk. Counted, not timed: how fast the
machine is, and what else it does, changes nothing that is counted here but what the least of some rounds leaves out.

Each bound is a little above what there was when it was written down. Who finds a job doing more than that has made each job slower.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from counted_calls import calls_of, traced, work
from running_service import BLANKS, RunningService, running_service
from waiting import wait_for

JOBS = 25
"""In one round. The first ones have sandboxes that stood before it; as many more are made in it as were used."""
ROUNDS = 3
PARKED = 4
WARM_UP = 30
JOB = {"image": "host", "command": ["/bin/true"]}
NEW_PROCESSES = {"clone", "clone3", "fork", "vfork"}

SLOW_SECONDS = 0.04
"""A job that takes longer may be looked at while it runs, and is written down as running after some more."""

CALLS_OF_THE_SERVICE = 275
CALLS_OF_A_LOOK = 45
CALLS_OF_THE_SANDBOX = 430
PROCESSES = 2
SYNCS = 2.5
FAULTS_OF_THE_SERVICE = 10
FAULTS_OF_THE_LAUNCHER = 250
FAULTS_OF_A_PARKED_INIT = 650
FAULTS_OF_INIT_FOR_A_COMMAND = 32
"""Each was 235, 400, 2, 2, 2, 222, 608 and 20 with cgroup v1, where there is more to do for a sandbox than with v2."""


class Round(NamedTuple):
    """What one job took, on average over a round: calls by name."""

    service: dict[str, float]
    sandbox: dict[str, float]
    """Of the launcher, of inits and of commands."""
    new_processes: tuple[float, float]
    """Of the service and of the sandbox."""
    slow: float
    """The share of jobs that took so long that what they use was looked at, and that they run was written down, while they ran."""


@pytest.fixture(scope="module")
def service(prepared_host: None) -> Iterator[RunningService]:
    with running_service(flags=("--no-auth", "--slots", "2")) as service:
        run_jobs(service, WARM_UP)
        yield service


@pytest.fixture(scope="module")
def rounds(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> list[Round]:
    directory = tmp_path_factory.mktemp("calls")
    return [counted_round(service, directory / str(number)) for number in range(ROUNDS)]


def run_jobs(service: RunningService, count: int) -> float:
    """One after the other; returns when as many sandboxes are parked as before. The share of those that were slow."""
    slow = 0
    with service.http() as http:
        for _ in range(count):
            answer = http.post("/v1/jobs", json=JOB, headers={"Prefer": "wait=60"})
            job = answer.json()
            assert job["state"] == "succeeded", answer.text
            slow += job["usage"]["setup_seconds"] + job["usage"]["wall_seconds"] > SLOW_SECONDS
    wait_for(lambda: len(service.inits()) == PARKED + BLANKS, "all sandboxes are parked")
    return slow / count


def counted_round(service: RunningService, path: Path) -> Round:
    ours, theirs = path.with_suffix(".service"), path.with_suffix(".sandbox")
    with traced(service.process.pid, ours), traced(service.launcher().pid, theirs):
        slow = run_jobs(service, JOBS)
    both = calls_of(ours), calls_of(theirs)
    new = [sum(calls[name].done for name in NEW_PROCESSES) / JOBS for calls in both]
    service, sandbox = ({name: calls.all / JOBS for name, calls in each.items()} for each in both)
    return Round(service, sandbox, (new[0], new[1]), slow)


def test_the_service_makes_so_many_system_calls_for_a_job(rounds: list[Round]) -> None:
    above = [
        work(each.service) - CALLS_OF_THE_SERVICE - CALLS_OF_A_LOOK * each.slow for each in rounds
    ]

    assert min(above) <= 0, rounds


def test_a_sandbox_and_its_command_make_so_many_system_calls(rounds: list[Round]) -> None:
    least = min((each.sandbox for each in rounds), key=work)

    assert work(least) <= CALLS_OF_THE_SANDBOX, least


def test_a_job_is_two_processes_init_and_the_command(rounds: list[Round]) -> None:
    of_service, of_sandbox = zip(*(each.new_processes for each in rounds), strict=True)

    assert min(of_service) == 0, of_service
    assert 1 < min(of_sandbox) <= PROCESSES, of_sandbox


def test_a_job_waits_for_the_disk_twice_at_most(rounds: list[Round]) -> None:
    """Slowed down by strace, no job is over before the patience with its acceptance is; `test_commits` counts those that are not."""
    syncs = [each.service.get("fdatasync", 0) + each.service.get("fsync", 0) for each in rounds]

    assert min(syncs) >= 1, rounds
    assert min(sync - each.slow for sync, each in zip(syncs, rounds, strict=True)) <= SYNCS, rounds


def test_a_job_touches_so_many_pages(service: RunningService) -> None:
    ours, launchers = [], []
    for _ in range(ROUNDS):
        before = faults(service.process.pid), faults(service.launcher().pid)
        run_jobs(service, JOBS)
        ours.append((faults(service.process.pid) - before[0]) / JOBS)
        launchers.append((faults(service.launcher().pid) - before[1]) / JOBS)

    assert min(ours) <= FAULTS_OF_THE_SERVICE, ours
    assert min(launchers) <= FAULTS_OF_THE_LAUNCHER, launchers


def test_a_sandbox_touches_so_many_pages_until_it_is_parked_and_for_a_command(
    service: RunningService,
) -> None:
    """Of a command that is still there: what its init touched since it was parked."""
    # A sandbox that stands a while rehearses, and has touched what it will then.
    parked = [faults(init.pid) for init in service.inits()]
    before = {init.pid: faults(init.pid) for init in service.inits()}
    with service.http() as http, running(http):
        wait_for(lambda: service.processes_of_jobs(), "the command runs")
        (busy,) = {each.ppid() for each in service.processes_of_jobs()}
        touched = faults(busy) - before[busy]

    assert max(parked) <= FAULTS_OF_A_PARKED_INIT
    assert touched <= FAULTS_OF_INIT_FOR_A_COMMAND


@contextlib.contextmanager
def running(http: httpx2.Client) -> Iterator[None]:
    """A job that does nothing, until the block ends."""
    job = http.post("/v1/jobs", json=JOB | {"command": ["sleep", "60"]}).json()
    try:
        yield
    finally:
        http.post(f"/v1/jobs/{job['id']}/cancel", json={"grace_seconds": 0})
        http.get(f"/v1/jobs/{job['id']}?wait=30")


def faults(pid: int) -> int:
    """Minor page faults of a process so far: proc(5), the tenth field of stat."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[7])
