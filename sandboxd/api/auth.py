"""Who is calling: bearer keys, scopes, and what stands in their place when there is no authentication.

A key is `sbx_`, the 26 characters of its id, 32 of its secret and 7 of a checksum, all in Crockford's base32. The
checksum (CRC-32 of what precedes it) only tells a mistyped key from a revoked one and lets scanners recognise leaked
keys. The store has the secret's SHA-256: the secret is 160 random bits, so a slow hash would add nothing.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from starlette.types import Scope

from sandboxd.addresses import Address
from sandboxd.api.parts import Principal, Store
from sandboxd.errors import Forbidden, Unauthenticated
from sandboxd.ids import new_id
from sandboxd.jobs import ApiKey
from sandboxd.quotas.tenants import Quotas

JOBS_READ = "jobs:read"
JOBS_WRITE = "jobs:write"
ADMIN = "admin"
SCOPES = (JOBS_READ, JOBS_WRITE, ADMIN)
"""`admin` includes the others and reaches beyond its own tenant (keys, metrics)."""
DEFAULT_TENANT = "default"

Remembered = TypeVar("Remembered")

FOUND_KEYS = 1024
FOUND_SECONDS = 10.0
"""So long may a key that another process revoked go on working here."""
_NO_SECRET = bytes(32)
"""In place of the digest of a key that is not known, so that it takes as long to be refused."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_KEY = re.compile(rf"sbx_([{_ALPHABET}]{{26}})([{_ALPHABET}]{{32}})([{_ALPHABET}]{{7}})")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{0,5})?")
"""Names and addresses with a port, and nothing else that the grammar (RFC 3986, 3.2) would allow."""
_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


def new_key(
    *,
    tenant: str,
    name: str,
    scopes: tuple[str, ...],
    now: float,
    expires_at: float | None = None,
    quotas: Quotas | None = None,
) -> tuple[str, ApiKey]:
    """A fresh key: its text, to be shown once, and the record to be stored."""
    key_id = new_id("key")
    secret = _base32(int.from_bytes(os.urandom(20)), 32)
    body = f"sbx_{key_id.removeprefix('key_')}{secret}"
    record = ApiKey(
        id=key_id,
        tenant=tenant,
        name=name,
        secret_sha256=hashlib.sha256(secret.encode()).digest(),
        scopes=scopes,
        created_at=now,
        expires_at=expires_at,
        quotas=quotas,
    )
    return body + _checksum(body), record


def require_scope(principal: Principal, scope: str | None) -> None:
    """Raises Forbidden unless the caller has this scope. None: any caller will do."""
    if scope is not None and scope not in principal.scopes and ADMIN not in principal.scopes:
        raise Forbidden(f"This needs the scope {scope}.", code="scope_missing")


class NoAuthentication:
    """Everybody is the default tenant. Only for loopback and unix sockets."""

    async def principal(self, scope: Scope) -> Principal:
        return Principal(tenant=DEFAULT_TENANT, scopes=SCOPES)

    def forget(self, key_id: str) -> None:
        """Nothing is remembered."""


class BearerKeys:
    """Finds the key of a request; remembers for a few seconds, so that the hot path needs no query.

    What is not there is remembered too, apart: guesses cost no query each, are not told from known ids by the time
    that the answer takes, and drive no known key out.
    """

    def __init__(self, store: Store, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic = monotonic
        self._found: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        self._missed: OrderedDict[str, float] = OrderedDict()

    async def principal(self, scope: Scope) -> Principal:
        """Raises Unauthenticated."""
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        if not headers:
            raise Unauthenticated(
                "A key is needed: Authorization: Bearer sbx_…", code="key_missing"
            )
        match = _BEARER.fullmatch(headers[0].decode("latin-1").strip())
        if len(headers) > 1 or match is None:
            raise _not_valid("The Authorization header is not one bearer key.")
        key = await self._verified(match[1])
        return Principal(tenant=key.tenant, scopes=key.scopes, key_id=key.id)

    def forget(self, key_id: str) -> None:
        """The key was revoked: do not trust what is remembered of it."""
        self._found.pop(key_id, None)
        self._missed.pop(key_id, None)

    async def _verified(self, text: str) -> ApiKey:
        match = _KEY.fullmatch(text)
        if match is None or _checksum(text[:-7]) != match[3]:
            raise _not_valid("This is not a key of this service: a character is missing or wrong.")
        key = await self._find(f"key_{match[1]}")
        secret_sha256 = hashlib.sha256(match[2].encode()).digest()
        stored_sha256 = _NO_SECRET if key is None else key.secret_sha256
        same = hmac.compare_digest(stored_sha256, secret_sha256)
        if key is None or not same:
            raise _not_valid("The key is not known.")
        if key.revoked_at is not None:
            raise _not_valid("The key was revoked.")
        if key.expires_at is not None and key.expires_at <= time.time():
            raise _not_valid("The key has expired.")
        return key

    async def _find(self, key_id: str) -> ApiKey | None:
        now = self._monotonic()
        remembered = self._found.get(key_id)
        if remembered is not None and now - remembered[0] < FOUND_SECONDS:
            return remembered[1]
        if now - self._missed.get(key_id, -FOUND_SECONDS) < FOUND_SECONDS:
            return None
        key = await self._store.find_key(key_id)
        if key is None:
            self._found.pop(key_id, None)
            _remember(self._missed, key_id, now)
        else:
            _remember(self._found, key_id, (now, key))
        return key


class LocalOnly:
    """Keeps web pages out of a service without authentication (DNS rebinding and cross-site requests).

    A browser that was led here under a foreign name says so in Host; a page from elsewhere is named by Origin.
    """

    def __init__(self, listen: Address) -> None:
        self._listen = listen

    def check(self, scope: Scope) -> None:
        """Raises Forbidden."""
        if self._listen.path is not None:
            return  # no browser reaches a unix socket
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        match = _HOST.fullmatch(host)
        if match is None or not self._is_ours(match[1] or match[2]):
            raise Forbidden("The Host header names another machine.", code="host_not_allowed")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() != f"http://{host}":
            raise Forbidden("Pages of other origins may not call this.", code="origin_not_allowed")

    def _is_ours(self, name: str) -> bool:
        if name in ("localhost", self._listen.host):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def _remember(known: OrderedDict[str, Remembered], key_id: str, what: Remembered) -> None:
    known[key_id] = what
    known.move_to_end(key_id)
    if len(known) > FOUND_KEYS:
        known.popitem(last=False)


def _not_valid(detail: str) -> Unauthenticated:
    return Unauthenticated(detail, code="invalid_key")


def _checksum(body: str) -> str:
    return _base32(zlib.crc32(body.encode()), 7)


def _base32(number: int, length: int) -> str:
    return "".join(_ALPHABET[(number >> 5 * place) & 31] for place in reversed(range(length)))
