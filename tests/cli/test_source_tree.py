"""What the commands say when they run from a source tree, where no `sandboxd` is on the path."""

import shutil
from pathlib import Path

import pytest
from command_line import sandboxd

from sandboxd.cli.doctor import in_reach
from sandboxd.cli.setup import find_program
from sandboxd.isolation.features import Feature, Status

INSTALLED = find_program() is not None


@pytest.mark.skipif(INSTALLED, reason="sandboxd is installed beside this interpreter")
def test_a_remedy_is_a_command_that_is_there() -> None:
    lack = Feature("x", Status.MISSING, "", "as root: sandboxd setup --user alice")

    assert in_reach(lack).remedy == "as root: make setup FOR=alice"


@pytest.mark.skipif(
    INSTALLED or not Path(shutil.which("systemctl", path="/usr/bin:/bin") or "/none").exists(),
    reason="needs systemctl, and no installed sandboxd",
)
def test_setup_says_that_no_unit_is_written() -> None:
    said = sandboxd("setup", "--user", "sbx-not-made-yet", "--dry-run").output

    assert "skipped:      systemd unit (runs from a source tree)" in said.splitlines()
