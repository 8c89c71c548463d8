"""Whether the data directory is ours to write to, said in a sentence before a step fails on it."""

import os
import pwd

from sandboxd.errors import HostNotReady


def check_data_dir(directory: str) -> None:
    """Raises HostNotReady if this user cannot write in the directory, or cannot make it."""
    place = directory
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if os.access(place, os.W_OK | os.X_OK):
        return
    owner, us = _name(os.stat(place).st_uid), _name(os.geteuid())
    fact = f"{place} is not writable"
    if owner != us:
        fact = f"{place} belongs to {owner}, and you are {us}"
    raise HostNotReady(f"{fact}: choose another --data-dir")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
