"""A job that names its CPUs runs on no others, whatever it tries."""

from collections.abc import Iterator

import pytest
from host_tests import host_required
from limit_examples import HALF_A_CPU, Spawn

from sandboxd.quotas.affinity import own_cpus
from sandboxd.quotas.cgroups import Cgroups, open_cgroups
from sandboxd.quotas.host import Host

LEAVE = """\
import os
sys.stdin.readline()
os.sched_setaffinity(0, range(os.cpu_count()))
print(*sorted(os.sched_getaffinity(0)))
"""


@pytest.fixture
def with_cpusets(host: Host, instance: str) -> Iterator[Cgroups]:
    if host.controllers["cpuset"].directory is None:
        host_required("cpuset is not delegated (sandboxd setup)")
    opened = open_cgroups(host, instance=instance, with_cpuset=True)
    yield opened
    opened.close()


@pytest.mark.host
def test_who_is_pinned_cannot_leave(with_cpusets: Cgroups, spawn: Spawn) -> None:
    seen = {}
    for name in ("free", "pinned"):
        cgroup = with_cpusets.create(name)
        cgroup.apply(HALF_A_CPU)
        if name == "pinned":
            cgroup.pin(own_cpus()[-1:])
        seen[name], _ = spawn(cgroup, LEAVE).communicate("go\n")

    assert seen["pinned"].split() == [str(own_cpus()[-1])]
    assert seen["free"].split() == [str(cpu) for cpu in own_cpus()]


@pytest.mark.host
def test_without_the_operators_word_jobs_have_no_place_in_it(cgroups: Cgroups) -> None:
    cgroup = cgroups.create("job")

    assert cgroups.enforcement["cpuset"] == "none"
    assert not [path for path in cgroup.join_files() if "/cpuset" in path]
