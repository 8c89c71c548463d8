"""What a sandbox with egress may reach: the grammar of `allow`, the ranges that are closed, and who may ask for what.

A destination is `public`, an address, a range (CIDR), a host name or `*.` before one (all names below it), each with or without
`:PORT`; an IPv6 address or range with a port is written `[2001:db8::/32]:443`. Without a port it means every port.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Range = ipaddress.IPv4Network | ipaddress.IPv6Network

PUBLIC = "public"
MOST_DESTINATIONS = 64
"""Of one job: each is an element of a set in the kernel."""
LEAST_RATE_BYTES = 4096
"""With less, names can hardly be looked up."""
_LONGEST_NAME = 253

CLOSED: tuple[Range, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network: Linux takes 0.0.0.0 for the host itself
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # carrier-grade NAT (RFC 6598); a cloud has its metadata at 100.100.100.200
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's own services, reached from its machines only
        "169.254.0.0/16",  # link-local, with the metadata service of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; a cloud has its metadata here
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks (RFC 2544)
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "::/96",  # unspecified, loopback, IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped
        "64:ff9b::/96",  # NAT64: any IPv4 address, private ones too
        "64:ff9b:1::/48",
        "100::/64",  # discard
        "2001::/23",  # protocol assignments, with Teredo, which again embeds IPv4
        "2002::/16",  # 6to4
        "fc00::/7",  # unique local
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local
        "ff00::/8",  # multicast
    )
)
"""Closed unless the operator opens a part of one, by address or range. The host's own addresses are closed as well."""

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


class Destination(NamedTuple):
    """One entry of `allow`: a range, a name, or (neither) every public address."""

    network: Range | None = None
    name: str | None = None
    """In lower case; `*.example.com` stands for every name below example.com."""
    port: int | None = None
    """None: every port."""

    def __str__(self) -> str:
        if self.network is not None:
            whole = self.network.prefixlen == self.network.max_prefixlen
            text = str(self.network.network_address if whole else self.network)
        else:
            text = self.name or PUBLIC
        if self.port is None:
            return text
        return f"[{text}]:{self.port}" if ":" in text else f"{text}:{self.port}"

    def names(self, name: str) -> bool:
        """Whether this host name is meant."""
        if self.name is None:
            return False
        if self.name.startswith("*."):
            return name.endswith(self.name[1:])
        return name == self.name

    def covers(self, asked: "Destination") -> bool:
        """Whether who may reach this may reach all of `asked`."""
        if self.port not in (None, asked.port):
            return False
        if asked.name is not None:
            return self == (None, None, self.port) or self.names(asked.name)
        if asked.network is None:
            return self.network is None and self.name is None
        if self.network is not None:
            return within(asked.network, self.network)
        return self.name is None and not any(within(asked.network, closed) for closed in CLOSED)


def parse_destination(text: str) -> Destination:
    """The destination that a text means. Raises ValueError that says what is wrong, to follow the text."""
    target, port = _split_port(text.strip().lower())
    if target == PUBLIC:
        return Destination(port=port)
    network = _parse_range(target)
    if network is not None:
        for closed in CLOSED:
            if network.overlaps(closed) and not within(network, closed):
                raise ValueError(
                    f'reaches into {closed}, which is closed: write "{PUBLIC}" for all public addresses, and what '
                    "is to be opened of a closed range by itself"
                )
        return Destination(network=network, port=port)
    return Destination(name=_check_name(target), port=port)


def _split_port(text: str) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if bracketed:
        target, port = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        target, _, port = text.partition(":")
    else:
        target, port = text, None
    if port is None:
        return target, None
    if not _PORT.fullmatch(port) or int(port) > 65_535:
        raise ValueError("has a port that is not a number from 1 to 65535")
    return target, int(port)


def _parse_range(text: str) -> Range | None:
    try:
        if "%" in text:
            raise ValueError("a zone is a part of the host's")
        return ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            raise ValueError("is a range with bits set after its prefix") from None
        if set("/:%") & set(text) or re.fullmatch(r"[0-9.]+|0x[0-9a-f.x]*", text):
            raise ValueError("is no address or range of IPv4 or IPv6") from None
        return None


