"""`cpuset`: a job names the CPUs that it runs on, where the operator lets it."""

from collections.abc import Iterator

import pytest
from host_tests import host_required
from running_service import running_service

from sandboxd.client import Client, InvalidRequest
from sandboxd.quotas.affinity import own_cpus
from sandboxd.quotas.host import probe_host

LAST = own_cpus()[-1]
SEEN = """
import os
os.sched_setaffinity(0, range(64))
online = open("/sys/devices/system/cpu/online").read().strip()
print(sorted(os.sched_getaffinity(0)), os.cpu_count(), online)
"""


@pytest.fixture(scope="module")
def pinning(prepared_host: None) -> Iterator[Client]:
    """Of a service whose jobs may name their CPUs."""
    if probe_host().controllers["cpuset"].directory is None:
        host_required("cpuset is not delegated (sandboxd setup)")
    with (
        running_service(isolation_cpusets="true") as service,
        service.client() as connected,
    ):
        yield connected


def test_a_job_runs_on_the_cpus_that_it_names_and_cannot_leave_them(pinning: Client) -> None:
    job = pinning.run(["python3", "-c", SEEN], cpuset=str(LAST))

    assert job.text == f"[{LAST}] 1 {LAST}\n"
    assert job.cpuset == str(LAST)
    assert job.enforcement["limits"]["cpuset"] in ("cgroup1", "cgroup2")


def test_all_its_steps_and_checkers_do(pinning: Client) -> None:
    affinity = "import os; print(sorted(os.sched_getaffinity(0)))"
    step = {"name": "seen", "command": ["python3", "-c", affinity]}
    job = pinning.run(steps=[step], cpuset=str(LAST))

    assert job.steps[0].text == f"[{LAST}]\n"


def test_a_job_that_names_none_has_as_many_as_its_rate_takes(pinning: Client) -> None:
    job = pinning.run(["nproc"], limits={"cpus": 1})

    assert (job.text, job.cpuset) == ("1\n", None)


@pytest.mark.parametrize(
    ("cpuset", "limits", "pointer"),
    [
        ("4000", {}, "/cpuset"),
        ("0-", {}, "/cpuset"),
        ("", {}, "/cpuset"),
        (str(LAST), {"cpus": 2}, "/limits/cpus"),
    ],
)
def test_what_cannot_be_is_refused(
    pinning: Client, cpuset: str, limits: dict[str, float | int | str], pointer: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        pinning.run(["true"], cpuset=cpuset, limits=limits)

    assert [fault.pointer for fault in refused.value.faults] == [pointer]


def test_without_the_operators_word_it_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.run(["true"], cpuset=str(LAST))

    assert [fault.pointer for fault in refused.value.faults] == ["/cpuset"]
    assert "cannot enforce cpuset" in refused.value.faults[0].detail
