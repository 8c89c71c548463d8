"""Where a host is: its addresses, and whether they may be connected to."""

import asyncio
import functools
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

from sandboxd.images.registries.failures import Broken, failed
from sandboxd.isolation.destinations import CLOSED

_AT_ONCE = 2
"""Names that are looked up at the same time."""


class LookUps:
    """In threads of one pull: whose name servers do not answer keeps them, and nobody else's."""

    def __init__(self, most_seconds: float) -> None:
        """Each takes `most_seconds` at most."""
        self._most_seconds = most_seconds
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="look-up")
        self._without_address: set[str] = set()
        """Hosts that only a proxy knows, so that they are looked up once."""

    def close(self) -> None:
        """Nobody waits for a name server."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def addresses(
        self, host: str, port: int, authority: str, *, is_named: bool, has_proxy: bool
    ) -> list[str]:
        """Of a host: none if only its proxy knows it.

        `authority`: what messages call it. `is_named`: by the operator, so that its addresses need not be public.
        Raises Unavailable if there is no such host or one of its addresses is not public, Broken if that could not be told.
        """
        try:
            addresses = [] if host in self._without_address else await self._look_up(host, port)
        except Broken:
            if not has_proxy:
                raise
            addresses = []
        if not addresses:
            if not has_proxy:
                remedy = "if only a proxy knows it, images.proxy says which"
                raise failed(f"{host} has no address: is the name right? {remedy}")
            self._without_address.add(host)
        if not is_named:
            for address in addresses:
                if not _is_public(address):
                    detail = (
                        f"{authority} is at {address}, which is not public: "
                        f'a section [registries."{authority}"] in the settings allows it'
                    )
                    raise failed(detail)
        return addresses

    async def _look_up(self, host: str, port: int) -> list[str]:
        """Empty if there is no such name. Raises Broken if that could not be told."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._most_seconds):
                ask = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
                found = await loop.run_in_executor(self._threads, ask)
        except TimeoutError:
            raise Broken(f"nobody told the address of {host} in time") from None
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                return []
            raise Broken(f"the address of {host} is not known: {error.strerror}") from error
        except UnicodeError:
            return []  # It has a part that is empty or too long for a name.
        except OSError as error:
            raise Broken(f"the address of {host} is not known: {error.strerror}") from error
        return list(dict.fromkeys(str(each[4][0]) for each in found))


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return not any(address in closed for closed in CLOSED)
