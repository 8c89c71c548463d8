"""`sandboxd setup`: the only step that needs root. A flat list of steps, each of which can say whether it is done."""

import enum
import grp
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import click

from sandboxd.cli import apparmor
from sandboxd.cli.options import json_option
from sandboxd.cli.output import print_json
from sandboxd.cli.setup_steps import SBIN, SetMode, WriteFile, run
from sandboxd.cli.systemd_unit import delegation_text, unit_text, user_unit_text
from sandboxd.errors import HostNotReady
from sandboxd.quotas import delegation
from sandboxd.quotas.delegation import Step

STATE_DIRECTORY = "/var/lib"
IDS_PER_USER = 65_536
FIRST_SUBORDINATE_ID = 524_288
"""Above the ids of people and of systemd's dynamic users (login.defs and systemd's UIDS-GIDS begin here, too)."""
LAST_SUBORDINATE_ID = 1_878_982_656
"""From here on systemd takes ids for its own containers."""

SUBUID, SUBGID = "/etc/subuid", "/etc/subgid"
TUN = "/dev/net/tun"
TUN_TMPFILES = ("/etc/tmpfiles.d/sandboxd.conf", f"z {TUN} 0666 - - -\n")
TUN_UDEV = ("/etc/udev/rules.d/60-sandboxd.rules", 'KERNEL=="tun", MODE="0666"\n')
UNIT = "/etc/systemd/system/sandboxd.service"
USER_UNIT = "/etc/systemd/user/sandboxd.service"
DELEGATION = "/etc/systemd/system/user@{uid}.service.d/sandboxd.conf"
LINGER = "/var/lib/systemd/linger"

_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


class Outcome(enum.StrEnum):
    CHANGED = "changed"
    ALREADY = "already"
    WOULD_CHANGE = "would change"


@click.command()
@click.option("--user", default="sandboxd", show_default=True, help="Who will run the service.")
@click.option("--dry-run", is_flag=True, help="Say what would be changed, change nothing.")
@json_option
def setup(user: str, dry_run: bool, as_json: bool) -> None:
    """Prepare the host, once, as root: user, sub-ids, cgroups, AppArmor, /dev/net/tun, systemd unit.

    A second run finds nothing to do. A user that does not exist is made, as a system account.
    """
    if _NAME.fullmatch(user) is None or user == "root":
        raise click.BadParameter(f'"{user}" cannot be the name of the service\'s user')
    steps = plan(user)
    if os.geteuid() != 0 and not dry_run:
        raise HostNotReady(
            "setup changes the host and must be run by root; to see what it would do: sandboxd setup --dry-run"
        )
    outcomes = []
    for step in steps:
        outcome = carry_out(step, dry_run=dry_run)
        outcomes.append(outcome)
        if not as_json:
            click.echo(f"{outcome + ':':13} {step.describe()}")
    if as_json:
        pairs = zip(steps, outcomes, strict=True)
        print_json([{"step": step.describe(), "outcome": outcome} for step, outcome in pairs])
        return
    if is_service_account(user) and _has_systemd() and find_program() is None:
        click.echo(f"{'skipped:':13} systemd unit (runs from a source tree)")
    if set(outcomes) == {Outcome.ALREADY}:
        click.echo("nothing to do")


def plan(user: str, proc: str = "/proc") -> list[Step]:
    """All steps for this host, in order."""
    steps: list[Step] = [
        MakeUser(user=user),
        GrantSubordinateIds(user=user, path=SUBUID, option="--add-subuids"),
        GrantSubordinateIds(user=user, path=SUBGID, option="--add-subgids"),
        *delegation.plan(user),
        *plan_delegation(user),
    ]
    if apparmor.restricts(proc):
        steps.append(apparmor.LoadProfile(apparmor.interpreter()))
    if os.path.exists(TUN):
        steps += plan_tun()
    if is_service_account(user):
        steps.append(MakeDataDirectory(user=user, path=home_of(user)))
    program = find_program()
    if program is not None and _has_systemd():
        steps += plan_units(user, program)
    return steps


