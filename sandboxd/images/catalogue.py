"""Images by name: `host`, root file systems that were imported, and images that were pulled from registries."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from sandboxd.errors import Conflict, NotFound
from sandboxd.images import host
from sandboxd.images.archives.imported import Archive, open_archive
from sandboxd.images.documents.configuration import parse_configuration
from sandboxd.images.documents.manifests import this_machine
from sandboxd.images.resolved import ResolvedImage
from sandboxd.images.store.blobs import Blobs
from sandboxd.images.store.indexing import write_index
from sandboxd.images.store.names import LayerOf, Names, Record, check_name
from sandboxd.images.store.pruning import Pruned, Pruner
from sandboxd.images.store.stacking import can_stack
from sandboxd.images.store.tree_sandboxes import TreeSandboxes
from sandboxd.images.store.trees import Room, Size, Trees
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.places import Place
from sandboxd.isolation.protocol import Unpack
from sandboxd.jobs import Image

ImageList = list[Image]

_MOST_BYTES = 64 * 2**30
_MOST_ENTRIES = 2_000_000
_NOTED_SECONDS = 60.0


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
        budget_bytes: int = 0,
    ) -> None:
        """Make the directories and the tree of image `host`, at `host_tree`, which must not exist.

        An image has at most `most_bytes` of files and `most_entries` of them, all images together `budget_bytes` (0: any number).
        """
        self.trees = Trees(
            directory,
            TreeSandboxes(launcher, make_place),
            most_bytes=most_bytes,
            most_entries=most_entries,
        )
        self.blobs = Blobs(directory / "oci")
        self._names = Names(directory)
        self._pruner = Pruner(self.trees, self.blobs, self._names)
        self._budget_bytes = budget_bytes
        self._stacked: bool | None = None
        self._noted: dict[tuple[str, str], float] = {}
        self._host = host.build(host_tree)
        self._host_created_at = time.time()

    def close(self) -> None:
        """Let go of the trees."""
        self.trees.close()

    async def sweep(self) -> dict[Path, str]:
        """Remove what was cut short when it was made or removed, and trees and blobs that no name means any more.

        Returns what could not be removed, and why: it costs space, and keeps nobody from working.
        """
        pruned = Pruned()
        await self._pruner.sweep(pruned)
        return {Path(path): why for path, why in pruned.remaining.items()}

    async def prune(self, *, all: bool = False, unused_seconds: float | None = None) -> Pruned:
        """Remove what no name means any more; names, too, of images that nobody uses: all, or those unused for so long."""
        pruned = Pruned()
        if all or unused_seconds is not None:
            before = time.time() - (unused_seconds or 0.0)
            for record in self._names.all():
                with contextlib.suppress(Conflict, NotFound, FileNotFoundError):
                    if self._names.last_used(record) <= before:
                        await self._pruner.forget(record, pruned)
        await self._pruner.sweep(pruned)
        return pruned

    async def make_room(self, keep: str) -> Pruned:
        """Keep within the budget, whatever has to go but this name. For who has added an image, and holds none of its locks."""
        pruned = Pruned()
        if self._budget_bytes:
            await self._pruner.make_room(self._budget_bytes, keep, pruned)
        return pruned

    async def discard(self, keys: Sequence[str]) -> None:
        """Remove those of these trees that no name means, and blobs that none does: they came for what turned out to be no image."""
        pruned = Pruned()
        await self._pruner.remove_all_unnamed(keys, pruned)
        self._pruner.remove_unnamed_blobs(pruned)

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether the budget leaves so much."""
        return (
            not self._budget_bytes or self._pruner.used_bytes() + size_bytes <= self._budget_bytes
        )

    async def stacked(self) -> bool:
        """Whether the layers of images are kept apart here (see `store.stacking`)."""
        if self._stacked is None:
            self._stacked = await can_stack(self.trees)
        return self._stacked

    async def resolve(self, name: str, tenant: str | None = None) -> ResolvedImage:
        """The image, held so that nobody removes its trees before a sandbox was made of it, nor while it lives. Raises NotFound.

        `tenant`: who asks, for whom only what they may use is there; None: the operator.
        """
        if name == host.NAME:
            return self._host
        return self._resolved(name, self._held(name, tenant))

    def _read(self, name: str, tenant: str | None) -> Record:
        """Raises NotFound, also for what a tenant may not know of."""
        return self._names.read(name, tenant)

    def _resolved(self, name: str, record: Record) -> ResolvedImage:
        rootfs, *below = self.trees.paths(record.keys)
        run_as = record.run_as
        if run_as is None:
            env = {"PATH": host.PATH, "HOME": "/root"}
            return ResolvedImage(
                name=name, digest=record.digest, rootfs=rootfs, below=tuple(below), env=env
            )
        return ResolvedImage(
            name=record.name,
            digest=record.digest,
            rootfs=rootfs,
            below=tuple(below),
            user=run_as.user,
            groups=run_as.groups,
            workdir=run_as.workdir,
            env=run_as.env,
            entrypoint=run_as.entrypoint,
            cmd=run_as.cmd,
            stop_signal=run_as.stop_signal,
        )

    def _held(self, name: str, tenant: str | None) -> Record:
        record = self._read(name, tenant)
        try:
            self.trees.hold(record.keys)
        except NotFound:
            # What the name meant is gone. It may mean something else since.
            again = self._read(name, tenant)
            if again.keys == record.keys:
                raise
            self.trees.hold(again.keys)
            record = again
        now = time.time()
        if now - self._noted.get((record.name, record.holder), 0.0) >= _NOTED_SECONDS:
            self._noted[record.name, record.holder] = now
            self._names.used(record, now)
        return record

    def command_of(
        self, name: str, args: Sequence[str], tenant: str | None = None
    ) -> tuple[str, ...] | None:
        """What an image would run of its own accord now, as `ResolvedImage.command` says it. None: it is not here."""
        if name == host.NAME:
            return self._host.command(args)
        try:
            return self._resolved(name, self._read(name, tenant)).command(args)
        except NotFound:
            return None

    def record(self, name: str, tenant: str | None = None) -> Record:
        """All that is kept of an image. Raises NotFound, Conflict: the machine's own has nothing that can be passed on."""
        if name == host.NAME:
            raise Conflict("the machine's own image cannot be passed on", code="host_image")
        record = self._read(name, tenant)
        if record.layers or not record.blobs:
            return record
        # Of a release that noted the blobs only: an index if there was one, manifest, configuration, layers.
        _, configuration, *layers = record.blobs[record.blobs.index(record.digest) :]
        content = self.blobs.of(record.owner).path(configuration).read_bytes()
        diff_ids = parse_configuration(content, this_machine(), len(layers)).diff_ids
        return msgspec.structs.replace(
            record,
            configuration=configuration,
            layers=tuple(
                LayerOf(diff_id=diff_id, digest=digest)
                for diff_id, digest in zip(diff_ids, layers, strict=True)
            ),
        )

    def last_used(self, record: Record) -> float:
        """When somebody used it last, to some minutes; else when it was named (Unix time)."""
        return self._names.last_used(record)

    def tag(self, source: str, target: str, tenant: str | None = None) -> Awaitable[Image]:
        """Give an image another name, which has been checked. Raises NotFound, Conflict."""
        record = self.record(source, tenant)
        # No registry has it by this name: it is not one of those that may be removed to make room.
        kept_as = "tag" if record.source == "registry" else record.source
        return self.add(msgspec.structs.replace(record, name=target, source=kept_as))

    async def list(self, tenant: str | None = None) -> ImageList:
        """All images by name that this tenant may use; None: the operator, who sees all."""
        ours = Image(
            name=host.NAME,
            digest=self._host.digest,
            size_bytes=0,
            created_at=self._host_created_at,
            source="host",
        )
        shown: dict[tuple[str, str], Record] = {}
        for record in self._names.all():
            # One tenant's own comes before what is for all. The operator sees both.
            key = (record.name, record.digest if tenant is None else "")
            if record.is_for(tenant) and (key not in shown or record.holder):
                shown[key] = record
        return [ours, *(each.image for each in shown.values())]

    async def import_tar(
        self, name: str, archive: Path, progress: Callable[[int, int], None] | None = None
    ) -> Image:
        """Make an image of a root file system in a tar archive (plain, gzip, zstd, bzip2 or xz).

        `progress` is told (bytes read, bytes in all) while the archive is checked. An image of that name is replaced.
        Raises Invalid (bad name, not an archive), NotFound (no such file), Conflict, SandboxFailed.
        """
        if check_name(name) == host.NAME:
            raise Conflict(f"the name {host.NAME} is taken by the machine's own image")
        opened = open_archive(archive)
        try:
            digest = await asyncio.to_thread(opened.digest, progress)
            key = digest.removeprefix("sha256:")
            with contextlib.ExitStack() as lease:
                size = await self.trees.make(
                    key, lambda rootfs, room: self._unpack(opened, rootfs, room), lease
                )
                image = await self.add(
                    Record(
                        name=name,
                        digest=digest,
                        size_bytes=size.bytes,
                        created_at=time.time(),
                        source="import",
                    )
                )
        finally:
            os.close(opened.descriptor)
        await self.make_room(name)
        return image

    async def _unpack(self, archive: Archive, rootfs: Path, room: Room) -> Size:
        os.lseek(archive.descriptor, 0, os.SEEK_SET)
        request = Unpack(room.most_bytes, room.most_entries, room.id_count)
        done = await self.trees.sandboxes.work(rootfs, request, [archive.descriptor])
        archive.check_unchanged()  # Before it counts as the tree of that digest.
        return Size(done.size_bytes, done.entries)

    async def add(self, record: Record) -> Image:
        """Name trees that are there. What the name meant before goes, as far as nothing else means it. Raises Conflict.

        What a registry showed to one tenant's credentials is called so for them alone, and takes nothing from others.
        """
        former = self._names.same_place(record)
        if former is not None:
            record = record.also_for(former)
        try:
            with self.trees.locked(record.keys):
                self._names.write(record)
        except FileNotFoundError:
            raise Conflict("the same image was removed meanwhile; try it again") from None
        await write_index(self.blobs, self._names)
        if former is not None:
            await self._pruner.remove_all_unnamed(former.keys, Pruned())
        return record.image

    def check_replaceable(self, record: Record) -> None:
        """Raises Conflict for what a tenant's pull may not put in the place of an image that the operator loaded, tagged or committed."""
        former = self._names.same_place(record)
        if former is None or former.source == "registry" or former.digest == record.digest:
            return
        detail = (
            f"{record.name} is {former.digest} here by the operator's word, and {record.digest} at its registry: "
            "the operator can remove it or pull it"
        )
        raise Conflict(detail, code="image_kept")

    async def remove(self, name: str) -> None:
        """Forget a name, whatever it means to whom, and remove the trees that no other name means.

        Raises NotFound, Conflict (the image is `host`, or a service uses it).
        """
        if name == host.NAME:
            raise Conflict("the machine's own image cannot be removed")
        pruned = Pruned()
        for record in self._names.named(name):
            await self._pruner.forget(record, pruned)
        self._pruner.remove_unnamed_blobs(pruned)
