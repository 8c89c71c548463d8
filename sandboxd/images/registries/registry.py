"""One repository of a registry: its manifests and blobs, by the protocol of
https://github.com/opencontainers/distribution-spec, which is that of Docker's registries, too.

Everything that comes is bounded; whether it is what was asked for is checked by who asked (`store.blobs`), but for a manifest that was
asked for by its digest.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import msgspec

from sandboxd.errors import Invalid, NotFound, Unavailable
from sandboxd.images.documents.manifests import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MOST_MANIFEST_BYTES,
    Descriptor,
    digest_of,
)
from sandboxd.images.documents.references import DIGEST, Reference
from sandboxd.images.registries.challenges import Challenge, parse_challenges
from sandboxd.images.registries.credential_helpers import ask_helper
from sandboxd.images.registries.credentials import Credentials
from sandboxd.images.registries.docker_config import name_for_helper
from sandboxd.images.registries.failures import Broken, failed
from sandboxd.images.registries.transport import Answer, Transport

_ACCEPT = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_MOST_TOKEN_BYTES = 2**20
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,65536}", re.ASCII)
_USUAL_SECONDS = 60.0
"""What a token is good for that says nothing else."""
_LONGEST_SECONDS = 86_400
_USED_OF_A_TOKEN = 0.9
_VERBS = {"pull": "read", "pull,push": "write"}
_NO_REPOSITORY = b'"NAME_UNKNOWN"'
_MOST_ERROR_BYTES = 4096
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/(?:[0-9]{1,18}|\*)", re.ASCII)


class Document(NamedTuple):
    """A manifest or an index as it came."""

    content: bytes
    content_type: str


class _Token(msgspec.Struct, frozen=True):
    """What a token service answers; registries use either name."""

    token: str | None = None
    access_token: str | None = None
    expires_in: Any = None
    """Seconds, if it is a number."""


class Registry:
    """The repository that a reference names, at its registry or at a mirror. The right to it is got when it is asked for."""

    def __init__(
        self,
        transport: Transport,
        reference: Reference,
        *,
        actions: str = "pull",
        mirror: str = "",
    ) -> None:
        """`actions`: what tokens are to be good for, `pull` or `pull,push`. `mirror`: its URL, which a prefix may follow."""
        self._transport = transport
        self._reference = reference
        self._actions = actions
        self._base, self.name, self._path, self._query = _place(transport, reference, mirror)
        self._tries = transport.patience.mirror_tries if mirror else transport.patience.tries
        authority = self._base.partition("://")[2]
        self._access = transport.access(authority)
        self._credentials = Credentials(
            self._access.username, self._access.password, self._access.identity_token
        )
        self._helper = self._access.helper
        self._authorising = asyncio.Lock()
        self._authorization: str | None = None
        self._challenge: Challenge | None = None
        """Of the token that is in use."""
        self._renew_at = math.inf

    async def manifest(self, target: str) -> Document:
        """The manifest or index with this tag or digest. Raises NotFound, Unavailable, Invalid."""
        answer, content = await self._read(f"manifests/{target}", {"Accept": _ACCEPT})
        self._check_status(answer, target, content)
        if DIGEST.fullmatch(target):
            _check_digest(content, target)
        return Document(content, answer.headers.get("content-type", ""))

    async def blob(self, descriptor: Descriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Its content from there on. A download that breaks off goes on where it was. Raises NotFound, Unavailable, Invalid."""
        failures = 0
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
                if failures >= self._tries:
                    raise failed(f"{error} ({descriptor.digest})") from error
            await self._transport.wait(failures)

    async def _blob_from(self, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
        path = f"blobs/{descriptor.digest}"
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        for may_ask_again in (True, False):
            right = await self._right()
            async with self._ask(path, headers, right) as answer:
                if answer.status == 401 and may_ask_again:
                    await self._authorise(answer, right)
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
                right = await self._right()
                async with self._ask(path, headers, right) as answer:
                    if answer.status == 401 and may_ask_again:
                        may_ask_again = False
                        await self._authorise(answer, right)
                        continue
                    return answer, await answer.read(MOST_MANIFEST_BYTES)
            except Broken as error:
                failures += 1
                if failures >= self._tries:
                    raise failed(str(error)) from error
            await self._transport.wait(failures)

    def _ask(
        self, path: str, headers: dict[str, str], authorization: str | None
    ) -> AbstractAsyncContextManager[Answer]:
        url = f"{self._base}/v2/{self._path}/{path}{self._query}"
        return self._transport.get(url, headers, authorization, tries=self._tries)

    def _check_status(self, answer: Answer, what: str, content: bytes = b"") -> None:
        if answer.status in (401, 403):
            raise self._denied()
        if answer.status == 404:
            if _NO_REPOSITORY in content[:_MOST_ERROR_BYTES]:
                detail = f"{self.name} has no {self._path}: is the name right?"
            elif DIGEST.fullmatch(what):
                detail = f"{self.name} has no {self._path}@{what}"
            else:
                detail = f"{self.name} has no {self._path}:{what}: is name or tag another?"
            raise NotFound(detail, code="not_in_registry")
        if answer.status not in (200, 206):
            remedy = ""
            if answer.status == 400 and self._base.startswith("http:"):
                remedy = f': if it speaks HTTPS, take `insecure` out of [registries."{self.name}"]'
            raise failed(f"{self.name} answered {answer.status} for {what}{remedy}")

    def _denied(self) -> Unavailable:
        if self._credentials and self._access.owner:
            remedy = f"the credentials of tenant {self._access.owner} are refused"
        elif self._credentials:
            remedy = "the credentials of the settings are refused"
        else:
            remedy = f'credentials go into [registries."{self.name}"] of the settings'
        # Who may not read is not told whether there is anything.
        perhaps = ", if there is such an image" if self._actions == "pull" else ""
        return Unavailable(
            f"{self.name} does not let us {_VERBS[self._actions]} {self._path}{perhaps}: {remedy}",
            code="registry_denied",
        )

    # The right to it

    async def _right(self) -> str | None:
        """What goes along with a request. A token that is about to end is renewed before."""
        if self._challenge is not None and time.monotonic() >= self._renew_at:
            async with self._authorising:
                if time.monotonic() >= self._renew_at:  # Nobody did meanwhile.
                    self._authorization = await self._fetch_token(self._challenge)
        return self._authorization

    async def _authorise(self, refusal: Answer, used: str | None) -> None:
        """Get what the registry asks for who came with `used`. Raises Unavailable."""
        if refusal.is_from_elsewhere:
            # Whoever it sent us to does not learn who we are.
            raise failed(f"{self.name} sends us to another host, which wants credentials")
        async with self._authorising:
            if self._authorization != used:
                return  # Another download was refused, too, and has a new one.
            await self._ask_helper()
            challenges = parse_challenges(refusal.headers.get("www-authenticate", ""))
            by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
            if "bearer" in by_scheme:
                self._authorization = await self._fetch_token(by_scheme["bearer"])
            elif "basic" in by_scheme and self._credentials.basic:
                self._authorization = self._credentials.basic
            else:
                raise self._denied()

    async def _ask_helper(self) -> None:
        """Once, and not before somebody wants to know who we are."""
        name, self._helper = self._helper, ""
        if name:
            known = await ask_helper(name, name_for_helper(self._base.partition("://")[2]))
            self._credentials = known or self._credentials

    async def _fetch_token(self, challenge: Challenge) -> str:
        """A token for this repository and nothing else, whatever scope the registry names."""
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm)
        address, _, asked = realm.partition("?")
        query = parse_qsl(asked)
        if service := challenge.parameters.get("service"):
            query.append(("service", service))
        began = time.monotonic()
        try:
            async with self._ask_token_service(address, query) as answer:
                if answer.status in (400, 401, 403):
                    raise self._denied()
                if answer.status != 200:
                    raise failed(f"the token service of {self.name} answered {answer.status}")
                token, seconds = _token_in(await answer.read(_MOST_TOKEN_BYTES))
        except Broken as error:
            raise failed(f"the token service of {self.name}: {error}") from error
        self._challenge = challenge
        self._renew_at = began + seconds * _USED_OF_A_TOKEN
        return f"Bearer {token}"

    def _scopes(self) -> list[str]:
        """What a token is to be good for."""
        return [f"repository:{self._path}:{self._actions}"]

    def _ask_token_service(
        self, address: str, query: list[tuple[str, str]]
    ) -> AbstractAsyncContextManager[Answer]:
        """https://distribution.github.io/distribution/spec/auth/token/ and …/oauth/"""
        scopes = self._scopes()
        if not self._credentials.identity_token:
            query = [*query, *(("scope", scope) for scope in scopes)]
            url = f"{address}?{urlencode(query)}"
            return self._transport.get(url, {}, self._credentials.basic, tries=self._tries)
        form = [
            ("grant_type", "refresh_token"),
            ("client_id", "sandboxd"),
            ("refresh_token", self._credentials.identity_token),
            *query,
            ("scope", " ".join(scopes)),
        ]
        media_type = "application/x-www-form-urlencoded"
        return self._transport.post(address, urlencode(form).encode(), media_type)

    def _check_realm(self, realm: str) -> None:
        """HTTPS, or the registry's own host as it is spoken to. `Transport` looks at the rest."""
        if not realm.startswith("https://") and not realm.startswith(f"{self._base}/"):
            raise failed(f"{self.name} sends us for a token to where it is not safe")
        if "#" in realm:
            raise failed(f"{self.name} names a token service with a fragment")


