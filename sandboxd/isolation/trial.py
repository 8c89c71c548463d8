"""Tries what sandboxes need and hosts commonly lack, each by itself in a throw-away process, so that the lack has a name.

Run by `features` as `python -m sandboxd.isolation.trial DIRECTORY`. One line per step on stdout: `STEP ok` or `STEP failed REASON`.
Between the first two steps the parent writes the id maps, as the service does for the launcher, and answers with a line.
"""

import os
import sys
from collections.abc import Callable

from sandboxd.isolation import syscalls

_OTHER_NAMESPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)


class NotMapped(Exception):
    """The parent could not write the id maps."""


def main(directory: str) -> None:
    """Try the steps in order, until one fails. `directory` is an empty directory to mount over."""
    for name, step in STEPS.items():
        try:
            step(directory)
        except (OSError, NotMapped) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(name, "failed", reason, flush=True)
            return
        print(name, "ok", flush=True)


def enter_user_namespace(_: str) -> None:
    syscalls.unshare(syscalls.CLONE_NEWUSER)


def take_mapped_ids(_: str) -> None:
    """Become root of the namespace, once the parent has written the maps."""
    if sys.stdin.readline() != "mapped\n":
        raise NotMapped("the ids were not mapped")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def enter_namespaces(_: str) -> None:
    syscalls.unshare(_OTHER_NAMESPACES)
    syscalls.mount_propagation("/", syscalls.MS_REC | syscalls.MS_SLAVE)


def mount_tmpfs(directory: str) -> None:
    mount("tmpfs", {"size": "1m", "nr_inodes": "64"}, directory)


def mount_overlay(directory: str) -> None:
    """Over a tmpfs, as a sandbox has it."""
    paths = {name: f"{directory}/{name}" for name in ("lower", "upper", "work", "root")}
    for path in paths.values():
        os.mkdir(path)
    options = {"lowerdir": paths["lower"], "upperdir": paths["upper"], "workdir": paths["work"]}
    mount("overlay", {**options, "userxattr": None}, paths["root"])
    with open(f"{paths['root']}/file", "w") as file:
        file.write("written")


def mount_proc(directory: str) -> None:
    """Only a process inside the new pid namespace may."""
    path = f"{directory}/proc"
    os.mkdir(path)
    pid = os.fork()
    if pid == 0:
        try:
            mount("proc", {}, path)
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number:
        raise OSError(number, os.strerror(number))


def mount_sysfs(directory: str) -> None:
    path = f"{directory}/sys"
    os.mkdir(path)
    mount("sysfs", {}, path)


def mount(filesystem: str, options: dict[str, str | None], target: str) -> None:
    """Mount a new file system; an option of None is a flag."""
    filesystem_fd = syscalls.fsopen(filesystem)
    try:
        for key, value in options.items():
            kind = syscalls.FSCONFIG_SET_FLAG if value is None else syscalls.FSCONFIG_SET_STRING
            syscalls.fsconfig(filesystem_fd, kind, key, value)
        syscalls.fsconfig(filesystem_fd, syscalls.FSCONFIG_CMD_CREATE, None, None)
        mount_fd = syscalls.fsmount(filesystem_fd, syscalls.MOUNT_ATTR_NOSUID)
        try:
            syscalls.move_mount(mount_fd, syscalls.AT_FDCWD, target)
        finally:
            os.close(mount_fd)
    finally:
        os.close(filesystem_fd)


STEPS: dict[str, Callable[[str], None]] = {
    "user": enter_user_namespace,
    "ids": take_mapped_ids,
    "namespaces": enter_namespaces,
    "tmpfs": mount_tmpfs,
    "overlay": mount_overlay,
    "proc": mount_proc,
    "sysfs": mount_sysfs,
}


if __name__ == "__main__":
    main(sys.argv[1])
