"""The same tests with every runtime: the one that is always there, and OCI runtimes that Debian has."""

import shutil
from collections.abc import Iterator

import pytest
from benches import bench
from compiled_probe import probe
from host_tests import host_required
from running_service import RunningService, running_service

from sandboxd.client import Client
from sandboxd.isolation.spec import OciRuntime

__all__ = ["bench", "probe"]

OCI_RUNTIMES = ("runc", "crun")
"""Their commands are processes of this kernel: the same in everything."""
GVISOR = "runsc"


def installed(name: str) -> OciRuntime:
    """The runtime as an operator configures it. Skips, or fails, where it is not installed."""
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        host_required(f"{name} is not installed")
    return OciRuntime(name, path)


@pytest.fixture(params=["native", *OCI_RUNTIMES])
def runtime(request: pytest.FixtureRequest) -> str:
    if request.param != "native":
        installed(request.param)
    return str(request.param)


@pytest.fixture(params=OCI_RUNTIMES)
def oci(request: pytest.FixtureRequest) -> OciRuntime:
    return installed(request.param)


@pytest.fixture(scope="session")
def oci_service(prepared_host: None) -> Iterator[RunningService]:
    """A service with every OCI runtime that is installed."""
    paths = {f"runtimes_{name}_path": installed(name).path for name in (*OCI_RUNTIMES, GVISOR)}
    with running_service(flags=("--no-auth", "--slots", "4"), **paths) as service:
        yield service


@pytest.fixture(scope="session")
def oci_client(oci_service: RunningService) -> Iterator[Client]:
    with oci_service.client() as connected:
        yield connected
