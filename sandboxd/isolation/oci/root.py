"""The file system in which a runtime runs: what it needs to start, the sandbox's tree, and room for its own files.

It hides the host from the runtime: no home, no data directory, no sockets, no cgroups. It is gone with the sandbox.
"""

import os

from sandboxd.isolation import mounts

TREE = "/tree"
BUNDLE = "/bundle"
STATE = "/state"

_PROGRAMS = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SIZE = {"size": "32m", "nr_inodes": "1024", "mode": "0755"}
"""A config.json is as long as the command and its environment, which may be a megabyte, and more in JSON."""


def build(templates: mounts.Templates, program: str) -> None:
    """Mount it at the templates' `runtime`, with the tree that stands at their `root`. Raises OSError."""
    root = f"{templates.stage}/runtime"
    mounts.attach_new("tmpfs", _SIZE, root)
    places = (TREE, BUNDLE, STATE, "/proc", "/dev", "/sys/fs/cgroup", "/tmp")  # noqa: S108 (its own)
    for path in places:
        os.makedirs(f"{root}{path}")
    for name in _PROGRAMS:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{root}/{name}")
            mounts.bind_read_only(f"/{name}", f"{root}/{name}")
    if not os.path.lexists(f"{root}{program}"):
        os.makedirs(os.path.dirname(f"{root}{program}"), exist_ok=True)
        os.close(os.open(f"{root}{program}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
        mounts.bind_read_only(program, f"{root}{program}")
    mounts.attach_new("proc", {}, f"{root}/proc")
    # Runtimes look for cgroups even where they are to leave them alone. In this one they can do nothing.
    mounts.attach_new("cgroup2", {}, f"{root}/sys/fs/cgroup", read_only=True)
    mounts.attach_copy(templates.dev, f"{root}/dev")
    mounts.attach_copy(f"{templates.stage}/root", f"{root}{TREE}")
