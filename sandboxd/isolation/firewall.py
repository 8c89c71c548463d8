"""The nftables rules of a sandbox with egress, as text for nft(8), and what nft tells of them at the end.

They are in the sandbox's network namespace, which belongs to U1: the command, in U2, can neither change nor see them. What is
not allowed is refused at once, by a reset or an ICMP message: it is never left to time out. Only what goes beyond
a rate is dropped, which is how TCP learns to go slower.
"""

import json
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from sandboxd.isolation.destinations import CLOSED, Address, Allowed, Destination, Range

TABLE = "inet sandboxd"
_NEW_CONNECTIONS = 100
"""TCP connections that may be begun in a second: each costs the host a socket and the outside a packet."""
_QUESTIONS = 100
"""Questions to the resolver in a second: each costs the service a moment."""
_MOST_PINS = 4096
_MOST_REFUSED = 64
"""Destinations that are remembered for the record; the others are refused all the same."""
_NLMSGHDR = struct.Struct("=IH10x")
"""Length and type of a message: struct nlmsghdr (linux/netlink.h)."""
_NEW_OBJECT = 10 << 8 | 18
"""NFNL_SUBSYS_NFTABLES and NFT_MSG_NEWOBJ."""
_LEAST_BURST_BYTES = 256 * 2**10
"""A packet inside a sandbox is up to 64 KiB long."""


class Refusal(NamedTuple):
    """A destination that was refused."""

    host: str
    """Address, or host name where it was refused to the resolver."""
    protocol: str
    """`tcp`, `udp` or `dns`."""
    port: int
    packets: int
    """Or questions."""


class Traffic(NamedTuple):
    """What went through, in bytes of IP, and what was refused."""

    received_bytes: int
    sent_bytes: int
    used_up: bool
    """Whether more was to go through than may."""
    refused: tuple[Refusal, ...]


def rules(allowed: Allowed, most_bytes: int) -> str:
    """The whole table. A name is not in it: `pin` opens what the resolver has found.

    `most_bytes` may go through, both ways together; what is more is dropped.
    """
    opened = allowed.opened()
    others = [entry for entry in allowed.destinations if not entry.name and entry not in opened]
    burst = max(allowed.bounds.rate_bytes, _LEAST_BURST_BYTES)
    over = f"limit rate over {allowed.bounds.rate_bytes} bytes/second burst {burst} bytes"
    # pasta answers an acknowledgement of a byte that it had before by sending all of its window again. If packets went on coming in one
    # by one, as the rate has room, it would never come to the one that is missing. So once the rate is used up, nothing comes
    # in until there is room for many. The packets that begin or end a connection pass: pasta never sends an end again.
    pause_ms = 250 * burst // allowed.bounds.rate_bytes
    return f"""\
table {TABLE} {{
    counter received {{ }}
    counter sent {{ }}
    counter stopped {{ }}
    quota traffic {{ over {most_bytes} bytes }}
{_range_set("denied", allowed.bounds.deny)}
{_range_set("own", allowed.own_addresses)}
{_range_set("closed", CLOSED)}
{_pin_sets(4)}
{_pin_sets(6)}
{_refused_set(4)}
{_refused_set(6)}
    set full {{
        type inet_proto
        flags dynamic, timeout
        timeout {pause_ms}ms
    }}
    chain output {{
        type filter hook output priority filter; policy drop;
        oifname "lo" goto loopback
        icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
        meta l4proto != {{ tcp, udp }} reject with icmpx admin-prohibited
        tcp flags & (fin | syn | rst | ack) == syn limit rate over {_NEW_CONNECTIONS}/second burst {2 * _NEW_CONNECTIONS} packets drop
{_on("ip daddr @denied4", "ip6 daddr @denied6", "refuse")}
{_pass(allowed.opened_own())}
{_on("ip daddr . th dport @pinned4", "ip6 daddr . th dport @pinned6", "pass")}
{_on("ip daddr @whole4", "ip6 daddr @whole6", "pass")}
{_on("ip daddr @own4", "ip6 daddr @own6", "refuse")}
{_pass(opened)}
{_on("ip daddr @closed4", "ip6 daddr @closed6", "refuse")}
{_pass(others)}
        goto refuse
    }}
    chain pass {{
        {over} drop
        quota name traffic counter name stopped drop
        counter name sent accept
    }}
    chain receive {{
        quota name traffic counter name stopped drop
        counter name received accept
    }}
    chain refuse {{
        update @refused4 {{ ip daddr . meta l4proto . th dport counter }}
        update @refused6 {{ ip6 daddr . meta l4proto . th dport counter }}
        meta l4proto tcp reject with tcp reset
        reject with icmpx port-unreachable
    }}
    chain loopback {{
        udp dport 53 limit rate over {_QUESTIONS}/second burst {2 * _QUESTIONS} packets drop
        accept
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        tcp flags & (fin | syn | rst) != 0 goto receive
        meta l4proto @full drop
        {over} add @full {{ meta l4proto }} drop
        goto receive
    }}
}}
"""


