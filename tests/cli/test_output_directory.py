"""What a job left is written below one directory, whatever its paths and what is there already."""

import os
from pathlib import Path

import pytest

from sandboxd.cli.output_directory import BadPath, new_file


def write(directory: Path, path: str, content: bytes = b"new", mode: int = 0o644) -> None:
    with new_file(str(directory), path, mode) as descriptor:
        os.write(descriptor, content)


def test_files_are_written_below_the_directory_with_their_mode(tmp_path: Path) -> None:
    target = tmp_path / "not" / "there"

    write(target, "a/b/c", mode=0o755)
    write(target, "/tmp/x", mode=0o600)

    assert (target / "a/b/c").read_bytes() == (target / "tmp/x").read_bytes() == b"new"
    assert os.access(target / "a/b/c", os.X_OK)
    assert not os.access(target / "tmp/x", os.X_OK)
    assert sorted(path.name for path in target.rglob("*")) == ["a", "b", "c", "tmp", "x"]


def test_what_is_there_is_replaced_and_no_link_is_followed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "x").write_text("alive")
    target = tmp_path / "out"
    target.mkdir()
    (target / "directory").symlink_to(canary)
    (target / "file").symlink_to(canary / "x")

    write(target, "file")
    with pytest.raises(BadPath):
        write(target, "directory/x")

    assert (target / "file").read_bytes() == b"new"
    assert not (target / "file").is_symlink()
    assert (canary / "x").read_text() == "alive"
    assert [path.name for path in canary.iterdir()] == ["x"]


@pytest.mark.attack(31)
@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "..", ".", "", "/", "a//b", "a/", "./a", "a\0b", "//../x"]
)
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(BadPath):
        write(tmp_path / "out", path)

    assert [each.name for each in tmp_path.iterdir()] in ([], ["out"])


def test_a_file_that_does_not_come_as_a_whole_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def half() -> None:
        with new_file(str(tmp_path), "a", 0o644) as descriptor:
            os.write(descriptor, b"half")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        half()

    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
