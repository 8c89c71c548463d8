"""Limits that hold and figures that are true, on the cgroups of this host."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import msgspec
import pytest
from limit_examples import HALF_A_CPU, MIB, Spawn
from waiting import TIME_FACTOR, wait_for

from sandboxd.errors import SandboxFailed
from sandboxd.quotas.cgroups import Cgroup, Cgroups, enforcement_of, open_cgroups
from sandboxd.quotas.host import CgroupVersion, Host

pytestmark = pytest.mark.host


LIMITS = msgspec.structs.replace(HALF_A_CPU, cpus=1.0)

SPIN_FOR_A_SECOND = """\
import time
end, used = time.monotonic() + 1, time.process_time()
while time.monotonic() < end:
    pass
print(time.process_time() - used)
"""
SPIN_FOR_SO_MUCH = """\
import time
begun, used = time.monotonic(), time.process_time()
while time.process_time() - used < 0.4:
    pass
print(time.monotonic() - begun)
"""
HOLD = 'print("ready", flush=True); sys.stdin.read()'
FORK_UNTIL_REFUSED = """\
children = 0
try:
    while children < 1000:
        if os.fork() == 0:
            sys.stdin.read()
            os._exit(0)
        children += 1
except BlockingIOError:
    pass
print(children, flush=True)
"""
TAKE_WHEN_TOLD = """\
print("ready", flush=True)
size = int(sys.stdin.readline())
block = bytearray(size)
for i in range(0, size, 4096):
    block[i] = 1
