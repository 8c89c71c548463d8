"""The user that an image names, looked up in the image's own /etc/passwd and /etc/group.

These are files of a stranger: no link leads out of the tree, and only so much of a regular file is read.
"""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from sandboxd.errors import Invalid
from sandboxd.isolation import syscalls

_MOST_BYTES = 2**20
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


class User(NamedTuple):
    """Who runs the commands."""

    uid: int
    gid: int
    home: str


def find_user(rootfs: Path, user: str, id_count: int) -> User:
    """The user of `USER[:GROUP]`, each a name or a number, as Docker finds them; empty is root.

    `id_count`: ids that a sandbox has; 0: whatever is asked for. Raises Invalid.
    """
    name, _, group = user.partition(":")
    accounts = _entries(rootfs, "etc/passwd", fields=7)
    account = _find(accounts, name or "0")
    if account is not None and all(_NUMBER.fullmatch(word) for word in account[2:4]):
        uid, gid, home = int(account[2]), int(account[3]), account[5]
    elif _NUMBER.fullmatch(name or "0"):
        uid, gid, home = int(name or "0"), 0, "/"
    else:
        raise _invalid(f"is to run as user {name[:80]!r}, who is not in its /etc/passwd")
    if group:
        gid = _find_group(rootfs, group)
    if id_count and max(uid, gid) >= id_count:
        raise _invalid(f"is to run as {uid}:{gid}; here are ids from 0 to {id_count - 1}")
    usable = home.startswith("/") and home.isprintable()
    return User(uid, gid, home if usable else "/")


def _find_group(rootfs: Path, group: str) -> int:
    found = _find(_entries(rootfs, "etc/group", fields=4), group)
    if found is not None and _NUMBER.fullmatch(found[2]):
        return int(found[2])
    if _NUMBER.fullmatch(group):
        return int(group)
    raise _invalid(f"is to run as group {group[:80]!r}, which is not in its /etc/group")


def _find(entries: list[list[str]], wanted: str) -> list[str] | None:
    """By name, else by number: the first that there is."""
    by_number = _NUMBER.fullmatch(wanted) is not None
    for place in (0, 2) if by_number else (0,):
        for entry in entries:
            if entry[place] == wanted:
                return entry
    return None


def _entries(rootfs: Path, path: str, *, fields: int) -> list[list[str]]:
    """The lines of a file of the image that have so many fields; none if there is no such file, or we may not read it."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        file = syscalls.openat2(root, path, flags, _RESOLVE)
    except OSError:
        return []
    finally:
        os.close(root)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return []
        content = os.read(file, _MOST_BYTES)
    finally:
        os.close(file)
    lines = [line.split(":") for line in content.decode("utf-8", "replace").split("\n")]
    return [line for line in lines if len(line) == fields]


def _invalid(fact: str) -> Invalid:
    return Invalid(f"the image {fact}", code="bad_image")
