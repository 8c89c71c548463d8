"""Starting the command, from inside the walls. Runs in init, which by now has no more rights than the command."""

import errno
import fcntl
import os
import resource
import signal
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple

from sandboxd.isolation import privileges, syscalls
from sandboxd.isolation.spec import Command, TerminalSize, Unusable

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ALL_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_TIOCSPTLCK, _TIOCGPTN, _TIOCSWINSZ = 0x40045431, 0x80045430, 0x5414
"""ioctl_tty(2); by number, since the module that has the names would be in every sandbox's memory."""


class Terminal(NamedTuple):
    """A terminal of the sandbox's own devpts: the master, and the path of the other end."""

    master: int
    path: str


def open_terminal(size: TerminalSize) -> Terminal | Unusable:
    """Make a terminal. The master is the caller's to close."""
    try:
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        return Unusable("terminal", error.errno or errno.EIO)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))
    fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
    return Terminal(master, f"/dev/pts/{number}")


def start(command: Command, streams: list[int] | str) -> int | Unusable:
    """Start the command with three descriptors as its standard streams, or with the terminal at a path. Returns its pid.

    The limits are set on init itself, which passes them on: posix_spawn(3) has no step for them.
    """
    number = enter_workdir(command.workdir)
    if number:
        return Unusable("workdir", number)
    for name, wish in command.rlimits.items():
        privileges.limit(getattr(resource, f"RLIMIT_{name.upper()}"), wish)
    return first_that_starts(command, lambda path: _spawn(path, command, _stream_actions(streams)))


def first_that_starts(command: Command, attempt: Callable[[str], int]) -> int | Unusable:
    """Try each path that the command's name may stand for, as execvp(3). Returns what the attempt that went well did."""
    number = errno.ENOENT
    paths = _candidates(command.argv[0], command.env)
    for path in paths:
        try:
            return attempt(path)
        except OSError as error:
            # As execvp(3): go on looking, but remember a file that was there and could not be executed.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) or len(paths) == 1:
                number = error.errno or errno.EACCES
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                break
    return Unusable("command", number)


def enter_workdir(path: str) -> int:
    """Make the directory if it is not there, and go there. Returns an errno, 0 if it went well."""
    try:
        try:
            os.chdir(path)
        except FileNotFoundError:
            os.makedirs(path, exist_ok=True)
            os.chdir(path)
        # A working directory outside the root (by way of /proc/self/fd) is reported as "(unreachable)/…" (CVE-2024-21626).
        if not os.getcwd().startswith("/"):
            os.chdir("/")
            return errno.ENOENT
    except FileExistsError:
        return errno.ENOTDIR
    except OSError as error:
        return error.errno or errno.EACCES
    return 0


def _candidates(name: str, env: dict[str, str]) -> list[str]:
    if "/" in name:
        return [name]
    return [f"{place or '.'}/{name}" for place in env.get("PATH", _DEFAULT_PATH).split(":")]


def _stream_actions(
    streams: list[int] | str,
) -> list[tuple[int, ...] | tuple[int, int, str, int, int]]:
    """File actions for posix_spawn, which come after its setsid.

    A session leader that opens a terminal, and has none, gets it as its controlling one (tty_open() in drivers/tty).
    """
    if isinstance(streams, str):
        return [
            (os.POSIX_SPAWN_OPEN, 0, streams, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        ]
    return [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]


def _spawn(
    path: str, command: Command, actions: list[tuple[int, ...] | tuple[int, int, str, int, int]]
) -> int:
    # Every descriptor of init is closed on exec already; this is the second lock on the same door.
    syscalls.close_range(3, flags=syscalls.CLOSE_RANGE_CLOEXEC)
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise OSError(errno.EACCES, "is a directory")
    return os.posix_spawn(
        path,
        command.argv,
        command.env,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=_ALL_SIGNALS,
    )
