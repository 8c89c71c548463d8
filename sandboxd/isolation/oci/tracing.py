"""Holding a program at the end of its execve(2), before its first instruction. See ptrace(2)."""

import json
import os
import signal
from collections.abc import Callable

from sandboxd.isolation import command as commands
from sandboxd.isolation import syscalls
from sandboxd.isolation.spec import Command, Unusable

AT_EXEC = signal.SIGTRAP | syscalls.PTRACE_EVENT_EXEC << 8
"""What a traced process stops with there (`status >> 8`)."""

_TELLING = 3


def seize(pid: int) -> None:
    """Trace a process from now on, without stopping it: it stops when it executes a program."""
    options = syscalls.PTRACE_O_TRACEEXEC | syscalls.PTRACE_O_EXITKILL
    syscalls.ptrace(syscalls.PTRACE_SEIZE, pid, options)


def stopped_at_exec(pid: int, status: int) -> bool:
    """Whether this wait status says so. A process that stopped for another reason (a signal) is sent on."""
    if status >> 8 == AT_EXEC:
        return True
    if os.WIFSTOPPED(status):
        event = status >> 16
        syscalls.ptrace(syscalls.PTRACE_CONT, pid, 0 if event else os.WSTOPSIG(status))
    return False


def let_go(pid: int) -> None:
    """Trace it no longer: it goes on."""
    syscalls.ptrace(syscalls.PTRACE_DETACH, pid)


def rehearse(command: Command, become: Callable[[], None]) -> str | Unusable:
    """Whether a command can be executed, and by which path: it is, in a child that ends before its first instruction.

    `become` makes the child what the command will be: its root, its user, its rights. Raises OSError.
    """
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            # Nothing else is open, as for a command: a path may lead to what is (/proc/self/fd).
            os.dup2(telling, _TELLING, inheritable=False)
            syscalls.close_range(_TELLING + 1)
            become()
            _execute(command, _TELLING)
        finally:
            os._exit(1)
    os.close(telling)
    lines = []
    with open(told, encoding="utf-8", errors="surrogateescape") as report:
        # The other end closes with the execve, or with the child.
        lines = [json.loads(line) for line in report]
    _, status = os.waitpid(pid, 0)
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return str(lines[-1])
    if not lines or isinstance(lines[-1], str):
        raise OSError("the command could not be tried")
    return Unusable(*lines[-1])


def _execute(command: Command, telling: int) -> None:
    """In the child: as `command.start`, but with the path told before each try, and at last what was wrong."""

    def tell(what: object) -> None:
        os.write(telling, json.dumps(what).encode() + b"\n")

    def attempt(path: str) -> int:
        tell(path)
        os.execve(path, command.argv, command.env)  # noqa: S606 (there is no shell to start it)

    number = commands.enter_workdir(command.workdir)
    if number:
        tell(["workdir", number])
        return
    syscalls.ptrace(syscalls.PTRACE_TRACEME, 0)
    tell(commands.first_that_starts(command, attempt))
