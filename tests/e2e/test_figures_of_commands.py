"""What each command of a sandbox used, and what becomes of one that is out of memory.

On cgroup v2 each has a cgroup of its own. On v1 figures are what the sandbox used while the command ran.
"""

import shlex
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from sandbox_client import Box
from waiting import TIME_FACTOR

from sandboxd.client import Client
from sandboxd.quotas.host import CgroupVersion, probe_host

MIB = 2**20
HOG = "block = bytearray(200 * 2**20)"
"""Out of memory at once: it may be so before init has gone on."""
TAKE = "block = bytearray({} * 2**20)"
WORK_SECONDS = 0.5 * TIME_FACTOR
"""So much more than it takes to start a command that what counts for one is not taken for the other's."""
WORK_WHEN_TOLD = f"""
import time
open("go").read()
end = time.process_time() + {WORK_SECONDS}
while time.process_time() < end:
    pass
open("done", "w").close()
"""


@pytest.fixture(scope="module")
def own_cgroups() -> bool:
    """Whether a command has one of its own here."""
    return probe_host().controllers["memory"].version is CgroupVersion.V2


@pytest.fixture
def box(http: httpx2.Client) -> Iterator[Box]:
    with Box(http, limits={"memory": "128Mi", "pids": 32}) as made:
        yield made


def python(code: str, **more: Any) -> dict[str, Any]:
    return {"command": ["python3", "-c", code], **more}


def shell(script: str, **more: Any) -> dict[str, Any]:
    return {"command": ["sh", "-c", script], **more}


def test_a_step_s_peaks_are_its_own(client: Client, own_cgroups: bool) -> None:
    steps = [shell("sleep 2 & sleep 2 & sleep 2 & wait"), python(TAKE.format(40)), shell(":")]
    job = client.run(steps=steps, limits={"memory": "128Mi"})

    assert job.state == "succeeded", job.error
    usages = [step.usage for step in job.steps]
    memory = [usage.memory_peak_bytes for usage in usages if usage]
    assert memory[0] < 40 * MIB < memory[1] < 64 * MIB
    assert memory[2] < 8 * MIB
    pids = [usage.pids_peak for usage in usages if usage]
    assert pids == ([4, 1, 1] if own_cgroups else [None, None, None])
    assert job.usage is not None
    assert job.usage.pids_peak == 4
    assert job.usage.memory_peak_bytes >= memory[1]


def test_files_that_are_there_before_are_not_a_step_s_memory(client: Client) -> None:
    files = {"large": b"x" * (24 * MIB)}
    job = client.run(steps=[shell("cat large > /dev/null")], files=files)

    assert job.state == "succeeded", job.error
    used = job.steps[0].usage
    assert used is not None
    assert used.memory_peak_bytes is not None
    # On v1 the peak is restarted, not what counts for it.
    if job.enforcement["limits"]["memory"] == "cgroup2":
        assert used.memory_peak_bytes < 12 * MIB


def test_a_command_s_figures_are_its_own_beside_another(box: Box, own_cgroups: bool) -> None:
    box.shell("mkfifo go done")
    busy = box.begin("python3", "-c", TAKE.format(60) + WORK_WHEN_TOLD)
    used = box.run("sh", "-c", "echo > go; cat done")["usage"]

    if own_cgroups:
        assert used["cpu_seconds"] < 0.8 * WORK_SECONDS
        assert used["memory_peak_bytes"] < 16 * MIB
        assert used["pids_peak"] <= 2
    else:
        assert used["cpu_seconds"] > WORK_SECONDS
        assert used["memory_peak_bytes"] > 60 * MIB
    assert box.end_of(busy)["usage"]["cpu_seconds"] > WORK_SECONDS
    assert box.end_of(busy)["usage"]["memory_peak_bytes"] > 60 * MIB


def test_what_a_command_left_running_is_not_the_next_one_s(box: Box, own_cgroups: bool) -> None:
    box.shell("mkfifo go done")
    box.shell(shlex.join(["python3", "-c", WORK_WHEN_TOLD]) + " &")
    used = box.run("sh", "-c", "echo > go; cat done")["usage"]

    assert (used["cpu_seconds"] < 0.8 * WORK_SECONDS) == own_cgroups


