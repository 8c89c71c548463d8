"""Whatever dies and whenever: no accepted job is lost, none runs twice, and no process outlives its job."""

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import psutil
import pytest
from running_service import RunningService, data_directory, running_service
from waiting import TIME_FACTOR, wait_for

from sandboxd.client import Client, Job

ENDLESS = ["sh", "-c", "echo started; exec sleep 600"]


@pytest.fixture
def own_service(prepared_host: None) -> Iterator[RunningService]:
    """A service with two slots that the test may kill."""
    flags = ("--no-auth", "--slots", "2")
    grace_seconds = int(10 * TIME_FACTOR)
    with running_service(flags=flags, server_shutdown_grace_seconds=grace_seconds) as service:
        yield service


def start(client: Client, command: list[str], **options: object) -> Job:
    """Hand in a job and wait for its first output."""
    job = client.submit(command, **options)
    next(client.logs(job.id, follow=True))
    return job


def states(client: Client, job: Job) -> list[str]:
    return [event.state for event in client.events(job.id)]


# The service


@pytest.mark.attack(57)
def test_after_a_crash_what_ran_is_lost_or_repeated_and_what_waited_runs(
    own_service: RunningService,
) -> None:
    with own_service.client() as client:
        lost = start(client, ENDLESS)
        repeated = start(
            client, ["sh", "-c", f"echo once; sleep {5 * TIME_FACTOR}"], retry={"max_attempts": 2}
        )
        waiting = [client.submit(["echo", str(number)]) for number in range(20)]
        # A job that runs longer than a second has its log on the disk.
        log_file = own_service.data_dir / "logs" / f"{lost.id}.log"
        wait_for(lambda: log_file.exists() and log_file.stat().st_size, "its output is on the disk")
        parked = own_service.inits()

        own_service.kill()
        assert not any(process.is_running() for process in parked)
        own_service.start()

        lost, repeated = client.wait(lost.id), client.wait(repeated.id)
        waiting = [client.wait(job.id) for job in waiting]
        own_service.assert_nothing_left(client)
        lost_states, repeated_states = states(client, lost), states(client, repeated)
        in_all = list(client.list_all())

    assert (lost.state, lost.reason) == ("error", "service_lost")
    assert lost.text == "started\n"
    assert lost.error is not None
    assert lost.error.component == "queue"
    assert lost_states.count("starting") == lost_states.count("error") == 1
    assert (repeated.state, repeated.attempt, repeated.text) == ("succeeded", 2, "once\n")
    assert repeated_states.count("starting") == 2
    assert repeated_states.count("retrying") == repeated_states.count("succeeded") == 1
    assert [job.text for job in waiting] == [f"{number}\n" for number in range(20)]
    assert {job.attempt for job in waiting} == {1}
    assert len(in_all) == len({job.id for job in in_all}) == 22


@pytest.mark.thorough
@pytest.mark.attack(57)
def test_crashes_at_any_moment_lose_and_double_nothing(prepared_host: None) -> None:
    """Attack 57: five crashes, each while jobs come in, run and end."""
    accepted: list[str] = []
    chance = random.Random(57)

    def submit_until_it_dies(service: RunningService) -> None:
        with httpx2.Client(base_url=service.url, timeout=30 * TIME_FACTOR) as http:
            request = {"image": "host", "command": ["sh", "-c", "echo begin; echo end"]}
            while True:
                try:
                    accepted.append(http.post("/v1/jobs", json=request).json()["id"])
                except httpx2.TransportError:
                    return

    with data_directory() as data_dir:
        service = RunningService(data_dir)
        for _ in range(5):
            service.start()
            before, wished = len(accepted), chance.randrange(1, 30)
            with ThreadPoolExecutor(3) as pool:
                for _ in range(3):
                    pool.submit(submit_until_it_dies, service)
                wait_for(lambda: len(accepted) - before >= wished, "jobs are accepted")  # noqa: B023
                service.kill()
        service.start()
        with service.client() as client:
            ended = [client.wait(job_id) for job_id in accepted]
            attempts = [states(client, job).count("starting") for job in ended]
            on_record = {job.id for job in client.list_all()}
            service.assert_nothing_left(client)
        service.stop()

    assert set(accepted) <= on_record
    assert {(job.state, job.reason) for job in ended} <= {
        ("succeeded", "exited"),
        ("error", "service_lost"),
    }
    assert {job.text for job in ended if job.state == "succeeded"} == {"begin\nend\n"}
    assert set(attempts) == {1}


