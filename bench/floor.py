"""The C floor of `floor.c`: compiled, given a root and the filter that sandboxd installs, and run."""

import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

from rows import PAUSE_SECONDS, NotHereError, program
from service import TRUE

from sandboxd.isolation import seccomp

SOURCE = Path(__file__).with_suffix(".c")
LINKS = ("bin", "sbin", "lib", "lib64")
"""Into /usr, on every Debian since 12."""


class Floor(NamedTuple):
    """A floor that was compiled."""

    words: tuple[str, ...]

    def run(self, runs: int, *, at_once: int = 1, pause: bool = True) -> tuple[list[float], float]:
        """Seconds of each run, and of all together."""
        pause_usec = int(PAUSE_SECONDS * 1e6) if pause else 0
        numbers = [str(number) for number in (runs, at_once, pause_usec)]
        done = subprocess.run(
            [*self.words, *numbers, "--", TRUE], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise NotHereError(done.stderr.partition("\n")[0])
        *each, (_, together) = (line.split() for line in done.stdout.splitlines())
        return [int(nanoseconds) / 1e9 for (nanoseconds,) in each], int(together) / 1e9


def compiled(directory: Path) -> Floor:
    """Raises NotHereError."""
    here = directory / "floor"
    lower, binary, filter_file = here / "lower", here / "floor", here / "filter"
    if not binary.exists():
        for name in ("usr", "proc", "dev", "tmp", "etc"):
            (lower / name).mkdir(parents=True)
        for name in LINKS:
            if Path("/", name).is_symlink():
                (lower / name).symlink_to(Path("/", name).readlink())
        filter_file.write_bytes(seccomp.assemble(seccomp.build(platform.machine())))
        words = [program("gcc", "gcc"), "-O2", "-static", "-Wall", "-Wextra", "-o", str(binary)]
        made = subprocess.run([*words, str(SOURCE)], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise NotHereError(f"floor.c cannot be compiled: {made.stderr.strip()}")
    return Floor((str(binary), str(lower), str(filter_file)))
