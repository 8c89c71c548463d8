"""Bugs of kernels and runtimes that let programs out of sandboxes like ours, and the upstream versions that mend them.

A short list: bugs that were exploited, with the first mended release of each stable branch (those of 2026 by the kernel's own
CVE records, cvelistV5; the older ones as they were announced). Branches that were over by then have no
mended release. A distribution mends its older version without changing the number: what is said here is where to look.
"""

import gzip
import re
import shutil
import subprocess
from typing import NamedTuple

from sandboxd.isolation.features import Feature, Status

_CHECK_WITH_YOURS = "distributions back-port fixes: check with yours"
_RUN_SECONDS = 10.0
_MOST_CHANGELOG_CHARACTERS = 4 * 2**20
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"

Version = tuple[int, int, int]


class KernelBug(NamedTuple):
    """One bug."""

    cve: str
    what: str
    """Its name, and what stands between it and a job here."""
    since: tuple[int, int]
    fixed: dict[tuple[int, int], int]
    """Stable branch to the first release of it with the fix."""
    mainline: tuple[int, int]
    """The first version of which every release has it."""

    def affects(self, version: Version) -> bool:
        """Whether an unchanged kernel of that version has it."""
        branch, patch = version[:2], version[2]
        if branch in self.fixed:
            return patch < self.fixed[branch]
        return self.since <= branch < self.mainline


KERNEL_BUGS = (
    KernelBug(
        cve="CVE-2022-0185",
        what="fsconfig; refused to jobs by the filter",
        since=(5, 1),
        fixed={(5, 15): 16, (5, 16): 2},
        mainline=(5, 17),
    ),
    KernelBug(
        cve="CVE-2022-0847",
        what="Dirty Pipe; within reach of jobs",
        since=(5, 8),
        fixed={(5, 15): 25, (5, 16): 11},
        mainline=(5, 17),
    ),
    KernelBug(
        cve="CVE-2024-1086",
        what="nftables; refused to jobs by the filter",
        since=(3, 15),
        fixed={(5, 15): 149, (6, 1): 76, (6, 6): 15, (6, 7): 3},
        mainline=(6, 8),
    ),
    KernelBug(
        cve="CVE-2026-31431",
        what="Copy Fail, AF_ALG; refused to jobs by the filter",
        since=(4, 14),
        fixed={(5, 15): 204, (6, 1): 170, (6, 6): 137, (6, 12): 85, (6, 18): 22, (6, 19): 12},
        mainline=(7, 0),
    ),
    KernelBug(
        cve="CVE-2026-43284",
        what="Dirty Frag, IPsec; refused to jobs by the filter",
        since=(4, 11),
        fixed={(5, 15): 206, (6, 1): 172, (6, 6): 138, (6, 12): 87, (6, 18): 28, (7, 0): 5},
        mainline=(7, 1),
    ),
)


class RuntimeBug(NamedTuple):
    """One bug of runc."""

    cve: str
    fixed: dict[tuple[int, int], int]
    """Minor version to the first patch release with the fix."""
    later: tuple[int, int]
    """From this minor version on every release has it."""

    def affects(self, version: Version) -> bool:
        """Whether an unchanged release has it."""
        branch, patch = version[:2], version[2]
        return patch < self.fixed[branch] if branch in self.fixed else branch < self.later


RUNC_BUGS = (
    RuntimeBug("CVE-2024-21626", {(1, 1): 12}, (1, 2)),
    RuntimeBug("CVE-2025-31133", {(1, 2): 8, (1, 3): 3}, (1, 4)),
    RuntimeBug("CVE-2025-52565", {(1, 2): 8, (1, 3): 3}, (1, 4)),
    RuntimeBug("CVE-2025-52881", {(1, 2): 8, (1, 3): 3}, (1, 4)),
)


