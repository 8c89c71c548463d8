"""A job of an image that is here starts in a parked sandbox, and costs the service the same however many layers the image has."""

import gzip
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from archives import directory, entry, link, packed
from counted_calls import calls_of, traced
from host_tests import host_required
from registries import a_registry, make_image
from running_service import BLANKS, RunningService, running_service
from waiting import wait_for

pytestmark = [pytest.mark.thorough, pytest.mark.host, pytest.mark.timeout(300)]

LAYERS = 40
SETTLED_SECONDS = 0.1
"""After each job: a sandbox that has stood as long has its limits, which a job that comes sooner sets itself."""
JOBS = 20
ROUNDS = 3
PARKED = 4
"""Of each shape: two for each slot."""
OF_THE_HOST = 4 + BLANKS
"""They are there from the start."""
FILES = {
    *(
        "access",
        "faccessat",
        "flock",
        "fstatfs",
        "getdents64",
        "lstat",
        "mkdir",
        "mount",
        "open",
        "open_tree",
        "openat",
    ),
    *("openat2", "readlink", "readlinkat", "stat", "statfs", "statx", "unlink", "utimensat"),
}
"""Calls that look for a file, lock or change one. (newfstatat is fstat, too, with which Python asks of each file that it opened.)"""
SLOW_SECONDS = 0.04
FILES_OF_A_LOOK = 4.0
"""At what a job uses, if it takes longer than that."""
MOST_FOR_LAYERS = 2.0
"""Nothing, in truth; the service looks at other things now and then."""
MOST_FOR_AN_IMAGE = 6.0
"""Four, in truth: what its name means to the tenant and, if that is nothing, to all, when the job is accepted and when it starts."""


class Ready(NamedTuple):
    """A service, and images that it has."""

    service: RunningService
    flat: str
    """Of one layer."""
    deep: str
    """Of many."""


@pytest.fixture(scope="module")
def ready(prepared_host: None) -> Iterator[Ready]:
    busybox = shutil.which("busybox")
    if busybox is None:
        host_required("this host has no busybox (busybox-static)")
    base = packed(
        directory("bin"),
        entry("bin/busybox", Path(busybox).resolve().read_bytes(), mode=0o755),
        *(link(f"bin/{applet}", "busybox") for applet in ("true", "sleep")),
    )
    layers = [packed(entry(f"layer-{number}", b"x")) for number in range(1, LAYERS)]
    run = {"Env": ["PATH=/bin"]}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place, a_registry(Path(place)) as registry:
        deep = make_image(*map(gzip.compress, (base, *layers)), run=run)
        flat = make_image(gzip.compress(base), run=run)
        names = [registry.push(image, tag=tag) for image, tag in ((flat, "flat"), (deep, "deep"))]
        config = Path(place, "config.toml")
        config.write_text(f'[registries."{registry.authority}"]\ninsecure = true\n')
        flags = ("--no-auth", "--slots", "2", "--config", str(config))
        with running_service(flags=flags) as service:
            for name in names:
                run_jobs(service, name, 8)
            wait_for(lambda: len(service.inits()) == OF_THE_HOST + 2 * PARKED, "all are parked")
            yield Ready(service, *names)


def run_jobs(service: RunningService, image: str, count: int) -> int:
    """How many of them were so slow that what they use was looked at while they ran."""
    slow = 0
    with service.http() as http:
        for _ in range(count):
            job = {"image": image, "command": ["true"]}
            answer = http.post("/v1/jobs", json=job, headers={"Prefer": "wait=60"})
            ended = answer.json()
            assert ended["state"] == "succeeded", answer.text
            slow += ended["usage"]["setup_seconds"] + ended["usage"]["wall_seconds"] > SLOW_SECONDS
            time.sleep(SETTLED_SECONDS)
    return slow


class Counted(NamedTuple):
    """Calls of the service about files for one job, on average."""

    calls: dict[str, float]
    slow: float
    """The share of jobs that were so slow that they may have been looked at."""

    @property
    def all(self) -> float:
        return sum(self.calls.values())

    @property
    def all_but_looks(self) -> float:
        """At least that many are for other things."""
        return self.all - FILES_OF_A_LOOK * self.slow


def counted(ready: Ready, image: str, directory: Path) -> Counted:
    """The round with the fewest."""
    rounds = []
    for number in range(ROUNDS):
        with traced(ready.service.process.pid, directory / str(number)):
            slow = run_jobs(ready.service, image, JOBS)
        calls = calls_of(directory / str(number))
        per_job = {name: calls[name].all / JOBS for name in FILES if name in calls}
        rounds.append(Counted(per_job, slow / JOBS))
    return min(rounds, key=lambda each: each.all_but_looks)


def test_many_layers_are_no_work_for_a_job(ready: Ready, tmp_path: Path) -> None:
    """Its sandbox stands already; what was done for it was done before anybody asked."""
    flat, deep = counted(ready, ready.flat, tmp_path), counted(ready, ready.deep, tmp_path)

    assert deep.all_but_looks <= flat.all + MOST_FOR_LAYERS, (flat, deep)


def test_the_service_looks_up_what_a_name_means_and_nothing_else(
    ready: Ready, tmp_path: Path
) -> None:
    host, image = counted(ready, "host", tmp_path), counted(ready, ready.deep, tmp_path)

    assert image.all_but_looks <= host.all + MOST_FOR_AN_IMAGE, (host, image)


def test_a_job_of_many_layers_starts_in_a_sandbox_that_was_parked(ready: Ready) -> None:
    # Those that the jobs before had are replaced.
    wait_for(lambda: len(ready.service.inits()) == OF_THE_HOST + 2 * PARKED, "all are parked")
    parked = {init.pid for init in ready.service.inits() if init.cmdline()[0] == "sandboxd: init"}
    job = {"image": ready.deep, "command": ["sleep", "60"]}
    with ready.service.http() as http:
        sent = http.post("/v1/jobs", json=job).json()
        wait_for(ready.service.processes_of_jobs, "the command runs")
        (of,) = {each.ppid() for each in ready.service.processes_of_jobs()}
        http.post(f"/v1/jobs/{sent['id']}/cancel", json={"grace_seconds": 0})
        ended = http.get(f"/v1/jobs/{sent['id']}?wait=30").json()

    assert ended["state"] == "cancelled"
    assert of in parked
