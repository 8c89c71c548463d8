"""The AppArmor profile that `sandboxd setup` installs where Ubuntu restricts user namespaces."""

import os
import subprocess
from pathlib import Path

import pytest
from host_tests import host_required

from sandboxd.cli import apparmor
from sandboxd.cli import setup as host_setup
from sandboxd.cli.apparmor import LoadProfile, profile_text
from sandboxd.cli.setup import Outcome, carry_out
from sandboxd.errors import HostNotReady

PARSER = Path("/usr/sbin/apparmor_parser")


def test_the_profile_is_for_the_interpreter_and_allows_user_namespaces() -> None:
    text = profile_text("/opt/sandboxd-service/bin/python3.11")

    assert 'profile sandboxd "/opt/sandboxd-service/bin/python3.11" flags=(unconfined) {' in text
    assert "\n  userns,\n" in text
    assert "@INTERPRETER@" not in text


@pytest.mark.parametrize(
    "path",
    ["/opt/*/python", "/opt/{a,b}", '/opt/"x', "/opt/[a]", "/opt/a\nb", "relative", "/a@{b}"],
)
def test_a_path_that_would_be_a_pattern_is_refused(path: str) -> None:
    with pytest.raises(HostNotReady, match="AppArmor profile"):
        profile_text(path)


def test_links_are_followed_since_the_kernel_goes_by_the_file() -> None:
    assert not os.path.islink(apparmor.interpreter())


@pytest.mark.parametrize("program", ["/usr/bin/python3.11", "/opt/my service/bin/python3"])
def test_apparmor_understands_the_profile(program: str, tmp_path: Path) -> None:
    """Debian's compiler is older than the rule `userns`, so it is asked about everything else."""
    if not PARSER.exists():
        host_required("no apparmor_parser")
    text = profile_text(program)
    assert text.count("\n  userns,\n") == 1
    profile = tmp_path / "sandboxd"
    profile.write_text(text.replace("abi/4.0", "abi/3.0").replace("  userns,\n", ""))

    done = subprocess.run(
        [PARSER, "--skip-kernel-load", "--skip-cache", profile],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_setup_has_the_step_only_where_apparmor_restricts(tmp_path: Path) -> None:
    def steps() -> set[str]:
        return {step.describe() for step in host_setup.plan("sbx-not-made-yet", str(tmp_path))}

    before = steps()
    restriction = tmp_path / "sys/kernel/apparmor_restrict_unprivileged_userns"
    restriction.parent.mkdir(parents=True)
    restriction.write_text("0\n")
    turned_off = steps()
    restriction.write_text("1\n")
    (described,) = steps() - before

    assert turned_off == before
    assert described.startswith("load the AppArmor profile /etc/apparmor.d/sandboxd: programs of /")
    assert described.endswith(" may make user namespaces")


def test_the_step_is_done_when_file_and_kernel_have_the_profile(tmp_path: Path) -> None:
    loaded, path = tmp_path / "profiles", tmp_path / "sandboxd"
    step = LoadProfile("/usr/bin/python3", str(path), str(loaded))
    loaded.write_text("firefox (unconfined)\nsandboxd-other (enforce)\n")

    assert carry_out(step, dry_run=True) is Outcome.WOULD_CHANGE
    assert not path.exists()
    path.write_text(profile_text("/usr/bin/python3"))
    assert not step.done()
    loaded.write_text("firefox (unconfined)\nsandboxd (unconfined)\n")
    assert step.done()
    path.write_text(profile_text("/usr/bin/python3.11"))
    assert not step.done()