def probe_kernel_fixes(release: str, proc: str = "/proc") -> Feature:
    """Whether this kernel has one of the bugs, as far as its version tells."""
    name = "kernel fixes"
    version = upstream_version(
        release, _read(f"{proc}/version"), _read(f"{proc}/version_signature")
    )
    if version is None:
        detail = f"Linux {release} does not tell which upstream fixes it has; {_CHECK_WITH_YOURS}"
        return Feature(name, Status.OK, detail, "")
    shown = ".".join(map(str, version))
    bugs = [bug for bug in KERNEL_BUGS if bug.affects(version)]
    if not bugs:
        return Feature(name, Status.OK, f"Linux {shown} has those of the bugs we know", "")
    listed = ", ".join(f"{bug.cve} ({bug.what})" for bug in bugs)
    branch = version[:2]
    if all(branch in bug.fixed for bug in bugs):
        newest = max(bug.fixed[branch] for bug in bugs)
        remedy = f"boot {branch[0]}.{branch[1]}.{newest} or newer; {_CHECK_WITH_YOURS}"
    else:
        remedy = f"boot a kernel that is still maintained; {_CHECK_WITH_YOURS}"
    return Feature(name, Status.WARNING, f"by its version, {shown} has {listed}", remedy)


def upstream_version(release: str, version: str, signature: str) -> Version | None:
    """The stable release that this kernel was made from; None if only its distribution knows.

    Debian says it in /proc/version, Ubuntu in /proc/version_signature; what `uname -r` shows there ends in .0 always.
    """
    for text, pattern in (
        (version, r"\bDebian (\d+)\.(\d+)\.(\d+)"),
        (signature, r"\bUbuntu \S+ (\d+)\.(\d+)\.(\d+)"),
    ):
        if match := re.search(pattern, text):
            return int(match[1]), int(match[2]), int(match[3])
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)", release)
    if match is None:
        return None
    patch, rest = int(match[3] or 0), match[4]
    if patch == 0 and rest:
        return None  # 5.14.0-427.el9, 6.8.0-31-generic: a number of the distribution's own
    return int(match[1]), int(match[2]), patch


def probe_runc(version_text: str | None, changelog: str) -> Feature | None:
    """Whether the runc that is installed has one of its bugs; None where there is none. It matters to jobs that it runs.

    What the package's changelog names as mended is.
    """
    if version_text is None:
        return None
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)(\S*)", version_text)
    if match is None:
        return Feature("runc", Status.WARNING, "its version cannot be read", "see runc --version")
    version = int(match[1]), int(match[2]), int(match[3])
    shown = ".".join(map(str, version)) + match[4]
    affecting = [
        bug.cve for bug in RUNC_BUGS if _has(bug, version, match[4]) and bug.cve not in changelog
    ]
    if not affecting:
        return Feature("runc", Status.OK, f"{shown} has the fixes of the bugs we know", "")
    detail = f"by its version, {shown} has {', '.join(affecting)}"
    remedy = f"install 1.2.8, 1.3.3, 1.4.0 or newer; {_CHECK_WITH_YOURS}"
    return Feature("runc", Status.WARNING, detail, remedy)


def read_runc_version() -> str | None:
    """What `runc --version` prints; None where it is not installed."""
    program = shutil.which("runc", path=_SYSTEM_PATH)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
            check=False,
            env={},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def read_runc_changelog(path: str = "/usr/share/doc/runc/changelog.Debian.gz") -> str:
    """What Debian and Ubuntu changed in their package; nothing where it is not one of theirs."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_CHANGELOG_CHARACTERS)
    except (OSError, EOFError):
        return ""


def _has(bug: RuntimeBug, version: Version, suffix: str) -> bool:
    """1.4.0-rc.1 and -rc.2 come before the fix of their branch, -rc.3 has it."""
    if version == (1, 4, 0) and bug.later == (1, 4):
        candidate = re.match(r"-rc\.(\d+)", suffix)
        return candidate is not None and int(candidate[1]) < 3
    return bug.affects(version)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
