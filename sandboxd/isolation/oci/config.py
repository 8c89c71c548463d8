"""config.json: what the OCI runtime is told, from the values that a native sandbox is made from.

Source: the OCI runtime specification 1.0.2, config.md and config-linux.md.
"""

import json
import resource
from typing import Any

from sandboxd.isolation import mounts
from sandboxd.isolation.oci import seccomp_profile
from sandboxd.isolation.spec import Command, SandboxSpec

SPECIFICATION = "1.0.2"
COMMAND_OOM_SCORE = 1000

_DEV = ("/dev", *(f"/dev/{name}" for name in (*mounts.DEVICES, *mounts.DEV_PARTS)))
"""What is mounted in the tree comes along with it. These are named because a runtime makes a /dev of its own where there is no
mount for it, and one by one because crun 1.8 takes `rbind` for `bind`."""


def config_text(
    spec: SandboxSpec,
    command: Command,
    argv: tuple[str, ...],
    *,
    tree: str,
    id_count: int,
    rlimits: dict[str, int],
    machine: str,
    own_kernel: bool,
) -> str:
    """The file's content. `tree` is the root of the sandbox as the runtime finds it.

    `own_kernel`: the runtime brings one. `rlimits` are those that every command has, besides its own; none can be higher than the hard limit of this process.
    """
    limits = {
        name: _within_hard(name, value) for name, value in (rlimits | command.rlimits).items()
    }
    content: dict[str, Any] = {
        "ociVersion": SPECIFICATION,
        "root": {"path": tree, "readonly": False},
        "process": {
            "terminal": False,
            "user": {
                "uid": spec.uid,
                "gid": spec.gid,
                "additionalGids": spec.groups,
                "umask": 0o022,
            },
            "args": argv,
            "env": [f"{name}={value}" for name, value in command.env.items()],
            "cwd": command.workdir,
            "capabilities": {
                kind: [] for kind in ("bounding", "effective", "inheritable", "permitted")
            },
            "rlimits": [
                {"type": f"RLIMIT_{name.upper()}", "soft": value, "hard": value}
                for name, value in limits.items()
            ],
            "noNewPrivileges": True,
            "oomScoreAdj": COMMAND_OOM_SCORE,
        },
        "mounts": [_bind(tree, path) for path in _DEV],
        "linux": {
            # The others (pid, network, ipc, uts) are those that the runtime itself is in: U1 owns them, not the container.
            "namespaces": [{"type": "user"}, {"type": "mount"}, {"type": "cgroup"}],
            "uidMappings": [{"containerID": 0, "hostID": 1, "size": id_count}],
            "gidMappings": [{"containerID": 0, "hostID": 1, "size": id_count}],
            # No maskedPaths and readonlyPaths: the tree has them, with flags that a runtime would not set (nosuid, read-only).
        },
    }
    if own_kernel:
        # Devices and system information are that kernel's, and so is the name of the host. It answers the calls that the
        # filter is about itself.
        content["mounts"] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
        content["hostname"] = spec.hostname
        content["linux"]["namespaces"].append({"type": "uts"})
        return json.dumps(content, separators=(",", ":"))
    text = json.dumps(content, separators=(",", ":"))
    # The section is long and always the same: it is text already.
    return f'{text[:-2]},"seccomp":{seccomp_profile.profile_text(machine)}}}}}'


def _within_hard(name: str, value: int) -> int:
    hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _bind(tree: str, path: str) -> dict[str, Any]:
    return {
        "destination": path,
        "type": "bind",
        "source": f"{tree}{path}",
        "options": ["rbind", "rprivate"],
    }
