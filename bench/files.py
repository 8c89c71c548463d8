"""How fast files go into jobs and come out of them, through a service that runs already.

    python bench/files.py --url http://127.0.0.1:8080 [--megabytes 300] [--rounds 3]

Each round: an upload as a form, the same as a tar archive, a job that takes its file in and leaves it, a download, a download of all
as one archive, and a thousand small files both ways. Prints the best round. Client, service and job share the machine.
"""

import argparse
import http.client
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from sandboxd.client import Client

MIB = 2**20


def main() -> None:
    """Measure, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, Client(asked.url) as client:
        big = Path(directory, "big")
        big.write_bytes(os.urandom(MIB) * asked.megabytes)
        rounds = [measure(client, asked.url, big) for _ in range(asked.rounds)]
    for what in rounds[0]:
        seconds = min(each[what] for each in rounds)
        rate = "" if "files" in what else f"{asked.megabytes * MIB / seconds / 1e6:8.0f} MB/s"
        print(f"{what:40} {seconds:7.3f} s {rate}")


def measure(client: Client, url: str, big: Path) -> dict[str, float]:
    limits: dict[str, float | int | str] = {"disk": "2Gi", "memory": "2Gi", "wall_seconds": 120}
    found: dict[str, float] = {}

    def timed(what: str, work: Callable[[], object]) -> object:
        began = time.perf_counter()
        made = work()
        found[what] = time.perf_counter() - began
        return made

    def run(outputs: list[str]) -> str:
        job = client.run(["true"], files={"big": big}, outputs=outputs, limits=limits)
        assert job.state == "succeeded", job.error
        return job.id

    first = timed("into a job, as a form", lambda: run([]))
    second = timed("into a job and kept", lambda: run(["big"]))
    timed("downloaded, one connection", lambda: download(url, f"{second}/artifacts/big"))
    timed("downloaded as a tar archive", lambda: download(url, f"{second}/artifacts", tar=True))
    files = {f"{number}.txt": str(number) * 100 for number in range(1000)}
    third = timed("1,000 files in", lambda: client.run(["true"], files=files).id)
    fourth = timed(
        "1,000 files in and kept", lambda: client.run(["true"], files=files, outputs=["*"]).id
    )
    for job_id in (first, second, third, fourth):
        client.delete(str(job_id))
    return found


def download(url: str, path: str, *, tar: bool = False) -> int:
    """Read without looking at it: what is measured is the service."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    accept = {"Accept": "application/x-tar"} if tar else {}
    connection.request("GET", f"/v1/jobs/{path}", headers=accept)
    answer = connection.getresponse()
    assert answer.status == 200, json.loads(answer.read())
    buffer, size = bytearray(MIB), 0
    while read := answer.readinto(buffer):
        size += read
    connection.close()
    return size


if __name__ == "__main__":
    main()
