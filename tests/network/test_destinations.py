"""What a destination means, who may ask for it, and what a name may lead to: no network is needed for that."""

import ipaddress
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.isolation import firewall
from sandboxd.isolation.destinations import (
    CLOSED,
    Allowed,
    Bounds,
    Destination,
    Range,
    own_addresses,
    parse_destination,
)

OWN: tuple[Range, ...] = (
    ipaddress.ip_network("203.0.113.2"),
    ipaddress.ip_network("2001:db8::2"),
)


def bounds(*allow: str, deny: tuple[str, ...] = ()) -> Bounds:
    return Bounds(
        tuple(map(parse_destination, allow)), tuple(map(ipaddress.ip_network, deny)), 2**20
    )


def ports(name: str, address: str, *allow: str, of: Bounds) -> set[int | None] | None:
    wished = Allowed(tuple(map(parse_destination, allow)), of, OWN)
    return wished.ports_of(name, ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "text",
    [
        "public",
        "public:443",
        "198.51.100.7",
        "198.51.100.0/24:5432",
        "2001:db8::/32",
        "[2001:db8::7]:443",
        "10.0.0.0/8",
        "example.com",
        "*.example.com:8443",
        "_service.example.com",
    ],
)
def test_a_destination_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_destination(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "*.",
        ":443",
        "a b",
        "-a.test",
        "a..test",
        "a.test/24",
        "a.test:0",
        "a.test:65536",
        "a.test:x",
        "a.test:+1",
        "a.test:",
        "a*.test",
        "a.*.test",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "10.0.0.1/8",
        "300.1.1.1",
        "10.0.0",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "10.0.0.1.",
        "0x7f000001.",
        "a.0x1",
        "*.1",
        "public.",
        "*.public",
        "[10.0.0.1",
        "::1]:1",
        "http://a.test",
        "user@a.test",
        "ä.test",
        "a.test\n",
        "a.test } add rule",
        "fe80::1%eth0",
    ],
)
def test_what_is_no_destination_is_refused(text: str) -> None:
    if text == "a.test\n":
        assert parse_destination(text) == Destination(name="a.test")
        return
    with pytest.raises(ValueError, match=r"is|has"):
        parse_destination(text)


@pytest.mark.attack(22)
@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "168.0.0.0/8", "100.0.0.0/8:80", "2000::/3"])
def test_a_range_that_reaches_into_a_closed_one_is_no_destination(text: str) -> None:
    with pytest.raises(ValueError, match="public"):
        parse_destination(text)


@settings(deadline=None, database=None)
@given(st.text(max_size=80))
def test_any_text_is_a_destination_or_refused(text: str) -> None:
    try:
        found = parse_destination(text)
    except ValueError:
        return

    assert parse_destination(str(found)) == found


@settings(deadline=None, database=None)
@given(st.text(alphabet="abcdef0123456789.:/*[]-_{};#\"'\n public", max_size=60))
def test_no_destination_is_more_than_that_in_the_rules(text: str) -> None:
    """Words of the firewall's language in a name never reach it: names are not in the rules at all."""
    try:
        found = parse_destination(text)
    except ValueError:
        return
    plain = firewall.rules(Allowed((), bounds(), OWN), 1)
    rules = firewall.rules(Allowed((found,), bounds("public"), OWN), 1)

    added = [line for line in rules.splitlines() if line not in plain.splitlines()]
    assert len(added) <= 1
    assert found.name is None or added == []


@pytest.mark.parametrize(
    ("operator", "asked"),
    [
        ("public", "public:443"),
        ("public", "198.51.100.7:80"),
        ("public:443", "any.test:443"),
        ("10.0.0.0/8:5432", "10.1.2.3:5432"),
        ("*.example.com", "a.b.example.com:1"),
        ("*.example.com", "*.b.example.com"),
        ("a.test", "a.test:443"),
    ],
)
def test_what_an_operator_allows_covers_what_is_within_it(operator: str, asked: str) -> None:
    assert bounds(operator).forbidden(parse_destination(asked)) is None


@pytest.mark.attack(22)
@pytest.mark.parametrize(
    ("operator", "asked"),
    [
        ("public:443", "public"),
        ("public:443", "198.51.100.7:80"),
        ("public", "10.1.2.3"),
        ("public", "[fd00::1]:80"),
        ("10.0.0.0/8:5432", "10.1.2.3"),
        ("10.1.0.0/16", "10.0.0.0/8"),
        ("10.0.0.0/8", "public"),
        ("10.0.0.0/8", "a.test"),
        ("a.test", "public"),
        ("a.test", "198.51.100.7"),
        ("a.test:443", "a.test:80"),
        ("a.test", "b.a.test"),
        ("*.a.test", "a.test"),
        ("*.a.test", "xa.test"),
        ("*.b.a.test", "*.a.test"),
    ],
)
def test_what_an_operator_allows_covers_nothing_beyond_it(operator: str, asked: str) -> None:
    assert bounds(operator).forbidden(parse_destination(asked)) is not None


def test_what_is_denied_may_not_be_asked_for() -> None:
    denying = bounds("public", "10.0.0.0/8", deny=("198.51.100.0/24", "10.9.0.0/16"))

    assert denying.forbidden(parse_destination("198.51.100.7:80")) is not None
    assert denying.forbidden(parse_destination("10.9.1.1")) is not None
    assert denying.forbidden(parse_destination("10.8.1.1")) is None


@pytest.mark.attack(22)
@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_no_name_leads_into_a_closed_range(closed: Range) -> None:
    for address in (closed[0], closed[-1]):
        for allow in ("public", "a.test", "*.test"):
            assert ports("a.test", str(address), allow, of=bounds("public")) is None


@pytest.mark.attack(22)
def test_no_name_leads_to_the_host_itself_though_its_range_is_open() -> None:
    wide = bounds("public", "203.0.113.0/24")

    assert ports("a.test", "203.0.113.2", "a.test", of=wide) is None
    assert ports("a.test", "203.0.113.3", "a.test", of=wide) == {None}
    assert ports("a.test", "203.0.113.2", "a.test", of=bounds("public", "203.0.113.2:80")) == {80}


def test_a_name_opens_the_ports_that_both_sides_name() -> None:
    opened = bounds("public", "10.0.0.0/8:5432")

    assert ports("a.test", "203.0.113.7", "a.test:443", "a.test:80", of=opened) == {443, 80}
    assert ports("a.test", "203.0.113.7", "public", of=opened) == set()
    assert ports("b.test", "203.0.113.7", "a.test", of=opened) is None
    assert ports("a.test", "10.1.2.3", "a.test", of=opened) == {5432}
    assert ports("a.test", "10.1.2.3", "a.test:80", of=opened) is None
    assert ports("a.test", "10.1.2.3", "a.test:5432", of=opened) == {5432}


def test_the_hosts_own_addresses_are_known() -> None:
    assert ipaddress.ip_network("127.0.0.0/8") in own_addresses()


def test_only_the_end_of_a_quota_is_taken_for_it() -> None:
    """struct nlmsghdr: length, type, flags, sequence, port. 0xa12 tells of an object, 0xa0c of an element that was added."""
    element = struct.pack("=IHHII", 18, 0xA0C, 0, 1, 0) + b"abXX"
    quota = struct.pack("=IHHII", 16, 0xA12, 0, 2, 0)

    assert firewall.tells_of_quota(element + quota)
    assert not firewall.tells_of_quota(element)
    for broken in (b"", bytes(15), bytes(16), struct.pack("=IHHII", 3, 0, 0, 0, 0) + quota):
        assert not firewall.tells_of_quota(broken)
