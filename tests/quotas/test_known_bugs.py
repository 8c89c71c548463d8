"""`sandboxd doctor` on kernels and runtimes with known bugs: by the upstream version, with what distributions say of theirs."""

import gzip
from pathlib import Path

import pytest

from sandboxd.isolation.features import Feature, Status
from sandboxd.isolation.known_bugs import (
    KERNEL_BUGS,
    probe_kernel_fixes,
    probe_runc,
    read_runc_changelog,
    upstream_version,
)

ALL = {bug.cve for bug in KERNEL_BUGS}


def cves(feature: Feature) -> set[str]:
    return {word for word in feature.detail.replace(",", "").split() if word.startswith("CVE-")}


@pytest.mark.parametrize(
    ("release", "found"),
    [
        ("5.15.15", ALL),
        ("5.15.16", ALL - {"CVE-2022-0185"}),
        ("5.15.24", ALL - {"CVE-2022-0185"}),
        ("5.15.25", ALL - {"CVE-2022-0185", "CVE-2022-0847"}),
        ("5.16.10", ALL - {"CVE-2022-0185"}),
        ("5.17.3", {"CVE-2024-1086", "CVE-2026-31431", "CVE-2026-43284"}),
        ("6.1.75", {"CVE-2024-1086", "CVE-2026-31431", "CVE-2026-43284"}),
        ("6.1.76-custom", {"CVE-2026-31431", "CVE-2026-43284"}),
        ("6.1.170", {"CVE-2026-43284"}),
        ("6.1.172", set()),
        ("6.7.2", {"CVE-2024-1086", "CVE-2026-31431", "CVE-2026-43284"}),
        ("6.7.3", {"CVE-2026-31431", "CVE-2026-43284"}),
        ("6.8.0", {"CVE-2026-31431", "CVE-2026-43284"}),
        ("6.18.21", {"CVE-2026-31431", "CVE-2026-43284"}),
        ("6.18.44-fc-v657", set()),
        ("7.0.4", {"CVE-2026-43284"}),
        ("7.0.5", set()),
        ("7.1.0", set()),
        ("8.2.1", set()),
    ],
)
def test_a_kernel_is_told_the_bugs_of_its_branch(
    release: str, found: set[str], tmp_path: Path
) -> None:
    feature = probe_kernel_fixes(release, str(tmp_path))

    assert cves(feature) == found
    assert feature.status is (Status.WARNING if found else Status.OK)
    assert ("check with yours" in feature.remedy) == bool(found)


def test_the_remedy_is_the_newest_fix_of_the_branch_or_another_branch(tmp_path: Path) -> None:
    maintained = probe_kernel_fixes("6.1.75", str(tmp_path)).remedy
    over = probe_kernel_fixes("5.17.3", str(tmp_path)).remedy

    assert maintained.startswith("boot 6.1.172 or newer;")
    assert over.startswith("boot a kernel that is still maintained;")


@pytest.mark.parametrize(
    ("release", "version", "signature", "found"),
    [
        ("6.1.0-18-amd64", "Linux version 6.1.0-18-amd64 (…) #1 SMP Debian 6.1.76-1 (2024)", "", (6, 1, 76)),
        ("5.15.0-105-generic", "Linux version 5.15.0-105-generic", "Ubuntu 5.15.0-105.115-generic 5.15.148\n", (5, 15, 148)),
        ("5.14.0-427.13.1.el9_4.x86_64", "Linux version 5.14.0-427", "", None),
        ("6.18.44-fc-v657", "", "", (6, 18, 44)),
        ("6.8.0", "", "", (6, 8, 0)),
        ("7.1", "", "", (7, 1, 0)),
        ("strange", "", "", None),
    ],
)  # fmt: skip
def test_the_upstream_version_is_where_the_distribution_says_it(
    release: str, version: str, signature: str, found: tuple[int, int, int] | None
) -> None:
    assert upstream_version(release, version, signature) == found


def test_a_kernel_that_does_not_tell_is_no_false_alarm(tmp_path: Path) -> None:
    feature = probe_kernel_fixes("5.14.0-427.13.1.el9_4.x86_64", str(tmp_path))

    assert feature.status is Status.OK
    assert "check with yours" in feature.detail


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("runc version 1.1.11\n", 4),
        ("runc version 1.1.12\n", 3),
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\n", 4),
        ("runc version 1.2.7\n", 3),
        ("runc version 1.2.8\n", 0),
        ("runc version 1.3.2\n", 3),
        ("runc version 1.3.3\n", 0),
        ("runc version 1.4.0-rc.2\n", 3),
        ("runc version 1.4.0-rc.3\n", 0),
        ("runc version 1.4.0\n", 0),
    ],
)
def test_a_runc_is_told_its_bugs(text: str, found: int) -> None:
    feature = probe_runc(text, "")

    assert feature is not None
    assert len(cves(feature)) == found
    assert feature.status is (Status.WARNING if found else Status.OK)


def test_what_the_package_s_changelog_names_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "changelog.Debian.gz"
    path.write_bytes(gzip.compress(b"runc (1.1.5+ds1-1+deb12u1)\n  * CVE-2024-21626: breakouts\n"))

    feature = probe_runc("runc version 1.1.5+ds1\n", read_runc_changelog(str(path)))

    assert feature is not None
    assert cves(feature) == {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}


def test_without_runc_nothing_is_said_and_a_strange_one_is_a_warning(tmp_path: Path) -> None:
    strange = probe_runc("not a runc", read_runc_changelog(str(tmp_path / "none")))

    assert probe_runc(None, "") is None
    assert strange is not None
    assert strange.status is Status.WARNING