def test_a_second_service_on_the_same_directory_is_refused_and_harms_nothing(
    own_service: RunningService,
) -> None:
    with own_service.client() as client:
        running = start(client, ENDLESS)

        second = own_service.command("serve", "--no-auth", "--listen", "127.0.0.1:0")

        assert second.returncode != 0
        assert "another process owns" in second.stderr
        assert "Traceback" not in second.stderr
        assert client.get(running.id).state in ("starting", "running")
        client.cancel(running.id, grace_seconds=0)
        client.wait(running.id)


# The launcher and init


@pytest.mark.attack(57)
def test_a_killed_launcher_ends_running_jobs_as_errors_and_is_replaced(
    own_service: RunningService,
) -> None:
    with own_service.client() as client:
        running = start(client, ENDLESS)
        launcher, everything = own_service.launcher(), own_service.processes()

        launcher.kill()
        ended = client.wait(running.id)
        gone, alive = psutil.wait_procs(everything, timeout=5 * TIME_FACTOR)
        following = client.run(["echo", "alive"])

        assert (ended.state, ended.reason) == ("error", "sandbox_failed")
        assert ended.error is not None
        assert ended.error.component == "isolation"
        assert ended.text == "started\n"
        assert len(gone) == len(everything)
        assert alive == []
        assert (following.state, following.text) == ("succeeded", "alive\n")
        assert own_service.launcher().pid != launcher.pid
        own_service.assert_nothing_left(client)


@pytest.mark.attack(57)
def test_jobs_that_come_while_the_launcher_dies_succeed_or_say_that_it_was_us(
    own_service: RunningService,
) -> None:
    with own_service.client() as client, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(client.run, ["echo", "alive"]) for _ in range(100)]
        for _ in range(3):
            own_service.launcher().kill()
            client.run(["true"])
        ended = [job.result() for job in jobs]
        own_service.assert_nothing_left(client)

    for job in ended:
        if job.state == "succeeded":
            assert job.text == "alive\n"
        else:
            assert job.state == "error"
            assert job.error is not None
            assert job.error.component == "isolation"


@pytest.mark.attack(57)
def test_a_killed_init_ends_its_job_as_an_error_and_no_other(own_service: RunningService) -> None:
    with own_service.client() as client:
        running = start(client, ENDLESS)
        (process,) = own_service.processes_of_jobs()
        other = start(client, ENDLESS)

        os.kill(process.ppid(), signal.SIGKILL)
        ended = client.wait(running.id)

        assert (ended.state, ended.reason) == ("error", "sandbox_failed")
        assert ended.error is not None
        assert ended.error.component == "isolation"
        assert ended.error.message == "the sandbox ended without telling how the command ended"
        assert client.get(other.id).state in ("starting", "running")
        client.cancel(other.id, grace_seconds=0)
        client.wait(other.id)
        own_service.assert_nothing_left(client)


@pytest.mark.attack(57)
def test_killed_parked_sandboxes_are_noticed_by_nobody(own_service: RunningService) -> None:
    with own_service.client() as client:
        parked = own_service.inits()
        for init in parked:
            init.kill()
        psutil.wait_procs(parked, timeout=5 * TIME_FACTOR)
        ended = [client.run(["true"]) for _ in range(5)]
        own_service.assert_nothing_left(client)

    assert {job.state for job in ended} == {"succeeded"}


