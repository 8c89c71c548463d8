"""One world and one service in it, for all tests of this directory."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from egress_service import DENIED, OPENED, RATE_BYTES, WORLD, Jobs, ServiceInWorld
from host_tests import host_required
from running_service import data_directory

from sandboxd.client import Client
from sandboxd.isolation import idmap


@pytest.fixture(scope="session")
def world(prepared_host: None) -> Iterator[int]:
    """The pid of a process in the world's first half."""
    if idmap.find_range() is None:
        host_required("no subordinate ids (sandboxd setup)")
    with subprocess.Popen(
        [sys.executable, str(WORLD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as made:
        assert made.stdout is not None
        try:
            first = made.stdout.readline()
            assert first, "the world was not made: see above"
            yield json.loads(first)["pid"]
        finally:
            made.kill()


@pytest.fixture(scope="session")
def service(world: int) -> Iterator[ServiceInWorld]:
    with data_directory() as data_dir:
        service = ServiceInWorld(
            data_dir,
            world,
            network_egress="on",
            network_allow=",".join(("public", *OPENED)),
            network_deny=",".join(DENIED),
            network_rate_bytes=RATE_BYTES,
            runtimes_runc_path="/usr/sbin/runc",
        )
        try:
            yield service.start()
            service.stop()
        finally:
            if service.process.poll() is None:
                service.kill()


@pytest.fixture(scope="session")
def client(service: ServiceInWorld) -> Iterator[Client]:
    with service.client() as connected:
        yield connected


@pytest.fixture(scope="session")
def jobs(client: Client) -> Jobs:
    return Jobs(client)
