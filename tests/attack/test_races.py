"""Ends that race, crashes at any point, clocks that jump: each job has one end, it is true, and nothing is left of it.

ATTACK_ROUNDS says how many times a race is run; `make attack` runs many more than `make test-thorough`.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import psutil
import pytest
from running_service import RunningService, data_directory, running_service

from sandboxd.client import Client, Job
from sandboxd.jobs import TERMINAL

pytestmark = pytest.mark.thorough

ROUNDS = int(os.environ.get("ATTACK_ROUNDS", "200"))
AT_ONCE = 4
DEADLINE_SECONDS = 0.3


def assert_one_true_end(client: Client, job: Job) -> None:
    """What the record says of the end fits together, is there once, and stays."""
    assert job.state in TERMINAL
    ends = [event.state for event in client.events(job.id) if event.state in TERMINAL]
    assert ends == [job.state]
    assert client.get(job.id) == job
    if job.state == "succeeded":
        assert job.exit is not None
        assert (job.exit.code, job.exit.signal, job.exit.stopped_by) == (0, None, None)
        assert not job.exit.timed_out
        assert job.text == "done\n"
    elif job.state in ("timed_out", "cancelled") and job.exit is not None:
        assert job.exit.stopped_by == job.reason
        assert job.exit.timed_out == (job.state == "timed_out")


@pytest.mark.attack(55)
@pytest.mark.timeout(60 + ROUNDS // 4)
def test_a_command_that_ends_just_at_its_deadline_has_one_end(client: Client) -> None:
    """The time that a command takes is tuned while they run, so that about half of them are late."""
    lock_step = [DEADLINE_SECONDS * 0.7]

    def one(_: int) -> Job:
        script = f"import time; time.sleep({lock_step[0]:.5f}); print('done')"
        command = ["python3", "-I", "-S", "-c", script]
        job = client.run(command, limits={"wall_seconds": DEADLINE_SECONDS})
        late = job.state == "timed_out"
        lock_step[0] = max(0.0, lock_step[0] + (-0.003 if late else 0.003))
        return job

    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = list(pool.map(one, range(ROUNDS)))

    for job in jobs:
        assert_one_true_end(client, job)
    counted = Counter(job.state for job in jobs)
    assert counted.keys() <= {"succeeded", "timed_out"}, counted
    assert min(counted["succeeded"], counted["timed_out"]) > ROUNDS // 10, counted


@pytest.mark.attack(55)
@pytest.mark.timeout(60 + ROUNDS // 4)
def test_a_cancellation_that_comes_at_any_moment_makes_one_end(client: Client) -> None:
    chance = random.Random(55)
    moments = [chance.uniform(0, 0.03) * chance.choice([1, 1, 10]) for _ in range(ROUNDS // 2)]

    def one(moment: float) -> Job:
        job = client.submit(["sh", "-c", "echo done"])
        Event().wait(moment)
        told = client.cancel(job.id, grace_seconds=chance.choice([0, 0.01]))
        again = client.cancel(job.id, grace_seconds=0)
        ended = client.wait(job.id)
        for answer in (told, again):
            assert answer.state not in TERMINAL or answer.state == ended.state
        return ended

    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = list(pool.map(one, moments))

    for job in jobs:
        assert_one_true_end(client, job)
    counted = Counter(job.state for job in jobs)
    assert counted.keys() <= {"succeeded", "cancelled"}, counted
    assert min(counted["succeeded"], counted["cancelled"]) > 0, counted


# Crashes

POINTS = max(6, min(30, ROUNDS // 30))


@pytest.fixture
def own_service(prepared_host: None) -> Iterator[RunningService]:
    with running_service(flags=("--no-auth", "--slots", "2")) as service:
        yield service


@pytest.mark.attack(57)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["launcher", "init"])
def test_sigkill_at_any_moment_of_a_job_ends_that_job_and_leaves_nothing(
    own_service: RunningService, victim: str
) -> None:
    chance = random.Random(57)
    with own_service.client() as client:
        for point in range(POINTS):
            job = client.submit(["sh", "-c", "echo done; sleep 0.02"])
            Event().wait(chance.uniform(0, 0.06))  # the moment, not a wait for anything
            for process in (
                [own_service.launcher()] if victim == "launcher" else own_service.inits()
            ):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    pass
            ended = client.wait(job.id)
            following = client.run(["echo", "done"])

            assert ended.state in ("succeeded", "error"), (point, ended.error)
            assert following.state in ("succeeded", "error")
        assert client.run(["echo", "done"]).text == "done\n"
        own_service.assert_nothing_left(client)


@pytest.mark.attack(57)
@pytest.mark.timeout(400)
def test_sigkill_of_the_service_at_any_moment_of_a_job_leaves_nothing(prepared_host: None) -> None:
    chance = random.Random(157)
    with data_directory() as data_dir:
        service = RunningService(data_dir, flags=("--no-auth", "--slots", "2"))
        accepted: list[str] = []
        for _ in range(max(3, POINTS // 2)):
            service.start()
            with service.client() as client:
                accepted += [
                    client.submit(["sh", "-c", "echo done; sleep 0.02"]).id for _ in range(3)
                ]
            Event().wait(chance.uniform(0, 0.08))
            service.kill()
            mounts = Path("/proc/self/mountinfo").read_text()
            assert str(data_dir) not in mounts
        service.start()
        with service.client() as client:
            ended = [client.wait(job_id) for job_id in accepted]
            for job in ended:
                terminal = [each.state for each in client.events(job.id) if each.state in TERMINAL]
                assert terminal == [job.state]
            service.assert_nothing_left(client)
        service.stop()

    assert {job.state for job in ended} <= {"succeeded", "error"}


# Clocks

JUMPING_CLOCK = """
import os, time
_real, _real_ns = time.time, time.time_ns
def _offset():
    try:
        with open(os.environ["CLOCK_OFFSET"]) as file:
            return float(file.read() or 0)
    except (KeyError, OSError):
        return 0.0
time.time = lambda: _real() + _offset()
time.time_ns = lambda: _real_ns() + int(_offset() * 10**9)
"""


@pytest.mark.attack(56)
@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0], ids=["a day back", "a day ahead"])
def test_jobs_that_wait_and_run_hear_nothing_of_a_clock_that_jumps(
    prepared_host: None, tmp_path: Path, jump: float
) -> None:
    """The service's clock for times of day is moved while jobs run and wait; what runs inside has the machine's own."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    tmp_path.chmod(0o755)
    source = str(Path(__file__).parents[2])
    prefix = ("env", f"PYTHONPATH={tmp_path}:{source}", f"CLOCK_OFFSET={offset}")
    with (
        running_service(flags=("--no-auth", "--slots", "1"), prefix=prefix) as service,
        service.client() as client,
    ):
        command = ["sh", "-c", "echo started; sleep 600"]
        running = client.submit(command, limits={"wall_seconds": 1.5})
        next(client.logs(running.id, follow=True))
        waiting = client.submit(["echo", "done"])
        offset.write_text(str(jump))
        later = client.submit(["echo", "done"])
        ended = [client.wait(job.id, timeout_seconds=30) for job in (running, waiting, later)]
        service.assert_nothing_left(client)

    assert [job.state for job in ended] == ["timed_out", "succeeded", "succeeded"]
    for job in ended:
        assert job.usage is not None
        assert 0 <= job.usage.wall_seconds < 10
    assert ended[0].usage is not None
    assert ended[0].usage.wall_seconds >= 1.5