def pin(pins: Iterable[tuple[Address, int | None]]) -> str:
    """Open these addresses, each at a port or (None) at all."""
    return "".join(
        f"add element {TABLE} whole{address.version} {{ {address} }}\n"
        if port is None
        else f"add element {TABLE} pinned{address.version} {{ {address} . {port} }}\n"
        for address, port in pins
    )


def traffic(listing: str) -> Traffic:
    """From what `nft -j list table` prints. Raises ValueError."""
    counted = {"received": 0, "sent": 0, "stopped": 0}
    refused: list[Refusal] = []
    try:
        for entry in json.loads(listing)["nftables"]:
            counter, elements = entry.get("counter"), entry.get("set", {})
            if counter is not None:
                counted[counter["name"]] = counter["bytes"]
            if elements.get("name") in ("refused4", "refused6"):
                refused += map(_refusal, elements.get("elem", ()))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"nft says what nobody understands: {error!r}") from error
    refused.sort(key=lambda each: -each.packets)
    return Traffic(counted["received"], counted["sent"], counted["stopped"] > 0, tuple(refused))


def tells_of_quota(datagram: bytes) -> bool:
    """Whether the kernel says in a datagram of NFNLGRP_NFTABLES that a quota is used up.

    Once the rules are loaded this is the only object that it tells of: nft_quota_obj_do_eval() in net/netfilter/nft_quota.c.
    """
    while len(datagram) >= _NLMSGHDR.size:
        length, kind = _NLMSGHDR.unpack_from(datagram)
        if kind == _NEW_OBJECT:
            return True
        if length < _NLMSGHDR.size:
            return False
        datagram = datagram[-(-length // 4) * 4 :]
    return False


def _refusal(element: dict[str, Any]) -> Refusal:
    host, protocol, port = element["elem"]["val"]["concat"]
    return Refusal(str(host), str(protocol), int(port), element["elem"]["counter"]["packets"])


def _on(match4: str, match6: str, chain: str) -> str:
    return f"        {match4} goto {chain}\n        {match6} goto {chain}"


def _range_set(name: str, ranges: Iterable[Range]) -> str:
    """`auto-merge`: the host's own addresses may lie in ranges that are closed anyway."""
    return "\n".join(
        _set(
            f"{name}{version}",
            f"type ipv{version}_addr; flags interval; auto-merge;",
            [str(each) for each in ranges if each.version == version],
        )
        for version in (4, 6)
    )


def _pass(entries: Iterable[Destination]) -> str:
    """A rule for each: sets of ranges with ports do not take those that overlap."""
    return "\n".join(f"        {_match(entry)} goto pass" for entry in dict.fromkeys(entries))


def _match(entry: Destination) -> str:
    target = ""
    if entry.network is not None:
        target = f"{'ip' if entry.network.version == 4 else 'ip6'} daddr {entry.network}"
    port = "" if entry.port is None else f"th dport {entry.port}"
    return f"{target} {port}".strip()


def _pin_sets(version: int) -> str:
    """Addresses at a port, and addresses at every port: no intervals, so that an element may be added twice."""
    one = _set(f"pinned{version}", f"type ipv{version}_addr . inet_service; size {_MOST_PINS};", [])
    whole = _set(f"whole{version}", f"type ipv{version}_addr; size {_MOST_PINS};", [])
    return f"{one}\n{whole}"


def _refused_set(version: int) -> str:
    kind = f"type ipv{version}_addr . inet_proto . inet_service; flags dynamic; size {_MOST_REFUSED}; counter;"
    return _set(f"refused{version}", kind, [])


def _set(name: str, kind: str, elements: list[str]) -> str:
    content = f" elements = {{ {', '.join(elements)} }};" if elements else ""
    return f"    set {name} {{ {kind}{content} }}"
