"""Archives applied by init in real sandboxes to trees that are made and read from outside, where a single id owns everything.

A layer has a tree of its own above the one that it is applied to, as images have them, wherever overlay can do that.
"""

import asyncio
import bz2
import contextlib
import hashlib
import lzma
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
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
PLAIN = "user.plain"
"""The one extended attribute that an archive of the corpus may give a file, as a layer."""
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
        self.stacked = _has_user_attributes(directory)
        """Whether a layer has a tree of its own here, above that of those below it; else all have one."""
        self.canary = directory / "canary"
        self.canary.write_bytes(CANARY)

    def imported(self, archive: bytes) -> Applied:
        """By itself."""
        with self._tree("root", {}) as root:
            refusal = self._applied(Unpack(MOST_BYTES, MOST_ENTRIES, _ID_COUNT), archive, root)
            return Applied({} if refusal else dict(read(root)), refusal)

    def layered(self, archive: bytes, lower: Tree, *, whole: bool = True) -> Applied:
        """Above another tree. One that is not `whole` is refused before its digest matters."""
        digest = hashlib.sha256(plain(archive)).hexdigest() if whole else "0"
        request = Layer(MOST_BYTES, MOST_ENTRIES, _ID_COUNT, bool(lower), f"sha256:{digest}")
        if not self.stacked or not lower:
            with self._tree("root", lower) as root:
                refusal = self._applied(request, archive, root)
                return Applied({} if refusal else dict(read(root)), refusal)
        with self._tree("below", lower) as below, self._tree("root", {}) as root:
            refusal = self._applied(request, archive, root, below)
            assert dict(read(below)) == lower
            return Applied({} if refusal else above(lower, root), refusal)

    @contextlib.contextmanager
    def _tree(self, name: str, tree: Tree) -> Iterator[Path]:
        """A directory with this in it, and one for overlay beside it."""
        root = self.directory / name / "rootfs"
        root.mkdir(parents=True)
        (root.parent / "work").mkdir()
        build(root, tree)
        try:
            yield root
        finally:
            for left in (root, root.parent / "work"):
                _open_up(left)
                unpack.empty(str(left))
                left.rmdir()
            root.parent.rmdir()

    def _applied(
        self, request: Unpack | Layer, archive: bytes, root: Path, *below: Path
    ) -> str | None:
        """Why it was refused, if it was."""
        path = self.directory / "archive"
        path.write_bytes(archive)
        started = time.monotonic()
        refusal, most_memory_bytes = self.bench.do(self._work(request, path, root, below))
        assert time.monotonic() - started < MOST_SECONDS
        assert most_memory_bytes < MOST_MEMORY_BYTES
        # It is read only, and nothing but the tree was in reach.
        assert path.read_bytes() == archive
        path.unlink()
        assert self.canary.read_bytes() == CANARY
        assert self.canary.stat().st_nlink == 1
        assert set(os.listdir(self.directory)) <= {"canary", "root", "below"}
        root.chmod(0o755)
        return refusal

    async def _work(
        self, request: Unpack | Layer, path: Path, root: Path, below: Sequence[Path]
    ) -> tuple[str | None, int]:
        """Why it was refused, if it was, and the most memory that init was seen to have."""
        changes = {"binds": (), "writable": (), "scratch_bytes": 0, "scratch_inodes": 0}
        async with self.bench.sandbox(
            rootfs=str(root),
            below=tuple(map(str, below)),
            writable_root=True,
            uid=0,
            gid=0,
            **changes,
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
        attributes = set(os.listxattr(inner, follow_symlinks=False))
        assert foreign or attributes <= {PLAIN}, path
        if stat.S_ISDIR(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)
            inner.chmod(0o700)
            yield path, ("directory", None, mode)
            yield from read(inner, f"{path}/", foreign=foreign)
            inner.chmod(mode)
            continue
        found = _read_one(inner)
        assert foreign or found[0] != "other", path
        yield path, found


def _read_one(path: Path) -> Found:
    """What is no directory."""
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return "link", os.readlink(path), None
    if not stat.S_ISREG(status.st_mode):
        return "other", None, mode
    path.chmod(0o600)
    content = path.read_bytes().decode("latin-1")
    path.chmod(mode)
    return "file", content, mode


_OPAQUE = "user.overlay.opaque"
_OF_OVERLAY = {
    _OPAQUE,
    "user.overlay.origin",
    "user.overlay.impure",
    "user.overlay.nlink",
    "user.overlay.uuid",
}


def above(lower: Tree, upper: Path) -> Tree:
    """What overlay shows of a directory above a tree (https://docs.kernel.org/filesystems/overlayfs.html).

    It has the marks of overlay's own and none besides: each is one that the kernel made.
    """
    tree = dict(lower)
    _lay_above(tree, upper, "")
    return tree


def _lay_above(tree: dict[str, Found], directory: Path, above_it: str) -> None:
    for name in sorted(os.listdir(directory)):
        path, inner = f"{above_it}{name}", directory / name
        status = inner.lstat()
        marks = set(os.listxattr(inner, follow_symlinks=False))
        assert marks <= {PLAIN, *_OF_OVERLAY}, (path, marks)
        is_directory = stat.S_ISDIR(status.st_mode)
        merged = is_directory and _OPAQUE not in marks and tree.get(path, ("",))[0] == "directory"
        if not merged:
            hidden = [each for each in tree if each == path or each.startswith(f"{path}/")]
            for each in hidden:
                del tree[each]
        if stat.S_ISCHR(status.st_mode):
            assert (status.st_rdev, bool(hidden)) == (0, True), path
        elif is_directory:
            tree[path] = ("directory", None, stat.S_IMODE(status.st_mode))
            inner.chmod(0o700)
            _lay_above(tree, inner, f"{path}/")
        else:
            tree[path] = _read_one(inner)


def _has_user_attributes(directory: Path) -> bool:
    try:
        os.setxattr(directory, "user.sandboxd.trial", b"y")
    except OSError:
        return False
    return True


def _open_up(directory: Path) -> None:
    """What overlay leaves in its own directory has no mode."""
    directory.chmod(0o700)
    for inner in directory.iterdir():
        if not inner.is_symlink() and inner.is_dir():
            inner.chmod(0o700)