# Stopping in good order


def test_sigterm_lets_running_jobs_finish_and_refuses_new_ones(own_service: RunningService) -> None:
    with own_service.client() as client, own_service.http() as http:
        script = f"echo started; sleep {6 * TIME_FACTOR}; echo finished"
        finishing = start(client, ["sh", "-c", script])
        filling = start(client, ["sh", "-c", f"echo started; sleep {TIME_FACTOR}"])
        waiting = client.submit(["echo", "later"])

        own_service.terminate()
        unready = wait_for(lambda: unreadiness(http), "it says that it is not ready")
        refused = http.post("/v1/jobs", json={"image": "host", "command": ["true"]})
        finished = client.wait(finishing.id)
        assert own_service.process.wait(20 * TIME_FACTOR) == 0
        own_service.start()
        filling, waiting = client.wait(filling.id), client.wait(waiting.id)

    assert unready["checks"] == {"launcher": True, "store": True, "accepting": False}
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) >= 1
    assert (finished.state, finished.text) == ("succeeded", "started\nfinished\n")
    assert filling.state == "succeeded"
    assert (waiting.state, waiting.text, waiting.attempt) == ("succeeded", "later\n", 1)


def unreadiness(http: httpx2.Client) -> dict[str, Any]:
    """Why the service is not ready; nothing if it is (still)."""
    answer = http.get("/readyz")
    return {} if answer.status_code == 200 else answer.json()


def test_a_second_signal_ends_at_once_and_running_jobs_are_told(prepared_host: None) -> None:
    with running_service(server_shutdown_grace_seconds=300) as service, service.client() as client:
        running = start(client, ENDLESS)
        with service.http() as http:
            service.terminate()
            wait_for(lambda: unreadiness(http), "it drains")
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(20 * TIME_FACTOR) == 0
        service.start()
        ended = client.wait(running.id)

    assert (ended.state, ended.reason, ended.text) == ("error", "shutdown", "started\n")


def test_a_client_that_waits_when_the_grace_is_over_hears_how_its_job_ended(
    prepared_host: None,
) -> None:
    with running_service(server_shutdown_grace_seconds=1) as service, service.client() as client:
        running = start(client, ENDLESS)
        with ThreadPoolExecutor(1) as pool, service.http() as http:
            held = pool.submit(http.get, f"/v1/jobs/{running.id}?wait=60")
            service.terminate()
            answer = held.result(20 * TIME_FACTOR)
        assert service.process.wait(20 * TIME_FACTOR) == 0
        service.start()

    assert (answer.status_code, answer.json()["reason"]) == (200, "shutdown")


# The store


@pytest.mark.attack(57)
def test_a_service_whose_store_is_away_is_not_ready_until_it_is_back(
    own_service: RunningService,
) -> None:
    database = own_service.data_dir / "sandboxd.sqlite3"
    elsewhere = database.with_name("elsewhere")
    with own_service.http() as http:
        database.rename(elsewhere)
        unready = wait_for(lambda: unreadiness(http), "it says that it is not ready")
        elsewhere.rename(database)
        wait_for(lambda: not unreadiness(http), "it is ready again")

    assert unready == {
        "ready": False,
        "checks": {"launcher": True, "store": False, "accepting": True},
    }


def test_a_job_that_outlives_the_grace_is_ended_and_told_so(prepared_host: None) -> None:
    with running_service(server_shutdown_grace_seconds=1) as service, service.client() as client:
        running = start(client, ENDLESS)
        service.terminate()
        assert service.process.wait(20 * TIME_FACTOR) == 0
        service.start()
        ended = client.wait(running.id)

    assert (ended.state, ended.reason) == ("error", "shutdown")
    assert ended.text == "started\n"
    assert ended.error is not None
    assert ended.error.message.startswith("the service was shut down while it ran; ")
