"""The trees of images on the disk: made once, held while they are used, and removed.

Below one directory, `trees/KEY/rootfs` is a tree: all of an image, or one of its layers, which is seen above those that it was made
on. It is made in `incoming/` and renamed into place when it is complete and would outlast a power cut; a crash leaves nothing
half-done under a key, and what it leaves elsewhere is removed at the next start. `making/KEY` is locked by who makes it, with
a mark of what it is made of: it is made once, however many want it, and nobody waits for what only claims to be the same.
"""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sandboxd.errors import Conflict, Invalid, NotFound, SandboxFailed
from sandboxd.ids import new_id
from sandboxd.images.store.free_space import room_in
from sandboxd.images.store.locks import hold, in_turn, locked, locked_alone, remove_unused
from sandboxd.images.store.owners import owned
from sandboxd.images.store.syncing import sync_directory, sync_file_system
from sandboxd.images.store.tree_sandboxes import TreeSandboxes
from sandboxd.isolation.protocol import Empty

_PAUSE_SECONDS = 0.05
_HELD_SECONDS = 60.0
"""From when an image is taken for a job until a sandbox was made of it, and much more."""


class Size(NamedTuple):
    """Of a tree."""

    bytes: int
    """Of all its files."""
    entries: int


class Room(NamedTuple):
    """What a tree may have."""

    most_bytes: int
    most_entries: int
    id_count: int
    """Ids that a file can have as owner; 0: only one."""


class _Held(NamedTuple):
    """The lock of a tree that this process keeps others from removing."""

    descriptor: int
    since: float
    """When it was last wanted, by the loop's clock."""


Fill = Callable[[Path, Room], Awaitable[Size]]
"""Fills the empty directory of a tree and tells what is in it."""


