"""What goes: trees and blobs that no image is made of any more, and images that nobody has used for long.

Mark and sweep. What counts is what has a name, what a process holds (`Trees.hold`), and what somebody makes an image of just now
(`Trees.lease`, `Blobs.in_use`). A tree is removed under its own lock, and not before the names were read again under it: who
starts a job either has the lock before, and the tree stays, or does not find the image. A blob is removed while nobody fetches any.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from sandboxd.errors import Conflict, NotFound, SandboxFailed
from sandboxd.images.store.blobs import Blobs
from sandboxd.images.store.indexing import write_index
from sandboxd.images.store.names import Names, Record
from sandboxd.images.store.trees import Trees


class Pruned(msgspec.Struct, kw_only=True):
    """What was removed."""

    names: list[str] = []
    trees: int = 0
    blobs: int = 0
    freed_bytes: int = 0
    remaining: dict[str, str] = {}
    """Paths of what could not be removed, and why: it costs space, and keeps nobody from working."""


class Pruner:
    """Removes from the store of one data directory. Several processes may do so at once."""

    def __init__(self, trees: Trees, blobs: Blobs, names: Names) -> None:
        self._trees = trees
        self._blobs = blobs
        self._names = names

    async def sweep(self, pruned: Pruned) -> None:
        """Remove what was cut short when it was made or removed, and what nobody means any more."""
        for leftover in self._trees.leftovers():
            with _told(pruned, leftover):
                await self._trees.remove_leftover(leftover)
        self._trees.remove_locks()
        self._names.remove_halves()
        for key in self._unnamed(self._trees.keys()):
            with _told(pruned, self._trees.rootfs(key)):
                await self._remove_unnamed(key, pruned)
        with _told(pruned, self._blobs.directory):
            self.remove_unnamed_blobs(pruned)
            await write_index(self._blobs, self._names)

    async def remove_all_unnamed(self, keys: Iterable[str], pruned: Pruned) -> None:
        """Those of these trees that no image has any more and nobody uses. Raises OSError, SandboxFailed."""
        for key in self._unnamed(keys):
            await self._remove_unnamed(key, pruned)

    def _unnamed(self, keys: Iterable[str]) -> list[str]:
        """Which seem so: each is looked at again under its lock. All names are read once, not for every tree of thousands."""
        named = {key for record in self._names.all() for key in record.keys}
        return [key for key in keys if key not in named]

    async def _remove_unnamed(self, key: str, pruned: Pruned) -> None:
        """Remove a tree that no image has any more. One that is in use stays until another time. Raises OSError, SandboxFailed."""
        with contextlib.suppress(Conflict, FileNotFoundError), self._trees.locked_alone(key):
            if not any(key in record.keys for record in self._names.all()):
                await self._throw_away(key, pruned)

    def remove_unnamed_blobs(self, pruned: Pruned) -> None:
        """Those that somebody may be fetching stay until another time. Raises OSError."""
        with contextlib.suppress(Conflict):
            removed = self._blobs.keep_only(
                lambda: {each for record in self._names.all() for each in record.kept_blobs}
            )
            pruned.blobs += len(removed)
            pruned.freed_bytes += sum(removed.values())

    async def forget(self, record: Record, pruned: Pruned) -> None:
        """Take an image's name away, and the trees that no other image has. Raises NotFound, Conflict: it is in use."""
        uppermost = record.keys[0]
        if self._is_anothers(record, uppermost):
            self._names.forget(record)
        else:
            if self._trees.is_held(uppermost):
                raise Conflict("the image is in use by this service")
            with self._trees.locked_alone(uppermost):
                self._names.forget(record)
                # Under the lock, which who names an image shares: nobody can name this tree any more.
                if not self._is_anothers(record, uppermost):
                    await self._throw_away(uppermost, pruned)
        pruned.names.append(record.name)
        await write_index(self._blobs, self._names)
        await self.remove_all_unnamed(record.keys, pruned)

    async def make_room(self, most_bytes: int, keep: str, pruned: Pruned) -> None:
        """Remove what was not used for longest, until what is left has no more bytes than this, or is in use, or is `keep`.

        First go blobs of layers that are unpacked, which nobody needs but who pushes or saves the image, then images. What no
        registry has stays.
        """
        if self.used_bytes() <= most_bytes:
            return
        await self.sweep(pruned)
        found = [record for record in self._names.all() if record.source == "registry"]
        oldest_first = sorted(found, key=self._last_used)
        spared = self._remove_blobs_of_layers(oldest_first, most_bytes, pruned)
        for record in oldest_first:
            if self.used_bytes() - spared <= most_bytes:
                return
            if record.name != keep:
                with contextlib.suppress(Conflict, NotFound, FileNotFoundError):
                    await self.forget(record, pruned)
                    self.remove_unnamed_blobs(pruned)

    def used_bytes(self) -> int:
        """Bytes of all files of trees, and of all blobs."""
        sizes = map(self._trees.size, self._trees.keys())
        return sum(self._blobs.sizes().values()) + sum(size.bytes for size in sizes if size)

    def _remove_blobs_of_layers(
        self, oldest_first: list[Record], most_bytes: int, pruned: Pruned
    ) -> int:
        """Returns the bytes of those that are to go, but for now stay: somebody fetches, and makes room in turn."""
        over = self.used_bytes() - most_bytes
        others = {
            digest
            for record in self._names.all()
            if record.source != "registry"
            for digest in record.kept_blobs
        }
        sizes = {
            digest: size for digest, size in self._blobs.sizes().items() if digest not in others
        }
        # One that several images have is as old as the one that was used last.
        last: dict[str, int] = {}
        for age, record in enumerate(oldest_first):
            last |= dict.fromkeys(record.blobs_of_layers, age)
        removed: dict[str, int] = {}
        for digest in sorted(last, key=lambda each: last[each]):
            if over <= sum(removed.values()):
                break
            if digest in sizes:
                removed[digest] = sizes[digest]
        try:
            self._blobs.remove(removed)
        except Conflict:
            return sum(removed.values())
        pruned.blobs += len(removed)
        pruned.freed_bytes += sum(removed.values())
        return 0

    def _last_used(self, record: Record) -> float:
        try:
            return self._names.last_used(record)
        except NotFound:
            return 0.0

    def _is_anothers(self, record: Record, key: str) -> bool:
        place = (record.name, record.holder)
        return any(
            key in other.keys and (other.name, other.holder) != place for other in self._names.all()
        )

    async def _throw_away(self, key: str, pruned: Pruned) -> None:
        size = self._trees.size(key)
        await self._trees.throw_away(key)
        pruned.trees += 1
        pruned.freed_bytes += size.bytes if size else 0


@contextlib.contextmanager
def _told(pruned: Pruned, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SandboxFailed) as error:
        pruned.remaining[str(path)] = str(error)
