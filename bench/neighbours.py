"""How long a light job takes alone, and beside a neighbour that takes all it can get.

    python bench/neighbours.py [--runs 300] [--data-dir DIR]

Starts a service of its own on loopback. A client sends one light job after the other (/bin/true, each alone, as in
`commands.py`), first with nothing beside it, then beside each kind of neighbour: a job with the usual limits (one CPU, 256
MiB, 64 processes), which is sent again as soon as it ends; the last one's log, of 200 MB, is followed to its end. Prints p50 and
p99, and their ratios to those alone. Run it as the service's user, on a machine with two processors that does nothing else.
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection
from pathlib import Path

from service import JOB, WentWrongError, ask, job_done, running_service
from transfers import follow_a_log

PROGRAMS = {
    "CPU spinner": "while True: pass",
    "fork bomb": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    ),
    "memory hog": "held = []\nwhile True: held.append(bytearray(2**20)); held[-1][::4096] = b'x' * 256",
    "disk filler": (
        "import os\nblock = b'x' * 2**20\nwhile True:\n    try:\n"
        "        with open('/work/f', 'wb') as file:\n            while True: file.write(block)\n"
        "    except OSError:\n        os.unlink('/work/f')"
    ),
    "log flood": "import sys\nwhile True: sys.stdout.write('x' * 65536)",
}
"""For python3."""
LIGHT = json.dumps(JOB)
PAUSE_SECONDS = 0.02
WARM_UP = 30


def main() -> None:
    """Measure each, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--data-dir", type=Path, help="where the database lies (a real disk)")
    arguments = parser.parse_args()
    alone: tuple[float, float] | None = None
    print(f"{'beside':14}{'p50':>9}{'p99':>9}{'p50 ratio':>12}{'p99 ratio':>12}")
    with running_service(arguments.data_dir) as service:
        connection = service.connection()
        for name, neighbour in neighbours(connection).items():
            with neighbour:
                seconds = [light_job(connection) for _ in range(WARM_UP + arguments.runs)][WARM_UP:]
            figures = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
            alone = alone or figures
            ratios = [now / then for now, then in zip(figures, alone, strict=True)]
            print(
                f"{name:14}{1000 * figures[0]:7.2f}ms{1000 * figures[1]:7.2f}ms"
                f"{ratios[0]:12.2f}{ratios[1]:12.2f}",
                flush=True,
            )


def light_job(connection: HTTPConnection) -> float:
    """Seconds of one light job."""
    time.sleep(PAUSE_SECONDS)
    begun = time.perf_counter()
    job_done(connection, LIGHT)
    return time.perf_counter() - begun


def neighbours(service: HTTPConnection) -> dict[str, AbstractContextManager[object]]:
    """Each works for as long as its context lasts."""
    programs = {name: running(service, program) for name, program in PROGRAMS.items()}
    followed = {"a log, followed": following(service)}
    return {"nobody": contextlib.nullcontext(), **programs, **followed}


@contextmanager
def running(service: HTTPConnection, program: str) -> Iterator[None]:
    """A job of that program; the next as soon as it ends."""
    over = threading.Event()
    thread = threading.Thread(target=keep_running, args=(service.host, service.port, program, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def keep_running(host: str, port: int, program: str, over: threading.Event) -> None:
    """Send the neighbour's job again and again, until it is over; then end the one that runs."""
    connection = HTTPConnection(host, port)
    job = json.dumps({"image": "host", "command": ["python3", "-c", program]})
    while not over.is_set():
        path = f"/v1/jobs/{ask(connection, 'POST', '/v1/jobs', job, wait=False)['id']}"
        while not over.is_set():
            if ask(connection, "GET", f"{path}?wait=0.2", "")["finished_at"] is not None:
                break
    ask(connection, "POST", f"{path}/cancel", '{"grace_seconds": 0}', wait=False)
    ask(connection, "GET", f"{path}?wait=10", "")


@contextmanager
def following(service: HTTPConnection) -> Iterator[None]:
    """A process that follows the log of one job after the other: its work is none of the light jobs' client."""
    process_kind = multiprocessing.get_context("spawn").Process
    process = process_kind(target=keep_following, args=(service.host, service.port))
    process.start()
    try:
        yield
        if process.exitcode is not None:
            raise WentWrongError("whoever followed the log has ended: the jobs had no neighbour")
    finally:
        process.terminate()
        process.join()


def keep_following(host: str, port: int) -> None:
    """Until this process is ended."""
    connection = HTTPConnection(host, port)
    while True:
        follow_a_log(connection)


if __name__ == "__main__":
    main()
