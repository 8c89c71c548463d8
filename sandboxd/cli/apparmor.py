"""The AppArmor profile that lets the service make user namespaces where Ubuntu restricts them."""

import os
import re
import sys
from dataclasses import dataclass
from importlib import resources

from sandboxd.cli.setup_steps import WriteFile, run
from sandboxd.errors import HostNotReady

PROFILE_FILE = "/etc/apparmor.d/sandboxd"
NAME = "sandboxd"
_RESTRICTION = "sys/kernel/apparmor_restrict_unprivileged_userns"
_LOADED = "/sys/kernel/security/apparmor/profiles"
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._+/ -]+")
"""No character that means something in a profile's pattern: ? * [ ] { } ^ @ " \\ and the like."""


def restricts(proc: str = "/proc") -> bool:
    """Whether AppArmor gives programs without a profile no rights in a user namespace."""
    try:
        with open(f"{proc}/{_RESTRICTION}") as file:
            return file.read().strip() == "1"
    except FileNotFoundError:
        return False


def interpreter() -> str:
    """The program that the kernel sees when the service is started: links are followed."""
    return os.path.realpath(sys.executable)


def profile_text(program: str) -> str:
    """The profile for a program. Raises HostNotReady for a path that a profile would read as a pattern."""
    if _PLAIN_PATH.fullmatch(program) is None:
        raise HostNotReady(f'"{program}" cannot stand in an AppArmor profile: use a plainer path')
    template = (resources.files("sandboxd.cli") / "sandboxd.apparmor").read_text(encoding="utf-8")
    return template.replace("@INTERPRETER@", program)


@dataclass(frozen=True, slots=True)
class LoadProfile:
    """The profile in its file and in the kernel."""

    program: str
    path: str = PROFILE_FILE
    loaded: str = _LOADED

    def describe(self) -> str:
        return f"load the AppArmor profile {self.path}: programs of {self.program} may make user namespaces"

    def done(self) -> bool:
        return self._file().done() and self._is_loaded()

    def execute(self) -> None:
        self._file().execute()
        run(["apparmor_parser", "--replace", self.path])

    def _file(self) -> WriteFile:
        return WriteFile(self.path, profile_text(self.program))

    def _is_loaded(self) -> bool:
        """Only root may see the list: for anybody else (a dry run) the file decides."""
        try:
            with open(self.loaded) as file:
                return any(line.split(" ")[0] == NAME for line in file)
        except (FileNotFoundError, PermissionError):
            return os.geteuid() != 0
