"""Rows of memory and of starts: a parked sandbox, the service, the command line."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from commands import PARKED_OF_A_SHAPE
from rows import Block, Ground, NotHereError, each_alone, seconds_of
from service import JOB, MeasuredService, byte_code, job_done, running_service, wait_for

MIB = 2**20


@contextlib.contextmanager
def parked_sandbox(ground: Ground) -> Iterator[Block]:
    """MiB that are its own, of each parked sandbox: what the kernel charged to its cgroup.

    Its init cannot be looked into through /proc (`smaps_rollup` is refused to the user whose it is: a wall), and what it shares with the
    launcher is charged to neither. The tmpfs below its root is in it.
    """
    with running_service(ground.data_dir) as service:

        def block(_: int) -> list[float]:
            park(service)
            found = [charged_bytes(path / "memory.stat") for path in service.job_cgroups()]
            sizes = [size / MIB for size in found if size is not None]
            if not sizes:
                raise NotHereError("no cgroup counts the memory of sandboxes")
            return sizes

        yield block


def park(service: MeasuredService) -> None:
    """Use up what is parked, and wait until all of it is there again."""
    with service.client() as client, contextlib.closing(service.connection()) as connection:
        for _ in range(PARKED_OF_A_SHAPE):
            job_done(connection, json.dumps(JOB))
        wait_for(
            lambda: client.system()["capacity"]["parked"] == PARKED_OF_A_SHAPE, "all are parked"
        )


def charged_bytes(path: Path) -> int | None:
    """Of a cgroup, with its files in memory: v1 has `rss` and `shmem`, v2 `anon` and `shmem`."""
    try:
        counted = dict(line.split() for line in path.read_text().splitlines())
    except FileNotFoundError:
        return None
    return int(counted.get("anon") or counted["rss"]) + int(counted["shmem"])


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
def launcher(ground: Ground) -> Iterator[Block]:
    """MiB of the launcher that are its own (`smaps_rollup`)."""
    with running_service(ground.data_dir) as service:
        park(service)
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
    settings = {**os.environ, "PYTHONPYCACHEPREFIX": byte_code()}
    words = [sys.executable, "-m", "sandboxd", "--version"]
    yield each_alone(
        lambda: subprocess.run(words, env=settings, check=True, stdout=subprocess.DEVNULL)
    )


@contextlib.contextmanager
def serve_ready(ground: Ground) -> Iterator[Block]:
    """Seconds from the start of `sandboxd serve`, with a database that is not there yet, to the first yes of /readyz."""

    def one() -> float:
        with running_service(ground.data_dir, start=False) as service:
            return seconds_of(service.start)

    byte_code()
    yield lambda runs: [one() for _ in range(runs)]
