"""What programs that attack from inside a sandbox begin with: system calls by name, each answered with its errno."""

import errno
import json
import platform
from typing import Any

from sandbox_bench import Bench

from sandboxd.isolation import syscall_numbers

_PRELUDE = """
import ctypes, json, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def by_number(number, *arguments):
    wide = [ctypes.c_ulong(each % 2**64) if isinstance(each, int) else each for each in arguments]
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *wide) == -1 else 0
def call(name, *arguments):
    return by_number(NUMBERS[name], *arguments)
def attempt(work, *arguments):
    try: work(*arguments)
    except OSError as error: return error.errno
    return 0
def status():
    return dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
"""


def program(source: str) -> str:
    """It may use `call`, `by_number`, `attempt` and `status`."""
    return f"NUMBERS = {syscall_numbers.BY_MACHINE[platform.machine()]!r}\n{_PRELUDE}{source}"


def attack(bench: Bench, source: str, *arguments: str, **changes: Any) -> Any:
    """What the program prints as JSON. The arguments are in its `sys.argv`."""
    ran = bench.run("python3", "-", *arguments, stdin=program(source).encode(), **changes)
    assert ran.exit is not None, "killed"
    assert ran.exit.code == 0, ran
    return json.loads(ran.out)


def named(answer: int) -> str:
    """0 is `done`."""
    return errno.errorcode[answer] if answer else "done"


def names(answers: dict[str, int]) -> dict[str, str]:
    return {what: named(answer) for what, answer in answers.items()}
