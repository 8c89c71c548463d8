"""What this host offers for sandboxes, found by looking and by trying.

Nothing here is believed because a setting says so: `trial` tries what is commonly missing, each by itself in a throw-away
process, so that each lack has its remedy; `specimen` builds a whole sandbox and runs a command in it.
"""

import asyncio
import enum
import grp
import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import idmap, specimen
from sandboxd.isolation.destinations import LEAST_RATE_BYTES, Bounds
from sandboxd.isolation.egress import Egress

LEAST_KERNEL = (5, 12)
"""mount_setattr(2) and idmapped mounts; overlay in a user namespace is older by one release."""
TMPFS_XATTR_KERNEL = (6, 6)
"""From here on tmpfs has user xattrs, which overlay's `userxattr` keeps opaque directories in."""

_TRIAL_SECONDS = 20.0
_NOT_TRIED = "not tried, because of what is missing above"


class Status(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    """Something is less good; jobs run safely."""
    MISSING = "missing"
    """Jobs could not run safely."""


class Feature(NamedTuple):
    """One thing that the host has or lacks."""

    name: str
    status: Status
    detail: str
    """What was seen."""
    remedy: str
    """The command that mends it; empty where there is nothing to mend."""


def probe_features(
    *, id_map: str = "auto", show_cgroup: bool = False, egress: bool = False
) -> list[Feature]:
    """Look at the host as the user that we are. Takes up to a second; not to be called from an event loop.

    `id_map` and `egress` are the settings, `show_cgroup` whether sandboxes see their cgroup (on v2). As root nothing is tried: root can
    do what the service's user cannot.
    """
    name = _own_name()
    account = probe_account(os.geteuid(), name)
    if account.status is not Status.OK:
        return [account]
    ids = None if id_map == "single" else idmap.find_range()
    outcome = run_trial(ids)
    parts = [
        account,
        probe_kernel(platform.release()),
        probe_user_namespaces(outcome, name),
        probe_subordinate_ids(ids, outcome, name, wished=id_map != "single"),
        probe_groups(_supplementary_groups(), single=ids is None, user=name),
        _tried("namespaces", outcome, ["namespaces"], "mount, pid, net, ipc, uts, cgroup"),
        _tried(
            "overlay", outcome, ["tmpfs", "overlay"], "mounted over a tmpfs in a user namespace"
        ),
        _tried("proc and sysfs", outcome, ["proc", "sysfs"], "mounted in a sandbox's namespaces"),
    ]
    whole = Feature("sandbox", Status.MISSING, _NOT_TRIED, "")
    if all(part.status is not Status.MISSING for part in parts):
        whole = probe_sandbox(ids, show_cgroup=show_cgroup)
    return [
        *parts,
        whole,
        probe_core_pattern(_sysctl("kernel/core_pattern") or ""),
        probe_tun(name),
        probe_egress(ids, wished=egress),
    ]


def probe_account(uid: int, name: str) -> Feature:
    """The service must be an ordinary user."""
    if uid == 0:
        remedy = "run it as the service's user: runuser -u sandboxd -- sandboxd doctor"
        return Feature("account", Status.MISSING, "running as root; jobs must not", remedy)
    return Feature("account", Status.OK, f"{name} (uid {uid})", "")


def probe_kernel(release: str) -> Feature:
    """The version decides what the kernel can do; distributions that backport are rare and name it in their release."""
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < LEAST_KERNEL:
        remedy = "boot a kernel of 5.12 or newer; 6.6 or newer is better"
        return Feature("kernel", Status.MISSING, f"Linux {release}, older than 5.12", remedy)
    if version < TMPFS_XATTR_KERNEL:
        detail = f"Linux {release}: tmpfs has no user xattrs before 6.6, some renames of directories fail in jobs"
        return Feature("kernel", Status.WARNING, detail, "boot a kernel of 6.6 or newer")
    return Feature("kernel", Status.OK, f"Linux {release}", "")


def probe_user_namespaces(outcome: dict[str, str], user: str, proc: str = "/proc") -> Feature:
    """Three sysctls can forbid them; whether one does is tried."""
    name = "user namespaces"
    most = _sysctl("user/max_user_namespaces", proc)
    if most == "0":
        detail = "user.max_user_namespaces is 0"
        return Feature(
            name, Status.MISSING, detail, _sysctl_remedy("user.max_user_namespaces=16384")
        )
    if _sysctl("kernel/unprivileged_userns_clone", proc) == "0":
        detail = "kernel.unprivileged_userns_clone is 0"
        remedy = _sysctl_remedy("kernel.unprivileged_userns_clone=1")
        return Feature(name, Status.MISSING, detail, remedy)
    reason = outcome.get("user", "the trial did not start")
    # AppArmor lets the namespace be made, but gives no capabilities in it: the next step is the one to fail.
    restricted = _sysctl("kernel/apparmor_restrict_unprivileged_userns", proc) == "1"
    if restricted and outcome.get("namespaces") != "ok":
        detail = "AppArmor gives no rights in them to a program without a profile (kernel.apparmor_restrict_unprivileged_userns is 1)"
        remedy = f"as root, to load a profile: sandboxd setup --user {user}"
        return Feature(name, Status.MISSING, detail, remedy)
    if reason != "ok":
        return Feature(
            name, Status.MISSING, reason, "check the container's seccomp profile (unshare)"
        )
    return Feature(name, Status.OK, f"made one; at most {most}", "")


def probe_subordinate_ids(
    ids: idmap.IdRange | None, outcome: dict[str, str], user: str, *, wished: bool = True
) -> Feature:
    """Without them a sandbox's root is the service's own uid: one tenant only."""
    name = "subordinate ids"
    reason = outcome.get("ids", _NOT_TRIED)
    if not wished:
        detail = "isolation.id_map is single: a single id is mapped"
        return Feature(name, Status.WARNING, detail, "set isolation.id_map to auto")
    if ids is None:
        lacking = [tool for tool in ("newuidmap", "newgidmap") if shutil.which(tool) is None]
        if lacking:
            detail = f"{' and '.join(lacking)} not found; a single id is mapped"
            return Feature(name, Status.WARNING, detail, "apt-get install uidmap")
        detail = f"fewer than {idmap.LEAST_IDS} for {user} in /etc/subuid or /etc/subgid; a single id is mapped"
        return Feature(name, Status.WARNING, detail, f"as root: sandboxd setup --user {user}")
    if reason not in ("ok", _NOT_TRIED):
        remedy = "as root: chmod u+s $(command -v newuidmap newgidmap)"
        return Feature(name, Status.MISSING, reason, remedy)
    last = ids.first_uid + ids.size - 1
    return Feature(name, Status.OK, f"{ids.first_uid}-{last}: the service's uid is not mapped", "")


def probe_groups(groups: list[str], *, single: bool, user: str) -> Feature:
    """An unprivileged single-id map needs setgroups(2) denied (user_namespaces(7)): nobody inside can drop a group."""
    name = "supplementary groups"
    if groups and single:
        detail = f"with a single id jobs keep those of {user}: {', '.join(groups)}"
        remedy = f"use subordinate ids, or take {user} out of the groups and start anew"
        return Feature(name, Status.WARNING, detail, remedy)
    return Feature(name, Status.OK, "dropped in sandboxes" if groups else "none", "")


def probe_sandbox(ids: idmap.IdRange | None, *, show_cgroup: bool) -> Feature:
    """All walls at once, with a command behind them."""
    name = "sandbox"
    try:
        seconds = asyncio.run(specimen.run_one(ids, show_cgroup=show_cgroup))
    except (SandboxFailed, OSError) as error:
        remedy = "docs/isolation.md says what each step does"
        return Feature(name, Status.MISSING, str(error), remedy)
    return Feature(name, Status.OK, f"built, used and gone in {seconds * 1000:.0f} ms", "")


def probe_core_pattern(pattern: str) -> Feature:
    """core(5): a limit of exactly 1 stops dumps that are piped, but a job may set 0, which does not; the helper is root's, outside."""
    name = "core dumps"
    if not pattern.startswith("|"):
        return Feature(name, Status.OK, "not written, RLIMIT_CORE is 1", "")
    helper = pattern[1:].split()[0] if pattern[1:].strip() else "a program"
    detail = f"kernel.core_pattern: a job that sets RLIMIT_CORE to 0 and crashes starts {helper} on the host, as root, with its memory as input"
    return Feature(name, Status.WARNING, detail, _sysctl_remedy("kernel.core_pattern=core"))


def probe_tun(user: str) -> Feature:
    """Only egress needs it."""
    path = "/dev/net/tun"
    if not os.path.exists(path):
        return Feature(path, Status.WARNING, "not there: no egress", "as root: modprobe tun")
    if not os.access(path, os.R_OK | os.W_OK):
        remedy = f"as root: sandboxd setup --user {user}"
        return Feature(path, Status.WARNING, f"not writable for {user}: no egress", remedy)
    return Feature(path, Status.OK, "writable", "")


def probe_egress(ids: idmap.IdRange | None, *, wished: bool) -> Feature:
    """A sandbox with its firewall and its pasta, tried if the operator wants it. Without it jobs run safely, but reach nothing."""
    name = "egress"
    if not wished:
        return Feature(name, Status.OK, "off (network.egress)", "")
    try:
        egress = Egress(Bounds(allow=(), deny=(), rate_bytes=LEAST_RATE_BYTES))
        seconds = asyncio.run(specimen.run_one(ids, egress=egress))
    except (SandboxFailed, OSError) as error:
        remedy = "as root: apt-get install passt nftables; pasta needs a default route"
        return Feature(name, Status.WARNING, str(error), remedy)
    detail = f"firewall and pasta were up in a sandbox, gone in {seconds * 1000:.0f} ms"
    return Feature(name, Status.OK, detail, "")


def run_trial(ids: idmap.IdRange | None) -> dict[str, str]:
    """Step of `trial` to `ok` or the reason why it failed; steps after a failure are not there."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-trial-") as directory:
        trial = subprocess.Popen(
            [sys.executable, "-m", "sandboxd.isolation.trial", directory],
            env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with trial:
            try:
                return _converse(trial, ids)
            finally:
                trial.kill()


def _converse(trial: "subprocess.Popen[str]", ids: idmap.IdRange | None) -> dict[str, str]:
    if trial.stdout is None:
        raise AssertionError("opened as a pipe")
    outcome = _parse(trial.stdout.readline())
    if outcome.get("user") != "ok":
        return outcome
    try:
        idmap.map_launcher(trial.pid, ids)
    except SandboxFailed as error:
        return {**outcome, "ids": str(error)}
    rest, _ = trial.communicate("mapped\n", timeout=_TRIAL_SECONDS)
    for line in rest.splitlines():
        outcome |= _parse(line)
    return outcome


def _parse(line: str) -> dict[str, str]:
    """`overlay failed Operation not permitted` as overlay to that reason."""
    words = line.strip().split(" ", 2)
    if len(words) < 2:
        return {}
    return {words[0]: "ok" if words[1] == "ok" else words[-1]}


def _tried(name: str, outcome: dict[str, str], steps: list[str], detail: str) -> Feature:
    """A feature that stands if all of its steps went well."""
    remedy = "in a container: run it with seccomp and AppArmor unconfined and /proc unmasked"
    for step in steps:
        reason = outcome.get(step)
        if reason is None:
            return Feature(name, Status.MISSING, _NOT_TRIED, "")
        if reason != "ok":
            return Feature(name, Status.MISSING, f"{step}: {reason}", remedy)
    return Feature(name, Status.OK, detail, "")


def _sysctl(name: str, proc: str = "/proc") -> str | None:
    """The value of a sysctl; None where this kernel does not have it."""
    try:
        with open(f"{proc}/sys/{name}") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def _sysctl_remedy(assignment: str) -> str:
    return f"as root: echo {assignment} > /etc/sysctl.d/60-sandboxd.conf && sysctl --system"


def _supplementary_groups() -> list[str]:
    names = []
    for number in set(os.getgroups()) - {os.getegid()}:
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            names.append(str(number))
    return sorted(names)


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
