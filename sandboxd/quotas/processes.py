"""Finding processes: those of a cgroup, to kill what is left in it, and those below another.

Killing by cgroup is only a second line: a sandbox is killed by killing its init, which takes its whole pid namespace along.
"""

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

from sandboxd.quotas.kernel_files import open_directory

_PASSES = 64
"""Rounds after which a cgroup that still forks is given up; each round kills all that were there when it began."""


def list_processes(directory_fd: int, group: str) -> list[int]:
    """Process ids in a cgroup; those that this pid namespace cannot see (listed as 0) are left out."""
    fd = os.open(f"{group}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    with open(fd) as file:  # the list can be longer than one read
        return [int(line) for line in file if line != "0\n"]


def kill_processes(directory_fd: int, group: str, *, patience_seconds: float = 0.0) -> None:
    """SIGKILL every process of a cgroup until none is left, waiting up to `patience_seconds` for their ends.

    Without patience each process is signalled and nothing is waited for.
    """
    deadline = time.monotonic() + patience_seconds
    for _ in range(_PASSES):
        pidfds = _open_processes(directory_fd, group)
        if not pidfds:
            return
        try:
            for pidfd in pidfds:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not _wait_ended(pidfds, deadline):
                return
        finally:
            for pidfd in pidfds:
                os.close(pidfd)


def clean_instance(instance_fd: int) -> None:
    """Remove every cgroup of a dead service: its processes are killed first.

    One that will not die (state D) keeps its directory; names of new jobs never collide with it.
    """
    with os.scandir(instance_fd) as entries:
        groups = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for group in groups:
        group_fd = open_directory(group, instance_fd)
        try:
            clean_instance(group_fd)
        finally:
            os.close(group_fd)
        _thaw(instance_fd, group)
        kill_processes(instance_fd, group, patience_seconds=5)
        with suppress(OSError):
            os.rmdir(group, dir_fd=instance_fd)


def _thaw(directory_fd: int, group: str) -> None:
    """What is frozen (cgroup v1) does not die."""
    with suppress(OSError):
        fd = os.open(f"{group}/freezer.state", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        with open(fd, "wb", buffering=0) as file:
            file.write(b"THAWED")


def _open_processes(directory_fd: int, group: str) -> list[int]:
    """A pidfd for each process of a cgroup.

    The list is read again once they are open: a number that was reused by a stranger in between is not in it.
    """
    opened = {}
    for pid in list_processes(directory_fd, group):
        with suppress(ProcessLookupError):
            opened[pid] = os.pidfd_open(pid)
    members = set(list_processes(directory_fd, group))
    for pid in opened.keys() - members:
        os.close(opened.pop(pid))
    return list(opened.values())


def _wait_ended(pidfds: list[int], deadline: float) -> bool:
    """Whether every process ended before the deadline."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    running = len(pidfds)
    while running:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        for pidfd, _ in poll.poll(remaining * 1000):
            poll.unregister(pidfd)
            running -= 1
    return True


def descendants(pid: int) -> Iterator[int]:
    """A process and all below it, as far as they are there when they are looked at."""
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += _children(pid)


def _children(pid: int) -> list[int]:
    """Of all threads of a process (CONFIG_PROC_CHILDREN, which checkpointing needs and every distribution has)."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    except OSError:
        return found  # It has just ended.
    return found
