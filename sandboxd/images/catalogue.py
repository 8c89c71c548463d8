"""Images by name: `host`, root file systems that were imported, and images that were pulled from registries."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from sandboxd.errors import Conflict, NotFound, SandboxFailed
from sandboxd.images import host
from sandboxd.images.archives import Archive, open_archive
from sandboxd.images.blobs import Blobs
from sandboxd.images.names import Names, Record, check_name, not_found
from sandboxd.images.resolved import ResolvedImage
from sandboxd.images.trees import Room, Trees
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.pool import Place
from sandboxd.isolation.protocol import Unpack
from sandboxd.jobs import Image

ImageList = list[Image]

_MOST_BYTES = 64 * 2**30
_MOST_ENTRIES = 2_000_000


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

        An image has at most `most_bytes` of files and `most_entries` of them.
        """
        self.trees = Trees(
            directory, launcher, make_place, most_bytes=most_bytes, most_entries=most_entries
        )
        self.blobs = Blobs(directory / "oci")
        self._names = Names(directory)
        self._host = host.build(host_tree)
        self._host_created_at = time.time()

    def close(self) -> None:
        """Let go of the trees."""
        self.trees.close()

    async def sweep(self) -> dict[Path, str]:
        """Remove what was cut short when it was made or removed, and trees and blobs that no name means any more.

        Returns what could not be removed, and why: it costs space, and keeps nobody from working.
        """
        remaining: dict[Path, str] = {}
        for leftover in self.trees.leftovers():
            try:
                await self.trees.remove_leftover(leftover)
            except (OSError, SandboxFailed) as error:
                remaining[leftover] = str(error)
        for key in self.trees.keys():  # noqa: SIM118 (it is no dict)
            try:
                await self._remove_unnamed(key)
            except (OSError, SandboxFailed) as error:
                remaining[self.trees.rootfs(key)] = str(error)
        try:
            self._remove_unnamed_blobs()
        except OSError as error:
            remaining[self.blobs.directory] = str(error)
        return remaining

    async def resolve(self, name: str, tenant: str | None = None) -> ResolvedImage:
        """The image, held so that nobody removes its tree while this process lives. Raises NotFound.

        `tenant`: who asks, for whom only what they may use is there; None: the operator.
        """
        if name == host.NAME:
            return self._host
        record = self._read(name, tenant)
        self.trees.hold(record.key)
        return self._resolved(name, record)

    def _read(self, name: str, tenant: str | None) -> Record:
        """Raises NotFound, also for what a tenant may not know of."""
        record = self._names.read(name)
        if not record.is_for(tenant):
            raise not_found(name)
        return record

    def _resolved(self, name: str, record: Record) -> ResolvedImage:
        rootfs = str(self.trees.rootfs(record.key))
        run_as = record.run_as
        if run_as is None:
            env = {"PATH": host.PATH, "HOME": "/root"}
            return ResolvedImage(name=name, digest=record.digest, rootfs=rootfs, env=env)
        return ResolvedImage(
            name=record.name,
            digest=record.digest,
            rootfs=rootfs,
            user=run_as.user,
            workdir=run_as.workdir,
            env=run_as.env,
            entrypoint=run_as.entrypoint,
            cmd=run_as.cmd,
        )

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
        return self._read(name, tenant)

    def tag(self, source: str, target: str, tenant: str | None = None) -> Awaitable[Image]:
        """Give an image another name, which has been checked. Raises NotFound, Conflict."""
        return self.add(msgspec.structs.replace(self.record(source, tenant), name=target))

    async def list(self, tenant: str | None = None) -> ImageList:
        """All images by name that this tenant may use; None: the operator, who sees all."""
        ours = Image(
            name=host.NAME,
            digest=self._host.digest,
            size_bytes=0,
            created_at=self._host_created_at,
            source="host",
        )
        return [ours, *(each.image for each in self._names.all() if each.is_for(tenant))]

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
            size = await self.trees.make(
                key, lambda rootfs, room: self._unpack(opened, rootfs, room)
            )
        finally:
            os.close(opened.descriptor)
        return await self.add(
            Record(
                name=name,
                digest=digest,
                size_bytes=size,
                created_at=time.time(),
                source="import",
            )
        )

    async def _unpack(self, archive: Archive, rootfs: Path, room: Room) -> int:
        os.lseek(archive.descriptor, 0, os.SEEK_SET)
        request = Unpack(room.most_bytes, room.most_entries, room.id_count)
        done = await self.trees.work_inside(rootfs, request, [archive.descriptor])
        archive.check_unchanged()  # Before it counts as the tree of that digest.
        return done.size_bytes

    async def add(self, record: Record) -> Image:
        """Name a tree that is there. What the name meant before goes, if nothing else means it. Raises Conflict."""
        former: Record | None = None
        with contextlib.suppress(NotFound):
            former = self._names.read(record.name)
        if former is not None:
            record = record.also_for(former)
        try:
            with self.trees.locked(record.key):
                self._names.write(record)
        except FileNotFoundError:
            raise Conflict("the same image was removed meanwhile; try it again") from None
        if former is not None and former.key != record.key:
            await self._remove_unnamed(former.key)
        return record.image

    async def remove(self, name: str) -> None:
        """Forget a name, and remove its tree if no other name means it.

        Raises NotFound, Conflict (the image is `host`, or a service uses the tree).
        """
        if name == host.NAME:
            raise Conflict("the machine's own image cannot be removed")
        record = self._names.read(name)
        if self._has_other_name(record):
            self._names.forget(name)
            return
        if self.trees.is_held(record.key):
            raise Conflict("the image is in use by this service")
        with self.trees.locked_alone(record.key):
            self._names.forget(name)
            # Under the lock, which an import shares while it names a tree: nobody can name this one any more.
            if not self._has_other_name(record):
                await self.trees.throw_away(record.key)
        self._remove_unnamed_blobs()

    async def _remove_unnamed(self, key: str) -> None:
        """Remove a tree that no name means any more. One that is in use stays until the next start of a service."""
        with (
            contextlib.suppress(Conflict, FileNotFoundError),
            self.trees.locked_alone(key),
        ):
            if all(record.key != key for record in self._names.all()):
                await self.trees.throw_away(key)

    def _remove_unnamed_blobs(self) -> None:
        """Those that somebody may be fetching stay until another time."""
        with contextlib.suppress(Conflict):
            self.blobs.keep_only(
                lambda: {each for record in self._names.all() for each in record.blobs}
            )

    def _has_other_name(self, record: Record) -> bool:
        return any(
            other.key == record.key and other.name != record.name for other in self._names.all()
        )
