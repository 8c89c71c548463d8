"""Handing cgroup directories to the service's user: the part of `sandboxd setup` that needs root.

v1: `<hierarchy>/sandboxd/<user>` for each controller, gone with each boot, so the systemd unit runs `setup` again.
v2: systemd does it (`Delegate=yes`); only without systemd is a directory made, in which somebody with the right to do so
must then start the service: an ordinary user cannot move itself across subtrees (cgroup-v2.rst, Delegation Containment).
"""

import os
import pwd
from dataclasses import dataclass
from typing import Protocol

from sandboxd.quotas.host import (
    CONTROLLERS,
    OPTIONAL_CONTROLLERS,
    PARENT_DIRECTORY,
    CgroupVersion,
    Controller,
    probe_controllers,
)

_FILES = {
    CgroupVersion.V1: ("cgroup.procs", "tasks"),
    CgroupVersion.V2: ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"),
}
"""What is handed over beside the directory. Never a limit's file: the user must not raise its own."""

_CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")


class Step(Protocol):
    """One thing that `sandboxd setup` makes true."""

    def describe(self) -> str:
        """In the imperative, one line."""

    def done(self) -> bool:
        """Whether it is true already; anybody may ask."""

    def execute(self) -> None:
        """Make it so; root only. Raises OSError, subprocess.CalledProcessError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DelegateDirectory:
    """Make a cgroup directory and give it to a user."""

    directory: str
    version: CgroupVersion
    user: str

    def describe(self) -> str:
        return f"give the cgroup directory {self.directory} to {self.user}"

    def done(self) -> bool:
        try:
            uid = pwd.getpwnam(self.user).pw_uid
            return all(os.stat(path).st_uid == uid for path in self._paths())
        except (KeyError, FileNotFoundError):
            return False

    def execute(self) -> None:
        entry = pwd.getpwnam(self.user)
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        for path in self._paths():
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def _paths(self) -> list[str]:
        return [self.directory, *(f"{self.directory}/{name}" for name in _FILES[self.version])]


@dataclass(frozen=True, kw_only=True, slots=True)
class EnableControllers:
    """Let the children of a v2 cgroup have controllers."""

    directory: str
    controllers: tuple[str, ...]

    def describe(self) -> str:
        return f"enable {', '.join(self.controllers)} below {self.directory}"

    def done(self) -> bool:
        try:
            with open(f"{self.directory}/cgroup.subtree_control") as file:
                return set(self.controllers) <= set(file.read().split())
        except FileNotFoundError:
            return False

    def execute(self) -> None:
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        with open(f"{self.directory}/cgroup.subtree_control", "w") as file:
            file.write(" ".join(f"+{name}" for name in self.controllers))


@dataclass(frozen=True, kw_only=True, slots=True)
class FillCpuset:
    """Give directories of v1's cpuset, one below the other, all CPUs and memory: nobody may enter one that has none."""

    mount: str
    below: tuple[str, ...]

    def describe(self) -> str:
        return f"fill the CPU set {self.mount}/{'/'.join(self.below)}"

    def done(self) -> bool:
        try:
            return all(self._read(path, name) for path in self._paths() for name in _CPUSET_FILES)
        except FileNotFoundError:
            return False

    def execute(self) -> None:
        above = self.mount
        for path in self._paths():
            for name in _CPUSET_FILES:
                if not self._read(path, name):
                    with open(f"{path}/{name}", "w") as file:
                        file.write(self._read(above, name))
            above = path

    def _paths(self) -> list[str]:
        return [
            "/".join((self.mount, *self.below[:depth])) for depth in range(1, len(self.below) + 1)
        ]

    @staticmethod
    def _read(path: str, name: str) -> str:
        with open(f"{path}/{name}") as file:
            return file.read().strip()


def plan(user: str, *, systemd: bool | None = None) -> list[Step]:
    """The steps for this host, in order. `systemd`: whether it manages v2; None: look."""
    if systemd is None:
        systemd = os.path.isdir("/run/systemd/system")  # sd_booted(3)
    controllers = probe_controllers(user)
    steps: list[Step] = plan_cgroup1(controllers, user)
    if not systemd:
        steps += plan_cgroup2(controllers, user)
    return steps


def plan_cgroup1(controllers: dict[str, Controller], user: str) -> list[Step]:
    """One directory per v1 hierarchy; those that share one (`cpu,cpuacct`) share it."""
    mounts = dict.fromkeys(
        os.path.realpath(controllers[name].mount or "")
        for name in (*CONTROLLERS, *OPTIONAL_CONTROLLERS)
        if controllers[name].version is CgroupVersion.V1
    )
    steps: list[Step] = [
        DelegateDirectory(
            directory=f"{mount}/{PARENT_DIRECTORY}/{user}", version=CgroupVersion.V1, user=user
        )
        for mount in mounts
    ]
    if controllers["cpuset"].version is CgroupVersion.V1:
        mount = os.path.realpath(controllers["cpuset"].mount or "")
        steps.append(FillCpuset(mount=mount, below=(PARENT_DIRECTORY, user)))
    return steps


def plan_cgroup2(controllers: dict[str, Controller], user: str) -> list[Step]:
    """One directory on v2, with those controllers that live there; nothing where none does."""
    names = tuple(
        name
        for name in (*CONTROLLERS, *OPTIONAL_CONTROLLERS)
        if name != "cpuacct" and controllers[name].version is CgroupVersion.V2
    )
    if not set(names) & set(CONTROLLERS):
        return []
    mount = controllers[names[0]].mount or ""
    parent = f"{mount}/{PARENT_DIRECTORY}"
    return [
        EnableControllers(directory=mount, controllers=names),
        EnableControllers(directory=parent, controllers=names),
        DelegateDirectory(directory=f"{parent}/{user}", version=CgroupVersion.V2, user=user),
    ]
