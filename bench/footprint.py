"""Rows of memory and of starts: a parked sandbox, the service, the command line."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from load import post, rate
from rates import BODY, CLIENTS, succeeded
from rows import Block, Ground, NotHereError, each_alone, seconds_of
from service import BLANKS, JOB, MeasuredService, byte_code, job_done, running_service, wait_for

MIB = 2**20
MANY_PARKED = 64
PARK_SECONDS = 60.0
JOBS_AT_ONCE = 5000
"""So many jobs are sent before the clients connect anew."""
REHEARSAL_SECONDS = 0.5
"""A sandbox that was parked goes through the motions of a command, so that its pages are its own by then."""


@contextlib.contextmanager
def parked_sandbox(ground: Ground) -> Iterator[Block]:
    """MiB that the host has less for each sandbox that is parked: anonymous pages and files in memory.

    `smaps_rollup` of its init is refused to the user whose it is, and a cgroup is not charged with pages that the launcher was
    before it joined, and left to it since. So many are parked, and the whole machine is looked at: nothing else may be going on.
    """

    def one() -> float:
        settings = {"isolation_parked_sandboxes": MANY_PARKED}
        with (
            running_service(ground.data_dir, settings=settings) as service,
            contextlib.closing(service.connection()) as connection,
        ):
            # Those of the usual shape, which are parked at the start.
            wait_until_parked(service, MANY_PARKED)
            before = taken_bytes()
            for _ in range(2):
                job_done(connection, json.dumps(JOB | {"limits": {"disk": "32Mi"}}))
            wait_until_parked(service, 2 * MANY_PARKED)
            return (taken_bytes() - before) / MANY_PARKED / MIB

    yield lambda runs: [one() for _ in range(runs)]


def wait_until_parked(service: MeasuredService, count: int) -> None:
    in_all = count + BLANKS
    wait_for(lambda: len(service.inits()) == in_all, "they are parked", seconds=PARK_SECONDS)
    time.sleep(REHEARSAL_SECONDS)


def taken_bytes() -> int:
    """Of the whole machine: proc(5), meminfo."""
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    return sum(int(words[1]) * 1024 for words in lines if words[0] in ("AnonPages:", "Shmem:"))


@contextlib.contextmanager
def service_idle(ground: Ground) -> Iterator[Block]:
    """Resident MiB of the service's own process, before its first job."""
    with running_service(ground.data_dir) as service:
        yield lambda _: [resident_bytes(service.process.pid) / MIB]


@contextlib.contextmanager
def service_after_jobs(ground: Ground) -> Iterator[Block]:
    """The same after `runs` more jobs."""
    with (
        running_service(ground.data_dir) as service,
        contextlib.closing(service.connection()) as connection,
    ):

        def block(runs: int) -> list[float]:
            connection.close()
            for _ in range(runs):
                job_done(connection, json.dumps(JOB))
            return [resident_bytes(service.process.pid) / MIB]

        yield block


@contextlib.contextmanager
def service_grown(ground: Ground) -> Iterator[Block]:
    """Resident after `runs` jobs of eight clients, to what it was before the first."""
    request = post("/v1/jobs", BODY, Prefer="wait=60")

    def block(runs: int) -> list[float]:
        with running_service(ground.data_dir) as service:
            before = resident_bytes(service.process.pid)
            for done in range(0, runs, JOBS_AT_ONCE):
                count = min(JOBS_AT_ONCE, runs - done)
                rate(service.port, request, connections=CLIENTS, count=count, good=succeeded)
            return [resident_bytes(service.process.pid) / before]

    yield block


@contextlib.contextmanager
def launcher(ground: Ground) -> Iterator[Block]:
    """MiB of the launcher that are its own (`smaps_rollup`)."""
    with (
        running_service(ground.data_dir) as service,
        contextlib.closing(service.connection()) as connection,
    ):
        for _ in range(2):
            job_done(connection, json.dumps(JOB))
        path = Path("/proc", str(service.launcher().pid), "smaps_rollup")
        try:
            path.read_text()
        except PermissionError as error:
            raise NotHereError(f"{path.name} of the launcher cannot be read") from error
        yield lambda _: [private_bytes(path) / MIB]


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def private_bytes(path: Path) -> int:
    lines = [line.split() for line in path.read_text().splitlines()]
    return sum(int(words[1]) * 1024 for words in lines if words[0].startswith("Private_"))


@contextlib.contextmanager
def version(_: Ground) -> Iterator[Block]:
    settings = {**os.environ, **byte_code()}
    words = [sys.executable, "-m", "sandboxd", "--version"]
    block = each_alone(
        lambda: subprocess.run(words, env=settings, check=True, stdout=subprocess.DEVNULL)
    )
    block(1)
    yield block


@contextlib.contextmanager
def serve_ready(ground: Ground) -> Iterator[Block]:
    """Seconds from the start of `sandboxd serve`, with a database that is not there yet, to the first yes of /readyz."""

    def one() -> float:
        with running_service(ground.data_dir, start=False) as service:
            return seconds_of(service.start)

    yield lambda runs: [one() for _ in range(runs)]
