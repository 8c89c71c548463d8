"""Runs the real command line: in a pipe, as programs see it, or on a terminal, as people do."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent.parent.parent


class Outcome(NamedTuple):
    code: int
    output: str
    errors: str


def environment(**variables: str) -> dict[str, str]:
    """An environment without settings: what the machine has configured must not decide a test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOXD_")}
    return kept | {"SANDBOXD_CONFIG": "", "PYTHONPATH": str(SOURCE)} | variables


def sandboxd(*words: str, stdin: bytes = b"", **variables: str) -> Outcome:
    """`sandboxd WORDS…` in a pipe, with these environment variables."""
    ended = subprocess.run(
        [sys.executable, "-m", "sandboxd", *words],
        input=stdin,
        capture_output=True,
        env=environment(**variables),
        timeout=110,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def sandboxd_on_terminal(*words: str, columns: int = 100, **variables: str) -> Outcome:
    """`sandboxd WORDS…` with output and errors on one terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "sandboxd", *words],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="xterm-256color", COLUMNS=str(columns), **variables),
    ) as process:
        os.close(theirs)
        with open(ours, "rb", buffering=0) as terminal:
            shown = _read_all(terminal.fileno())
    return Outcome(process.returncode, shown.replace("\r\n", "\n"), "")


def _read_all(terminal: int) -> str:
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 65_536)
        except OSError:  # EIO: the last process that had the terminal is gone
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces).decode()