def carry_out(step: Step, *, dry_run: bool) -> Outcome:
    """One step. Raises HostNotReady, which names the step."""
    try:
        if step.done():
            return Outcome.ALREADY
        if dry_run:
            return Outcome.WOULD_CHANGE
        step.execute()
    except (OSError, subprocess.CalledProcessError) as error:
        stderr = getattr(error, "stderr", None)
        raise HostNotReady(f"could not {step.describe()}: {stderr or error}".strip()) from error
    return Outcome.CHANGED


def plan_tun() -> list[Step]:
    """Egress needs the device; the rule keeps its mode over a reboot."""
    steps: list[Step] = [SetMode(path=TUN, mode=0o666)]
    if shutil.which("systemd-tmpfiles", path=SBIN):
        steps.append(WriteFile(*TUN_TMPFILES))
    elif shutil.which("udevadm", path=SBIN):
        steps.append(WriteFile(*TUN_UDEV))
    return steps


def plan_units(user: str, program: str) -> list[Step]:
    """The system's unit for the service's account; for a person one of their own systemd, which runs from boot on."""
    if is_service_account(user):
        return [WriteUnit(path=UNIT, text=unit_text(user, program))]
    steps: list[Step] = [WriteUserUnit(path=USER_UNIT, text=user_unit_text(program))]
    if os.path.isdir("/run/systemd/system"):  # sd_booted(3): loginctl needs it
        steps.append(EnableLinger(user=user))
    return steps


def plan_delegation(user: str) -> list[Step]:
    """What a person's own systemd is given; that of the system gives the service's account everything (`Delegate=yes`)."""
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return []
    if is_service_account(user) or not _has_systemd():
        return []
    return [WriteDelegation(path=DELEGATION.format(uid=uid), text=delegation_text())]


def is_service_account(user: str) -> bool:
    """Whether the user exists for the service alone. A person's account gets no data directory here."""
    return home_of(user) == f"{STATE_DIRECTORY}/{user}"


def home_of(user: str) -> str:
    """The user's home, or the one that it will get."""
    try:
        return pwd.getpwnam(user).pw_dir
    except KeyError:
        return f"{STATE_DIRECTORY}/{user}"


def reload_systemd() -> None:
    """Let it read its files again, where it runs."""
    if os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        run(["systemctl", "daemon-reload"])


def _has_systemd() -> bool:
    return shutil.which("systemctl", path=SBIN) is not None


def find_program() -> str | None:
    """The installed `sandboxd` command; None when we run from a source tree, which no unit should depend on."""
    program = os.path.join(os.path.dirname(sys.executable), "sandboxd")
    return program if os.access(program, os.X_OK) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeUser:
    """A system account without a shell."""

    user: str

    def describe(self) -> str:
        return f"make the system user {self.user}"

    def done(self) -> bool:
        try:
            pwd.getpwnam(self.user)
        except KeyError:
            return False
        return True

    def execute(self) -> None:
        words = ["useradd", "--system", "--no-create-home", "--home-dir", home_of(self.user)]
        group = "--gid" if _group_exists(self.user) else "--user-group"
        words += [group, self.user] if group == "--gid" else [group]
        run([*words, "--shell", "/usr/sbin/nologin", self.user])


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantSubordinateIds:
    """A range in /etc/subuid or /etc/subgid that nobody else has."""

    user: str
    path: str
    option: str

    def describe(self) -> str:
        return f"grant {self.user} {IDS_PER_USER} subordinate ids in {self.path}"

    def done(self) -> bool:
        names = {self.user}
        try:
            names.add(str(pwd.getpwnam(self.user).pw_uid))
        except KeyError:
            return False
        return any(
            each.owner in names and each.size >= IDS_PER_USER for each in read_ranges(self.path)
        )

    def execute(self) -> None:
        # Free in both files, so that uids and gids get the same range where one of them has none yet.
        taken = [*read_ranges(SUBUID), *read_ranges(SUBGID)]
        own = [each for each in taken if each.owner == self.user and each.size >= IDS_PER_USER]
        others = [each for each in taken if each.owner != self.user]
        first = own[0].first if own and is_free(own[0].first, others) else find_free(taken)
        run(["usermod", self.option, f"{first}-{first + IDS_PER_USER - 1}", self.user])


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeDataDirectory:
    """Where the record is kept: nobody else's business."""

    user: str
    path: str

    def describe(self) -> str:
        return f"make the data directory {self.path} for {self.user} alone"

    def done(self) -> bool:
        try:
            status = os.lstat(self.path)
            owner = pwd.getpwnam(self.user).pw_uid
        except (FileNotFoundError, KeyError):
            return False
        private = stat.S_IMODE(status.st_mode) == 0o700
        return stat.S_ISDIR(status.st_mode) and status.st_uid == owner and private

    def execute(self) -> None:
        entry = pwd.getpwnam(self.user)
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        # By descriptor, and never through a link that somebody put there.
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(fd, entry.pw_uid, entry.pw_gid)
            os.fchmod(fd, 0o700)
        finally:
            os.close(fd)


