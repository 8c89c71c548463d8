"""What the v2 driver writes and reads, on files of the kernel's format in an ordinary directory.

Not shown here, because it takes a machine whose memory, cpu and pids controllers live on v2: that we may move ourselves
into the leaf, that the controllers can be enabled, that the kernel enforces what is written, and cgroup.kill.
"""

import os
from pathlib import Path

import msgspec
import pytest
from limit_examples import HALF_A_CPU, MIB

from sandboxd.errors import HostNotReady, SandboxFailed
from sandboxd.quotas.cgroup2 import Driver2, Group2, parse_cpu_stat, parse_io_stat
from sandboxd.quotas.host import Host
from sandboxd.quotas.usage import CgroupUsage, split_cpu

CONTROLLERS = frozenset({"cpu", "cpuacct", "io", "memory", "pids"})
LIMITS = HALF_A_CPU
CPU_STAT = """\
usage_usec 1500000
user_usec 1000000
system_usec 500000
nr_periods 15
nr_throttled 3
throttled_usec 250000
nr_bursts 0
burst_usec 0
"""
PRESSURE_FILES = ("cpu.pressure", "memory.pressure", "io.pressure")
PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n"
MEMORY_EVENTS = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 1\n"
IO_STAT = """\
8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0
254:1 rbytes=100 wbytes=0 rios=1 wios=0 dbytes=0 dios=0
7:0
"""
INSTANCE_FILES = (
    "cgroup.kill",
    "memory.peak",
    "memory.swap.max",
    "pids.peak",
    "cgroup.subtree_control",
)


def host(kernel: tuple[int, int] = (6, 1), swap_bytes: int = 0) -> Host:
    return Host(
        cpus=2,
        memory_bytes=2**30,
        swap_bytes=swap_bytes,
        kernel_release=f"{kernel[0]}.{kernel[1]}.0",
        kernel=kernel,
        controllers={},
        rlimits={},
    )


@pytest.fixture
def subtree(tmp_path: Path) -> Path:
    """A delegated subtree without processes, in which the instance's directory has every file."""
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (tmp_path / name).touch()
    (tmp_path / "one").mkdir()
    for name in INSTANCE_FILES:
        (tmp_path / "one" / name).touch()
    for name in PRESSURE_FILES:
        (tmp_path / "one" / name).write_text(PRESSURE)
    return tmp_path


@pytest.fixture
def group(subtree: Path) -> Group2:
    """A job whose files hold what the kernel would have put into them."""
    (subtree / "one" / "io.max").touch()
    made = Driver2(str(subtree), CONTROLLERS, host(), "one", ("254:0",)).create("job")
    files = {
        "memory.current": f"{3 * MIB}\n",
        "memory.peak": f"{13 * MIB}\n",
        "memory.events": MEMORY_EVENTS,
        "pids.current": "1\n",
        "pids.peak": "5\n",
        "cpu.stat": CPU_STAT,
        "io.stat": IO_STAT,
        **dict.fromkeys(PRESSURE_FILES, PRESSURE),
    }
    writable = (
        "memory.max",
        "memory.swap.max",
        "memory.oom.group",
        "pids.max",
        "cpu.max",
        "cgroup.kill",
    )
    for name, text in {**files, **dict.fromkeys(writable, "")}.items():
        (subtree / "one" / "job" / name).write_text(text)
    return made


def test_controllers_are_enabled_level_by_level(subtree: Path) -> None:
    Driver2(str(subtree), CONTROLLERS, host(), "one")

    for directory in (subtree, subtree / "one"):
        assert (directory / "cgroup.subtree_control").read_text() == "+cpu +io +memory +pids"


def test_limits_are_written_with_what_init_has_on_top(group: Group2, subtree: Path) -> None:
    group.apply(LIMITS)

    job = subtree / "one" / "job"
    assert (job / "memory.max").read_text() == str(67 * MIB)
    assert (job / "memory.swap.max").read_text() == "0"
    assert (job / "memory.oom.group").read_text() == "1"
    group.change(msgspec.structs.replace(LIMITS, swap_bytes=MIB))
    assert (job / "memory.swap.max").read_text() == str(MIB)
    assert (job / "pids.max").read_text() == "17"
    assert (job / "cpu.max").read_text() == "50000 100000"
    assert not (job / "io.max").exists()


def test_a_rate_is_written_for_each_disk_and_taken_back(group: Group2, subtree: Path) -> None:
    io_max = subtree / "one" / "job" / "io.max"
    io_max.touch()

    group.change(msgspec.structs.replace(LIMITS, io_bytes_per_second=MIB))
    held = io_max.read_text()
    io_max.write_text("")  # Unlike the kernel's, a file keeps what is longer.
    group.change(LIMITS)

    assert held == f"254:0 rbps={MIB} wbps={MIB}"
    assert io_max.read_text() == "254:0 rbps=max wbps=max"