print("taken", flush=True)
"""


def directories(host: Host, instance: str) -> list[str]:
    found = {c.directory for c in host.controllers.values() if c.directory}
    return [path for path in (f"{parent}/{instance}" for parent in found) if os.path.exists(path)]


def test_what_was_held_back_under_a_lower_rate_stays_counted_under_a_higher_one(
    cgroup: Cgroup, spawn: Spawn
) -> None:
    cgroup.apply(msgspec.structs.replace(LIMITS, cpus=0.05))
    spawn(cgroup, SPIN_FOR_A_SECOND).communicate()
    cgroup.change(msgspec.structs.replace(LIMITS, cpus=2.0))

    assert (cgroup.read().cpu_throttled_seconds or 0.0) > 0.1


def test_a_cpu_limit_of_a_fifth_gives_a_fifth(cgroup: Cgroup, spawn: Spawn) -> None:
    cgroup.apply(msgspec.structs.replace(LIMITS, cpus=0.2))
    output, _ = spawn(cgroup, SPIN_FOR_SO_MUCH).communicate()

    usage = cgroup.read()
    assert usage.cpu_seconds is not None
    # No more than that: with others on the machine it may be less. The kernel counts by its own clock.
    assert 0.35 <= usage.cpu_seconds
    assert 0.05 * float(output) <= usage.cpu_seconds <= 0.3 * float(output)
    assert usage.cpu_throttled_seconds is not None
    assert usage.cpu_throttled_seconds > 0.4


def test_a_process_over_the_memory_limit_is_killed_and_counted(
    cgroup: Cgroup, spawn: Spawn
) -> None:
    cgroup.apply(LIMITS)
    process = spawn(cgroup, TAKE_WHEN_TOLD)
    process.communicate(f"{128 * MIB}\n")

    assert process.returncode == -signal.SIGKILL
    # With memory.oom.group the kernel counts the one that it chose once more, as one of the group.
    assert cgroup.oom_kills() in ((1, 2) if cgroup.directory_fd() is not None else (1,))


def test_what_is_in_the_cgroup_before_the_limits_is_not_charged_to_the_job(
    cgroup: Cgroup, spawn: Spawn
) -> None:
    init = spawn(cgroup, f"block = bytearray(48 * 2**20); {HOLD}")
    assert init.stdout is not None
    init.stdout.readline()
    cgroup.apply(LIMITS)
    job = spawn(cgroup, TAKE_WHEN_TOLD)
    output, _ = job.communicate(f"{40 * MIB}\n")

    usage = cgroup.read()
    assert output == "ready\ntaken\n"
    assert cgroup.oom_kills() == 0
    assert usage.memory_peak_bytes is not None
    assert 40 * MIB <= usage.memory_peak_bytes <= 56 * MIB
    assert usage.pids_peak == 1


def test_memory_used_up_to_the_limit_is_granted(cgroup: Cgroup, spawn: Spawn) -> None:
    process = spawn(cgroup, TAKE_WHEN_TOLD)
    assert process.stdout is not None
    process.stdout.readline()
    cgroup.apply(LIMITS)
    output, _ = process.communicate(f"{LIMITS.memory_bytes - 2 * MIB}\n")

    assert output == "taken\n"
    assert cgroup.oom_kills() == 0


@pytest.mark.parametrize("pids", [1, 2, 16])
def test_forks_stop_at_exactly_the_number_asked_for(
    cgroup: Cgroup, spawn: Spawn, pids: int
) -> None:
    init = spawn(cgroup, HOLD)
    assert init.stdout is not None
    init.stdout.readline()
    cgroup.apply(msgspec.structs.replace(LIMITS, pids=pids))
    job = spawn(cgroup, FORK_UNTIL_REFUSED)
    assert job.stdout is not None
    children = int(job.stdout.readline())

    assert children + 1 == pids
    assert cgroup.read().pids_peak == pids


def test_usage_counts_from_the_limits_on(cgroup: Cgroup, spawn: Spawn) -> None:
    spawn(cgroup, "for i in range(3_000_000): pass").communicate()
    before = cgroup.cpu_seconds()
    cgroup.apply(LIMITS)

    usage = cgroup.read()
    assert before is not None
    assert before > 0.02
    assert usage.cpu_seconds is not None
    assert usage.cpu_seconds < 0.02


def test_cpu_time_is_that_of_the_whole_tree_also_of_what_has_ended(
    cgroup: Cgroup, spawn: Spawn
) -> None:
    cgroup.apply(LIMITS)
    burn = f"while time.process_time() < {0.15 * TIME_FACTOR}:\n  for i in range(20_000): pass"
    child = f"if os.fork() == 0:\n  exec({burn!r})\n  os._exit(0)\n"
    all_of_it = "print(sum(os.times()[:4]))"
    code = f"import time\n{child}{child}os.wait()\nos.wait()\n{all_of_it}"
    output, _ = spawn(cgroup, code).communicate()

    usage = cgroup.read()
    assert usage.cpu_seconds is not None
    assert usage.cpu_user_seconds is not None
    assert usage.cpu_system_seconds is not None
    # Of both, and nothing twice: by what the processes themselves say, some of it from before they were in the group.
    assert 0.3 * TIME_FACTOR <= usage.cpu_seconds <= float(output) + 0.05 * TIME_FACTOR
    assert usage.cpu_user_seconds > usage.cpu_system_seconds
    parts = usage.cpu_user_seconds + usage.cpu_system_seconds
    assert parts == pytest.approx(usage.cpu_seconds, abs=2e-6)  # cpu.stat rounds each
    assert cgroup.cpu_seconds() == pytest.approx(usage.cpu_seconds, abs=0.01)


def test_kill_ends_every_process_also_one_that_left_its_session(
    cgroup: Cgroup, spawn: Spawn
) -> None:
    process = spawn(cgroup, f"if os.fork() == 0: os.setsid()\n{HOLD}")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    cgroup.kill()

    # The pipe ends when the last of them has gone, the daemon included.
    assert process.stdout.read() == ""
    assert process.wait() == -signal.SIGKILL


def test_remove_says_no_while_a_process_is_in_it_and_leaves_nothing_after(
    cgroups: Cgroups, host: Host, instance: str, spawn: Spawn
) -> None:
    cgroup = cgroups.create("busy")
    process = spawn(cgroup, HOLD)
    assert process.stdout is not None
    process.stdout.readline()
    busy = cgroup.remove()
    process.communicate("")

    assert busy is False
    assert cgroup.remove() is True
    assert cgroup.remove() is True
    assert not [path for path in directories(host, instance) if os.path.exists(f"{path}/busy")]


def test_remove_waits_on_v2_until_the_kernel_tells_that_the_last_process_has_gone(
    cgroups: Cgroups, spawn: Spawn
) -> None:
    """v1 tells nobody: who removes it tries again."""
    cgroup = cgroups.create("ending")
    process = spawn(cgroup, HOLD)
    assert process.stdout is not None
    process.stdout.readline()
    end = threading.Timer(0.05, process.kill)
    end.start()
    removed = cgroup.remove()
    end.join()
    process.communicate()

    assert removed is (cgroup.directory_fd() is not None)
    wait_for(cgroup.remove, "it is removed")


def test_close_leaves_no_directory_and_no_process(host: Host, instance: str, spawn: Spawn) -> None:
    cgroups = open_cgroups(host, instance=instance)
    process = spawn(cgroups.create("left"), HOLD)
    assert process.stdout is not None
    process.stdout.readline()
    cgroups.close()

    assert process.wait() == -signal.SIGKILL
    assert directories(host, instance) == []


def test_what_a_dead_instance_left_is_killed_and_removed_at_start(
    cgroups: Cgroups, host: Host, instance: str, spawn: Spawn
) -> None:
    process = spawn(cgroups.create("stale"), HOLD)
    assert process.stdout is not None
    process.stdout.readline()
    open_cgroups(host, instance=instance)

    assert process.wait() == -signal.SIGKILL
    assert not [path for path in directories(host, instance) if os.path.exists(f"{path}/stale")]


def test_a_job_of_another_instance_is_left_alone(
    cgroup: Cgroup, host: Host, instance: str, spawn: Spawn
) -> None:
    process = spawn(cgroup, HOLD)
    assert process.stdout is not None
    process.stdout.readline()
    open_cgroups(host, instance=f"{instance}-other").close()

    assert process.poll() is None


def test_a_name_that_is_taken_names_the_step(cgroups: Cgroups, cgroup: Cgroup) -> None:
    with pytest.raises(SandboxFailed) as failure:
        cgroups.create("job")

    assert failure.value.step == "cgroup mkdir"


def test_a_file_that_cannot_be_written_names_itself(cgroup: Cgroup) -> None:
    cgroup.remove()

    with pytest.raises(SandboxFailed) as failure:
        cgroup.apply(LIMITS)
    assert failure.value.step.startswith(("cgroup memory.", "cgroup pids."))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../other", "-x", "a\n"])
def test_a_name_that_could_leave_the_directory_is_refused(cgroups: Cgroups, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        cgroups.create(name)


def test_a_thousand_cgroups_leave_no_descriptor_open(cgroups: Cgroups) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        cgroup = cgroups.create(f"job{number}")
        cgroup.apply(LIMITS)
        cgroup.read()
        assert cgroup.remove()

    assert len(os.listdir("/proc/self/fd")) == before


def test_every_limit_says_what_enforces_it(cgroups: Cgroups, host: Host) -> None:
    words = {host.controllers[name].version for name in ("memory", "cpu", "pids")}

    assert set(cgroups.enforcement) == {
        "cpus", "memory", "pids", "disk", "wall_seconds", "cpu_seconds", "idle_seconds", "output_bytes",
        "open_files", "swap", "io_bytes_per_second", "cpuset",
    }  # fmt: skip
    assert {cgroups.enforcement[name] for name in ("cpus", "memory", "pids")} == words
    assert cgroups.enforcement["cpu_seconds"] == "sampled"


def test_a_hybrid_host_names_the_version_of_each_limit() -> None:
    enforcement = enforcement_of({"memory": CgroupVersion.V2, "cpu": CgroupVersion.V1})

    assert enforcement["memory"] == "cgroup2"
    assert enforcement["cpus"] == "cgroup1"
    assert enforcement["pids"] == "rlimit"
    assert enforcement["cpu_seconds"] == "sampled"


def test_without_delegation_there_is_no_cgroup_and_nothing_fails(host: Host) -> None:
    bare = Host(
        cpus=host.cpus,
        memory_bytes=host.memory_bytes,
        swap_bytes=0,
        kernel_release=host.kernel_release,
        kernel=host.kernel,
        controllers={},
        rlimits={},
    )
    cgroups = open_cgroups(bare, instance="none")
    cgroup = cgroups.create("job")
    cgroup.apply(LIMITS)
    cgroup.kill()

    assert cgroup.join_files() == ()
    assert cgroup.directory_fd() is None
    assert cgroup.cpu_seconds() == 0
    assert cgroup.oom_kills() == 0
    assert cgroup.remove() is True
    assert {cgroups.enforcement[name] for name in ("memory", "pids", "cpus")} == {
        "sampled",
        "rlimit",
        "affinity",
    }


def test_the_limits_of_whoever_delegated_are_not_ours_to_change(host: Host) -> None:
    """A user's own systemd hands on what it has: there the limits are those of the user's slice above it."""
    memory = host.controllers["memory"]
    files = {CgroupVersion.V1: "memory.limit_in_bytes", CgroupVersion.V2: "memory.max"}
    assert memory.version is not None
    limit = Path(f"{memory.directory}/{files[memory.version]}")
    while memory.version is CgroupVersion.V2 and limit.stat().st_uid == os.geteuid():
        limit = limit.parent.parent / limit.name

    with pytest.raises(PermissionError):
        limit.write_text("max")


def test_what_is_frozen_uses_no_processor_and_goes_on_afterwards(
    cgroup: Cgroup, spawn: Spawn
) -> None:
    if not cgroup.can_freeze:
        pytest.skip("no freezer is delegated (cgroup v1 without it)")
    cgroup.apply(LIMITS)
    spinning = spawn(cgroup, "print('ready', flush=True)\nwhile True: pass")
    assert spinning.stdout is not None
    assert spinning.stdout.readline() == "ready\n"

    cgroup.freeze()
    before = cgroup.cpu_seconds()
    subprocess.run(["sleep", "0.3"], check=True)
    frozen = cgroup.cpu_seconds()
    cgroup.thaw()
    wait_for(lambda: (cgroup.cpu_seconds() or 0) > (frozen or 0) + 0.02, "it goes on")

    assert frozen == before


def test_what_is_frozen_can_be_killed(cgroup: Cgroup, spawn: Spawn) -> None:
    if not cgroup.can_freeze:
        pytest.skip("no freezer is delegated (cgroup v1 without it)")
    held = spawn(cgroup, HOLD)
    assert held.stdout is not None
    assert held.stdout.readline() == "ready\n"
    cgroup.freeze()

    cgroup.kill()

    assert held.wait(10) == -signal.SIGKILL


def test_other_limits_go_both_ways_and_forget_nothing(cgroup: Cgroup, spawn: Spawn) -> None:
    cgroup.apply(msgspec.structs.replace(LIMITS, memory_bytes=32 * MIB))
    cgroup.change(msgspec.structs.replace(LIMITS, memory_bytes=128 * MIB))
    taking = spawn(cgroup, TAKE_WHEN_TOLD)
    out, _ = taking.communicate(f"{48 * MIB}\n")
    cgroup.change(msgspec.structs.replace(LIMITS, memory_bytes=16 * MIB))
    over = spawn(cgroup, TAKE_WHEN_TOLD)
    over.communicate(f"{48 * MIB}\n")

    assert out == "ready\ntaken\n"
    assert over.returncode == -signal.SIGKILL
    assert (cgroup.read().memory_peak_bytes or 0) > 48 * MIB


def test_swap_comes_on_top_of_memory_whichever_of_them_rises(
    cgroups: Cgroups, host: Host, instance: str
) -> None:
    cgroup = cgroups.create("job")
    directory = Path(host.controllers["memory"].directory or "", instance, "job")

    for memory, swap in ((32, 0), (32, 64), (128, 0), (16, 8), (64, 256), (32, 0)):
        cgroup.change(
            msgspec.structs.replace(LIMITS, memory_bytes=memory * MIB, swap_bytes=swap * MIB)
        )
        if cgroup.directory_fd() is None:
            names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            expected = [memory * MIB, (memory + swap) * MIB]
        else:
            names, expected = ("memory.max", "memory.swap.max"), [memory * MIB, swap * MIB]
        assert [int((directory / name).read_text()) for name in names] == expected


def test_swap_is_used_up_to_its_limit_and_memory_is_not_exceeded(
    cgroups: Cgroups, host: Host, spawn: Spawn
) -> None:
    if host.swap_bytes < 64 * MIB:
        pytest.skip("this host has no swap")
    cgroup = cgroups.create("job")
    cgroup.apply(msgspec.structs.replace(LIMITS, memory_bytes=32 * MIB, swap_bytes=48 * MIB))

    within, _ = spawn(cgroup, TAKE_WHEN_TOLD).communicate(f"{48 * MIB}\n")
    beyond = spawn(cgroup, TAKE_WHEN_TOLD)
    beyond.communicate(f"{128 * MIB}\n")

    assert within == "ready\ntaken\n"
    assert beyond.returncode == -signal.SIGKILL
