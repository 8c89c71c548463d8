"""A process that not even SIGKILL ends, for as long as the kernel holds it: only its own job suffers.

Only root can hold a process like that, by the freezer of cgroup v1. (What is frozen on v2 can be killed.)
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from running_service import RunningService, data_directory
from waiting import wait_for

from sandboxd.client import Client

FREEZER = Path("/sys/fs/cgroup/freezer")
SERVICE_USER = "sandboxd"
STUCK_SECONDS = 60.0

pytestmark = pytest.mark.as_root


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """Hold a process in the kernel for the length of the block."""
    group = FREEZER / f"sandboxd-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        (group / "freezer.state").write_text("FROZEN")
        state = group / "freezer.state"
        wait_for(lambda: state.read_text() == "FROZEN\n", "it is frozen")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        psutil.wait_procs([process], timeout=10)
        group.rmdir()


@contextmanager
def service_of_its_user() -> Iterator[RunningService]:
    """The service of an ordinary user, started by root."""
    prefix = ("setpriv", "--reuid", SERVICE_USER, "--regid", SERVICE_USER, "--init-groups")
    with data_directory() as data_dir:
        shutil.chown(data_dir.parent, SERVICE_USER, SERVICE_USER)
        flags = ("--no-auth", "--slots", "2")
        service = RunningService(data_dir, flags=flags, prefix=prefix)
        try:
            yield service.start()
            service.stop()
        finally:
            if service.process.poll() is None:
                service.kill()


@pytest.mark.attack(51)
@pytest.mark.timeout(180)
def test_a_process_that_cannot_be_killed_ends_no_other_job_and_its_own_as_an_error() -> None:
    if not FREEZER.is_dir():
        pytest.skip("no freezer of cgroup v1")
    with service_of_its_user() as service, service.client() as client:
        job = client.submit(["sh", "-c", "echo started; exec sleep 600"])
        next(client.logs(job.id, follow=True))
        (process,) = service.processes_of_jobs()

        with frozen(process):
            client.cancel(job.id, grace_seconds=0)
            assert_others_run(client)
            ended = client.wait(job.id, timeout_seconds=STUCK_SECONDS)
            assert process.is_running()
            assert_others_run(client)

        assert ended.state in ("error", "cancelled")
        assert ended.error is not None
        assert "stuck in the kernel" in ended.error.message
        assert ended.text == "started\n"
        service.assert_nothing_left(client)


def assert_others_run(client: Client) -> None:
    others = [client.run(["echo", "served"]) for _ in range(5)]
    assert {(other.state, other.text) for other in others} == {("succeeded", "served\n")}
