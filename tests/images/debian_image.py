"""An image of a real Debian with Python: built by mmdebstrap, made layers by umoci, pushed by skopeo.

Building it takes a minute and the packages of a mirror, so the archive is kept in `~/.cache/sandboxd` between runs.
"""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from archive_tools import tool
from archives import directory, entry, packed
from host_tests import host_required
from registries import Registry

SUITE = "bookworm"
PACKAGES = "python3"
HIDDEN = "usr/share/doc/bash"
"""What the second layer hides, a directory with files in it."""
EMPTIED = "usr/share/bash-completion"
"""What the third layer has anew."""
SAYS = b"import sys\nprint('Debian', sys.version_info.major, sys.argv[1:])\n"


def debian_archive() -> Path:
    """The root file system as a tar. Skips, or fails on a prepared host, where it cannot be built."""
    cache = Path.home() / ".cache" / "sandboxd"
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"debian-{SUITE}-{PACKAGES}.tar"
    with (cache / ".debian-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            _build(archive)
    return archive


def _build(archive: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        host_required("mmdebstrap is not installed")
    new = archive.with_name(f"new-{archive.name}")
    words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(new)]
    ran = subprocess.run(words, check=False, capture_output=True, text=True, cwd="/")
    if ran.returncode != 0:
        new.unlink(missing_ok=True)
        host_required(f"mmdebstrap builds no Debian: {ran.stderr[-1000:]}")
    new.rename(archive)


def push_debian(registry: Registry, place: Path) -> str:
    """An image of three layers: Debian, and two that change it. Returns its reference."""
    layout = place / "debian"
    _umoci("init", "--layout", layout, home=place)
    _umoci("new", "--image", f"{layout}:1", home=place)
    second = packed(
        directory("srv/app", mode=0o750, uid=33, gid=33),
        entry("srv/app/says.py", SAYS, uid=33, gid=33),
        entry(f"{os.path.dirname(HIDDEN)}/.wh.{os.path.basename(HIDDEN)}"),
    )
    third = packed(
        directory(EMPTIED, mode=0o711),
        entry(f"{EMPTIED}/.wh..wh..opq"),
        entry(f"{EMPTIED}/only", b"this\n"),
    )
    layers = [debian_archive()]
    for number, content in enumerate((second, third)):
        layers.append(place / f"layer-{number}.tar")
        layers[-1].write_bytes(content)
    for layer in layers:
        _umoci("raw", "add-layer", "--image", f"{layout}:1", layer, home=place)
    run = ["--config.entrypoint", "python3", "--config.cmd", "/srv/app/says.py"]
    run += ["--config.user", "www-data", "--config.workingdir", "/srv/app"]
    _umoci("config", "--image", f"{layout}:1", *run, home=place)
    return _push(registry, layout, "debian/python", place)


def push_busybox(registry: Registry, place: Path) -> str:
    """An image of busybox alone, whose one layer umoci packs from a directory. Returns its reference."""
    busybox = shutil.which("busybox")
    if busybox is None:
        host_required("this host has no busybox (busybox-static)")
    layout, bundle = place / "busybox", place / "bundle"
    _umoci("init", "--layout", layout, home=place)
    _umoci("new", "--image", f"{layout}:1", home=place)
    _umoci("unpack", "--rootless", "--image", f"{layout}:1", bundle, home=place)
    (bundle / "rootfs" / "bin").mkdir()
    shutil.copy(busybox, bundle / "rootfs" / "bin" / "busybox")
    (bundle / "rootfs" / "bin" / "sh").symlink_to("busybox")
    _umoci("repack", "--image", f"{layout}:1", bundle, home=place)
    run = ["--config.entrypoint", "/bin/sh", "--config.cmd", "-c", "--config.cmd", "echo busybox"]
    _umoci("config", "--image", f"{layout}:1", *run, home=place)
    return _push(registry, layout, "busybox", place)


def _umoci(*words: str | Path, home: Path) -> None:
    tool("umoci", *words, home=home)


def _push(registry: Registry, layout: Path, name: str, place: Path) -> str:
    reference = f"{registry.authority}/{name}:1"
    words = ["copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:1"]
    tool("skopeo", *words, f"docker://{reference}", home=place)
    return reference
