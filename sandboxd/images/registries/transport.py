"""HTTP to registries: to whom, how often, how long, and what goes along.

What a registry answers can name other hosts: where a blob is, or who gives out tokens. Nobody is spoken to but over HTTPS at
public addresses, unless the operator named that very host and port; the address that was looked at is the one that is connected
to. Through a proxy it is the proxy that looks: what this machine knows of a name is compared all the same. Redirects are followed
here, a few of them, and an `Authorization` never goes to another host.
"""

import asyncio
import contextlib
import email.utils
import functools
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import httpx2

from sandboxd import __version__
from sandboxd.images.registries.connection_faults import lasting_fault, passing_fault
from sandboxd.images.registries.failures import Broken, failed
from sandboxd.images.registries.look_ups import LookUps
from sandboxd.images.registries.pacing import pace_connection, paced
from sandboxd.images.registries.proxies import proxy_for
from sandboxd.images.registries.terms import ANY_OTHER, UNKNOWN, USUAL_PATIENCE, Access, Patience

_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_NOW = frozenset({429, 500, 502, 503, 504})
_REMEDIES = {429: ": it limits how often it is asked; credentials for it help, or a mirror"}
_MOST_URL_LENGTH = 8192
_PORTS = {"https": 443, "http": 80}

Content = bytes | Callable[[], AsyncIterator[bytes]] | None
"""What a request says; a function, of which each attempt begins anew."""

_Origin = tuple[str, str, int | None]
"""Scheme, host and port."""


