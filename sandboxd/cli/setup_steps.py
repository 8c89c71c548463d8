"""Steps of `sandboxd setup` that several others are made of: a mode, a file, a system tool."""

import os
import stat
import subprocess
from dataclasses import dataclass

SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
"""Where system tools are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetMode:
    """Permissions of a file that exists."""

    path: str
    mode: int

    def describe(self) -> str:
        return f"set the mode of {self.path} to {self.mode:04o}"

    def done(self) -> bool:
        return stat.S_IMODE(os.stat(self.path).st_mode) == self.mode

    def execute(self) -> None:
        os.chmod(self.path, self.mode)


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A file of root's with exactly this text."""

    path: str
    text: str

    def describe(self) -> str:
        return f"write {self.path}"

    def done(self) -> bool:
        try:
            with open(self.path) as file:
                return file.read() == self.text
        except FileNotFoundError:
            return False

    def execute(self) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        replacement = f"{self.path}.new"
        with open(replacement, "w") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(self.text)
        os.replace(replacement, self.path)


def run(words: list[str]) -> None:
    """Run a system tool. Raises FileNotFoundError, CalledProcessError with what it said."""
    subprocess.run(words, check=True, capture_output=True, text=True, env={"PATH": SBIN})
