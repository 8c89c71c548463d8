"""The share of the CPUs that a job's priority gives it."""

import json
import os

import msgspec
import pytest
from limit_examples import Spawn
from test_cgroups import LIMITS

from sandboxd.quotas.cgroups import Cgroups
from sandboxd.quotas.weights import cpu_shares, cpu_weight, gives_way


def test_no_priority_is_the_kernels_default() -> None:
    assert (cpu_weight(0), cpu_shares(0)) == (100, 1024)


def test_fifty_less_is_a_tenth() -> None:
    assert [cpu_weight(priority) for priority in (-100, -50)] == [1, 10]
    assert [cpu_shares(priority) for priority in (-100, -50)] == [10, 102]


def test_nobody_gets_more_than_who_says_nothing() -> None:
    """Else one tenant would take it from another."""
    assert [cpu_weight(1), cpu_weight(100), cpu_shares(100)] == [100, 100, 1024]
    assert not gives_way(100)


def test_no_priority_leaves_what_the_kernel_takes() -> None:
    assert (cpu_weight(-1000), cpu_shares(-1000)) == (1, 2)


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
    """15 less is half as much. What else runs on that CPU takes from both alike."""
    spin = SPIN_ON_ONE_CPU.format(cpu=min(os.sched_getaffinity(0)))
    running = []
    for name, priority in (("high", 0), ("low", -30)):
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