class Trees:
    """The trees of one data directory. Several processes may use it at once."""

    def __init__(
        self,
        directory: Path,
        sandboxes: TreeSandboxes,
        *,
        most_bytes: int,
        most_entries: int,
    ) -> None:
        """Make the directories. An image has at most `most_bytes` of files and `most_entries` of them."""
        self._trees = directory / "trees"
        self._incoming = directory / "incoming"
        self._making = directory / "making"
        for made in (self._trees, self._incoming, self._making):
            made.mkdir(parents=True, exist_ok=True)
        self.sandboxes = sandboxes
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._held: dict[str, _Held] = {}
        self._letting_go: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Let go of those that are held."""
        if self._letting_go is not None:
            self._letting_go.cancel()
        for held in self._held.values():
            os.close(held.descriptor)
        self._held.clear()

    def rootfs(self, key: str) -> Path:
        """Where a tree is."""
        return self._trees / key / "rootfs"

    def paths(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Where these trees are."""
        return tuple(str(self.rootfs(key)) for key in keys)

    def size(self, key: str) -> Size | None:
        """What is in a tree. None: it is not there."""
        tree = self._trees / key
        size_bytes = _number_in(tree / "size")
        # An earlier release kept no layers apart, and counted no entries.
        return None if size_bytes is None else Size(size_bytes, _number_in(tree / "entries") or 0)

    def keys(self) -> list[str]:
        """All that are there."""
        return [path.name for path in self._trees.iterdir()]

    def leftovers(self) -> list[Path]:
        """What is being made or removed, or was when a process died."""
        return list(self._incoming.iterdir())

    # Held and locked

    def hold(self, keys: Sequence[str]) -> None:
        """Keep everybody from removing these, until a minute from now and while a sandbox of them lives.

        Raises NotFound, Conflict: one is being removed.
        """
        loop = asyncio.get_running_loop()
        for key in keys:
            held = self._held.get(key)
            try:
                descriptor = held.descriptor if held else hold(self._trees / key / "lock")
            except FileNotFoundError:
                raise NotFound("the image has been removed", code="image_not_found") from None
            self._held[key] = _Held(descriptor, loop.time())
        if self._letting_go is None:
            self._letting_go = loop.call_later(_HELD_SECONDS, self._let_go)

    def _let_go(self) -> None:
        """Of what no sandbox is made of any more."""
        loop = asyncio.get_running_loop()
        in_use = self.sandboxes.trees_in_use()
        for key, held in list(self._held.items()):
            if loop.time() - held.since >= _HELD_SECONDS and str(self.rootfs(key)) not in in_use:
                os.close(self._held.pop(key).descriptor)
        self._letting_go = loop.call_later(_HELD_SECONDS, self._let_go) if self._held else None

    def is_held(self, key: str) -> bool:
        return key in self._held

    @contextlib.contextmanager
    def locked(self, keys: Sequence[str]) -> Iterator[None]:
        """Within, nobody removes these trees. Raises Conflict, FileNotFoundError."""
        with contextlib.ExitStack() as stack:
            for key in keys:
                stack.enter_context(locked(self._trees / key / "lock"))
            yield

    @contextlib.contextmanager
    def locked_alone(self, key: str) -> Iterator[None]:
        """Within, nobody else uses the tree. Raises Conflict, FileNotFoundError."""
        with locked_alone(self._trees / key / "lock"):
            yield

    # Made and removed

    async def make(
        self,
        key: str,
        fill: Fill,
        lease: contextlib.ExitStack,
        below: Sequence[str] = (),
        source: str = "",
    ) -> Size:
        """The tree of that key, made unless it is there, and not removed before the lease ends.

        Who makes it of the same `source` meanwhile is waited for: of another it may be a claim that takes long to turn out wrong.
        `below`: the keys of the layers under it, the uppermost first, which the lease has. Raises Invalid for what a bad archive
        is the cause of, SandboxFailed.
        """
        while (size := self.lease(key, lease)) is None:
            async with in_turn(self._making / owned(key, source)):
                if self.size(key) is None:
                    await self._make(key, fill, below)
                    continue
            await asyncio.sleep(_PAUSE_SECONDS)  # It is being removed.
        return size

    def lease(self, key: str, lease: contextlib.ExitStack) -> Size | None:
        """What is in a tree, which is not removed before the lease ends. None: it is not there, or goes just now."""
        try:
            lease.enter_context(locked(self._trees / key / "lock"))
        except (FileNotFoundError, Conflict):
            return None
        return self.size(key)

    async def _make(self, key: str, fill: Fill, below: Sequence[str]) -> None:
        with self._new("tree") as incoming:
            if below:
                (incoming / "work").mkdir()
            try:
                size = await fill(incoming / "rootfs", self._room(below))
                await self._remove_work(incoming)
                (incoming / "size").write_text(str(size.bytes), encoding="ascii")
                (incoming / "entries").write_text(str(size.entries), encoding="ascii")
                # The tree gets its name only when it would outlast a power cut. (init may not: see the filter.)
                await asyncio.to_thread(sync_file_system, incoming)
                _rename_unless_there(incoming, self._trees / key)
                sync_directory(self._trees)
            except SandboxFailed as error:
                if error.step != "unpack":
                    raise
                raise Invalid(error.reason, code="bad_archive") from error
            finally:
                if incoming.exists():
                    await self._remove(incoming)

    @contextlib.asynccontextmanager
    async def trial(self) -> AsyncIterator[Path]:
        """A place with an empty tree and a directory `work`, which goes with what is in it."""
        with self._new("trial") as incoming:
            (incoming / "work").mkdir()
            try:
                yield incoming
            finally:
                await self._remove(incoming)

    @contextlib.contextmanager
    def _new(self, kind: str) -> Iterator[Path]:
        """A place for a tree, which nobody takes for a leftover within."""
        incoming = self._incoming / new_id(kind)
        incoming.mkdir()
        (incoming / "lock").touch()
        with locked_alone(incoming / "lock"):
            (incoming / "rootfs").mkdir()
            yield incoming

    def _room(self, below: Sequence[str]) -> Room:
        """What is left for a layer: all of an image count together."""
        sizes = [self.size(key) or Size(0, 0) for key in below]
        return Room(
            min(self._most_bytes - sum(size.bytes for size in sizes), room_in(self._incoming)),
            self._most_entries - sum(size.entries for size in sizes),
            self.sandboxes.id_count,
        )

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

    def remove_locks(self) -> None:
        """Remove the locks of those that died while they made a tree."""
        for lock in self._making.iterdir():
            remove_unused(lock)

    async def _remove(self, tree: Path) -> None:
        await self._remove_work(tree)
        if (tree / "rootfs").exists():
            await self.sandboxes.work(tree / "rootfs", Empty(), [])
            (tree / "rootfs").rmdir()
        for name in ("entries", "size", "lock"):
            (tree / name).unlink(missing_ok=True)
        tree.rmdir()

    async def _remove_work(self, tree: Path) -> None:
        """What overlay needed beside what it wrote to. Where it was cut short, it may have left there what only a sandbox can remove."""
        work = tree / "work"
        inner = work / "work"
        if inner.exists():
            try:
                # Overlay's own, with mode 000: the last is its mark of a volatile mount.
                for part in (".", "incompat", "incompat/volatile"):
                    with contextlib.suppress(FileNotFoundError):
                        (inner / part).chmod(0o700)
                shutil.rmtree(inner)
            except PermissionError:
                await self.sandboxes.work(inner, Empty(), [])
                inner.rmdir()
        if work.exists():
            work.rmdir()


def _number_in(path: Path) -> int | None:
    """None: there is no such file. One that is empty, as an earlier release could leave it at a power cut, is 0."""
    try:
        return int(path.read_text(encoding="ascii") or 0)
    except FileNotFoundError:
        return None


def _rename_unless_there(incoming: Path, tree: Path) -> None:
    """Somebody else may have been first: a tree of the same key is as good as ours."""
    try:
        incoming.rename(tree)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