class Answer(NamedTuple):
    """The beginning of an answer; the rest is read piece by piece."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    pieces: AsyncIterator[bytes]
    is_from_elsewhere: bool = False
    """A redirect led to another host."""

    async def read(self, most_bytes: int) -> bytes:
        """All of it. Raises Unavailable if there is more."""
        content = bytearray()
        async for piece in self.pieces:
            content += piece
            if len(content) > most_bytes:
                raise failed(f"the answer of the registry is larger than {most_bytes} bytes")
        return bytes(content)


class Transport:
    """Connections to registries, for the length of one pull."""

    def __init__(
        self,
        registries: Mapping[str, Access] = MappingProxyType({}),
        patience: Patience = USUAL_PATIENCE,
    ) -> None:
        """`registries`: HOST[:PORT], as references have it, to what the operator says of it."""
        shorter = {_without_usual_port(name, access): access for name, access in registries.items()}
        self._registries = {**shorter, **registries}
        self.patience = patience
        self._clients: dict[_Origin, httpx2.AsyncClient] = {}
        self._tls: ssl.SSLContext | None = None
        self._look_ups = LookUps(patience.connect_seconds)

    async def close(self) -> None:
        """End all connections. Nobody waits for a name server."""
        self._look_ups.close()
        for client in self._clients.values():
            await client.aclose()

    def access(self, authority: str) -> Access:
        """What the operator says of a host and port."""
        return self._registries.get(authority) or self._registries.get(ANY_OTHER) or UNKNOWN

    def base_of(self, authority: str) -> str:
        """The beginning of a registry's URLs."""
        return f"{'http' if self.access(authority).insecure else 'https'}://{authority}"

    @contextlib.asynccontextmanager
    async def get(
        self,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None = None,
        *,
        tries: int | None = None,
    ) -> AsyncIterator[Answer]:
        """Ask, follow redirects, wait where the other side asks for it. Raises Unavailable.

        Within, `pieces` raises Broken if the connection breaks.
        """
        ask = functools.partial(self._follow, url, headers, authorization)
        async with self._patiently(url, ask, tries) as answer:
            yield answer

    @contextlib.asynccontextmanager
    async def post(self, url: str, content: bytes, media_type: str) -> AsyncIterator[Answer]:
        """The same with something to say, which goes there and nowhere else: a redirect is the answer."""
        ask = functools.partial(
            self._ask, _parse(url), {"Content-Type": media_type}, "POST", content
        )
        async with self._patiently(url, ask, None) as answer:
            yield answer

    @contextlib.asynccontextmanager
    async def head(
        self, url: str, headers: Mapping[str, str], authorization: str | None = None
    ) -> AsyncIterator[Answer]:
        """As `get`, for the headers alone."""
        ask = functools.partial(self._follow, url, headers, authorization, "HEAD")
        async with self._patiently(url, ask, None) as answer:
            yield answer

    @contextlib.asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: Content,
        *,
        answer_seconds: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Say something once, there and nowhere else: a redirect is the answer. Raises Broken, Unavailable.

        `answer_seconds`: how long the other side may think about what it was sent.
        """
        response = await self._ask(_parse(url), headers, method, content, answer_seconds)
        try:
            yield _answer_of(response, url)
        finally:
            await response.aclose()

    @contextlib.asynccontextmanager
    async def _patiently(
        self, url: str, ask: Callable[[], Awaitable[httpx2.Response]], tries: int | None
    ) -> AsyncIterator[Answer]:
        failures = 0
        while True:
            try:
                response = await ask()
            except Broken as error:
                reason, wished, remedy = str(error), None, ""
            else:
                if response.status_code not in _NOT_NOW:
                    break
                reason = f"{response.request.headers['Host']} answered {response.status_code}"
                remedy = _REMEDIES.get(response.status_code, "")
                wished = _retry_after(response.headers.get("retry-after"))
                await response.aclose()
            failures += 1
            if failures >= (tries or self.patience.tries):
                raise failed(f"{reason} (tried {failures} times){remedy}")
            await self.wait(failures, wished)
        try:
            yield _answer_of(response, url)
        finally:
            await response.aclose()

    async def wait(self, failures: int, wished_seconds: float | None = None) -> None:
        """Before something is tried again that failed so often."""
        seconds = self.patience.first_wait_seconds * 2 ** (failures - 1)
        if wished_seconds is not None:
            seconds = max(seconds, wished_seconds)
        await asyncio.sleep(min(seconds, self.patience.most_wait_seconds))

    async def _follow(
        self,
        start: str,
        headers: Mapping[str, str],
        authorization: str | None,
        method: str = "GET",
    ) -> httpx2.Response:
        url = first = _parse(start)
        for _ in range(_MOST_REDIRECTS + 1):
            hop = dict(headers)
            if authorization is not None and _origin_of(url) == _origin_of(first):
                hop["Authorization"] = authorization
            response = await self._ask(url, hop, method)
            if response.status_code not in _REDIRECTS:
                return response
            await response.aclose()
            target = _parse(response.headers.get("location", ""), url)
            if url.scheme == "https" and target.scheme != "https":
                raise failed(f"{url.host} redirects from HTTPS to something else")
            url = target
        raise failed(f"{url.host}: more than {_MOST_REDIRECTS} redirects")

    async def _ask(
        self,
        url: httpx2.URL,
        headers: Mapping[str, str],
        method: str = "GET",
        content: Content = None,
        answer_seconds: float | None = None,
    ) -> httpx2.Response:
        """One request to one of the addresses that its host has. Raises Broken, Unavailable."""
        authority = _authority(url)
        self._check(url, authority)
        proxy = self._proxy(url, authority)
        client = self._client(url, authority, proxy)
        reason = ""
        for address in await self._addresses(url, authority, proxy):
            request = client.build_request(
                method,
                url.copy_with(host=address),
                headers={**headers, "Host": authority},
                content=content() if callable(content) else content,
                timeout=self._timeout(answer_seconds),
                extensions={"sni_hostname": url.host, "trace": pace_connection},
            )
            try:
                response = await client.send(request, stream=True)
                response.extensions["network_stream"].answer_begins()
                return response
            except httpx2.ConnectError as error:
                if lasting := lasting_fault(error, authority):
                    # Who of the two it is is not told where both speak TLS.
                    of_proxy = proxy is not None and proxy.startswith("https:")
                    who = (
                        f"{authority}, or the proxy {_origin_text(proxy)},"
                        if of_proxy
                        else authority
                    )
                    raise failed(f"{who} {lasting}") from error
                reason = reason or passing_fault(error)
            except httpx2.ProxyError as error:
                # It was asked and will not: that is the same the next time.
                raise failed(
                    f"the proxy {_origin_text(proxy)} refuses {authority}: {error}"
                ) from error
            except httpx2.TransportError as error:
                raise Broken(f"{authority} broke off: {_reason(error)}") from error
        through = f" through the proxy {_origin_text(proxy)}" if proxy else ""
        raise Broken(f"{authority} cannot be connected to{through}: {reason}")

    def _check(self, url: httpx2.URL, authority: str) -> None:
        """Raises Unavailable for what may not be asked."""
        if url.userinfo:
            raise failed(f"the registry names a URL of {url.host} with credentials in it")
        if url.scheme == "http":
            if not self.access(authority).insecure:
                detail = f'plain HTTP to {authority} is not allowed: see registries."{authority}".insecure'
                raise failed(detail)
        elif url.scheme != "https":
            raise failed(f"the registry names a URL of scheme {url.scheme[:20]!r}")

    def _proxy(self, url: httpx2.URL, authority: str) -> str | None:
        port = url.port or _PORTS[url.scheme]
        return proxy_for(self.access(authority).proxy, url.scheme, url.host, port)

    async def _addresses(self, url: httpx2.URL, authority: str, proxy: str | None) -> list[str]:
        """What is connected to: the addresses of a host; through a proxy, its name. Raises Broken, Unavailable."""
        addresses = await self._look_ups.addresses(
            url.host,
            url.port or _PORTS[url.scheme],
            authority,
            is_named=self.access(authority).is_named,
            has_proxy=bool(proxy),
        )
        return [url.host] if proxy else addresses

    def _client(self, url: httpx2.URL, authority: str, proxy: str | None) -> httpx2.AsyncClient:
        """Of this host alone: a connection is not used for another one at the same address."""
        origin = _origin_of(url)
        if origin not in self._clients:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            self._clients[origin] = httpx2.AsyncClient(
                verify=self.access(authority).tls or self._tls,
                proxy=_proxy_of(proxy, self._tls),
                trust_env=False,
                follow_redirects=False,
                headers={
                    "User-Agent": f"sandboxd/{__version__}",
                    "Accept-Encoding": "identity",
                },
                timeout=self._timeout(None),
            )
        return self._clients[origin]

    def _timeout(self, answer_seconds: float | None) -> httpx2.Timeout:
        patience = self.patience
        return httpx2.Timeout(
            patience.read_seconds,
            connect=patience.connect_seconds,
            read=answer_seconds or patience.read_seconds,
        )


def location_of(answer: Answer, base: str) -> str:
    """Where an answer to a request at `base` says to go on: never from HTTPS to something else. Raises Unavailable."""
    start = _parse(base)
    target = _parse(answer.headers.get("location", ""), start)
    if start.scheme == "https" and target.scheme != "https":
        raise failed(f"{start.host} sends us from HTTPS to something else")
    return str(target)


def is_same_origin(one: str, other: str) -> bool:
    """Whether what is said to one may be said to the other."""
    return _origin_of(_parse(one)) == _origin_of(_parse(other))


def _answer_of(response: httpx2.Response, url: str) -> Answer:
    return Answer(
        response.status_code,
        {name.lower(): value for name, value in response.headers.items()},
        _pieces(response),
        is_from_elsewhere=_is_from_elsewhere(response, _parse(url)),
    )


def _proxy_of(url: str | None, trusting: ssl.SSLContext) -> httpx2.Proxy | None:
    """Its certificate is one that this machine trusts: those of the registry's own authority are for the registry."""
    if url is None:
        return None
    return httpx2.Proxy(url, ssl_context=trusting if url.startswith("https:") else None)