class _Place(NamedTuple):
    base: str
    """Scheme, host and port."""
    name: str
    """As messages and the settings have it."""
    path: str
    """Of the repository there."""
    query: str


def _place(transport: Transport, reference: Reference, mirror: str) -> _Place:
    if not mirror:
        base = transport.base_of(reference.registry)
        return _Place(base, reference.domain, reference.path, "")
    scheme, _, rest = mirror.partition("://")
    authority, _, prefix = rest.partition("/")
    path = f"{prefix.strip('/')}/{reference.path}".lstrip("/")
    # Whose image is meant, for one that mirrors several registries: containerd says it in the same way.
    query = f"?{urlencode({'ns': reference.domain})}"
    return _Place(f"{scheme}://{authority}", authority, path, query)


def _check_digest(content: bytes, digest: str) -> None:
    """Raises Invalid if the content has another one."""
    found = digest_of(content)
    if found != digest:
        raise Invalid(f"the registry sent {found} for {digest}", code="bad_image")


def _token_in(content: bytes) -> tuple[str, float]:
    """With the seconds that it is good for."""
    try:
        answer = msgspec.json.decode(content, type=_Token)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise failed("the token service sent no token") from None
    token = answer.token or answer.access_token or ""
    if not _TOKEN.fullmatch(token):
        raise failed("the token service sent no token that can go into a header")
    seconds = answer.expires_in
    known = type(seconds) in (int, float) and 0 < seconds < _LONGEST_SECONDS
    return token, float(seconds) if known else _USUAL_SECONDS


def _where_it_begins(answer: Answer, offset: int) -> int:
    """How many bytes of the answer we have already. Raises Invalid."""
    if answer.status == 200:
        return offset
    match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    if match is None or int(match[1]) != offset:
        raise Invalid("the registry sent another part than the one asked for", code="bad_image")
    return 0
