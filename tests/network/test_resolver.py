"""The resolver of a sandbox, asked by a socket of the test's own: no network is needed for what it refuses."""

import asyncio
import socket
from collections.abc import Sequence
from types import SimpleNamespace

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.isolation import resolver as resolver_module
from sandboxd.isolation.destinations import Allowed, Bounds, parse_destination
from sandboxd.isolation.resolver import Pin, Resolver

ANSWER_SECONDS = 10.0
QUESTION = dns.message.make_query("other.test", "A", use_edns=0).to_wire()


async def pin_nothing(pins: Sequence[Pin]) -> None:
    raise AssertionError(pins)


async def ask(*questions: bytes) -> list[bytes]:
    """What comes back before the answer to `QUESTION`, which is asked last, and that answer."""
    allowed = Allowed(
        (parse_destination("allowed.test"),), Bounds((parse_destination("public"),), (), 2**20), ()
    )
    resolver = Resolver(allowed, pin_nothing)
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.connect(bound.getsockname())
        await resolver.start(bound)
        try:
            for question in (*questions, QUESTION):
                asking.send(question)
            answers: list[bytes] = []
            async with asyncio.timeout(ANSWER_SECONDS):
                while not answers or answers[-1][:2] != QUESTION[:2]:
                    answers.append(await loop.sock_recv(asking, 65_536))
        finally:
            resolver.close()
    return answers


def test_a_name_that_is_not_allowed_does_not_exist() -> None:
    (answer,) = asyncio.run(ask())

    assert dns.message.from_wire(answer).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("kind", ["TXT", "MX", "ANY", "PTR", "HTTPS"])
def test_only_addresses_are_told(kind: str) -> None:
    question = dns.message.make_query("allowed.test", kind).to_wire()

    answer, _ = asyncio.run(ask(question))

    told = dns.message.from_wire(answer)
    assert (told.rcode(), told.answer) == (dns.rcode.NOERROR, [])


@pytest.mark.attack(60)
@settings(max_examples=200, deadline=None, database=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=600),
            st.builds(
                lambda place, piece: QUESTION[:place] + piece + QUESTION[place:],
                st.integers(2, len(QUESTION)),
                st.binary(min_size=1, max_size=8),
            ),
            st.builds(
                lambda head: head + QUESTION[len(head) :], st.binary(min_size=2, max_size=40)
            ),
        ).filter(lambda question: question[:2] != QUESTION[:2]),
        max_size=5,
    )
)
def test_whatever_is_asked_the_next_question_is_answered(questions: list[bytes]) -> None:
    async def watched() -> list[bytes]:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        answers = await ask(*questions)
        assert faults == []
        return answers

    *others, answer = asyncio.run(watched())

    assert dns.message.from_wire(answer).rcode() == dns.rcode.NXDOMAIN
    assert max(map(len, others), default=0) <= 600


def test_no_more_addresses_are_opened_than_a_firewall_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolver_module, "_MOST_PINNED", 3)
    pinned: list[Pin] = []

    class Upstream:
        """Two new addresses for each question."""

        asked = 0

        async def resolve(self, *_: object, **__: object) -> SimpleNamespace:
            self.asked += 1
            addresses = (f"8.8.4.{self.asked}", f"8.8.8.{self.asked}")
            return SimpleNamespace(rrset=dns.rrset.from_text("x.", 9, "IN", "A", *addresses))

    async def pin(pins: Sequence[Pin]) -> None:
        pinned.extend(pins)

    async def look_up() -> None:
        allowed = Allowed(
            (parse_destination("*.test"),), Bounds((parse_destination("public"),), (), 2**20), ()
        )
        resolver = Resolver(allowed, pin)
        resolver._upstream = Upstream()  # type: ignore[assignment]
        for name in ("a.test.", "b.test."):
            await resolver._look_up(dns.name.from_text(name), dns.rdatatype.A)

    with pytest.raises(OSError, match="too many"):
        asyncio.run(look_up())
    assert len(pinned) == 2
