"""Archives applied by init in real sandboxes to trees that are made and read from outside, where a single id owns everything."""

import asyncio
import bz2
import hashlib
import lzma
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard
from hostile_archives import MOST_BYTES, MOST_ENTRIES, Found, Tree
from image_bench import CANARY, uncompressed
from sandbox_bench import Bench
from waiting import TIME_FACTOR

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import unpack
from sandboxd.isolation.protocol import Layer, Unpack

MOST_SECONDS = 15 * TIME_FACTOR
MOST_MEMORY_BYTES = 600 * 2**20
"""Of init: its limit on address space, and what it has besides."""
_ID_COUNT = 65_536
_LOOK_AGAIN_SECONDS = 0.02


class Applied(NamedTuple):
    """What came of an archive."""

    tree: Tree
    refusal: str | None


class ArchiveBench:
    def __init__(self, bench: Bench, directory: Path) -> None:
        assert bench.ids is None
        self.bench = bench
        self.directory = directory
        self.root = directory / "root"
        self.canary = directory / "canary"
        self.canary.write_bytes(CANARY)

    def imported(self, archive: bytes) -> Applied:
        """By itself."""
        return self._applied(Unpack(MOST_BYTES, MOST_ENTRIES, _ID_COUNT), archive, {})

    def layered(self, archive: bytes, lower: Tree, *, whole: bool = True) -> Applied:
        """Above another tree. One that is not `whole` is refused before its digest matters."""
        digest = hashlib.sha256(plain(archive)).hexdigest() if whole else "0"
        request = Layer(MOST_BYTES, MOST_ENTRIES, _ID_COUNT, bool(lower), f"sha256:{digest}")
        return self._applied(request, archive, lower)

    def _applied(self, request: Unpack | Layer, archive: bytes, lower: Tree) -> Applied:
        self.root.mkdir()
        build(self.root, lower)
        path = self.directory / "archive"
        path.write_bytes(archive)
        started = time.monotonic()
        try:
            refusal, most_memory_bytes = self.bench.do(self._work(request, path))
            assert time.monotonic() - started < MOST_SECONDS
            assert most_memory_bytes < MOST_MEMORY_BYTES
            self.root.chmod(0o755)
            return Applied({} if refusal else dict(read(self.root)), refusal)
        finally:
            self.root.chmod(0o700)
            unpack.empty(str(self.root))
            self.root.rmdir()
            # It is read only, and nothing but the tree was in reach.
            assert path.read_bytes() == archive
            path.unlink()
            assert self.canary.read_bytes() == CANARY
            assert self.canary.stat().st_nlink == 1
            assert os.listdir(self.directory) == ["canary"]

    async def _work(self, request: Unpack | Layer, path: Path) -> tuple[str | None, int]:
        """Why it was refused, if it was, and the most memory that init was seen to have."""
        changes = {"binds": (), "writable": (), "scratch_bytes": 0, "scratch_inodes": 0}
        async with self.bench.sandbox(
            rootfs=str(self.root), writable_root=True, uid=0, gid=0, **changes
        ) as made:
            watching = asyncio.create_task(_most_memory_bytes(made.pid))
            with path.open("rb") as archive:
                try:
                    await made.work(request, [archive.fileno()])
                    refusal = None
                except SandboxFailed as failed:
                    if failed.step != "unpack":
                        raise
                    refusal = failed.reason
            pid = made.pid
        assert not Path(f"/proc/{pid}").exists()
        return refusal, await watching


async def _most_memory_bytes(pid: int) -> int:
    most = 0
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            return most
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            most = max(most, int(found[1]) * 1024)
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def plain(archive: bytes) -> bytes:
    """Uncompressed."""
    if archive.startswith(b"BZh"):
        return bz2.decompress(archive)
    if archive.startswith(b"\xfd7zXZ"):
        return lzma.decompress(archive)
    if archive[1:4] == b"\x2a\x4d\x18":
        # A frame that is skipped says nothing: what an empty one decompresses to is the same.
        return uncompressed(zstandard.ZstdCompressor().compress(b"") + archive)
    return uncompressed(archive)


def build(root: Path, tree: Tree) -> None:
    """Make it; what is above something must come before it."""
    for path, (kind, content, mode) in tree.items():
        made = root / path
        if kind == "directory":
            made.mkdir()
        elif kind == "link":
            made.symlink_to(content or "")
        else:
            made.write_text(content or "")
        if mode is not None:
            made.chmod(mode)


def read(directory: Path, above: str = "", *, foreign: bool = False) -> Iterator[tuple[str, Found]]:
    """All that is below a directory of ours. Attributes and other kinds than a tree has may be there only if it is `foreign`."""
    for name in sorted(os.listdir(directory)):
        path, inner = f"{above}{name}", directory / name
        status = inner.lstat()
        mode = stat.S_IMODE(status.st_mode)
        attributes = set(os.listxattr(inner, follow_symlinks=False))
        assert foreign or attributes <= {"user.plain"}, path
        if stat.S_ISLNK(status.st_mode):
            yield path, ("link", os.readlink(inner), None)
        elif stat.S_ISDIR(status.st_mode):
            inner.chmod(0o700)
            yield path, ("directory", None, mode)
            yield from read(inner, f"{path}/", foreign=foreign)
            inner.chmod(mode)
        elif not stat.S_ISREG(status.st_mode):
            assert foreign, path
            yield path, ("other", None, mode)
        else:
            inner.chmod(0o600)
            yield path, ("file", inner.read_bytes().decode("latin-1"), mode)
            inner.chmod(mode)
