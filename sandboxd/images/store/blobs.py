"""Blobs: what registries sent, kept by its digest in an OCI image layout (`blobs/sha256/HEX`); what is one tenant's, beside it (`owned/`).

A blob is under its name only when all of it is there, was hashed on its way to the disk, and would outlast a power cut. Until then
it is a file in `partial/`, beside the lock of who fetches it: it comes once from each source, however many want it.
"""

import asyncio
import contextlib
import copy
import hashlib
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
)
from pathlib import Path
from typing import BinaryIO

from sandboxd.errors import Conflict, Invalid, Unavailable
from sandboxd.images.documents.manifests import Descriptor, digest_of
from sandboxd.images.store.free_space import room_in
from sandboxd.images.store.locks import in_turn, locked, locked_alone
from sandboxd.images.store.owners import owned
from sandboxd.images.store.syncing import sync_directory

_PAUSE_SECONDS = 0.02
_LOOK_BYTES = 16 * 2**20
"""After so many it is looked whether there is still room: others came since it was first."""
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Blobs:
    """The blobs of one directory. Several processes may use it at once."""

    def __init__(self, directory: Path) -> None:
        """Make the directories."""
        self.directory = directory
        self._owner = ""
        self._shared = directory / "blobs" / "sha256"
        self._owned = directory / "owned"
        self._partial = directory / "partial"
        self._shared.mkdir(parents=True, exist_ok=True)
        self._owned.mkdir(exist_ok=True)
        self._partial.mkdir(exist_ok=True)
        self._lock = directory / "lock"
        self._lock.touch()
        layout = directory / "oci-layout"
        if not layout.exists():
            layout.write_bytes(_LAYOUT)

    def of(self, owner: str) -> "Blobs":
        """Those of one tenant alone (see `owners`); empty: those that everybody may use."""
        theirs = copy.copy(self)
        theirs._owner = owner
        return theirs

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within, nothing is removed. Raises Conflict while somebody removes."""
        with locked(self._lock):
            yield

    @contextlib.asynccontextmanager
    async def in_use_soon(self) -> AsyncIterator[None]:
        """As `in_use`, as soon as nobody removes."""
        with contextlib.ExitStack() as stack:
            while True:
                with contextlib.suppress(Conflict):
                    stack.enter_context(self.in_use())
                    break
                await asyncio.sleep(_PAUSE_SECONDS)
            yield

    def has(self, descriptor: Descriptor) -> bool:
        """Whether it is there. It was verified when it came."""
        try:
            return self.path(descriptor.digest).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def check_room(self, descriptors: Iterable[Descriptor], *, code: str) -> None:
        """Raises Invalid, with that code, if there is none for those that are not there."""
        missing = {each.digest: each.size for each in descriptors if not self.has(each)}
        size, room = sum(missing.values()), room_in(self.directory)
        if size > room:
            raise Invalid(f"the layers are {size} bytes; there is room for {room}", code=code)

    def path(self, digest: str) -> Path:
        """Where a blob is, once it is there."""
        return self._place(owned(digest, self._owner))

    def _place(self, key: str) -> Path:
        """Of a digest, or of a digest and who has it."""
        name = key.removeprefix("sha256:")
        return (self._owned if "." in name else self._shared) / name

    async def add(
        self,
        descriptor: Descriptor,
        content: AsyncGenerator[bytes, None],
        progress: Callable[[int], None],
        *,
        seconds: float | None = None,
        sender: str = "the registry",
        source: str = "",
    ) -> None:
        """Fetch a blob, unless it is there. `progress` is told how many bytes of it are; `sender` is named where it lies.

        Who wants the same from the same `source` meanwhile waits for it: one that sends it slowly keeps nobody from another.
        Raises Invalid if what comes is something else, Unavailable if it is not there after so many seconds.
        """
        partial = self._partial / owned(self.path(descriptor.digest).name, source)

        def waiting() -> None:
            with contextlib.suppress(FileNotFoundError):
                progress(min(partial.stat().st_size, descriptor.size))

        if not self.has(descriptor):
            async with in_turn(partial.with_name(f"{partial.name}.lock"), waiting):
                if not self.has(descriptor):
                    await self._fetch(partial, descriptor, content, progress, sender, seconds)
                    return
        progress(descriptor.size)

    async def _fetch(
        self,
        partial: Path,
        descriptor: Descriptor,
        content: AsyncGenerator[bytes, None],
        progress: Callable[[int], None],
        sender: str,
        seconds: float | None,
    ) -> None:
        try:
            with partial.open("wb") as file:
                async with asyncio.timeout(seconds), contextlib.aclosing(content):
                    watched = _while_room(content, self._partial)
                    await _fill(file, descriptor, watched, progress, sender)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            path = self.path(descriptor.digest)
            partial.rename(path)
            sync_directory(path.parent)
        except TimeoutError:
            detail = f"{descriptor.digest} was not there after {seconds:.0f} s"
            raise Unavailable(detail, code="registry_failed") from None
        finally:
            partial.unlink(missing_ok=True)

    async def put(self, content: bytes) -> str:
        """Keep a document. Returns its digest."""
        digest = digest_of(content)
        descriptor = Descriptor(media_type="", digest=digest, size=len(content))
        await self.add(descriptor, _once(content), lambda _: None)
        return digest

    def sizes(self) -> dict[str, int]:
        """Bytes of each that is there, whosever it is, by digest (see `owners.owned`)."""
        found = {}
        for path in [*self._shared.iterdir(), *self._owned.iterdir()]:
            with contextlib.suppress(FileNotFoundError):
                found[f"sha256:{path.name}"] = path.stat().st_size
        return found

    def keep_only(self, wanted: Callable[[], Collection[str]]) -> dict[str, int]:
        """Remove every other blob than those wanted, and what broken downloads left. Raises Conflict while somebody fetches.

        Returns the bytes of each blob that was removed.
        """
        with locked_alone(self._lock):
            # Asked under the lock: a pull names its image while it shares it.
            kept = set(wanted())
            removed = {key: size for key, size in self.sizes().items() if key not in kept}
            self._unlink(removed)
            for path in self._partial.iterdir():
                path.unlink()
        return removed

    def remove(self, keys: Iterable[str]) -> None:
        """Raises Conflict while somebody fetches, who may count on them."""
        with locked_alone(self._lock):
            self._unlink(keys)

    def _unlink(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._place(key).unlink(missing_ok=True)


async def _once(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


async def _while_room(
    content: AsyncGenerator[bytes, None], directory: Path
) -> AsyncIterator[bytes]:
    """The pieces, as long as there is room for them. Raises Unavailable."""
    unlooked = 0
    async for piece in content:
        unlooked += len(piece)
        if unlooked >= _LOOK_BYTES:
            unlooked = 0
            if not room_in(directory):
                detail = "there is no room on the disk of images"
                raise Unavailable(detail, code="no_space", retry_after_seconds=60)
        yield piece


async def _fill(
    file: BinaryIO,
    descriptor: Descriptor,
    content: AsyncIterator[bytes],
    progress: Callable[[int], None],
    sender: str,
) -> None:
    digest = hashlib.sha256()
    size = 0
    async for piece in content:
        size += len(piece)
        if size > descriptor.size:
            raise Invalid(
                f"{sender} sent more than the {descriptor.size} bytes of {descriptor.digest}",
                code="bad_image",
            )
        digest.update(piece)
        file.write(piece)
        progress(size)
    if size != descriptor.size:
        raise Invalid(
            f"{sender} sent {size} bytes for {descriptor.digest}, which has {descriptor.size}",
            code="bad_image",
        )
    found = f"sha256:{digest.hexdigest()}"
    if found != descriptor.digest:
        raise Invalid(f"{sender} sent {found} for {descriptor.digest}", code="bad_image")
