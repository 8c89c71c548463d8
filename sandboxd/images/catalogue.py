"""Images by name: `host`, and root file systems that were imported.

On disk, below one directory: `names/NAME.json` says which tree a name means, `trees/HEX/rootfs` is a tree, named by the
digest of the archive that it was made from. A name is replaced by renaming a file over it, a tree is renamed into place when it
is complete; so a crash leaves nothing half-done under a name, and what it leaves elsewhere is removed at the next start.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from sandboxd.errors import Conflict, Fault, Invalid, NotFound, SandboxFailed
from sandboxd.ids import new_id
from sandboxd.images import host
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation import syscalls
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.pool import Place, remove_place, see_dead
from sandboxd.isolation.protocol import Empty, Unpack
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import SandboxSpec
from sandboxd.jobs import Image

NAME_PATTERN = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*", re.ASCII)
NAME_LENGTH = 128

ImageList = list[Image]

_MOST_BYTES = 64 * 2**30
_MOST_OF_FREE_SPACE = 0.9
"""An archive of a few kilobytes can hold any size: the service's own files need what is left."""
_MOST_ENTRIES = 2_000_000
_UNPACK_SECONDS = 1800.0
_CHUNK_BYTES = 2**20


def check_name(name: str) -> str:
    """The name itself. Raises Invalid for one that no image can have."""
    if not _is_name(name):
        detail = "lower-case letters and digits, with single . _ - between them, at most 128"
        raise Invalid(f"{name[:80]!r} is not an image name: {detail}", (Fault("/image", detail),))
    return name


def _is_name(name: str) -> bool:
    return len(name) <= NAME_LENGTH and NAME_PATTERN.fullmatch(name) is not None