def _check_name(name: str) -> str:
    plain = name.removeprefix("*.").removesuffix(".")
    if not plain or len(plain) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, plain.split("."))):
        raise ValueError(
            'is neither "public" nor an address, a range or a host name, with or without :PORT'
        )
    if plain == PUBLIC or _NUMBER.fullmatch(plain.rpartition(".")[2]):
        # Resolvers take `10.0.0.1.` and `0x7f000001` for addresses; no domain ends like that.
        raise ValueError("is no host name, but may be taken for something else")
    return f"*.{plain}" if name.startswith("*.") else plain


def within(inner: Range, outer: Range) -> bool:
    """Whether a range is a part of another."""
    return (
        inner.version == outer.version
        and inner.network_address in outer
        and inner.broadcast_address in outer
    )


class Bounds(NamedTuple):
    """What the operator lets sandboxes reach."""

    allow: tuple[Destination, ...]
    deny: tuple[Range, ...]
    """Closed in addition, whatever `allow` says."""
    rate_bytes: int
    """Bytes a second, each way."""

    def forbidden(self, asked: Destination) -> str | None:
        """Why a job may not ask for this; None: it may."""
        if any(allowed.covers(asked) for allowed in self.allow):
            if asked.network is not None and any(within(asked.network, no) for no in self.deny):
                return "the operator denies it"
            return None
        return f"the operator allows {', '.join(map(str, self.allow)) or 'nothing'}"


class Allowed(NamedTuple):
    """What one sandbox may reach, within the operator's bounds."""

    destinations: tuple[Destination, ...]
    bounds: Bounds
    own_addresses: tuple[Range, ...]
    """The host's: what listens there may trust whoever comes from the host itself. A range opens none of them."""

    def opened(self) -> list[Destination]:
        """Ranges that the operator names, closed ones too, and that this sandbox may reach."""
        return [entry for entry in self.destinations if self._is_named(entry, exactly=False)]

    def opened_own(self) -> list[Destination]:
        """Addresses of the host itself that the operator names one by one, and that this sandbox may reach."""
        return [
            entry
            for entry in self.destinations
            if entry.network in self.own_addresses and self._is_named(entry, exactly=True)
        ]

    def _is_named(self, asked: Destination, *, exactly: bool) -> bool:
        return asked.network is not None and any(
            entry.network is not None
            and entry.covers(asked)
            and (entry.network == asked.network or not exactly)
            for entry in self.bounds.allow
        )

    def ports_of(self, name: str, address: Address) -> set[int | None] | None:
        """The ports at which this address may be reached by a name (None: all of them); None if it may not be at all.

        The empty set: the address is public, and whoever may reach all public addresses needs no further leave.
        """
        if any(address in denied for denied in self.bounds.deny):
            return None
        wished = {entry.port for entry in self.destinations if entry.names(name)}
        if not wished and not self.reaches_public():
            return None
        own = any(address in each for each in self.own_addresses)
        if not own and not any(address in closed for closed in CLOSED):
            return wished
        opened = self._ports_named(ipaddress.ip_network(address), exactly=own)
        if None in opened:
            return wished or None
        return (opened if None in wished else wished & opened) or None

    def reaches_public(self) -> bool:
        """Whether every public address may be reached, at some port."""
        return any(entry.network is None and entry.name is None for entry in self.destinations)

    def _ports_named(self, one: Range, *, exactly: bool) -> set[int | None]:
        return {
            entry.port
            for entry in self.bounds.allow
            if entry.network is not None
            and (entry.network == one if exactly else within(one, entry.network))
        }


def own_addresses() -> tuple[Range, ...]:
    """What this host takes for itself, as the kernel's tables say (/proc/net). Raises OSError, ValueError."""
    found: dict[Range, None] = {}
    with open("/proc/net/fib_trie", encoding="ascii") as trie:
        start = ""
        for line in trie:
            words = line.split()
            if words[:1] == ["|--"]:
                start = words[1]
            elif words[1:] == ["host", "LOCAL"]:
                found[ipaddress.ip_network(start + words[0])] = None
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as addresses:
            for line in addresses:
                found[ipaddress.IPv6Network(int(line.split()[0], 16))] = None
    except FileNotFoundError:
        pass  # A kernel without IPv6.
    return tuple(found)


def texts(destinations: Sequence[Destination]) -> list[str]:
    """As they are written."""
    return [str(each) for each in destinations]
