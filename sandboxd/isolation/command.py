"""Starting the command, from inside the walls. Runs in init, which by now has no more rights than the command."""

import errno
import os
import resource
import signal
import stat

from sandboxd.isolation import privileges, syscalls
from sandboxd.isolation.spec import Command, Unusable

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ALL_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def start(command: Command, descriptors: list[int]) -> int | Unusable:
    """Start the command with the three descriptors as its standard streams. Returns its pid.

    The limits are set on init itself, which passes them on: posix_spawn(3) has no step for them.
    """
    number = enter_workdir(command.workdir)
    if number:
        return Unusable("workdir", number)
    for name, wish in command.rlimits.items():
        privileges.limit(getattr(resource, f"RLIMIT_{name.upper()}"), wish)
    number = errno.ENOENT
    paths = _candidates(command.argv[0], command.env)
    for path in paths:
        try:
            return _spawn(path, command, descriptors)
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


def _spawn(path: str, command: Command, descriptors: list[int]) -> int:
    # Every descriptor of init is closed on exec already; this is the second lock on the same door.
    syscalls.close_range(3, flags=syscalls.CLOSE_RANGE_CLOEXEC)
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise OSError(errno.EACCES, "is a directory")
    return os.posix_spawn(
        path,
        command.argv,
        command.env,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(descriptors)],
        setsid=True,
        setsigmask=(),
        setsigdef=_ALL_SIGNALS,
    )
