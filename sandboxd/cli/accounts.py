"""Whose process this is: nothing of the service runs as root."""

import os
import pwd
import shlex
import sys

from sandboxd.errors import HostNotReady

SYSTEM_USER = "sandboxd"
"""The account that `sandboxd setup` makes."""


def refuse_root() -> None:
    """Raises HostNotReady for root, with the command line that would do: sandboxes need no root, and files that
    root leaves in the data directory would lock the service out.
    """
    if os.geteuid() == 0:
        words = shlex.join(["sandboxd", *sys.argv[1:]])
        raise HostNotReady(
            f"this does not run as root; run it as the service's user: runuser -u {SYSTEM_USER} -- {words}"
        )


def become(name: str) -> None:
    """Go on as user `name`: start this very command line again as them. Nothing to do if we are them already.

    Raises HostNotReady if there is no such user or we may not.
    """
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise HostNotReady(
            f'there is no user "{name}"; `sandboxd setup` (as root) makes "{SYSTEM_USER}"'
        ) from None
    if account.pw_uid == 0:
        raise HostNotReady("--user must name an ordinary user: the service does not run as root")
    if os.geteuid() == account.pw_uid:
        return
    if os.geteuid() != 0:
        raise HostNotReady(f'only root can become "{name}"; start it as {name} yourself')
    os.initgroups(name, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
    environment |= {"HOME": account.pw_dir, "USER": name, "LOGNAME": name}
    # A new program, because this one is marked undumpable since it changed its user, and the kernel then gives
    # its files in /proc to root (proc(5)): the launcher could not write its id maps.
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606
