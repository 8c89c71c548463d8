"""The share of the CPUs that a job's priority gives it."""

import json
import os

import msgspec
import pytest
from test_cgroups import LIMITS, Spawn

from sandboxd.quotas.cgroups import Cgroups
from sandboxd.quotas.weights import cpu_shares, cpu_weight


def test_no_priority_is_the_kernels_default() -> None:
    assert (cpu_weight(0), cpu_shares(0)) == (100, 1024)


def test_fifty_more_is_ten_times_as_much() -> None:
    assert [cpu_weight(priority) for priority in (-100, -50, 50, 100)] == [1, 10, 1000, 10_000]
    assert [cpu_shares(priority) for priority in (-100, -50, 50)] == [10, 102, 10_240]


def test_no_priority_leaves_what_the_kernel_takes() -> None:
    for priority in (-1000, 1000):
        assert 1 <= cpu_weight(priority) <= 10_000
    assert cpu_shares(-1000) == 2


SPIN_ON_ONE_CPU = """\
import json, os, sys, time
os.sched_setaffinity(0, [{cpu}])
print("ready", flush=True)
sys.stdin.readline()
end, used = time.monotonic() + 2, time.process_time()
while time.monotonic() < end:
    pass
print(json.dumps(time.process_time() - used))
"""


@pytest.mark.host
def test_two_that_want_the_same_cpu_share_it_by_their_priorities(
    cgroups: Cgroups, spawn: Spawn
) -> None:
    """15 more is twice as much. What else runs on that CPU takes from both alike."""
    spin = SPIN_ON_ONE_CPU.format(cpu=min(os.sched_getaffinity(0)))
    running = []
    for name, priority in (("high", 15), ("low", -15)):
        cgroup = cgroups.create(name)
        cgroup.apply(msgspec.structs.replace(LIMITS, cpus=2.0))
        cgroup.weigh(priority)
        running.append(spawn(cgroup, spin))
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()

    high, low = (json.loads(process.communicate()[0]) for process in running)

    assert high / low == pytest.approx(4, rel=0.3)
