"""No job reads more from disks in a second than its operator allows."""

from collections.abc import Iterator

import pytest
from running_service import running_service

from sandboxd.client import Client, InvalidRequest
from sandboxd.quotas.disks import HOST_FILES, find_disks
from sandboxd.quotas.host import probe_host

MIB = 2**20
READ_DIRECTLY = """
import mmap, os, sys, time
block = mmap.mmap(-1, 2**18)
file = os.open(os.path.realpath(sys.executable), os.O_RDONLY | os.O_DIRECT)
began, got = time.monotonic(), 0
while got < 4 * 2**20 and (piece := os.readv(file, [block])):
    got += piece
print(got, time.monotonic() - began)
"""


@pytest.fixture(scope="module")
def held(prepared_host: None) -> Iterator[Client]:
    """Of a service whose jobs read no more than 1 MiB/s."""
    disks = find_disks([HOST_FILES, "/var/tmp"])
    if disks.untold or not disks.numbers:
        pytest.skip("the disk of this host cannot be told")
    if all(probe_host().controllers[name].directory is None for name in ("io", "blkio")):
        pytest.skip("io is not delegated: a user's own systemd does not hand it on")
    with (
        running_service(ceilings_io_bytes_per_second="1Mi") as service,
        service.client() as connected,
    ):
        yield connected


def test_the_rate_of_the_operator_holds_for_who_asks_for_none(held: Client) -> None:
    job = held.run(["/usr/bin/python3", "-c", READ_DIRECTLY])

    got, seconds = map(float, job.text.split())
    assert got / seconds < 1.5 * MIB
    assert job.limits["io_bytes_per_second"] == MIB


@pytest.mark.parametrize("asked", [0, "2Mi"])
def test_no_job_may_have_more(held: Client, asked: int | str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        held.run(["true"], limits={"io_bytes_per_second": asked})

    assert [fault.pointer for fault in refused.value.faults] == ["/limits/io_bytes_per_second"]


def test_a_job_that_waits_for_its_disk_ends_at_its_wall_time(held: Client) -> None:
    job = held.run(["/usr/bin/python3", "-c", READ_DIRECTLY], limits={"wall_seconds": 1})

    assert (job.state, job.reason) == ("timed_out", "wall_seconds")


def test_a_rate_that_nothing_would_enforce_is_refused(client: Client) -> None:
    """On v1, where no operator asked for rates, jobs have no place in the hierarchy that knows them."""
    if client.run(["true"]).enforcement["limits"]["io_bytes_per_second"] != "none":
        pytest.skip("cgroup v2 has it at no cost")

    with pytest.raises(InvalidRequest) as refused:
        client.run(["true"], limits={"io_bytes_per_second": "1Mi"})

    assert "cannot enforce io_bytes_per_second" in refused.value.faults[0].detail
