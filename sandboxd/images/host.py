"""Image `host`: the machine's own programs (/usr, read-only) under a minimal /etc, an empty home, /tmp and /work.

It makes the first job work without any registry. Nothing else of the host is visible: no /etc, /home, /root, /var, /opt.
"""

import hashlib
import os
import shutil
from pathlib import Path

from sandboxd.images.resolved import ResolvedImage

NAME = "host"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UID = 1000
_HOME = "/home/sandbox"
_TOP_LEVEL = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_COPIED_FROM_ETC = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "os-release",
    "debian_version",
    "localtime",
    "alternatives",
    "mime.types",
    "protocols",
    "services",
    "ssl/certs/ca-certificates.crt",
    "ssl/openssl.cnf",
)
"""What programs need to start and find each other. All of it is the same on every machine with these packages."""

_PASSWD = f"""\
root:x:0:0:root:/root:/bin/sh
sandbox:x:{_UID}:{_UID}:sandbox:{_HOME}:/bin/sh
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
"""
_GROUP = f"root:x:0:\ntty:x:5:\nsandbox:x:{_UID}:\nnogroup:x:65534:\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files\n"


def build(directory: Path) -> ResolvedImage:
    """Make the image's tree at `directory`, which must not exist, and describe it. Done once, when the service starts."""
    directory.mkdir(parents=True)
    binds = [("/usr", "/usr")]
    (directory / "usr").mkdir()
    for name in _TOP_LEVEL:
        source = Path("/", name)
        if source.is_symlink():
            (directory / name).symlink_to(os.readlink(source))
        elif source.is_dir():
            # A system whose /bin is not in /usr: bound as it is.
            (directory / name).mkdir()
            binds.append((str(source), str(source)))
    _make_etc(directory / "etc")
    (directory / "root").mkdir()
    return ResolvedImage(
        name=NAME,
        digest=_digest(),
        rootfs=str(directory),
        binds=tuple(binds),
        writable=("/work", _HOME),
        user=(_UID, _UID),
        workdir="/work",
        env={
            "PATH": PATH,
            "HOME": _HOME,
            "USER": "sandbox",
            "LANG": "C.UTF-8",
        },
    )


def remove(directory: Path) -> None:
    """Remove the tree again. It is ours alone: no job can write to it."""
    shutil.rmtree(directory, ignore_errors=True)


def _make_etc(etc: Path) -> None:
    etc.mkdir()
    for name, content in (("passwd", _PASSWD), ("group", _GROUP), ("nsswitch.conf", _NSSWITCH)):
        (etc / name).write_text(content, encoding="ascii")
    for name in _COPIED_FROM_ETC:
        _copy_readable(Path("/etc", name), etc / name)


def _copy_readable(source: Path, target: Path) -> None:
    """Copy a file or a directory as far as this user may read it; links stay links."""
    if source.is_symlink() and not source.is_dir() and source.exists():
        content = source.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # A link that leads out of /etc and /usr would dangle inside: take the file itself.
        if str(content).startswith(("/usr/", "/etc/")):
            target.symlink_to(os.readlink(source))
        else:
            shutil.copyfile(content, target)
    elif source.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, symlinks=True)
    elif source.is_file() and os.access(source, os.R_OK):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _digest() -> str:
    """A fingerprint of the machine's packages: two hosts with the same ones have the same image."""
    digest = hashlib.sha256()
    for name in ("/etc/os-release", "/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite"):
        path = Path(name)
        if path.is_file() and os.access(path, os.R_OK):
            digest.update(name.encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