async def _pieces(response: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in paced(response.aiter_raw()):
            yield piece
    except httpx2.TransportError as error:
        authority = response.request.headers["Host"]
        raise Broken(f"{authority} broke off: {_reason(error)}") from error


def _reason(error: httpx2.TransportError) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it said nothing for too long"
    return str(error) or type(error).__name__


def _parse(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """One parser reads what is checked and what is asked. Raises Unavailable.

    The text is not in the message: a URL may hold somebody's right to a download.
    """
    try:
        if not text.isascii() or len(text) > _MOST_URL_LENGTH:
            raise httpx2.InvalidURL("not a URL")
        url = httpx2.URL(text) if base is None else base.join(text)
        if not url.host:
            raise httpx2.InvalidURL("no host")
    except (httpx2.InvalidURL, ValueError):
        raise failed("the registry names a URL that is none") from None
    return url


def _authority(url: httpx2.URL) -> str:
    host = f"[{url.host}]" if ":" in url.host else url.host
    return host if url.port is None else f"{host}:{url.port}"


def _is_from_elsewhere(response: httpx2.Response, asked: httpx2.URL) -> bool:
    """By the name that was asked: the URL of the answer has an address."""
    request = response.request
    return (request.url.scheme, request.headers["Host"]) != (asked.scheme, _authority(asked))


def _origin_text(url: str | None) -> str:
    """Without the credentials that may be in it."""
    parsed = _parse(url or "")
    return f"{parsed.scheme}://{_authority(parsed)}"


def _origin_of(url: httpx2.URL) -> _Origin:
    return url.scheme, url.host, url.port


def _without_usual_port(name: str, access: Access) -> str:
    """As a URL's authority has it."""
    return name.removesuffix(":80" if access.insecure else ":443")


def _retry_after(value: str | None) -> float | None:
    """Seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
