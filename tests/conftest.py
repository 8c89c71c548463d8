"""The real service, one for each test process: started once, and at the end it must have left nothing."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from host_tests import host_required
from running_service import SOURCE, RunningService, running_service
from waiting import TIME_FACTOR

from sandboxd.client import Client

pytest_plugins = ["attack_report", "pytester"]

MIB = 2**20


def pytest_configure() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and nohup all with SIGHUP: programs that we test would inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests for root are no business of an ordinary user: `make test` by root runs them in a run of their own."""
    if os.geteuid() == 0:
        return
    for_root = [item for item in items if item.get_closest_marker("as_root")]
    if for_root:
        config.hook.pytest_deselected(items=for_root)
        items[:] = [item for item in items if item not in for_root]


def pytest_collection_finish() -> None:
    """Thousands of tests stay until the end: looking through them for garbage again and again would take a good part of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def prepared_host() -> None:
    """This host can run jobs behind all walls, with all limits; `sandboxd doctor` says so."""
    if os.geteuid() == 0:
        host_required("run as root: the service runs as an ordinary user, and so do its tests")
    doctor = subprocess.run(
        [sys.executable, "-m", "sandboxd", "doctor", "--json"],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        timeout=60 * TIME_FACTOR,
        check=False,
    )
    if doctor.returncode != 0:
        host_required(f"this host is not prepared: {doctor.stdout}{doctor.stderr}")


@pytest.fixture(scope="session")
def real_service(prepared_host: None) -> Iterator[RunningService]:
    """A service without keys, with room for large inputs."""
    with running_service(
        flags=("--no-auth", "--slots", "8"), server_max_body_bytes=128 * MIB
    ) as service:
        yield service


@pytest.fixture(scope="session")
def client(real_service: RunningService) -> Iterator[Client]:
    with real_service.client() as connected:
        yield connected