class Images:
    """The images of one data directory."""

    def __init__(
        self,
        directory: Path,
        host_tree: Path,
        launcher: Launcher,
        make_place: Callable[[], Place],
        *,
        most_bytes: int = _MOST_BYTES,
        most_entries: int = _MOST_ENTRIES,
    ) -> None:
        """Make the directories and the tree of image `host`, at `host_tree`, which must not exist.

        An imported image has at most `most_bytes` of files and `most_entries` of them.
        """
        for name in ("names", "trees", "incoming"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self._names = directory / "names"
        self._trees = directory / "trees"
        self._incoming = directory / "incoming"
        self._launcher = launcher
        self._make_place = make_place
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._host = host.build(host_tree)
        self._host_created_at = time.time()
        self._held: dict[str, int] = {}

    def close(self) -> None:
        """Let go of the trees."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    async def sweep(self) -> dict[Path, str]:
        """Remove what imports and removals that were cut short have left, and trees that no name means any more.

        Returns what could not be removed, and why: it costs space, and keeps nobody from working.
        """
        remaining: dict[Path, str] = {}
        for leftover in [*self._incoming.iterdir(), *self._trees.iterdir()]:
            try:
                if leftover.parent == self._incoming:
                    await self._remove_leftover(leftover)
                else:
                    await self._remove_unnamed(f"sha256:{leftover.name}")
            except (OSError, SandboxFailed) as error:
                remaining[leftover] = str(error)
        return remaining

    async def _remove_leftover(self, leftover: Path) -> None:
        try:
            with _locked_alone(leftover / "lock"):
                await self._remove_tree(leftover)
        except Conflict:
            pass  # Somebody is at work on it.
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                leftover.rmdir()  # Cut short before the lock was made, or after it was removed.

    async def resolve(self, name: str) -> ResolvedImage:
        """The image, held so that nobody removes its tree while this process lives. Raises NotFound."""
        if name == host.NAME:
            return self._host
        image = self._read(name)
        self._hold(image.digest)
        return ResolvedImage(
            name=name,
            digest=image.digest,
            rootfs=str(self._tree(image.digest) / "rootfs"),
            env={"PATH": host.PATH, "HOME": "/root"},
        )

    async def list(self) -> ImageList:
        """All images by name."""
        return self._all()

    def _all(self) -> ImageList:
        ours = Image(
            name=host.NAME,
            digest=self._host.digest,
            size_bytes=0,
            created_at=self._host_created_at,
            source="host",
        )
        names = sorted(path.stem for path in self._names.glob("*.json"))
        return [ours, *(self._read(name) for name in names)]

    async def import_tar(
        self, name: str, archive: Path, progress: Callable[[int, int], None] | None = None
    ) -> Image:
        """Make an image of a root file system in a tar archive (plain, gzip, bzip2 or xz).

        `progress` is told (bytes read, bytes in all) while the archive is checked. An image of that name is replaced.
        Raises Invalid (bad name, not an archive), NotFound (no such file), Conflict, SandboxFailed.
        """
        if check_name(name) == host.NAME:
            raise Conflict(f"the name {host.NAME} is taken by the machine's own image")
        opened = _open_archive(archive)
        try:
            digest = await asyncio.to_thread(_digest_file, opened.descriptor, progress)
            size = await self._unpack(digest, opened)
        finally:
            os.close(opened.descriptor)
        image = Image(
            name=name,
            digest=digest,
            size_bytes=size,
            created_at=time.time(),
            source="import",
        )
        former: Image | None = None
        with contextlib.suppress(NotFound):
            former = self._read(name)
        try:
            with _locked(self._tree(digest) / "lock", fcntl.LOCK_SH):
                _replace(self._names / f"{name}.json", msgspec.json.encode(image))
        except FileNotFoundError:
            raise Conflict("the same image was removed meanwhile; import it again") from None
        if former is not None:
            await self._remove_unnamed(former.digest)
        return image

    async def remove(self, name: str) -> None:
        """Forget a name, and remove its tree if no other name means it.

        Raises NotFound, Conflict (the image is `host`, or a service uses the tree).
        """
        if name == host.NAME:
            raise Conflict("the machine's own image cannot be removed")
        image = self._read(name)
        name_file = self._names / f"{name}.json"
        if self._has_other_name(image):
            name_file.unlink()
            return
        if image.digest in self._held:
            raise Conflict("the image is in use by this service")
        with _locked_alone(self._tree(image.digest) / "lock"):
            name_file.unlink()
            # Under the lock, which an import shares while it names a tree: nobody can name this one any more.
            if self._has_other_name(image):
                return
            await self._throw_away(image.digest)

    async def _remove_unnamed(self, digest: str) -> None:
        """Remove a tree that no name means any more. One that is in use stays until the next start of a service."""
        with (
            contextlib.suppress(Conflict, FileNotFoundError),
            _locked_alone(self._tree(digest) / "lock"),
        ):
            if all(image.digest != digest for image in self._all()):
                await self._throw_away(digest)

    async def _throw_away(self, digest: str) -> None:
        """Remove a tree whose lock the caller holds alone."""
        trash = self._incoming / new_id("trash")
        self._tree(digest).rename(trash)
        await self._remove_tree(trash)

    def _has_other_name(self, image: Image) -> bool:
        return any(
            other.digest == image.digest and other.name != image.name for other in self._all()
        )

    async def _unpack(self, digest: str, archive: "_Archive") -> int:
        """Unpack into a tree of that digest. Returns the bytes of all files."""
        tree = self._tree(digest)
        if tree.exists():
            return int((tree / "size").read_text(encoding="ascii"))
        incoming = self._incoming / new_id("tree")
        incoming.mkdir()
        (incoming / "lock").touch()
        with _locked_alone(incoming / "lock"):
            return await self._unpack_into(incoming, tree, archive)

    async def _unpack_into(self, incoming: Path, tree: Path, archive: "_Archive") -> int:
        (incoming / "rootfs").mkdir()
        try:
            os.lseek(archive.descriptor, 0, os.SEEK_SET)
            request = Unpack(
                most_bytes=min(
                    self._most_bytes,
                    int(shutil.disk_usage(incoming).free * _MOST_OF_FREE_SPACE),
                ),
                most_entries=self._most_entries,
                id_count=self._launcher.ids.size if self._launcher.ids else 0,
            )
            size = await self._work_inside(incoming / "rootfs", request, [archive.descriptor])
            archive.check_unchanged()  # Before it counts as the tree of that digest.
            # The tree gets its name only when it would outlast a power cut. (init may not: see the filter.)
            await asyncio.to_thread(_sync_file_system, incoming)
            (incoming / "size").write_text(str(size), encoding="ascii")
            _rename_unless_there(incoming, tree)
        except SandboxFailed as error:
            if error.step != "unpack":
                raise
            raise Invalid(error.reason, code="bad_archive") from error
        finally:
            if incoming.exists():
                await self._remove_tree(incoming)
        return size

    async def _remove_tree(self, tree: Path) -> None:
        """Remove a tree with files of other owners: from inside a sandbox, where they can be removed."""
        if (tree / "rootfs").exists():
            await self._work_inside(tree / "rootfs", Empty(), [])
            (tree / "rootfs").rmdir()
        for name in ("lock", "size"):
            (tree / name).unlink(missing_ok=True)
        tree.rmdir()

    async def _work_inside(
        self, rootfs: Path, request: Unpack | Empty, descriptors: Sequence[int]
    ) -> int:
        """Have a sandbox whose root is this tree do the work. Returns the bytes written."""
        place = self._make_place()
        spec = SandboxSpec(
            rootfs=str(rootfs), scratch_bytes=0, scratch_inodes=0, writable_root=True
        )
        sandbox: Sandbox | None = None
        try:
            sandbox = await self._launcher.create(
                spec, join_files=place.join_files(), cgroup_fd=place.directory_fd()
            )
            async with asyncio.timeout(_UNPACK_SECONDS):
                done = await sandbox.work(request, descriptors)
        except TimeoutError:
            raise SandboxFailed("unpack images", f"not done in {_UNPACK_SECONDS:.0f} s") from None
        finally:
            if sandbox is not None:
                sandbox.kill()
                gone = await see_dead(sandbox, place)
            await remove_place(place)
        if not gone:
            raise SandboxFailed("unpack images", "a process is stuck in the kernel")
        return done.size_bytes

    def _read(self, name: str) -> Image:
        if not _is_name(name):  # such as a reference to a registry: it is just not here
            raise NotFound(f'no image "{name[:256]}"', code="image_not_found")
        try:
            content = (self._names / f"{name}.json").read_bytes()
        except FileNotFoundError:
            raise NotFound(f'no image "{name}"', code="image_not_found") from None
        return msgspec.json.decode(content, type=Image)

    def _tree(self, digest: str) -> Path:
        return self._trees / digest.removeprefix("sha256:")

    def _hold(self, digest: str) -> None:
        """Share the tree's lock for as long as this process lives. Raises NotFound, Conflict: it is being removed."""
        if digest not in self._held:
            try:
                self._held[digest] = _lock(self._tree(digest) / "lock", fcntl.LOCK_SH)
            except FileNotFoundError:
                raise NotFound("the image has been removed", code="image_not_found") from None


class _Archive(NamedTuple):
    """An open archive, as it was when it was opened."""

    descriptor: int
    path: Path
    size_bytes: int
    mtime_ns: int

    def check_unchanged(self) -> None:
        """Raises Conflict if somebody wrote to it: what was unpacked may not be what was digested."""
        status = os.fstat(self.descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size_bytes, self.mtime_ns):
            raise Conflict(f"{self.path} changed while it was imported", code="archive_changed")


@contextlib.contextmanager
def _locked_alone(lock: Path) -> Iterator[None]:
    """Nobody else uses what the lock file stands for. Raises Conflict, FileNotFoundError."""
    with _locked(lock, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def _locked(lock: Path, kind: int) -> Iterator[None]:
    descriptor = _lock(lock, kind)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(lock: Path, kind: int) -> int:
    """A descriptor that holds the lock: LOCK_SH or LOCK_EX of flock(2). Raises Conflict, FileNotFoundError."""
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        # Removed or replaced between the two calls: what is locked is no longer what is there.
        if not os.path.samestat(os.fstat(descriptor), os.stat(lock)):
            raise FileNotFoundError(errno.ENOENT, "replaced", str(lock))
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict("the image is in use by another process") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_archive(path: Path) -> _Archive:
    """Raises NotFound, Invalid."""
    try:
        # Non-blocking: opening a FIFO would wait for who writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", code="bad_archive") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise Invalid(f"{path} is not a file", code="bad_archive")
    return _Archive(descriptor, path, status.st_size, status.st_mtime_ns)


def _rename_unless_there(incoming: Path, tree: Path) -> None:
    """Another import of the same archive may have been first: its tree is as good as ours."""
    try:
        incoming.rename(tree)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _digest_file(descriptor: int, progress: Callable[[int, int], None] | None) -> str:
    size = os.fstat(descriptor).st_size
    digest = hashlib.sha256()
    read = 0
    while piece := os.read(descriptor, _CHUNK_BYTES):
        digest.update(piece)
        read += len(piece)
        if progress is not None:
            progress(read, size)
    return f"sha256:{digest.hexdigest()}"


def _sync_file_system(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it has either its old content or its new."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
