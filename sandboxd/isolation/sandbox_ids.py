"""The ids of one sandbox: the maps of U2, the command's user namespace. See user_namespaces(7).

Used by the launcher, which imports little: every page that it has is copied into each sandbox.
"""

import os

from sandboxd.errors import SandboxFailed


def map_sandbox(pid: int, *, id_count: int, uid: int, gid: int) -> None:
    """Write the maps of U2 for one init: never U1's 0, but in single-id mode, where there is nothing else.

    Called by the launcher, in U1. Raises SandboxFailed.
    """
    if id_count:
        uid_map = gid_map = f"0 1 {id_count}"
    else:
        uid_map, gid_map = f"{uid} 0 1", f"{gid} 0 1"
    write_map(f"/proc/{pid}/uid_map", uid_map)
    write_map(f"/proc/{pid}/gid_map", gid_map)


def inside_to_launcher(id_inside: int, id_count: int) -> int:
    """The id in U1 that a command's id is; in single-id mode all are U1's 0."""
    return id_inside + 1 if id_count else 0


def write_map(path: str, text: str) -> None:
    """Write one of the files of /proc/PID that make a user namespace's maps. Raises SandboxFailed."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SandboxFailed(f"write {os.path.basename(path)}", str(error)) from error
