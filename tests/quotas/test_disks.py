"""Which disk a directory is on, and that no more is read from it in a second than a job may."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from limit_examples import MIB, Spawn
from test_cgroups import LIMITS

from sandboxd.quotas.cgroups import Cgroups, open_cgroups
from sandboxd.quotas.disks import HOST_FILES, find_disks, parse_mounts, whole_disk
from sandboxd.quotas.host import Host

MOUNTS = """\
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
41 27 0:38 / /srv rw master:3 - btrfs /dev/sdb1 rw,subvol=/
42 27 0:39 / /tmp rw - tmpfs tmpfs rw,size=4k
"""


@pytest.fixture
def sys_block(tmp_path: Path) -> str:
    """A disk with a partition, and one of the device mapper."""
    for device, number, partition in (
        ("vda", "254:0", False),
        ("vda/vda1", "254:1", True),
        ("dm-0", "253:0", False),
    ):
        directory = tmp_path / "devices" / device
        directory.mkdir(parents=True)
        (directory / "dev").write_text(f"{number}\n")
        if partition:
            (directory / "partition").write_text("1\n")
        (tmp_path / number).symlink_to(directory)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("number", "disk"), [("254:0", "254:0"), ("254:1", "254:0"), ("253:0", "253:0"), ("0:38", None)]
)
def test_a_partition_is_on_its_disk_and_others_are_disks(
    sys_block: str, number: str, disk: str | None
) -> None:
    assert whole_disk(number, sys_block) == disk


def test_mounts_are_found_by_their_numbers() -> None:
    mounts = parse_mounts(MOUNTS)

    assert mounts["0:38"] == ("btrfs", "/dev/sdb1")
    assert mounts["254:1"] == ("ext4", "/dev/vda1")


def test_what_is_on_no_disk_is_told_apart_from_what_needs_none(tmp_path: Path) -> None:
    in_memory = find_disks(["/dev/shm/not/there/yet"])
    without_device = find_disks(["/proc"])

    assert in_memory == ((), ())
    assert without_device == ((), ("/proc",))


READ_DIRECTLY = """\
import mmap, os, time
block = mmap.mmap(-1, 2**18)
file = os.open({path!r}, os.O_RDONLY | os.O_DIRECT)
sys.stdin.readline()
began = time.monotonic()
while os.readv(file, [block]):
    pass
print(time.monotonic() - began)
"""


@pytest.fixture
def with_rates(host: Host, instance: str) -> Iterator[Cgroups]:
    """Cgroups that can limit the rate of the disk that tests are on."""
    disks = find_disks([HOST_FILES, "/var/tmp"])
    if not disks.numbers or disks.untold:
        pytest.skip("the disk of this host cannot be told")
    opened = open_cgroups(host, instance=instance, disks=disks.numbers, with_blkio=True)
    yield opened
    opened.close()


@pytest.fixture
def file() -> Iterator[str]:
    """Of 4 MiB, on a disk."""
    path = f"/var/tmp/sandboxd-test-disks-{os.getpid()}"
    with open(path, "wb") as made:
        made.write(os.urandom(4 * MIB))
        os.fsync(made.fileno())
    yield path
    os.unlink(path)


@pytest.mark.host
def test_no_more_is_read_in_a_second_than_may_be(
    with_rates: Cgroups, spawn: Spawn, file: str
) -> None:
    if with_rates.enforcement["io_bytes_per_second"] == "none":
        pytest.skip("io is not delegated: a user's own systemd does not hand it on")
    seconds = []
    for name, rate in (("free", 0), ("held", MIB), ("held and let go", MIB)):
        cgroup = with_rates.create(name.replace(" ", "-"))
        cgroup.apply(msgspec.structs.replace(LIMITS, io_bytes_per_second=rate))
        if name == "held and let go":
            cgroup.change(LIMITS)
        out, _ = spawn(cgroup, READ_DIRECTLY.format(path=file)).communicate("go\n")
        seconds.append(float(out))

    free, held, let_go = seconds
    assert 3 < held < 6
    assert max(free, let_go) < 2


@pytest.mark.host
def test_a_job_that_waits_for_its_disk_can_be_killed(
    with_rates: Cgroups, spawn: Spawn, file: str
) -> None:
    cgroup = with_rates.create("job")
    cgroup.apply(msgspec.structs.replace(LIMITS, io_bytes_per_second=MIB))
    reading = spawn(cgroup, READ_DIRECTLY.format(path=file))
    assert reading.stdin is not None
    reading.stdin.write("go\n")
    reading.stdin.flush()
    while (cgroup.now().pids or 0) < 1:
        time.sleep(0.01)

    began = time.monotonic()
    cgroup.kill()
    reading.wait(10)

    assert time.monotonic() - began < 3


@pytest.mark.host
def test_no_job_has_a_further_directory_where_nobody_limits_rates(
    cgroups: Cgroups,
) -> None:
    """On v1 each takes its time to make and to remove."""
    group = cgroups.create("job")

    assert not [path for path in group.join_files() if "/blkio" in path]
