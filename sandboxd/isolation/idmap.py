"""Subordinate ids: which ones this user has, and the maps of U1, the launcher's user namespace.

See user_namespaces(7), newuidmap(1), subuid(5).
"""

import enum
import os
import pwd
import shutil
import subprocess
from typing import NamedTuple

from sandboxd.errors import HostNotReady, SandboxFailed
from sandboxd.isolation.sandbox_ids import write_map

LEAST_IDS = 10_000
"""With fewer, ordinary images do not fit: their users and groups have ids up to some thousands, `nobody` 65534."""
MOST_IDS = 65_536
_ID_LIMIT = 2**32 - 1
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
    uids = _largest("/etc/subuid", os.geteuid())
    gids = _largest("/etc/subgid", os.getegid())
    if uids is None or gids is None:
        return None
    count = min(uids[1], gids[1], MOST_IDS)
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
        write_map(f"/proc/{pid}/setgroups", "deny")
        write_map(f"/proc/{pid}/uid_map", f"0 {uid} 1")
        write_map(f"/proc/{pid}/gid_map", f"0 {gid} 1")
    elif _may_map_directly():
        write_map(f"/proc/{pid}/uid_map", f"0 {uid} 1\n1 {ids.first_uid} {ids.size}")
        write_map(f"/proc/{pid}/gid_map", f"0 {gid} 1\n1 {ids.first_gid} {ids.size}")
    else:
        _run_helper("newuidmap", pid, uid, ids.first_uid, ids.size)
        _run_helper("newgidmap", pid, gid, ids.first_gid, ids.size)


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


def _largest(path: str, own_id: int) -> tuple[int, int] | None:
    """The largest (first, count) that the file grants to this user, by name or number.

    Lines that make no sense are passed over, and so are ranges that would map host root or `own_id` into sandboxes.
    """
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
    ranges = [
        (int(field[1]), int(field[2]))
        for field in fields
        if len(field) == 3 and field[0] in names and field[1].isdecimal() and field[2].isdecimal()
    ]
    usable = [
        (first, count)
        for first, count in ranges
        if 0 < first and first + count <= _ID_LIMIT and not first <= own_id < first + count
    ]
    return max(usable, key=lambda found: found[1], default=None)
