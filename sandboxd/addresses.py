"""Addresses to listen on: `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`."""

import ipaddress
from typing import NamedTuple


class Address(NamedTuple):
    """One place to listen on: a TCP host and port, or the path of a unix socket."""

    host: str
    port: int
    path: str | None = None
    """Path of a unix socket; host and port mean nothing then."""

    @property
    def is_local(self) -> bool:
        """Whether nobody but processes of this machine can connect."""
        return self.path is not None or _is_loopback(self.host)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address that `text` names.

    Raises ValueError with a sentence for the user.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError("the path of a unix socket must be absolute")
        return Address("", 0, path)
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError("a port from 0 to 65535 must follow the last colon")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif ":" in host or not host:
        raise ValueError("a host must precede the port, IPv6 addresses in [brackets]")
    return Address(host, int(port))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may mean anything
