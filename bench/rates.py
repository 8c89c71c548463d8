"""Rows of how much goes through: jobs of eight clients beside the C floor's own rate, accepted jobs beside a bare echo."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import floor
from load import Answer, post, rate
from rows import Block, Ground, NotHereError
from service import JOB, ask, running_service

CLIENTS = 8
ACCEPT_CONNECTIONS = 32
BODY = json.dumps(JOB).encode()
SLEEP = json.dumps(
    {"image": "host", "command": ["sleep", "3600"], "limits": {"wall_seconds": 3600}}
)
WARM_UP = 100
START_SECONDS = 30.0


@contextlib.contextmanager
def floor_rate(ground: Ground) -> Iterator[Block]:
    """As many floors at once as there are clients, each one run after the other. `runs`: of all together."""
    made = floor.compiled(ground.directory)

    def block(runs: int) -> list[float]:
        each = max(1, runs // CLIENTS)
        _, seconds = made.run(each, at_once=CLIENTS, pause=False)
        return [CLIENTS * each / seconds]

    yield block


@contextlib.contextmanager
def job_rate(ground: Ground) -> Iterator[Block]:
    """Eight clients that wait for each of their jobs, on the same processors as the service and the jobs."""
    port = ground.service().port
    request = post("/v1/jobs", BODY, Prefer="wait=60")

    def block(runs: int) -> list[float]:
        return [rate(port, request, connections=CLIENTS, count=runs, good=succeeded)]

    block(WARM_UP)
    yield block


def succeeded(answer: Answer) -> bool:
    return answer.status == 200 and b'"state":"succeeded"' in answer.body


@contextlib.contextmanager
def accept_rate(ground: Ground) -> Iterator[Block]:
    """Jobs that are on the disk when their 202 comes. One job has the only slot, so that nothing runs meanwhile."""
    with (
        running_service(
            ground.data_dir,
            slots=1,
            settings={"scheduler_max_queued": 10_000_000, "server_shutdown_grace_seconds": 0},
        ) as service,
        contextlib.closing(service.connection()) as connection,
    ):
        ask(connection, "POST", "/v1/jobs", SLEEP, wait=False)
        request = post("/v1/jobs", BODY)

        def block(runs: int) -> list[float]:
            good = accepted
            port, connections = service.port, ACCEPT_CONNECTIONS
            return [rate(port, request, connections=connections, count=runs, good=good)]

        block(WARM_UP)
        yield block


def accepted(answer: Answer) -> bool:
    return answer.status == 202


@contextlib.contextmanager
def echo_rate(_: Ground) -> Iterator[Block]:
    """A bare Starlette on uvicorn, as sandboxd's own server is set up, and the same generator."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    words = [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(__file__).parent), "echo:app"]
    words += ["--host=127.0.0.1", f"--port={port}", "--loop=uvloop", "--http=httptools"]
    process = subprocess.Popen([*words, "--no-access-log", "--log-level=error"])
    try:
        wait_until_it_listens(process, port)
        request = post("/v1/jobs", BODY)

        def block(runs: int) -> list[float]:
            good = accepted
            return [rate(port, request, connections=ACCEPT_CONNECTIONS, count=runs, good=good)]

        block(WARM_UP)
        yield block
    finally:
        process.terminate()
        process.wait()


def wait_until_it_listens(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.02)
    raise NotHereError("uvicorn does not start")
