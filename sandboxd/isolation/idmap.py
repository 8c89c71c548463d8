"""Which ids exist in a sandbox: the maps of U1 (the launcher's user namespace) and U2 (the command's).

See user_namespaces(7), newuidmap(1), subuid(5).
"""

import enum
import os
import pwd
import shutil
import subprocess
from typing import NamedTuple

from sandboxd.errors import HostNotReady, SandboxFailed

LEAST_IDS = 65_536
_CAP_SETUID, _CAP_SETGID = 7, 6


class IdMapMode(enum.StrEnum):
    RANGE = "range"
    """Subordinate ids: the service's own uid is not mapped into any sandbox."""
    SINGLE = "single"
    """One id: the service's own."""


class IdRange(NamedTuple):
    """Subordinate ids of this user, as the host counts them."""

    first_uid: int
    first_gid: int
    size: int


def find_range() -> IdRange | None:
    """The subordinate ids that this process may map, None if there are none or no way to map them."""
    if not _may_map_directly() and not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return None
    uids = _largest("/etc/subuid")
    gids = _largest("/etc/subgid")
    if uids is None or gids is None:
        return None
    count = min(uids[1], gids[1], LEAST_IDS)
    return IdRange(uids[0], gids[0], count) if count >= LEAST_IDS else None


def choose(wish: str, ids: IdRange | None) -> IdMapMode:
    """The mode for a wish of `auto`, `range` or `single`.

    Raises HostNotReady if a range is wished and there is none.
    """
    if wish == "single":
        return IdMapMode.SINGLE
    if ids is not None:
        return IdMapMode.RANGE
    if wish == "range":
        raise HostNotReady(
            "no subordinate ids: run `sandboxd setup` as root, or set isolation.id_map to single"
        )
    return IdMapMode.SINGLE


def map_launcher(pid: int, ids: IdRange | None) -> None:
    """Write the maps of U1 for the launcher: 0 is the service's own id, 1… are subordinate ones.

    Called by the service, in the parent user namespace. Raises SandboxFailed.
    """
    uid, gid = os.geteuid(), os.getegid()
    if ids is None:
        _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/uid_map", f"0 {uid} 1")
        _write(f"/proc/{pid}/gid_map", f"0 {gid} 1")
    elif _may_map_directly():
        _write(f"/proc/{pid}/uid_map", f"0 {uid} 1\n1 {ids.first_uid} {ids.size}")
        _write(f"/proc/{pid}/gid_map", f"0 {gid} 1\n1 {ids.first_gid} {ids.size}")
    else:
        _run_helper("newuidmap", pid, uid, ids.first_uid, ids.size)
        _run_helper("newgidmap", pid, gid, ids.first_gid, ids.size)


def map_sandbox(pid: int, *, id_count: int, uid: int, gid: int) -> None:
    """Write the maps of U2 for one init: never U1's 0, but in single-id mode, where there is nothing else.

    Called by the launcher, in U1. Raises SandboxFailed.
    """
    if id_count:
        uid_map = gid_map = f"0 1 {id_count}"
    else:
        uid_map, gid_map = f"{uid} 0 1", f"{gid} 0 1"
    _write(f"/proc/{pid}/uid_map", uid_map)
    _write(f"/proc/{pid}/gid_map", gid_map)


def inside_to_launcher(id_inside: int, id_count: int) -> int:
    """The id in U1 that a command's id is; in single-id mode all are U1's 0."""
    return id_inside + 1 if id_count else 0


def _write(path: str, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SandboxFailed(f"write {os.path.basename(path)}", str(error)) from error


def _run_helper(helper: str, pid: int, own: int, first: int, count: int) -> None:
    words = [helper, str(pid), "0", str(own), "1", "1", str(first), str(count)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SandboxFailed(helper, done.stderr.strip() or f"exit status {done.returncode}")


def _may_map_directly() -> bool:
    """CAP_SETUID and CAP_SETGID in the current user namespace, as in a pod with `hostUsers: false`."""
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return bool(effective >> _CAP_SETUID & 1 and effective >> _CAP_SETGID & 1)


def _largest(path: str) -> tuple[int, int] | None:
    """The largest (first, count) that the file grants to this user, by name or number."""
    uid = os.geteuid()
    try:
        names = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        names = {str(uid)}
    try:
        with open(path, encoding="utf-8") as lines:
            fields = [line.strip().split(":") for line in lines]
    except FileNotFoundError:
        return None
    ranges = [(int(f[1]), int(f[2])) for f in fields if len(f) == 3 and f[0] in names]
    return max(ranges, key=lambda found: found[1], default=None)