def test_usage_is_what_the_job_had_without_init(group: Group2) -> None:
    before_limits = group.read()
    group.apply(LIMITS)
    usage = group.read()

    assert before_limits.cpu_seconds == 1.5
    assert usage == CgroupUsage(
        cpu_seconds=0.0,
        cpu_user_seconds=0.0,
        cpu_system_seconds=0.0,
        cpu_throttled_seconds=0.0,
        memory_peak_bytes=10 * MIB,
        pids_peak=4,
        io_read_bytes=4196,
        io_write_bytes=8192,
        oom_kills=2,
        cpu_pressure_seconds=0.0,
        memory_pressure_seconds=0.0,
        io_pressure_seconds=0.0,
    )
    assert group.oom_kills() == 2


def test_waiting_is_counted_from_when_the_limits_were_set(group: Group2, subtree: Path) -> None:
    group.apply(LIMITS)
    (subtree / "one" / "job" / "cpu.pressure").write_text("some avg10=0.00 total=1500000\n")

    usage = group.read()
    assert (usage.cpu_pressure_seconds, usage.memory_pressure_seconds) == (0.5, 0.0)
    assert group.now().stalls.cpu_pressure_seconds == 0.5


def test_a_command_that_is_there_already_counts_for_the_job(group: Group2, subtree: Path) -> None:
    """With an OCI runtime: one of two processes is the command, and the peaks are the runtime's until the job has more."""
    job = subtree / "one" / "job"
    (job / "pids.current").write_text("2\n")
    group.apply(LIMITS, started=1)
    while_small = group.read()
    (job / "pids.peak").write_text("9\n")
    (job / "memory.peak").write_text(f"{23 * MIB}\n")
    when_large = group.read()

    assert (job / "pids.max").read_text() == "17"
    assert (while_small.pids_peak, while_small.memory_peak_bytes) == (None, None)
    assert (when_large.pids_peak, when_large.memory_peak_bytes) == (8, 20 * MIB)


def test_kill_is_one_write(group: Group2, subtree: Path) -> None:
    group.kill()

    assert (subtree / "one" / "job" / "cgroup.kill").read_text() == "1"


def test_the_directory_is_open_for_clone3(group: Group2, subtree: Path) -> None:
    assert os.path.samestat(os.fstat(group.directory_fd()), os.stat(subtree / "one" / "job"))


def test_a_file_that_the_kernel_may_lack_may_be_missing(subtree: Path) -> None:
    (subtree / "one" / "memory.peak").unlink()
    driver = Driver2(str(subtree), CONTROLLERS, host((5, 15)), "one")

    assert "memory.peak" not in driver.offered


def test_a_file_that_the_kernel_must_have_is_missed_by_name(subtree: Path) -> None:
    (subtree / "one" / "memory.peak").unlink()

    with pytest.raises(SandboxFailed, match=r"cgroup memory\.peak: missing on Linux 6\.1\.0"):
        Driver2(str(subtree), CONTROLLERS, host((6, 1)), "one")


def test_swap_that_cgroups_do_not_count_is_refused(subtree: Path) -> None:
    (subtree / "one" / "memory.swap.max").unlink()

    assert Driver2(str(subtree), CONTROLLERS, host(), "one").offered
    with pytest.raises(HostNotReady, match="swapoff"):
        Driver2(str(subtree), CONTROLLERS, host(swap_bytes=1), "one")


def test_a_failing_write_names_the_file(group: Group2, subtree: Path) -> None:
    (subtree / "one" / "job" / "pids.max").unlink()

    with pytest.raises(SandboxFailed) as failure:
        group.apply(LIMITS)
    assert failure.value.step == "cgroup pids.max"


def test_throttling_is_unknown_without_the_cpu_controller() -> None:
    usage = parse_cpu_stat("usage_usec 10\nuser_usec 6\nsystem_usec 4\n", {})

    assert usage.cpu_seconds == 10e-6
    assert usage.cpu_throttled_seconds is None


def test_io_is_summed_over_devices_and_empty_lines() -> None:
    assert parse_io_stat(IO_STAT) == (4196, 8192)
    assert parse_io_stat("") == (0, 0)


def test_cpu_time_is_divided_as_the_clock_ticks_were() -> None:
    assert split_cpu(1.0, 3, 1) == (0.75, 0.25)
    assert split_cpu(0.5, 0, 0) == (0.5, 0.0)


def test_on_a_hybrid_host_each_hierarchy_fills_in_what_it_knows() -> None:
    first = CgroupUsage(cpu_seconds=1.0, pids_peak=0)
    second = CgroupUsage(cpu_seconds=2.0, memory_peak_bytes=5)

    assert first.filled_from(second) == CgroupUsage(
        cpu_seconds=1.0, memory_peak_bytes=5, pids_peak=0
    )
