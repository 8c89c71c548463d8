"""Reading and writing the kernel's small files: one open, one call, one close.

Names are relative to an open directory, such as `job/memory.max`. A failure names the file as the step that failed.
"""

import errno
import os
import select
import time

from sandboxd.errors import SandboxFailed

_SMALL_BYTES = 4096
"""More than any file that is read here holds, but for `io.stat` on hosts with dozens of disks."""


def write_file(directory_fd: int, name: str, value: str) -> None:
    """Write a value. Raises SandboxFailed (step `cgroup FILE`)."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise failed(name, error, f"writing {value.strip()!r}") from error


class Written:
    """Files that nobody but us writes: a value that is there already is not written again."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def write(self, directory_fd: int, name: str, value: str) -> None:
        """As `write_file`."""
        if self._values.get(name) != value:
            write_file(directory_fd, name, value)
            self._values[name] = value


def read_file(directory_fd: int, name: str) -> str:
    """The text of a small file. Raises SandboxFailed (step `cgroup FILE`)."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            return os.read(fd, _SMALL_BYTES).decode()
        finally:
            os.close(fd)
    except OSError as error:
        raise failed(name, error, "reading") from error


def read_number(directory_fd: int, name: str) -> int:
    """The number in a file of one number. Raises SandboxFailed (step `cgroup FILE`)."""
    return int(read_file(directory_fd, name))


def read_table(directory_fd: int, name: str) -> dict[str, int]:
    """A file of `key number` lines. Raises SandboxFailed (step `cgroup FILE`)."""
    return parse_table(read_file(directory_fd, name))


def await_event(
    directory_fd: int, name: str, key: str, value: int, *, patience_seconds: float
) -> bool:
    """Wait until a file of `key number` lines, such as `cgroup.events`, has this number; False: not in time.

    The kernel tells of each change by POLLPRI (cgroup-v2.rst, Conventions). Raises SandboxFailed (step `cgroup FILE`).
    """
    deadline = time.monotonic() + patience_seconds
    poll = select.poll()
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            poll.register(fd, select.POLLPRI)
            while parse_table(os.pread(fd, _SMALL_BYTES, 0).decode())[key] != value:
                left_seconds = deadline - time.monotonic()
                if left_seconds <= 0:
                    return False
                poll.poll(left_seconds * 1000)
        finally:
            os.close(fd)
    except OSError as error:
        raise failed(name, error, "waiting") from error
    return True


def parse_table(text: str) -> dict[str, int]:
    """Lines of `key number`, as in `cpu.stat`."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def may_have_refused(peak: int | None, most: int) -> bool:
    """Whether a limit on processes can have been met: a peak below it says no, and saves a look."""
    return peak is None or peak >= most


def read_refused(directory_fd: int, name: str) -> int | None:
    """The count in `pids.events`; None where the kernel has none (before Linux 4.8). Raises SandboxFailed."""
    return read_table(directory_fd, name)["max"] if exists(directory_fd, name) else None


def exists(directory_fd: int, name: str) -> bool:
    """Whether the kernel offers this file."""
    return os.access(name, os.F_OK, dir_fd=directory_fd)


def open_directory(path: str, directory_fd: int | None = None) -> int:
    """A descriptor to address files below a directory. Raises SandboxFailed (step `cgroup NAME`)."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError as error:
        raise failed(path, error, "opening") from error


def make_directory(name: str, directory_fd: int) -> None:
    """Make a cgroup, or keep the one that is there. Raises SandboxFailed (step `cgroup mkdir`)."""
    try:
        os.mkdir(name, dir_fd=directory_fd)
    except FileExistsError:
        return
    except OSError as error:
        raise SandboxFailed("cgroup mkdir", f"{name}: {error.strerror}") from error


def remove_directory(name: str, directory_fd: int) -> bool:
    """Remove one cgroup; False: busy. One that is gone is fine. Raises SandboxFailed (step `cgroup rmdir`)."""
    try:
        os.rmdir(name, dir_fd=directory_fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise SandboxFailed("cgroup rmdir", f"{name}: {error.strerror}") from error
    return True


def failed(name: str, error: OSError, action: str) -> SandboxFailed:
    """The failure of one file, as `cgroup memory.max: writing '4096': Permission denied`."""
    return SandboxFailed(f"cgroup {os.path.basename(name)}", f"{action}: {error.strerror}")
