"""How long the processes of a cgroup waited, as the kernel tells it, and where it tells nothing."""

import os
from pathlib import Path

import pytest
from host_tests import host_required

from sandboxd.quotas.stalls import Stalls, is_counted, parse_stalls, read_stalls

CPU = """\
some avg10=1.50 avg60=0.40 avg300=0.10 total=2500000
full avg10=0.00 avg60=0.00 avg300=0.00 total=1000000
"""
CPU_BEFORE_5_13 = "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    for name in ("cpu", "memory", "io"):
        (tmp_path / f"{name}.pressure").write_text(CPU)
    return tmp_path


def directory(path: Path | str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def test_totals_are_in_seconds() -> None:
    assert parse_stalls(CPU) == {"some": 2.5, "full": 1.0}
    assert parse_stalls(CPU_BEFORE_5_13) == {"some": 7e-6}


def test_what_the_kernel_does_not_count_is_unknown(cgroup: Path) -> None:
    (cgroup / "cpu.pressure").write_text(CPU_BEFORE_5_13)
    fd = directory(cgroup)

    seen = read_stalls(fd)

    assert seen == Stalls(7e-6, 2.5, 2.5, None, 1.0, 1.0)
    assert seen.since(Stalls(6e-6, 1.0, 2.5, None, 0.5, 1.0)) == Stalls(
        pytest.approx(1e-6), 1.5, 0.0, None, 0.5, 0.0
    )
    assert seen.since(Stalls()) == Stalls()


@pytest.mark.parametrize("lacking", ["absent", "unreadable"])
def test_a_kernel_that_was_told_not_to_count_is_noticed(cgroup: Path, lacking: str) -> None:
    """A directory cannot be read as a file, either: what matters is that the kernel refuses (EOPNOTSUPP with psi=0)."""
    assert is_counted(directory(cgroup))
    (cgroup / "io.pressure").unlink()
    if lacking == "unreadable":
        (cgroup / "io.pressure").mkdir()

    assert not is_counted(directory(cgroup))


@pytest.mark.host
def test_the_kernels_own_files_are_understood() -> None:
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.exists(f"{mount}/cpu.pressure"):
            seen = read_stalls(directory(mount))
            assert seen.cpu_pressure_seconds is not None
            assert seen.cpu_pressure_seconds > 0
            return
    host_required("a kernel that counts pressure")
