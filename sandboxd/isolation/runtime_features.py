"""Whether an OCI runtime works here: found, asked for its version, and tried with a command."""

import asyncio
import os
import subprocess

from sandboxd.errors import HostNotReady, SandboxFailed
from sandboxd.isolation import idmap, specimen
from sandboxd.isolation.features import Feature, Status
from sandboxd.isolation.spec import OciRuntime

_VERSION_SECONDS = 10.0
_LONGEST_VERSION = 100


def probe_runtime(runtime: OciRuntime, *, id_map: str, show_cgroup: bool) -> Feature:
    """Takes up to a second; not to be called from an event loop. A runtime that does not work is a warning: `native` does."""
    name = f"runtime {runtime.name}"
    if not os.access(runtime.path, os.X_OK):
        remedy = f"as root: apt-get install {os.path.basename(runtime.path)}, or set runtimes.{runtime.name}.path"
        return Feature(name, Status.WARNING, f"{runtime.path} is not there", remedy)
    version = read_version(runtime.path)
    try:
        ids = idmap.find_range()
        if idmap.choose(id_map, ids) is idmap.IdMapMode.SINGLE:
            detail = f"{version}; needs subordinate ids"
            return Feature(name, Status.WARNING, detail, "as root: sandboxd setup")
        seconds = asyncio.run(specimen.run_one(ids, show_cgroup=show_cgroup, runtime=runtime))
    except (HostNotReady, SandboxFailed, OSError) as error:
        remedy = "see docs/isolation.md for what a runtime must be able to do"
        return Feature(name, Status.WARNING, f"{version}; does not work: {error}", remedy)
    return Feature(name, Status.OK, f"{version}; ran a command in {seconds * 1000:.0f} ms", "")


def read_version(path: str) -> str:
    """The first line of what `--version` prints."""
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env={},
        )
    except (OSError, subprocess.TimeoutExpired):
        return "version unknown"
    lines = done.stdout.splitlines()
    return lines[0][:_LONGEST_VERSION] if lines else "version unknown"
