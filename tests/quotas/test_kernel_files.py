"""What is in a file already is not written again; what could not be written is not thought to be there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.errors import SandboxFailed
from sandboxd.quotas.kernel_files import Written, read_file


@pytest.fixture
def directory_fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "memory.max").write_text("")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_only_what_changes_is_written(directory_fd: int, tmp_path: Path) -> None:
    written = Written()
    written.write(directory_fd, "memory.max", "4096")
    assert read_file(directory_fd, "memory.max") == "4096"

    (tmp_path / "memory.max").write_text("")
    written.write(directory_fd, "memory.max", "4096")
    assert read_file(directory_fd, "memory.max") == ""

    written.write(directory_fd, "memory.max", "8192")
    assert read_file(directory_fd, "memory.max") == "8192"


def test_a_write_that_failed_is_tried_again(directory_fd: int, tmp_path: Path) -> None:
    written = Written()
    with pytest.raises(SandboxFailed, match=r"pids\.max"):
        written.write(directory_fd, "pids.max", "64")
    (tmp_path / "pids.max").write_text("")
    written.write(directory_fd, "pids.max", "64")
    assert read_file(directory_fd, "pids.max") == "64"
