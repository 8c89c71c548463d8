"""How long one `/bin/true` takes through the whole service, next to bubblewrap's command line, in the same run.

    python bench/latency.py [--runs 300] [--block 1] [--data-dir DIR] [--runtime /usr/sbin/runc]

Starts a service of its own on loopback with a fresh database on disk. Two clients take turns, each with a block of runs one after
the other (one run, unless told otherwise: then each is measured alone; in a longer block the service makes the next
sandboxes beside the jobs): jobs over HTTP (durable, walls, logs, usage and metrics on; one connection), and `bwrap --unshare-all --ro-bind / / true`.
Between blocks nothing of the one goes on beside the other. Prints medians, the spread and the ratio of neighbouring
blocks' medians, which holds when the machine's speed drifts. Run it as the service's user.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BWRAP = ("bwrap", "--unshare-all", "--ro-bind", "/", "/", "true")
JOB = {"image": "host", "command": ["/bin/true"]}
HEADERS = {"Content-Type": "application/json", "Prefer": "wait=60"}
WARM_UP = 20
PAUSE_SECONDS = 0.02
"""For each sandbox that has to be parked again."""
READY_SECONDS = 120.0
"""An emulated machine takes long."""


def main() -> None:
    """Take turns, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--block", type=int, default=1, help="runs of each side in a row")
    parser.add_argument("--data-dir", type=Path, help="where the database lies (a real disk)")
    parser.add_argument("--runtime", help="path of an OCI runtime that starts the jobs' commands")
    arguments = parser.parse_args()
    request = json.dumps(JOB | ({"runtime": "oci"} if arguments.runtime else {}))
    if shutil.which(BWRAP[0]) is None:
        sys.exit("bubblewrap is not installed")
    with running_service(arguments.data_dir, arguments.runtime) as connection:
        usages: list[dict[str, float]] = []

        def job() -> None:
            connection.request("POST", "/v1/jobs", request, HEADERS)
            answer = json.loads(connection.getresponse().read())
            if answer.get("state") != "succeeded":
                sys.exit(f"the job did not succeed: {json.dumps(answer)}")
            usages.append(answer["usage"])

        for _ in range(WARM_UP):
            job()
            bwrap()
        usages.clear()
        size = arguments.block
        pairs = [(block(job, size), block(bwrap, size)) for _ in range(arguments.runs // size)]
    jobs = [seconds for ours, _ in pairs for seconds in ours]
    boxes = [seconds for _, theirs in pairs for seconds in theirs]
    print(f"{'':28}{'p50':>8}{'p10':>8}{'p90':>8}{'p99':>8}")
    row("sandboxd, HTTP, durable", jobs)
    row("bwrap --unshare-all", boxes)
    row("  setup (parked sandbox)", [usage["setup_seconds"] for usage in usages])
    row("  command", [usage["wall_seconds"] for usage in usages])
    warm = sum(bool(usage["warm"]) for usage in usages)
    ratios = [statistics.median(ours) / statistics.median(theirs) for ours, theirs in pairs]
    print(f"ratio of neighbouring blocks, median: {statistics.median(ratios):.2f}")
    print(f"parked: {warm} of {len(jobs)}")


def bwrap() -> None:
    """One bubblewrap sandbox."""
    subprocess.run(BWRAP, check=True)


def block(action: Callable[[], None], size: int) -> list[float]:
    """Seconds of each of some runs one after the other, once the service has parked all its sandboxes again."""
    time.sleep(PAUSE_SECONDS * min(size, 4))
    return [timed(action) for _ in range(size)]


def timed(action: Callable[[], None]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def row(name: str, seconds: list[float]) -> None:
    """One line of the table, in milliseconds."""
    tenths = statistics.quantiles(seconds, n=100)
    figures = (statistics.median(seconds), tenths[9], tenths[89], tenths[98])
    print(f"{name:28}" + "".join(f"{1000 * figure:8.2f}" for figure in figures) + "  ms")


@contextlib.contextmanager
def running_service(
    data_dir: Path | None, runtime: str | None
) -> Iterator[http.client.HTTPConnection]:
    """A service of our own; a connection to it that stays open."""
    with tempfile.TemporaryDirectory(dir=data_dir) as data, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        words = [sys.executable, "-m", "sandboxd", "serve", "--no-auth", "--listen", listen]
        words += ["--data-dir", data, "--metrics-listen", "", "--log-format", "json"]
        log = open(f"{data}/log", "w")  # noqa: SIM115 (closed with the service)
        settings = {"SANDBOXD_LOG_LEVEL": "warning"}
        if runtime:
            settings["SANDBOXD_RUNTIMES_OCI_PATH"] = runtime
        service = subprocess.Popen(words, stderr=log, env={**os.environ, **settings})
        try:
            wait_until_ready(service, listen)
            yield http.client.HTTPConnection(listen)
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait()
            log.close()


def wait_until_ready(service: "subprocess.Popen[bytes]", listen: str) -> None:
    """Poll /readyz until it says yes."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and service.poll() is None:
        with (
            contextlib.suppress(OSError),
            contextlib.closing(http.client.HTTPConnection(listen)) as probe,
        ):
            probe.request("GET", "/readyz")
            if probe.getresponse().status == 200:
                return
        time.sleep(0.05)
    sys.exit("the service did not start")


if __name__ == "__main__":
    main()
