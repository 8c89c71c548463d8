"""The clocks of a sandbox: since when it is up, instead of since when the host is (time_namespaces(7)).

A process that makes a time namespace stays where it is; its children enter. So init's own clock is the service's, and the
commands' are not. Nothing enters by vfork(2) before Linux 6.1; there the clocks are the host's.
"""

import os
import platform
import re
import time

from sandboxd.isolation import syscalls

SINCE = (6, 1)
_OLDER_SECONDS = 1
"""So much older than that moment is what they show: nothing in the sandbox may be older than they (init is, a little)."""


def offered() -> bool:
    """Whether this kernel can."""
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    return version >= SINCE and os.path.exists("/proc/self/ns/time_for_children")


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
