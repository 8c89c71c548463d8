"""The resolver of a sandbox with egress: answers for names that the sandbox may reach, and opens what it answers.

It asks the host's own resolvers, by dnspython. An address that the sandbox may not reach is left out of the answer, so that a name
that points to the inside (DNS rebinding) leads nowhere, and every address that is told is in the firewall before it is told.
Only A and AAAA are answered; there is no other way out for a question, so nothing is carried out in names that are not
allowed.
"""

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset

from sandboxd.background import Background
from sandboxd.isolation.destinations import Address, Allowed
from sandboxd.isolation.firewall import Refusal

_LONGEST_QUESTION_BYTES = 512
_MOST_QUESTIONS = 16
"""Of one sandbox at once; more are not heard."""
_MOST_ADDRESSES = 8
"""Of one answer: it fits in a datagram of 512 bytes, so TCP is never needed."""
_LONGEST_TTL_SECONDS = 60
_LOOKUP_SECONDS = 5.0
_MOST_PINNED = 4096
"""Of one sandbox, as many as its firewall takes: each further one would only cost the host a process."""
_MOST_REFUSED = 64
_LONGEST_TOLD = 253

Pin = tuple[Address, int | None]


class Resolver(asyncio.DatagramProtocol):
    """Answers what comes to one sandbox's resolver socket."""

    def __init__(self, allowed: Allowed, pin: Callable[[Sequence[Pin]], Awaitable[None]]) -> None:
        """`pin` opens addresses, each at a port or (None) at all; it raises SandboxdError or OSError if it cannot."""
        self._allowed = allowed
        self._pin = pin
        self._pinned: set[Pin] = set()
        self._upstream: dns.asyncresolver.Resolver | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._answering = Background()
        self._refused: Counter[str] = Counter()

    async def start(self, bound: socket.socket) -> None:
        """Answer from now on, by a socket that becomes the resolver's own."""
        bound.setblocking(False)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=bound)

    def close(self) -> None:
        """Answer nothing more."""
        for task in self._answering.tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.close()

    @property
    def refused(self) -> list[Refusal]:
        """Names that the sandbox asked for and may not reach."""
        return [Refusal(name, "dns", 53, count) for name, count in self._refused.most_common()]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) > _LONGEST_QUESTION_BYTES or len(self._answering.tasks) >= _MOST_QUESTIONS:
            return
        try:
            question = dns.message.from_wire(data)
            if question.flags & dns.flags.QR or len(question.question) != 1:
                return
        except (dns.exception.DNSException, ValueError):
            return
        self._answering.spawn(self._answer(question, addr))

    async def _answer(self, question: dns.message.Message, addr: tuple[str, int]) -> None:
        answer = dns.message.make_response(question, recursion_available=True)
        asked = question.question[0]
        if asked.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            try:
                addresses, ttl = await self._look_up(asked.name, asked.rdtype)
                texts = [str(address) for address in addresses]
                if texts:
                    answer.answer.append(
                        dns.rrset.from_text(asked.name, ttl, "IN", asked.rdtype, *texts)
                    )
            except dns.resolver.NXDOMAIN:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            except (dns.exception.DNSException, OSError):
                answer.set_rcode(dns.rcode.SERVFAIL)
        elif not self._may_ask(_text_of(asked.name)):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(answer.to_wire(), addr)

    async def _look_up(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> tuple[list[Address], int]:
        """The addresses that may be reached, opened by now. Raises DNSException, OSError."""
        text = _text_of(name)
        if not self._may_ask(text):
            self._refuse(text)
            raise dns.resolver.NXDOMAIN
        if self._upstream is None:
            self._upstream = dns.asyncresolver.Resolver()
        found = await self._upstream.resolve(
            name, kind, raise_on_no_answer=False, lifetime=_LOOKUP_SECONDS, search=False
        )
        if found.rrset is None:
            return [], 0
        reachable, pins = [], []
        for record in list(found.rrset)[:_MOST_ADDRESSES]:
            address = ipaddress.ip_address(record.address)
            ports = self._allowed.ports_of(text, address)
            if ports is not None:
                reachable.append(address)
                pins += [(address, port) for port in ports if (address, port) not in self._pinned]
        if not reachable:
            self._refuse(text)
            raise dns.resolver.NXDOMAIN
        if len(self._pinned) + len(pins) > _MOST_PINNED:
            raise OSError("the sandbox has reached too many addresses by name")
        if pins:
            await self._pin(pins)
            self._pinned.update(pins)
        return reachable, min(found.rrset.ttl, _LONGEST_TTL_SECONDS)

    def _may_ask(self, name: str) -> bool:
        return self._allowed.reaches_public() or any(
            entry.names(name) for entry in self._allowed.destinations
        )

    def _refuse(self, name: str) -> None:
        if name in self._refused or len(self._refused) < _MOST_REFUSED:
            self._refused[name] += 1


def _text_of(name: dns.name.Name) -> str:
    """As it is compared: lower case, without the dot at the end. Other bytes than ASCII are escaped."""
    return name.to_text(omit_final_dot=True).lower()[:_LONGEST_TOLD]
