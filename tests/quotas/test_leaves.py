"""A cgroup for each command: on v2 those of the kernel, everywhere what is written and read, on files of its format."""

import os
import subprocess
from pathlib import Path

import msgspec
import pytest
from limit_examples import HALF_A_CPU, MIB, Spawn
from waiting import wait_for

from sandboxd.errors import SandboxFailed
from sandboxd.quotas.cgroup2 import Driver2, Group2
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.quotas.host import Host
from sandboxd.quotas.leaves import Leaf, Leaves
from sandboxd.quotas.processes import list_processes
from sandboxd.quotas.usage import CgroupUsage

LIMITS = HALF_A_CPU
INIT = 4_194_305
"""More than any process id."""
INIT_CODE = """
import time
def burn(seconds):
    while time.process_time() < seconds: pass
print(0, flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        exec(line)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Starts what it is told, one line of Python each, and tells how it ended."""
HOST = Host(
    cpus=2,
    memory_bytes=2**30,
    swap_bytes=0,
    kernel_release="6.1.0",
    kernel=(6, 1),
    controllers={},
    rlimits={},
)
LIMIT_FILES = ("memory.max", "cpu.max", "pids.max", "memory.oom.group")
OFFERED = ("cgroup.kill", "memory.peak", "memory.swap.max", "pids.peak")
JOB_FILES = {
    "memory.current": f"{3 * MIB}\n",
    "memory.max": "",
    "memory.oom.group": "",
    "memory.swap.max": "",
    "pids.current": "1\n",
    "pids.peak": "1\n",
    "memory.peak": "0\n",
    "io.stat": "",
    "pids.max": "",
    "pids.events": "max 0\n",
    "cpu.max": "",
    "cpu.stat": "usage_usec 9000000\nuser_usec 8000000\nsystem_usec 1000000\nthrottled_usec 1000000\n",
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
}
LEAF_FILES = {
    "memory.current": f"{2 * MIB}\n",
    "memory.peak": f"{4 * MIB}\n",
    "memory.events": "max 0\noom 0\noom_kill 0\n",
    "memory.max": "",
    "memory.oom.group": "",
    "pids.peak": "1\n",
    "pids.max": "",
    "pids.events": "max 0\n",
    "cpu.max": "",
    "cpu.stat": "usage_usec 500000\nuser_usec 300000\nsystem_usec 200000\nthrottled_usec 0\n",
    "io.stat": "8:0 rbytes=100 wbytes=10 rios=1 wios=1 dbytes=0 dios=0\n",
    "cgroup.kill": "",
    "cgroup.procs": "",
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The directory of a job."""
    return tmp_path / "one" / "job"


@pytest.fixture
def group(tmp_path: Path, job: Path) -> Group2:
    """A job with its limits, and the files of the leaves that it will have."""
    (tmp_path / "one").mkdir()
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (tmp_path / name).touch()
        (tmp_path / "one" / name).touch()
    for name in OFFERED:
        (tmp_path / "one" / name).touch()
    controllers = frozenset({"cpu", "cpuacct", "io", "memory", "pids"})
    made = Driver2(str(tmp_path), controllers, HOST, "one").create("job")
    for name, text in JOB_FILES.items():
        (job / name).write_text(text)
    for leaf in ("1", "2", "3"):
        (job / leaf).mkdir()
        for name, text in LEAF_FILES.items():
            (job / leaf / name).write_text(text)
    made.apply(LIMITS)
    return made


@pytest.fixture
def leaves(group: Group2) -> Leaves:
    return Leaves(group, INIT)


def begun(leaves: Leaves) -> Leaf:
    """The leaf of a command that starts now."""
    leaf = leaves.advance()
    leaf.begin()
    return leaf


def test_init_goes_from_leaf_to_leaf(leaves: Leaves, job: Path) -> None:
    (job / "1" / "cgroup.procs").write_text(f"{INIT}\n")
    leaves.advance()
    leaves.advance()

    assert (job / "2" / "cgroup.procs").read_text() == str(INIT)
    assert (job / "cgroup.subtree_control").read_text() == "+cpu +io +memory +pids"


def test_an_init_that_is_not_where_it_was_is_a_stranger_by_now(leaves: Leaves, job: Path) -> None:
    leaves.advance()

    with pytest.raises(SandboxFailed, match="not where it was"):
        leaves.advance()
    assert (job / "2" / "cgroup.procs").read_text() == ""


def test_a_leaf_has_the_job_s_limits_and_room_for_init_while_that_is_in_it(
    leaves: Leaves, job: Path
) -> None:
    (job / "1" / "cgroup.procs").write_text(f"{INIT}\n")
    leaves.advance()
    with_init = {name: (job / "1" / name).read_text() for name in LIMIT_FILES}
    leaves.advance()

    memory = str(67 * MIB)
    assert with_init == {
        "memory.max": memory,
        "cpu.max": "500000 1000000",
        "pids.max": "17",
        "memory.oom.group": "",
    }
    assert (job / "1" / "memory.max").read_text() == memory
    assert (job / "1" / "pids.max").read_text() == "16"


def test_other_limits_reach_every_leaf(leaves: Leaves, group: Group2, job: Path) -> None:
    (job / "1" / "cgroup.procs").write_text(f"{INIT}\n")
    leaves.advance()
    leaves.advance()
    group.change(msgspec.structs.replace(LIMITS, memory_bytes=128 * MIB, pids=12))
    leaves.change()

    for leaf, pids in (("1", "12"), ("2", "13")):
        assert (job / leaf / "memory.max").read_text() == str(131 * MIB)
        assert (job / leaf / "pids.max").read_text() == pids


def test_a_command_dies_whole_only_where_init_is_not(leaves: Leaves, job: Path) -> None:
    (job / "1" / "cgroup.procs").write_text(f"{INIT}\n")
    leaves.advance()
    leaves.advance()

    groups = [(job / name / "memory.oom.group").read_text() for name in (".", "1", "2")]
    assert groups == ["0", "1", ""]
    assert (job / "1" / "cgroup.kill").read_text() == ""


def test_what_the_kernel_left_of_a_command_before_init_had_gone_is_killed(
    leaves: Leaves, job: Path
) -> None:
    (job / "1" / "cgroup.procs").write_text(f"{INIT}\n")
    leaves.advance()
    (job / "1" / "memory.events").write_text("max 1\noom 1\noom_kill 1\n")
    leaves.advance()

    assert (job / "1" / "cgroup.kill").read_text() == "1"


def test_figures_are_from_the_start_on(leaves: Leaves, job: Path) -> None:
    leaf = begun(leaves)
    for name, text in {
        "memory.peak": f"{12 * MIB}\n",
        "memory.events": "max 0\noom 0\noom_kill 2\n",
        "pids.peak": "3\n",
        "cpu.stat": "usage_usec 1500000\nuser_usec 1100000\nsystem_usec 400000\nthrottled_usec 0\n",
        "io.stat": "8:0 rbytes=4196 wbytes=14 rios=1 wios=1 dbytes=0 dios=0\n",
    }.items():
        (job / "1" / name).write_text(text)
    (job / "cpu.stat").write_text(JOB_FILES["cpu.stat"].replace("d_usec 1000000", "d_usec 1250000"))

    assert leaf.cpu_seconds() == 1.0
    assert leaf.oom_kills() == 2
    assert leaf.end() == CgroupUsage(
        cpu_seconds=1.0,
        cpu_user_seconds=0.8,
        cpu_system_seconds=0.2,
        cpu_throttled_seconds=0.25,
        memory_peak_bytes=10 * MIB,
        pids_peak=2,
        io_read_bytes=4096,
        io_write_bytes=4,
    )


@pytest.mark.parametrize(("before", "peak"), [(6, 4), (12, None)])
def test_a_peak_that_files_had_before_is_not_taken_for_the_command_s(
    leaves: Leaves, job: Path, before: int, peak: int | None
) -> None:
    """Where they had much more than is there now. Where that is little, it is a bound that is near enough."""
    (job / "1" / "memory.peak").write_text(f"{before * MIB}\n")

    assert begun(leaves).end().memory_peak_bytes == (None if peak is None else peak * MIB)


@pytest.mark.parametrize(("with_init", "at_last", "peak"), [(2, 2, 1), (2, 3, 3), (4, 4, 3)])
def test_init_is_no_process_of_the_command(
    leaves: Leaves, job: Path, with_init: int, at_last: int, peak: int
) -> None:
    (job / "1" / "cgroup.procs").write_text(f"{INIT}\n")
    leaf = begun(leaves)
    (job / "1" / "pids.peak").write_text(f"{with_init}\n")
    leaves.advance()
    (job / "1" / "pids.peak").write_text(f"{at_last}\n")

    assert leaf.end().pids_peak == peak


@pytest.mark.parametrize("counts_below", [False, True])
def test_forks_that_were_refused_are_counted_once(
    leaves: Leaves, job: Path, counts_below: bool
) -> None:
    """From Linux 6.10 on in the job's own file, which has a `pids.events.local` beside it; before, in the leaf alone."""
    if counts_below:
        (job / "pids.events.local").touch()
    leaf = begun(leaves)
    (job / "1" / "pids.peak").write_text("17\n")
    (job / "1" / "pids.events").write_text("max 5\n")

    assert leaf.end().forks_refused == 5
    assert leaves.correct(CgroupUsage()).forks_refused == (None if counts_below else 5)


# On this host's own


@pytest.mark.host
def test_where_v2_has_everything_each_command_has_its_own(cgroup: Cgroup, spawn: Spawn) -> None:
    """Elsewhere there are none, and nothing is moved."""
    init, beside = spawn(cgroup, INIT_CODE), spawn(cgroup, INIT_CODE)
    for process in (init, beside):
        answer(process)
    cgroup.watch(init.pid)
    cgroup.apply(LIMITS)
    found = cgroup.leaves()
    if found is None:
        assert cgroup.join_files()
        return
    first = found.advance()
    first.begin()
    answer(init, "block = bytearray(20 * 2**20); burn(0.2)")
    second = found.advance()
    second.begin()
    answer(init, "burn(0.4)")
    third = found.advance()

    used, later = first.end(), second.end()
    assert [leaf.name for leaf in (first, second, third)] == ["1", "2", "3"]
    assert members(cgroup) == {"1": [], "2": [], "3": [init.pid], "beside": [beside.pid]}
    assert used.cpu_seconds is not None
    assert later.cpu_seconds is not None
    assert used.cpu_seconds >= 0.2
    assert later.cpu_seconds >= 0.4
    assert used.memory_peak_bytes is not None
    assert later.memory_peak_bytes is not None
    assert later.memory_peak_bytes < 20 * MIB <= used.memory_peak_bytes < 40 * MIB
    assert (used.pids_peak, later.pids_peak) == (1, 1)
    assert used.cpu_seconds + later.cpu_seconds <= (cgroup.cpu_seconds() or 0)


@pytest.mark.host
def test_init_s_moves_are_not_in_the_job_s_peak(cgroup: Cgroup, spawn: Spawn) -> None:
    """The kernel counts who is moved twice for a moment, here when the most processes are there."""
    init = spawn(cgroup, INIT_CODE)
    answer(init)
    cgroup.watch(init.pid)
    cgroup.apply(LIMITS)
    found = cgroup.leaves()
    leaf = found.advance() if found else None
    three = "[os.fork() or time.sleep(1000) for _ in range(3)]; print(0, flush=True)"
    answer(init, f"{three}; time.sleep(1000)")
    if found is not None:
        found.advance()

    assert cgroup.read().pids_peak == 4
    assert leaf is None or leaf.end().pids_peak == 4
    cgroup.kill()


@pytest.mark.host
def test_leaves_go_with_the_job_and_not_before_what_is_in_them(
    cgroup: Cgroup, spawn: Spawn
) -> None:
    init = spawn(cgroup, INIT_CODE)
    answer(init)
    cgroup.watch(init.pid)
    cgroup.apply(LIMITS)
    found = cgroup.leaves()
    if found is not None:
        found.advance().begin()
        answer(init, "if os.fork() == 0: time.sleep(1000)")
        found.advance()
    busy = cgroup.remove()
    cgroup.kill()
    init.wait()

    assert busy is False
    wait_for(cgroup.remove, "nothing is in it")
    if found is not None:
        with pytest.raises(SandboxFailed, match="has ended"):
            found.advance()


def members(cgroup: Cgroup) -> dict[str, list[int]]:
    """Leaf to the processes in it."""
    fd = cgroup.directory_fd()
    assert fd is not None
    names = [entry.name for entry in os.scandir(fd) if entry.is_dir()]
    return {name: list_processes(fd, name) for name in sorted(names)}


def answer(init: "subprocess.Popen[str]", code: str | None = None) -> None:
    """Have it start a command, and wait until that is over; without, until it is there itself."""
    assert init.stdin is not None
    assert init.stdout is not None
    if code is not None:
        init.stdin.write(f"{code}\n")
        init.stdin.flush()
    assert init.stdout.readline() == "0\n"
