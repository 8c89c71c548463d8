"""Mirrors: others who have what a registry has, asked before it, in the operator's order.

What comes from a mirror is verified like what comes from the registry; what a tag means is its word. One that fails is asked for
nothing more during this pull. The registry's credentials are the registry's: a mirror has a section of its own.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sandboxd.errors import Invalid, NotFound, Unavailable
from sandboxd.images.documents.manifests import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from sandboxd.images.documents.references import Reference
from sandboxd.images.registries.failures import failed
from sandboxd.images.registries.registry import Document, Registry
from sandboxd.images.registries.transport import Transport

_Failure = NotFound | Unavailable | Invalid


def open_registry(transport: Transport, reference: Reference) -> Registry:
    """Where an image is read: at the mirrors that its registry has, and at the registry."""
    access = transport.access(reference.registry)
    if not access.mirrors:
        return Registry(transport, reference)
    mirrors = [Registry(transport, reference, mirror=mirror) for mirror in access.mirrors]
    return Mirrored(transport, reference, mirrors, asks_itself=not access.mirrors_only)


class Mirrored(Registry):
    """A registry behind mirrors."""

    def __init__(
        self,
        transport: Transport,
        reference: Reference,
        mirrors: list[Registry],
        *,
        asks_itself: bool,
    ) -> None:
        super().__init__(transport, reference)
        self._mirrors = mirrors
        self._asks_itself = asks_itself

    async def manifest(self, target: str) -> Document:
        """Of the first that has it. Raises NotFound, Unavailable, Invalid."""
        failures: list[_Failure] = []
        for mirror in list(self._mirrors):
            try:
                return await self._manifest_of(mirror, target)
            except (NotFound, Unavailable, Invalid) as error:
                self._note(mirror, error, failures)
        if self._asks_itself:
            try:
                return await super().manifest(target)
            except (NotFound, Unavailable, Invalid) as error:
                failures.append(error)
        raise _all(failures)

    async def blob(self, descriptor: Descriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Where a mirror breaks off the next goes on. Raises NotFound, Unavailable, Invalid.

        What comes cannot be taken back: if it is wrong in the end, it is said who sent it.
        """
        failures: list[_Failure] = []
        is_whole = offset == 0
        digest, senders = hashlib.sha256(), dict[str, None]()
        contents = [(mirror, mirror.blob) for mirror in self._mirrors]
        if self._asks_itself:
            contents.append((self, super().blob))
        for source, content in contents:
            try:
                async with aclosing(content(descriptor, offset)) as pieces:
                    async for piece in pieces:
                        senders[source.name] = None
                        digest.update(piece)
                        offset += len(piece)
                        if offset > descriptor.size:
                            break
                        yield piece
            except (NotFound, Unavailable, Invalid) as error:
                self._note(source, error, failures)
                continue
            if is_whole and f"sha256:{digest.hexdigest()}" != descriptor.digest:
                who = " and ".join(senders) or source.name
                detail = f"{who} sent something else for {descriptor.digest}"
                raise Invalid(detail, code="bad_image")
            return
        raise _all(failures)

    async def _manifest_of(self, mirror: Registry, target: str) -> Document:
        seconds = self._transport.patience.mirror_seconds
        try:
            async with asyncio.timeout(seconds):
                document = await mirror.manifest(target)
        except TimeoutError:
            raise failed(f"{mirror.name} did not answer in {seconds:.0f} s") from None
        media_type = document.content_type.partition(";")[0].strip().lower()
        if media_type not in INDEX_TYPES | MANIFEST_TYPES:
            raise failed(f"{mirror.name} sent {media_type[:100]!r}, which is no image")
        return document

    def _note(self, source: Registry, error: _Failure, failures: list[_Failure]) -> None:
        failures.append(error)
        # One that lacks something may have the rest. Another download may have struck it out already.
        if not isinstance(error, NotFound) and source in self._mirrors:
            self._mirrors.remove(source)


def _all(failures: list[_Failure]) -> _Failure:
    """What the last one says, and what those before it said."""
    if not failures:
        return failed("all mirrors of the registry have failed, and it is not asked itself")
    last = failures[-1]
    before = "; ".join(error.detail for error in failures[:-1])
    if not before:
        return last
    return type(last)(f"{last.detail} (mirrors: {before})", code=last.code)
