"""`sandboxd setup`: what it would do, and that it does nothing twice. What needs root runs at each `make test`, before the tests."""

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.cli import setup as host_setup
from sandboxd.cli.main import run_command_line
from sandboxd.cli.setup import (
    MakeDataDirectory,
    Outcome,
    Range,
    SetMode,
    WriteFile,
    carry_out,
)
from sandboxd.cli.systemd_unit import delegation_text, unit_text, user_unit_text
from sandboxd.errors import HostNotReady
from sandboxd.quotas.delegation import Step

ME = pwd.getpwuid(os.geteuid()).pw_name
NOBODY_YET = "sbx-not-made-yet"


def test_a_dry_run_shows_every_step_and_changes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = Path("/etc/passwd").read_bytes()
    code = run_command_line(["setup", "--user", NOBODY_YET, "--dry-run"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert f"would change: make the system user {NOBODY_YET}" in lines
    assert f"would change: grant {NOBODY_YET} 65536 subordinate ids in /etc/subuid" in lines
    assert (
        f"would change: make the data directory /var/lib/{NOBODY_YET} for {NOBODY_YET} alone"
        in lines
    )
    assert Path("/etc/passwd").read_bytes() == before
    assert not Path(f"/var/lib/{NOBODY_YET}").exists()


def test_a_dry_run_for_programs_is_a_list_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command_line(["setup", "--user", NOBODY_YET, "--dry-run", "--json"])

    steps = json.loads(capsys.readouterr().out)
    assert code == 0
    assert steps[0] == {"step": f"make the system user {NOBODY_YET}", "outcome": "would change"}


@pytest.mark.host
@pytest.mark.usefixtures("host")
def test_on_a_prepared_host_there_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command_line(["setup", "--user", ME, "--dry-run"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert [line for line in lines if line.startswith("would change")] == []
    assert lines[-1] == "nothing to do"


@pytest.mark.skipif(os.geteuid() == 0, reason="root would change the host")
def test_an_ordinary_user_is_told_to_be_root(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command_line(["setup", "--user", NOBODY_YET])

    assert code == 1
    assert "must be run by root" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["root", "", "a b", "../x", "-x", "x" * 40])
def test_a_name_that_cannot_be_the_service_user_is_refused(name: str) -> None:
    assert run_command_line(["setup", f"--user={name}", "--dry-run"]) == 2


@pytest.mark.as_root
def test_a_second_run_by_root_finds_nothing_to_do() -> None:
    words = [sys.executable, "-m", "sandboxd", "setup"]
    subprocess.run(words, check=True, capture_output=True)
    second = subprocess.run(words, check=True, capture_output=True, text=True)

    assert second.stdout.splitlines()[-1] == "nothing to do"


def test_steps_are_done_once(tmp_path: Path) -> None:
    device = tmp_path / "tun"
    device.touch(mode=0o600)
    steps: list[Step] = [
        SetMode(path=str(device), mode=0o666),
        WriteFile(str(tmp_path / "rules.d" / "rule"), "text\n"),
        MakeDataDirectory(user=ME, path=str(tmp_path / "data")),
    ]

    assert [carry_out(step, dry_run=True) for step in steps] == [Outcome.WOULD_CHANGE] * 3
    assert [carry_out(step, dry_run=False) for step in steps] == [Outcome.CHANGED] * 3
    assert [carry_out(step, dry_run=False) for step in steps] == [Outcome.ALREADY] * 3
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "rules.d" / "rule").read_text() == "text\n"


def test_a_data_directory_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o755)
    (tmp_path / "data").symlink_to("target")

    with pytest.raises(HostNotReady, match="could not make the data directory"):
        carry_out(MakeDataDirectory(user=ME, path=str(tmp_path / "data")), dry_run=False)
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o755


def test_a_failing_step_names_itself(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HostNotReady, match="could not write"):
        carry_out(WriteFile(f"{tmp_path}/file/rule", "x"), dry_run=False)


def test_a_new_range_overlaps_no_other() -> None:
    first, size = host_setup.FIRST_SUBORDINATE_ID, host_setup.IDS_PER_USER
    taken = [
        Range("a", first, size),
        Range("b", first + 2 * size - 1, 1),
        Range("c", 100_000, 65_536),
    ]

    assert host_setup.find_free([]) == first
    assert host_setup.find_free(taken) == first + 2 * size


def test_lines_of_subuid_that_are_not_ranges_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "subuid"
    path.write_text("\n# note\nalice:100000:65536\n1000:165536:65536\n")

    assert host_setup.read_ranges(str(path)) == [
        Range("alice", 100_000, 65_536),
        Range("1000", 165_536, 65_536),
    ]
    assert host_setup.read_ranges(f"{path}.none") == []


def test_a_person_gets_no_data_directory() -> None:
    assert host_setup.is_service_account("root") is False
    assert host_setup.is_service_account(NOBODY_YET) is True


def test_the_service_account_gets_a_unit_of_the_system_and_a_person_one_of_their_own_systemd() -> (
    None
):
    of_service = host_setup.plan_units(NOBODY_YET, "/opt/sandboxd/bin/sandboxd")[0].describe()
    of_person = host_setup.plan_units("root", "/opt/sandboxd/bin/sandboxd")[0].describe()

    assert "/etc/systemd/system/sandboxd.service (then: systemctl enable --now" in of_service
    assert "/etc/systemd/user/sandboxd.service (then, as the user: systemctl --user" in of_person


def test_a_persons_unit_has_a_subtree_of_its_own_and_nothing_of_roots() -> None:
    text = user_unit_text("/opt/sandboxd/bin/sandboxd")

    assert "\nExecStart=/opt/sandboxd/bin/sandboxd serve\n" in text
    assert "\nDelegate=yes\n" in text
    assert "\nWantedBy=default.target\n" in text
    for word in ("User=", "ExecStartPre=", "CapabilityBoundingSet=", "ProtectSystem="):
        assert word not in text


def test_the_unit_keeps_what_newuidmap_needs() -> None:
    text = unit_text("sandboxd", "/opt/sandboxd/bin/sandboxd")

    assert "\nUser=sandboxd\n" in text
    assert "\nDelegate=yes\n" in text
    assert "\nExecStartPre=+/opt/sandboxd/bin/sandboxd setup --user sandboxd\n" in text
    for word in ("NoNewPrivileges=", "SystemCallFilter=", "ProtectProc=", "ProtectKernelTunables="):
        assert word not in text


def test_a_persons_systemd_is_given_what_it_does_not_have_of_its_own_accord() -> None:
    steps = host_setup.plan_delegation(ME) if shutil.which("systemctl") else []
    person = not host_setup.is_service_account(ME)

    assert [step.describe().partition(" (")[0] for step in steps] == [
        f"write /etc/systemd/system/user@{os.geteuid()}.service.d/sandboxd.conf"
    ] * (person and bool(shutil.which("systemctl")))
    assert host_setup.plan_delegation("nobody-has-this-name") == []
    assert "\nDelegate=cpu cpuset io memory pids\n" in delegation_text()


@pytest.mark.parametrize(
    "text", [unit_text(ME, "/bin/true"), user_unit_text("/bin/true")], ids=["system", "user"]
)
def test_systemd_understands_the_unit(tmp_path: Path, text: str) -> None:
    analyze = Path("/usr/bin/systemd-analyze")
    if not analyze.exists():
        pytest.skip("no systemd-analyze")
    unit = tmp_path / "sandboxd.service"
    unit.write_text(text)
    outcome = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)

    complaints = [line for line in outcome.stderr.splitlines() if "sandboxd.service" in line]
    assert complaints == []
