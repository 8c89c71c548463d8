"""The trees of images on the disk, made and removed inside sandboxes: their files have owners that the service cannot become.

Below one directory, `trees/KEY/rootfs` is a tree. It is made in `incoming/` and renamed into place when it is complete and would
outlast a power cut; a crash leaves nothing half-done under a key, and what it leaves elsewhere is removed at the next start.
"""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sandboxd.errors import Conflict, Invalid, NotFound, SandboxFailed
from sandboxd.ids import new_id
from sandboxd.images.locks import hold, locked, locked_alone
from sandboxd.images.syncing import sync_file_system
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.pool import Place, remove_place, see_dead
from sandboxd.isolation.protocol import Done, Empty, OnTree
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import SandboxSpec

_MOST_OF_FREE_SPACE = 0.9
"""An archive of a few kilobytes can hold any size: the service's own files need what is left."""
_WORK_SECONDS = 1800.0


class Room(NamedTuple):
    """What a tree may have."""

    most_bytes: int
    most_entries: int
    id_count: int
    """Ids that a file can have as owner; 0: only one."""


Fill = Callable[[Path, Room], Awaitable[int]]
"""Fills the empty directory of a tree and tells the bytes of all its files."""


class Trees:
    """The trees of one data directory. Several processes may use it at once."""

    def __init__(
        self,
        directory: Path,
        launcher: Launcher,
        make_place: Callable[[], Place],
        *,
        most_bytes: int,
        most_entries: int,
    ) -> None:
        """Make the directories. A tree has at most `most_bytes` of files and `most_entries` of them."""
        self._trees = directory / "trees"
        self._incoming = directory / "incoming"
        for made in (self._trees, self._incoming):
            made.mkdir(parents=True, exist_ok=True)
        self._launcher = launcher
        self._make_place = make_place
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._held: dict[str, int] = {}

    def close(self) -> None:
        """Let go of those that are held."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    @property
    def id_count(self) -> int:
        """Ids that a file can have as owner, from 0 on; 0: only one."""
        return self._launcher.ids.size if self._launcher.ids else 0

    def rootfs(self, key: str) -> Path:
        """Where a tree is."""
        return self._trees / key / "rootfs"

    def size_bytes(self, key: str) -> int | None:
        """The bytes of all files of a tree. None: it is not there."""
        try:
            return int((self._trees / key / "size").read_text(encoding="ascii"))
        except FileNotFoundError:
            return None

    def keys(self) -> list[str]:
        """All that are there."""
        return [path.name for path in self._trees.iterdir()]

    def leftovers(self) -> list[Path]:
        """What is being made or removed, or was when a process died."""
        return list(self._incoming.iterdir())

    # Held and locked

    def hold(self, key: str) -> None:
        """Keep everybody from removing a tree while this process lives. Raises NotFound, Conflict: it is being removed."""
        if key not in self._held:
            try:
                self._held[key] = hold(self._trees / key / "lock")
            except FileNotFoundError:
                raise NotFound("the image has been removed", code="image_not_found") from None

    def is_held(self, key: str) -> bool:
        return key in self._held

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Within, nobody removes the tree. Raises Conflict, FileNotFoundError."""
        with locked(self._trees / key / "lock"):
            yield

    @contextlib.contextmanager
    def locked_alone(self, key: str) -> Iterator[None]:
        """Within, nobody else uses the tree. Raises Conflict, FileNotFoundError."""
        with locked_alone(self._trees / key / "lock"):
            yield

    # Made and removed

    async def make(self, key: str, fill: Fill) -> int:
        """The tree of that key, made unless it is there. Returns the bytes of all its files.

        Raises Invalid for what a bad archive is the cause of, SandboxFailed.
        """
        size = self.size_bytes(key)
        if size is not None:
            return size
        incoming = self._incoming / new_id("tree")
        incoming.mkdir()
        (incoming / "lock").touch()
        with locked_alone(incoming / "lock"):
            return await self._make_in(incoming, key, fill)

    async def _make_in(self, incoming: Path, key: str, fill: Fill) -> int:
        (incoming / "rootfs").mkdir()
        free = int(shutil.disk_usage(incoming).free * _MOST_OF_FREE_SPACE)
        room = Room(min(self._most_bytes, free), self._most_entries, self.id_count)
        try:
            size = await fill(incoming / "rootfs", room)
            # The tree gets its name only when it would outlast a power cut. (init may not: see the filter.)
            await asyncio.to_thread(sync_file_system, incoming)
            (incoming / "size").write_text(str(size), encoding="ascii")
            _rename_unless_there(incoming, self._trees / key)
        except SandboxFailed as error:
            if error.step != "unpack":
                raise
            raise Invalid(error.reason, code="bad_archive") from error
        finally:
            if incoming.exists():
                await self._remove(incoming)
        return size

    async def throw_away(self, key: str) -> None:
        """Remove a tree whose lock the caller holds alone."""
        trash = self._incoming / new_id("trash")
        (self._trees / key).rename(trash)
        await self._remove(trash)

    async def remove_leftover(self, leftover: Path) -> None:
        """Remove what somebody left who is no longer at work on it. Raises OSError, SandboxFailed."""
        try:
            with locked_alone(leftover / "lock"):
                await self._remove(leftover)
        except Conflict:
            pass  # Somebody is at work on it.
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                leftover.rmdir()  # Cut short before the lock was made, or after it was removed.

    async def _remove(self, tree: Path) -> None:
        if (tree / "rootfs").exists():
            await self.work_inside(tree / "rootfs", Empty(), [])
            (tree / "rootfs").rmdir()
        for name in ("lock", "size"):
            (tree / name).unlink(missing_ok=True)
        tree.rmdir()

    async def work_inside(self, rootfs: Path, request: OnTree, descriptors: Sequence[int]) -> Done:
        """Have a sandbox whose root is this directory do the work. Raises SandboxFailed."""
        place = self._make_place()
        spec = SandboxSpec(
            rootfs=str(rootfs), scratch_bytes=0, scratch_inodes=0, writable_root=True
        )
        sandbox: Sandbox | None = None
        try:
            sandbox = await self._launcher.create(
                spec, join_files=place.join_files(), cgroup_fd=place.directory_fd()
            )
            async with asyncio.timeout(_WORK_SECONDS):
                done = await sandbox.work(request, descriptors)
        except TimeoutError:
            raise SandboxFailed("unpack images", f"not done in {_WORK_SECONDS:.0f} s") from None
        finally:
            if sandbox is not None:
                sandbox.kill()
                gone = await see_dead(sandbox, place)
            await remove_place(place)
        if not gone:
            raise SandboxFailed("unpack images", "a process is stuck in the kernel")
        return done


def _rename_unless_there(incoming: Path, tree: Path) -> None:
    """Somebody else may have been first: a tree of the same key is as good as ours."""
    try:
        incoming.rename(tree)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