class WriteUnit(WriteFile):
    """A systemd unit: systemd reads it again, where it runs. It is neither enabled nor started."""

    __slots__ = ()

    def describe(self) -> str:
        return f"write {self.path} (then: systemctl enable --now sandboxd)"

    def execute(self) -> None:
        super().execute()
        reload_systemd()


class WriteDelegation(WriteFile):
    """For a person's own systemd, when it is started the next time: ending it would end what runs in it."""

    __slots__ = ()

    def describe(self) -> str:
        return f"write {self.path} (from the user's next login after the last logout, or boot, on)"

    def execute(self) -> None:
        super().execute()
        reload_systemd()


class WriteUserUnit(WriteFile):
    """A unit for people's own systemd. They make it read the file: ours cannot reach theirs."""

    __slots__ = ()

    def describe(self) -> str:
        return f"write {self.path} (then, as the user: systemctl --user enable --now sandboxd)"


@dataclass(frozen=True, kw_only=True, slots=True)
class EnableLinger:
    """The user's systemd runs from boot on, not only while the user is logged in (loginctl(1))."""

    user: str

    def describe(self) -> str:
        return f"let the systemd of {self.user} run from boot on"

    def done(self) -> bool:
        return os.path.exists(f"{LINGER}/{self.user}")

    def execute(self) -> None:
        run(["loginctl", "enable-linger", self.user])


class Range(NamedTuple):
    """One line of subuid(5)."""

    owner: str
    first: int
    size: int


def read_ranges(path: str) -> list[Range]:
    """The lines of subuid(5) or subgid(5); none where there is no file."""
    try:
        with open(path) as file:
            fields = [line.strip().split(":") for line in file]
    except FileNotFoundError:
        return []
    return [Range(each[0], int(each[1]), int(each[2])) for each in fields if len(each) == 3]


def find_free(taken: Iterable[Range]) -> int:
    """The first id of a range that overlaps no other and no user's or group's own id. Raises HostNotReady."""
    taken = list(taken)
    ids = [entry.pw_uid for entry in pwd.getpwall()] + [entry.gr_gid for entry in grp.getgrall()]
    everything = taken + [Range("", number, 1) for number in ids]
    for first in range(FIRST_SUBORDINATE_ID, LAST_SUBORDINATE_ID, IDS_PER_USER):
        if is_free(first, everything):
            return first
    raise HostNotReady(f"no {IDS_PER_USER} free subordinate ids are left in {SUBUID} and {SUBGID}")


def is_free(first: int, taken: Iterable[Range]) -> bool:
    """Whether the range from `first` on overlaps none of these."""
    return all(
        each.first + each.size <= first or first + IDS_PER_USER <= each.first for each in taken
    )


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
