"""The clocks of a sandbox: since when it is up, instead of since when the host is (time_namespaces(7)).

A process that makes a time namespace stays where it is; its children enter. So init's own clock is the service's, and the
commands' are not. Older kernels let nobody enter by vfork(2), which is how commands start: there the clocks are the host's.
"""

import contextlib
import errno
import os
import time

from sandboxd.isolation import syscalls

_OLDER_SECONDS = 1
"""So much older than that moment is what they show: nothing in the sandbox may be older than they (init is, a little)."""


def offered() -> bool:
    """Whether this kernel can: tried, by root of a user namespace, in a child. (Linux 6.1 cannot, 6.18 can.)"""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        if _can_be_entered():
            os.write(theirs, b"y")
        os._exit(0)
    os.close(theirs)
    answer = os.read(ours, 1)
    os.close(ours)
    # Where SIGCHLD is ignored nothing is to be had of it, but it is waited for.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    return bool(answer)


def _can_be_entered() -> bool:
    """A program that is not there is looked for only once the child has been made."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWTIME)
        os.posix_spawn("/dev/null/none", ["none"], {})
    except OSError as error:
        return error.errno == errno.ENOTDIR
    return False


def start_anew(proc_fd: int) -> None:
    """Let the clocks of all children begin now. `proc_fd`: a /proc of this process's pid namespace. Raises OSError."""
    syscalls.unshare(syscalls.CLONE_NEWTIME)
    offsets = ""
    for name in ("monotonic", "boottime"):
        now = int(time.clock_gettime(getattr(time, f"CLOCK_{name.upper()}")))
        offsets += f"{name} -{now - _OLDER_SECONDS} 0\n"
    file = os.open("self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        os.write(file, offsets.encode())
    finally:
        os.close(file)
