"""System calls of processes that run already, counted by strace."""

import contextlib
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from host_tests import host_required

WAITS = {"epoll_pwait", "futex", "io_uring_enter", "poll", "restart_syscall", "sched_yield"}
"""How often somebody waits, or wakes somebody, depends on who was quicker."""


class Calls(NamedTuple):
    """Of one name."""

    all: int
    done: int
    """Without those that failed: libc asks for what the filter says is not there, then does it in another way."""


@contextlib.contextmanager
def traced(pid: int, counts: Path) -> Iterator[None]:
    """Count what a process, its threads and all that it starts call during the block: a line for each call, `calls [errors] name`."""
    strace = shutil.which("strace")
    if strace is None:
        host_required("strace is not installed")
    words = [strace, "-f", "-c", "-U", "calls,errors,name", "-o", str(counts), "-p", str(pid)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        if "attached" not in (said := process.stderr.readline()):
            host_required(f"a process of the same user cannot be traced: {said}")
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def calls_of(counts: Path) -> defaultdict[str, Calls]:
    rows = [line.split() for line in counts.read_text().splitlines()]
    found: defaultdict[str, Calls] = defaultdict(lambda: Calls(0, 0))
    for *numbers, name in rows:
        if numbers and numbers[0].isdigit() and name != "total":
            calls = int(numbers[0])
            failed = int(numbers[1]) if len(numbers) > 1 else 0
            found[name] = Calls(calls, calls - failed)
    return found


def work(calls: Mapping[str, float]) -> float:
    return sum(number for name, number in calls.items() if name not in WAITS)
