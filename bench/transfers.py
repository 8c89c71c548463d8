"""Rows of bytes: a job's log as it is written, and a large file into a job and out of it."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

from files import download
from rows import Block, Ground, seconds_of
from service import JOB, WentWrongError, ask

from sandboxd.client import Client

MEGABYTE = 10**6
LOG_BYTES = 200 * MEGABYTE
FILE_BYTES = 100 * MEGABYTE
LINE_BYTES = 80
WRITER = f"""
import os
lines = (b"x" * {LINE_BYTES - 1} + b"\\n") * 800
for _ in range({LOG_BYTES} // len(lines)):
    assert os.write(1, lines) == len(lines)
"""
READ_BYTES = 2**20


@contextlib.contextmanager
def log_stream(ground: Ground) -> Iterator[Block]:
    """Followed from the job's start to its end, python's own start included: MB a second."""
    with contextlib.closing(ground.service().connection()) as connection:
        yield lambda runs: [follow_a_log(connection) for _ in range(runs)]


def follow_a_log(connection: HTTPConnection) -> float:
    """Of a job that writes all it can: MB a second. The job is removed."""
    limits = {"output_bytes": 2 * LOG_BYTES}
    request = json.dumps(JOB | {"command": ["python3", "-c", WRITER], "limits": limits})
    connection.close()
    began = time.perf_counter()
    job = ask(connection, "POST", "/v1/jobs", request, wait=False)
    path = f"/v1/jobs/{job['id']}/logs?follow=true"
    connection.request("GET", path, headers={"Accept": "text/plain"})
    answer, size, buffer = connection.getresponse(), 0, bytearray(READ_BYTES)
    while read := answer.readinto(buffer):
        size += read
    seconds = time.perf_counter() - began
    if size < 0.99 * LOG_BYTES:
        raise WentWrongError(f"of the log of {LOG_BYTES} bytes came {size}")
    connection.request("DELETE", f"/v1/jobs/{job['id']}")
    connection.getresponse().read()
    return size / MEGABYTE / seconds


@contextlib.contextmanager
def file_in(ground: Ground) -> Iterator[Block]:
    """From the client's disk to a job that has it, as a form: MB a second of the whole job."""
    big = big_file(ground)
    with Client(ground.service().url) as client:

        def one() -> float:
            began = time.perf_counter()
            job_id = run_with(client, big, [])
            seconds = time.perf_counter() - began
            client.delete(job_id)
            return FILE_BYTES / MEGABYTE / seconds

        yield lambda runs: [one() for _ in range(runs)]


@contextlib.contextmanager
def file_out(ground: Ground) -> Iterator[Block]:
    """A file that a job left, downloaded: MB a second."""
    service = ground.service()
    with Client(service.url) as client:
        job_id = run_with(client, big_file(ground), ["big"])

        def one() -> float:
            path = f"{job_id}/artifacts/big"
            return FILE_BYTES / MEGABYTE / seconds_of(lambda: download(service.url, path))

        yield lambda runs: [one() for _ in range(runs)]


def run_with(client: Client, big: Path, outputs: list[str]) -> str:
    limits: dict[str, float | int | str] = {"disk": "1Gi", "memory": "1Gi", "wall_seconds": 120}
    job = client.run(["true"], files={"big": big}, outputs=outputs, limits=limits)
    if job.state != "succeeded":
        raise WentWrongError(f"the job did not succeed: {job.error}")
    return job.id


def big_file(ground: Ground) -> Path:
    path = ground.directory / "big"
    if not path.exists():
        path.write_bytes(os.urandom(MEGABYTE) * (FILE_BYTES // MEGABYTE))
    return path
