"""The writing side of a repository of a registry, by the protocol of
https://github.com/opencontainers/distribution-spec (spec.md, "Push").

A blob is sent in one piece, and once more from its beginning if that broke off: half of an upload is nothing that anybody could
verify. What the registry says that it has must be what we sent.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlencode

from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.documents.references import Reference
from sandboxd.images.registries.failures import Broken, failed
from sandboxd.images.registries.registry import Registry
from sandboxd.images.registries.transport import (
    Answer,
    Content,
    Transport,
    is_same_origin,
    location_of,
)

_ANSWER_SECONDS = 300.0
"""A registry may take its time to put away what it was sent."""
_BLOB = "application/octet-stream"

Pieces = Callable[[], AsyncGenerator[bytes, None]]


class WritableRegistry(Registry):
    """The repository that a reference names, to be written to."""

    def __init__(
        self, transport: Transport, reference: Reference, *, mount_from: str | None = None
    ) -> None:
        """`mount_from`: path of another repository of the same registry, which has the blobs already."""
        super().__init__(transport, reference, actions="pull,push")
        self._mount_from = mount_from

    def _scopes(self) -> list[str]:
        scopes = super()._scopes()
        if self._mount_from is not None:
            scopes.append(f"repository:{self._mount_from}:pull")
        return scopes

    async def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there. Raises Unavailable."""
        url = self._url(f"blobs/{descriptor.digest}")
        for may_ask_again in (True, False):
            right = await self._right()
            async with self._transport.head(url, {}, right) as answer:
                if answer.status == 401 and may_ask_again:
                    await self._authorise(answer, right)
                    continue
                if answer.status == 404:
                    return False
                self._check_status(answer, descriptor.digest)
                return True
        return False

    async def put_blob(
        self, descriptor: Descriptor, pieces: Pieces, progress: Callable[[int], None]
    ) -> None:
        """Send a blob, unless the registry can take it from another repository. Raises Unavailable."""
        failures = 0
        while True:
            try:
                return await self._put_blob(descriptor, pieces, progress)
            except Broken as error:
                failures += 1
                if failures >= self._tries:
                    raise failed(f"{self.name} broke off {descriptor.digest}: {error}") from error
            await self._transport.wait(failures)

    async def _put_blob(
        self, descriptor: Descriptor, pieces: Pieces, progress: Callable[[int], None]
    ) -> None:
        wish = {}
        if self._mount_from is not None:
            wish = {"mount": descriptor.digest, "from": self._mount_from}
        start = self._url("blobs/uploads/") + (f"?{urlencode(wish)}" if wish else "")
        async with self._sent("POST", start, {"Content-Length": "0"}, b"") as answer:
            if answer.status == 201 and wish:
                progress(descriptor.size)
                return
            self._check_written(answer, 202, "an upload", None)
            place = location_of(answer, start)

        async def counted() -> AsyncIterator[bytes]:
            done = 0
            async for piece in pieces():
                done += len(piece)
                yield piece
                if done < descriptor.size:  # Else it is there when the registry says so.
                    progress(done)

        joint = "&" if "?" in place else "?"
        url = f"{place}{joint}{urlencode({'digest': descriptor.digest})}"
        headers = {"Content-Type": _BLOB, "Content-Length": str(descriptor.size)}
        # An empty body is none: httpx would not ask for its first piece.
        content: Content = counted if descriptor.size else b""
        async with self._sent("PUT", url, headers, content) as answer:
            if answer.status in (404, 416):
                raise Broken(f"it knows nothing of the upload any more ({answer.status})")
            self._check_written(answer, 201, descriptor.digest, descriptor.digest)
        progress(descriptor.size)

    async def put_manifest(self, target: str, document: bytes, descriptor: Descriptor) -> None:
        """Name what is there by a tag or by its digest. Raises Unavailable."""
        headers = {"Content-Type": descriptor.media_type}
        url = self._url(f"manifests/{target}")
        failures = 0
        while True:
            try:
                async with self._sent("PUT", url, headers, document) as answer:
                    self._check_written(answer, 201, f"the manifest {target}", descriptor.digest)
                    return
            except Broken as error:
                failures += 1
                if failures >= self._tries:
                    raise failed(f"{self.name}: {error}") from error
            await self._transport.wait(failures)

    @asynccontextmanager
    async def _sent(
        self, method: str, url: str, headers: dict[str, str], content: Content
    ) -> AsyncIterator[Answer]:
        """The answer to what was sent with the right to it, which goes to the registry itself and to nobody that it names.

        Raises Broken where it is to be tried again.
        """
        for may_ask_again in (True, False):
            right = await self._right()
            more = {}
            if right is not None and is_same_origin(url, self._base):
                more = {"Authorization": right}
            async with self._transport.send(
                method, url, headers | more, content, answer_seconds=_ANSWER_SECONDS
            ) as answer:
                if answer.status == 401 and may_ask_again:
                    await self._authorise(answer, right)
                    continue
                if answer.status in (408, 429) or answer.status >= 500:
                    raise Broken(f"it answered {answer.status}")
                yield answer
                return

    def _check_written(self, answer: Answer, expected: int, what: str, digest: str | None) -> None:
        """Raises Unavailable."""
        if answer.status in (401, 403):
            raise self._denied()
        if answer.status != expected:
            raise failed(f"{self.name} answered {answer.status} to {what}")
        told = answer.headers.get("docker-content-digest", digest)
        if told != digest and digest is not None:
            raise failed(f"{self.name} took {digest} for {str(told)[:100]}")

    def _url(self, path: str) -> str:
        return f"{self._base}/v2/{self._path}/{path}"
