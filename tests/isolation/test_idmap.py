"""Which ids may be mapped: the forms of /etc/subuid, and the choice between a range and a single id."""

import os
import pwd
from pathlib import Path

import pytest

from sandboxd.errors import HostNotReady
from sandboxd.isolation import idmap
from sandboxd.isolation.idmap import IdMapMode, IdRange

NAME = pwd.getpwuid(os.geteuid()).pw_name
UID = os.geteuid()
RANGE = IdRange(524288, 524288, 65536)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", None),
        ("\n\n# nobody yet\n", None),
        (f"{NAME}:100000:65536\n", (100000, 65536)),
        (f"{NAME}:100000:65536", (100000, 65536)),
        (f"  {NAME}:100000:65536  \n", (100000, 65536)),
        (f"{UID}:100000:65536\n", (100000, 65536)),
        (f"{NAME}:100000:1\n{UID}:200000:65536\n{NAME}:300000:10\n", (200000, 65536)),
        (f"someone:100000:65536\nx{NAME}:200000:65536\n{NAME}x:300000:65536\n", None),
        (f"{NAME}:100000\n{NAME}:100000:65536:7\n{NAME}\n", None),
        (f"{NAME}:many:65536\n{NAME}:100000:\n{NAME}:-5:65536\n", None),
        (f"{NAME}:many:65536\n{NAME}:100000:65536\n", (100000, 65536)),
        (f"{NAME}:0:65536\n", None),
        (f"{NAME}:{UID}:65536\n", None),
        (f"{NAME}:{max(UID - 10, 1)}:65536\n", None),
        (f"{NAME}:4294900000:4294967295\n", None),
    ],
)
def test_the_largest_usable_range_of_this_user_is_found(
    content: str, expected: tuple[int, int] | None, tmp_path: Path
) -> None:
    """A range with host root or the service's own id in it would undo the wall that it is for."""
    file = tmp_path / "subuid"
    file.write_text(content)

    assert idmap._largest(str(file), UID) == expected


def test_no_file_is_no_range(tmp_path: Path) -> None:
    assert idmap._largest(str(tmp_path / "subuid"), UID) is None


def test_the_mode_is_the_wished_one_or_the_best() -> None:
    assert idmap.choose("auto", RANGE) is IdMapMode.RANGE
    assert idmap.choose("auto", None) is IdMapMode.SINGLE
    assert idmap.choose("single", RANGE) is IdMapMode.SINGLE
    assert idmap.choose("single", None) is IdMapMode.SINGLE
    assert idmap.choose("range", RANGE) is IdMapMode.RANGE
    with pytest.raises(HostNotReady, match="sandboxd setup"):
        idmap.choose("range", None)
