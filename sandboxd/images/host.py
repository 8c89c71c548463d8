"""Image `host`: the machine's own programs (/usr, read-only) under a minimal /etc, an empty home, /tmp and /work.

It makes the first job work without any registry. Nothing else of the host is visible: no /etc, /home, /root, /var, /opt.
"""

import hashlib
import os
import shutil
import stat
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
    "java-*",
    "mime.types",
    "protocols",
    "services",
    "ssl/certs/ca-certificates.crt",
    "ssl/openssl.cnf",
)
"""Patterns of what programs need to start and find each other. All of it is the same on every machine with these packages."""

_PASSWD = f"""\
root:x:0:0:root:/root:/bin/sh
sandbox:x:{_UID}:{_UID}:sandbox:{_HOME}:/bin/sh
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
"""
_GROUP = f"root:x:0:\ntty:x:5:\nsandbox:x:{_UID}:\nnogroup:x:65534:\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"


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
    _let_everybody_read(directory)
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
    for pattern in _COPIED_FROM_ETC:
        for source in Path("/etc").glob(pattern):
            target = etc / source.relative_to("/etc")
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_public(source, target)


def copy_public(source: Path, target: Path) -> None:
    """Copy a file, or a directory with all below it, as far as everybody on this host may read it.

    What only some may read (a key beside its certificate), this service's user among them, is not for jobs. A link stays
    a link, but one to a file outside /etc and /usr would dangle inside: the file is copied.
    """
    is_link = source.is_symlink()
    if is_link and os.path.realpath(source).startswith(("/usr/", "/etc/")):
        target.symlink_to(os.readlink(source))
    elif not _is_public(source) or (is_link and source.is_dir()):
        return
    elif source.is_dir():
        target.mkdir()
        for entry in source.iterdir():
            copy_public(entry, target / entry.name)
    else:
        shutil.copyfile(source, target)


def _is_public(path: Path) -> bool:
    """Whether everybody may read the file or directory. False for devices, FIFOs and links to nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    everybody = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and mode & everybody == everybody


def _let_everybody_read(directory: Path) -> None:
    """Jobs have other ids than this service, whose umask may leave them nothing."""
    for path, _, names in os.walk(directory):
        os.chmod(path, 0o755)  # noqa: S103 (that is the purpose)
        for name in names:
            if not os.path.islink(f"{path}/{name}"):
                os.chmod(f"{path}/{name}", 0o644)


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
