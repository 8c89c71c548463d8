"""One repository of a registry: its manifests and blobs, by the protocol of
https://github.com/opencontainers/distribution-spec, which is that of Docker's registries, too.

Everything that comes is bounded; whether it is what was asked for is checked by who asked (`blobs`), but for a manifest that was
asked for by its digest.
"""

import base64
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

import msgspec

from sandboxd.errors import Invalid, NotFound, Unavailable
from sandboxd.images.blobs import check_digest
from sandboxd.images.challenges import Challenge, parse_challenges
from sandboxd.images.manifests import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MOST_MANIFEST_BYTES,
    Descriptor,
)
from sandboxd.images.references import DIGEST, Reference
from sandboxd.images.transport import Access, Answer, Broken, Transport, failed

_ACCEPT = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_MOST_TOKEN_BYTES = 2**20
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,65536}", re.ASCII)
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/(?:[0-9]{1,18}|\*)", re.ASCII)


class Document(NamedTuple):
    """A manifest or an index as it came."""

    content: bytes
    content_type: str


class _Token(msgspec.Struct, frozen=True):
    """What a token service answers; registries use either name."""

    token: str | None = None
    access_token: str | None = None


class Registry:
    """The repository that a reference names. The right to read it is got when the registry asks for it."""

    def __init__(self, transport: Transport, reference: Reference) -> None:
        self._transport = transport
        self._reference = reference
        self._access = transport.access(reference.registry) or Access()
        self._base = transport.base_of(reference.registry)
        self._authorization: str | None = None

    async def manifest(self, target: str) -> Document:
        """The manifest or index with this tag or digest. Raises NotFound, Unavailable, Invalid."""
        answer, content = await self._read(f"manifests/{target}", {"Accept": _ACCEPT})
        self._check_status(answer, target)
        if DIGEST.fullmatch(target):
            check_digest(content, target)
        return Document(content, answer.headers.get("content-type", ""))

    async def blob(self, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
        """Its content. A download that breaks off goes on where it was. Raises NotFound, Unavailable, Invalid."""
        offset = failures = 0
        while True:
            before = offset
            try:
                async with aclosing(self._blob_from(descriptor, offset)) as pieces:
                    async for piece in pieces:
                        offset += len(piece)
                        yield piece
                return
            except Broken as error:
                if offset == descriptor.size:
                    return  # Only the end of the answer is missing.
                # A registry that sends a byte at a time is stopped by the time that a download may take.
                failures = failures + 1 if offset == before else 1
                if failures >= self._transport.patience.tries:
                    detail = f"{self._reference.domain} broke off {descriptor.digest}: {error}"
                    raise failed(detail) from error
            await self._transport.wait(failures)

    async def _blob_from(self, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
        path = f"blobs/{descriptor.digest}"
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        for may_ask_again in (True, False):
            async with self._transport.get(self._url(path), headers, self._authorization) as answer:
                if answer.status == 401 and may_ask_again:
                    await self._authorise(answer)
                    continue
                self._check_status(answer, descriptor.digest)
                skipped = _where_it_begins(answer, offset)
                async for piece in answer.pieces:
                    if skipped >= len(piece):
                        skipped -= len(piece)
                    else:
                        yield piece[skipped:]
                        skipped = 0
                return

    async def _read(self, path: str, headers: dict[str, str]) -> tuple[Answer, bytes]:
        """The answer to a request for a document, with the right to it."""
        failures = 0
        may_ask_again = True
        while True:
            try:
                async with self._transport.get(
                    self._url(path), headers, self._authorization
                ) as answer:
                    if answer.status == 401 and may_ask_again:
                        may_ask_again = False
                        await self._authorise(answer)
                        continue
                    return answer, await answer.read(MOST_MANIFEST_BYTES)
            except Broken as error:
                failures += 1
                if failures >= self._transport.patience.tries:
                    raise failed(f"{self._reference.domain}: {error}") from error
            await self._transport.wait(failures)

    def _url(self, path: str) -> str:
        return f"{self._base}/v2/{self._reference.path}/{path}"

    def _check_status(self, answer: Answer, what: str) -> None:
        reference = self._reference
        if answer.status in (401, 403):
            raise self._denied()
        if answer.status == 404:
            raise NotFound(
                f"{reference.domain} has no {reference.path} with {what}", code="not_in_registry"
            )
        if answer.status not in (200, 206):
            raise failed(f"{reference.domain} answered {answer.status} for {what}")

    def _denied(self) -> Unavailable:
        domain, path = self._reference.domain, self._reference.path
        remedy = (
            "the credentials of the settings are refused"
            if self._access.username
            else f'credentials go into [registries."{domain}"] of the settings'
        )
        return Unavailable(
            f"{domain} does not let us read {path}, if there is such an image: {remedy}",
            code="registry_denied",
        )

    # The right to read

    async def _authorise(self, refusal: Answer) -> None:
        """Get what the registry asks for. Raises Unavailable."""
        challenges = parse_challenges(refusal.headers.get("www-authenticate", ""))
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in by_scheme:
            token = await self._fetch_token(by_scheme["bearer"])
            self._authorization = f"Bearer {token}"
        elif "basic" in by_scheme and self._access.username:
            self._authorization = self._basic()
        else:
            raise self._denied()

    def _basic(self) -> str:
        words = f"{self._access.username}:{self._access.password}".encode()
        return f"Basic {base64.b64encode(words).decode()}"

    async def _fetch_token(self, challenge: Challenge) -> str:
        """A token for reading this repository and nothing else, whatever scope the registry names."""
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm)
        address, _, asked = realm.partition("?")
        query = parse_qsl(asked)
        if service := challenge.parameters.get("service"):
            query.append(("service", service))
        query.append(("scope", f"repository:{self._reference.path}:pull"))
        url = f"{address}?{urlencode(query)}"
        credentials = self._basic() if self._access.username else None
        try:
            async with self._transport.get(url, {}, credentials) as answer:
                if answer.status in (401, 403):
                    raise self._denied()
                if answer.status != 200:
                    raise failed(f"the token service answered {answer.status}")
                return _token_in(await answer.read(_MOST_TOKEN_BYTES))
        except Broken as error:
            raise failed(f"the token service broke off: {error}") from error

    def _check_realm(self, realm: str) -> None:
        """HTTPS, or the registry's own host as it is spoken to. `Transport` looks at the rest."""
        if not realm.startswith("https://") and not realm.startswith(f"{self._base}/"):
            raise failed(f"{self._reference.domain} sends us for a token to where it is not safe")
        if "#" in realm:
            raise failed(f"{self._reference.domain} names a token service with a fragment")


def _token_in(content: bytes) -> str:
    try:
        answer = msgspec.json.decode(content, type=_Token)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise failed("the token service sent no token") from None
    token = answer.token or answer.access_token or ""
    if not _TOKEN.fullmatch(token):
        raise failed("the token service sent no token that can go into a header")
    return token


def _where_it_begins(answer: Answer, offset: int) -> int:
    """How many bytes of the answer we have already. Raises Invalid."""
    if answer.status == 200:
        return offset
    match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    if match is None or int(match[1]) != offset:
        raise Invalid("the registry sent another part than the one asked for", code="bad_image")
    return 0
