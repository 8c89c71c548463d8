"""Cgroups of this host, below the directories that `sandboxd setup` gave to the user that runs the tests."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from host_tests import host_required
from limit_examples import Spawn

from sandboxd.quotas.cgroups import Cgroup, Cgroups, open_cgroups
from sandboxd.quotas.host import CONTROLLERS, Host, probe_host

_JOIN = """\
import os, sys
for path in filter(None, sys.argv[1].split(":")):
    with open(path, "w") as file:
        file.write("0")
exec(sys.argv[2])
"""


@pytest.fixture(scope="session")
def host() -> Host:
    """This host, with every controller delegated to us."""
    found = probe_host()
    lacking = [name for name in CONTROLLERS if found.controllers[name].directory is None]
    if os.geteuid() == 0:
        host_required("run as root: an ordinary user's limits are tested")
    if lacking:
        host_required(f"cgroup controllers not delegated: {', '.join(lacking)} (sandboxd setup)")
    return found


@pytest.fixture
def instance() -> str:
    """A name that no other test run has."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def cgroups(host: Host, instance: str) -> Iterator[Cgroups]:
    opened = open_cgroups(host, instance=instance)
    yield opened
    opened.close()


@pytest.fixture
def cgroup(cgroups: Cgroups) -> Cgroup:
    return cgroups.create("job")


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start Python code in a cgroup; stdin and stdout are pipes. What still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(cgroup: Cgroup, code: str) -> "subprocess.Popen[str]":
        files = list(cgroup.join_files())
        directory_fd = cgroup.directory_fd()
        if directory_fd is not None:  # v2, which a sandbox is cloned into
            files.append(f"/proc/{os.getpid()}/fd/{directory_fd}/cgroup.procs")
        words = [sys.executable, "-I", "-c", _JOIN, ":".join(files), code]
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
