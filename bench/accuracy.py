"""What jobs get of what they ask for: processor rate and time, memory, wall time, silence.

    python bench/accuracy.py [--rounds 5] [--data-dir DIR]

Starts a service of its own on loopback. Each job takes as much as it can until it is stopped; what it got is in its usage
(memory: what it says that it had). Prints a line for each limit: asked for, median of what it got, and the round that was
furthest off. Run it as the service's user, on a machine with two processors that does nothing else.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from service import ask, running_service

MIB = 2**20
SECONDS = 4.0
"""How long a rate is looked at."""
SPIN = ("sh", "-c", "while :; do :; done & while :; do :; done")
SLEEP = ("sleep", "60")
HOLD = """if True:
    held, file = [], open("/tmp/zeros", "wb", buffering=0)
    while True:
        {step}
        resident, shared = map(int, open("/proc/self/statm").read().split()[1:3])
        print((resident - shared) * 4096 + file.tell(), flush=True)
"""
"""Takes more and more memory, and says how much it has."""
GROW = ("python3", "-c", HOLD.format(step="held.append(bytearray(2**18))"))
FILL = ("python3", "-c", HOLD.format(step="file.write(bytes(2**18))"))


class Case(NamedTuple):
    """One limit and how to reach it."""

    name: str
    command: Sequence[str]
    limits: dict[str, float]
    asked: float
    got: Callable[[dict[str, Any]], float]
    """From a job that has ended, in the unit of `asked`."""
    unit: str


def cases() -> list[Case]:
    """All that is measured."""
    rates = [
        Case(
            "processor rate",
            SPIN,
            {"cpus": rate, "wall_seconds": SECONDS},
            100 * rate,
            lambda job: 100 * job["usage"]["cpu_seconds"] / job["usage"]["wall_seconds"],
            "%",
        )
        for rate in (0.1, 0.5, 1.0, 1.5)
    ]
    times = [
        Case(
            "processor time",
            SPIN,
            {"cpu_seconds": seconds, "cpus": 2},
            seconds,
            lambda job: job["usage"]["cpu_seconds"],
            "s",
        )
        for seconds in (0.2, 2.0)
    ]
    walls = [
        Case(
            name,
            SLEEP,
            {limit: seconds},
            seconds,
            lambda job: job["usage"]["wall_seconds"],
            "s",
        )
        for name, limit in (("wall time", "wall_seconds"), ("silence", "idle_seconds"))
        for seconds in (0.1, 1.0, 3.0)
    ]
    memories = [
        Case(
            name,
            command,
            {"memory": size, "disk": 2 * size},
            size / MIB,
            lambda job: int(job["stdout"].split()[-1]) / MIB,
            "MiB",
        )
        for name, command in (("memory, heap", GROW), ("memory, files", FILL))
        for size in (32 * MIB, 128 * MIB, 512 * MIB)
    ]
    return rates + times + walls + memories


def main() -> None:
    """Measure, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, help="where the database lies")
    arguments = parser.parse_args()
    print(f"{'':18}{'asked':>10}{'got, p50':>11}{'furthest off':>14}")
    with running_service(arguments.data_dir) as service:
        connection = service.connection()
        for case in cases():
            got = [case.got(ended(connection, case)) for _ in range(arguments.rounds)]
            worst = max(got, key=lambda one: abs(one - case.asked))
            figures = f"{case.asked:10.3f}{statistics.median(got):11.3f}{worst:14.3f}"
            print(f"{case.name:18}{figures}  {case.unit}", flush=True)


def ended(connection: HTTPConnection, case: Case) -> dict[str, Any]:
    """One job to its end, which its limit brings about."""
    request: dict[str, Any] = {"image": "host", "command": case.command, "limits": case.limits}
    job = ask(connection, "POST", "/v1/jobs", json.dumps(request))
    if job.get("state") not in ("timed_out", "out_of_memory"):
        sys.exit(f"the limit did not end the job: {json.dumps(job)}")
    return job


if __name__ == "__main__":
    main()
