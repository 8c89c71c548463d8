"""A program that really makes every system call, and says how each ended (probe.c)."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from host_tests import host_required

PROBE = Path(__file__).with_name("probe.c")
WRITE_AND_RUN = "cat > /work/probe && chmod +x /work/probe && exec /work/probe $0"
"""For a shell that gets the program as its input, and as its name the argument of the calls; without one they get -1."""

CHANGING = {"fork", "vfork", "rt_sigreturn", "getrandom", "alarm", "sync", "times", "time"}
"""Calls whose outcome depends on the moment, or is lost with the process that would tell it."""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program, compiled. Skips, or fails, where it cannot be."""
    if platform.machine() != "x86_64" or shutil.which("gcc") is None:
        host_required("the probe is for x86_64 and is compiled by gcc")
    program = tmp_path_factory.mktemp("probe") / "probe"
    words = ["gcc", "-O1", "-static", "-Wall", "-Werror", "-o", str(program), str(PROBE)]
    compiled = subprocess.run(words, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    return program.read_bytes()
