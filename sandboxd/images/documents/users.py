"""The user that an image names, looked up in the image's own /etc/passwd and /etc/group.

These are files of a stranger: they are read inside a sandbox, and only so much of them.
"""

import re
from typing import NamedTuple

from sandboxd.errors import Invalid

ACCOUNT_FILES = ("/etc/passwd", "/etc/group")
_MOST_GROUPS = 256
_NO_ID = 2**32 - 1
"""To the kernel this is no id: "leave it as it is"."""
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


class User(NamedTuple):
    """Who runs the commands."""

    uid: int
    gid: int
    home: str
    groups: tuple[int, ...]
    """Supplementary."""


def find_user(passwd: bytes, group: bytes, user: str, id_count: int) -> User:
    """The user of `USER[:GROUP]`, each a name or a number, as Docker finds them; empty is root.

    `id_count`: ids that a sandbox has; 0: whatever is asked for. Raises Invalid.
    """
    name, _, group_name = user.partition(":")
    account = _find(_entries(passwd, fields=7), name or "0")
    accounts = _entries(group, fields=4)
    groups: tuple[int, ...] = ()
    if account is not None and all(_NUMBER.fullmatch(word) for word in account[2:4]):
        uid, gid, home = int(account[2]), int(account[3]), account[5]
        if not group_name:
            groups = _groups_of(accounts, account[0], id_count)
    elif _NUMBER.fullmatch(name or "0"):
        uid, gid, home = int(name or "0"), 0, "/"
    else:
        raise _invalid(f"is to run as user {name[:80]!r}, who is not in its /etc/passwd")
    if group_name:
        gid = _find_group(accounts, group_name)
    most = (id_count or _NO_ID) - 1
    if max(uid, gid) > most:
        raise _invalid(f"is to run as {uid}:{gid}; here are ids from 0 to {most}")
    usable = home.startswith("/") and home.isprintable()
    return User(uid, gid, home if usable else "/", groups)


def _groups_of(entries: list[list[str]], name: str, id_count: int) -> tuple[int, ...]:
    """Those that list the user. One that a sandbox does not have gives nothing and takes nothing away: it is left out."""
    listed = [
        int(entry[2])
        for entry in entries
        if name in entry[3].split(",") and _NUMBER.fullmatch(entry[2])
    ]
    return tuple(sorted({gid for gid in listed if gid < id_count})[:_MOST_GROUPS])


def _find_group(entries: list[list[str]], group: str) -> int:
    found = _find(entries, group)
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


def _entries(content: bytes, *, fields: int) -> list[list[str]]:
    """The lines that have so many fields."""
    lines = [line.split(":") for line in content.decode("utf-8", "replace").split("\n")]
    return [line for line in lines if len(line) == fields]


def _invalid(fact: str) -> Invalid:
    return Invalid(f"the image {fact}", code="bad_image")