@pytest.mark.parametrize("delay", ["", "import time; time.sleep(0.2); "])
def test_out_of_memory_a_command_dies_whole_and_the_sandbox_lives(
    box: Box, own_cgroups: bool, delay: str
) -> None:
    box.shell("echo kept > /work/kept")
    beside = box.begin("sleep", "1000")
    hog = shlex.join(["python3", "-c", delay + HOG])
    # A shell that goes on, and something in the background in a session of its own.
    ran = box.run("sh", "-c", f"setsid sleep 1111 & {hog}; echo on")

    if own_cgroups:
        assert (ran["state"], ran["reason"], ran["stdout"]) == ("out_of_memory", "memory", "")
        assert ran["exit"]["oom_killed"] is True
    else:
        assert ran["stdout"] == "on\n"  # v1: one process dies, and the command goes on.
    found = box.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; cat /work/kept")
    assert ("sleep 1111" in found) == (not own_cgroups)
    assert "sleep 1000" in found
    assert found.endswith("kept\n")
    assert box.http.get(f"{box.path}/execs/{beside['id']}").json()["state"] == "running"
    assert box.view()["state"] == "running"


def test_out_of_memory_again_and_again_only_the_command_dies(box: Box) -> None:
    for _ in range(8):
        ran = box.run("python3", "-c", HOG)
        assert (ran["state"], ran["reason"]) == ("out_of_memory", "memory")
        assert box.shell("echo on") == "on\n"


def test_a_step_out_of_memory_may_be_followed_by_others(client: Client) -> None:
    steps = [
        shell("echo 1 > kept"),
        python(HOG, continue_on_failure=True, inputs=[{}, {}], stop="never"),
        shell("cat kept"),
    ]
    job = client.run(steps=steps, limits={"memory": "64Mi"})

    assert (job.state, job.steps[2].text) == ("succeeded", "1\n"), job.error
    assert [run.state for run in job.steps[1].inputs] == ["out_of_memory"] * 2


def test_forks_that_were_refused_are_told_of_the_command_that_wanted_them(client: Client) -> None:
    fork = (
        "import os, sys\ntry:\n  while True:\n    if os.fork() == 0: sys.stdin.read(); os._exit(0)\n"
        "except BlockingIOError: sys.exit(1)"
    )
    steps = [shell("exit 1", continue_on_failure=True), python(fork, continue_on_failure=True)]
    job = client.run(steps=steps, limits={"pids": 8})

    first, second = job.steps
    assert "refused" not in first.error.message
    assert "more than 8 processes were refused 1 time" in second.error.message
    assert job.usage is not None
    assert job.usage.pids_peak == 8


def test_the_rate_is_the_job_s_and_its_throttling_counted(client: Client) -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass"
    job = client.run(steps=[python(work)], limits={"cpus": 0.1})

    used = job.steps[0].usage
    assert used is not None
    assert used.wall_seconds > 2
    assert used.cpu_throttled_seconds is not None
    assert used.cpu_throttled_seconds > 0.5


def test_programs_find_the_limits_where_they_look_for_them(box: Box, own_cgroups: bool) -> None:
    """In the cgroup that /proc/self/cgroup names, as Java and Go do; and at the root, as everybody did before."""
    read = "cd /sys/fs/cgroup; cd ./$(sed -n 's/^0:://p' /proc/self/cgroup); cat memory.max cpu.max"
    before = box.shell(f"{read}; cat ../memory.max") if own_cgroups else ""
    changed = box.http.patch(box.path, json={"limits": {"memory": "256Mi", "cpus": 0.5}})
    assert changed.status_code == 200, changed.text
    after = box.shell(f"{read}; cat ../memory.max") if own_cgroups else ""

    if own_cgroups:
        memory, _, of_all = before.split("\n")[:3]
        assert memory == of_all
        assert 128 * MIB <= int(memory) < 160 * MIB
        assert after.split("\n")[1] == "500000 1000000"
        assert int(after.split("\n")[0]) == int(memory) + 128 * MIB
    else:
        assert box.shell("ls /sys/fs/cgroup") == ""
