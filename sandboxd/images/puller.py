"""Pulls for a whole service: who asks for what is being pulled already waits for that; so many at once; each for so long at most.

A pull belongs to all who wait for it: it goes on as long as one of them does, and each hears of its progress from the beginning.
Who came with credentials of their own shares with nobody else: what the registry showed them is for them alone.
"""

import asyncio
import contextlib
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Literal, NamedTuple

from sandboxd.errors import NotAllowed, NotFound, Unavailable
from sandboxd.images.catalogue import Images
from sandboxd.images.documents.references import Reference, is_reference, parse_reference
from sandboxd.images.pulling import pull
from sandboxd.images.pushing import Pushed, push
from sandboxd.images.registries.terms import Access
from sandboxd.images.registries.transport import Transport
from sandboxd.images.resolved import ResolvedImage
from sandboxd.images.transfers import Progress, Tell
from sandboxd.jobs import Image, PullPolicy
from sandboxd.quotas.image_patterns import matches_any
from sandboxd.settings import ImagesSettings

Accesses = Mapping[str, Access]
AccessesFor = Callable[[str | None], Accesses]
"""What is known of registries when a tenant's images are pulled, by HOST[:PORT]: the operator's (None), and above them the
tenant's own."""
PullOutcome = Literal["pulled", "failed", "abandoned"]

POLICY = "images.registries"
"""What a refusal because of the operator's setting names."""


class Pulled(NamedTuple):
    """An image that came."""

    image: Image
    fetched_bytes: int
    seconds: float


class PullFigures(NamedTuple):
    """How a pull ended, for who counts."""

    outcome: PullOutcome
    fetched_bytes: int
    seconds: float


def _uncounted(_: PullFigures) -> None:
    """Nobody counts."""


class _Pull:
    """One that goes on, and who waits for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Pulled]
        self.listeners: list[Tell] = []
        self.progress: dict[str, Progress] = {}
        """By layer: how far it is."""
        self.lines: dict[str | None, asyncio.Task[None]] = {}
        """By tenant: who stands in line for it."""
        self.has_turn = asyncio.Event()
        self.began = time.monotonic()

    def tell(self, progress: Progress) -> None:
        self.progress[progress.digest] = progress
        for listener in tuple(self.listeners):
            listener(progress)

    @property
    def fetched_bytes(self) -> int:
        return sum(each.done_bytes for each in self.progress.values() if not each.cached)


class Puller:
    """The pulls of one process."""

    def __init__(
        self,
        images: Images,
        settings: ImagesSettings,
        accesses_for: AccessesFor,
    ) -> None:
        self.images = images
        self.settings = settings
        self._accesses_for = accesses_for
        self.on_end: Callable[[PullFigures], None] = _uncounted
        self.hits = 0
        """How often an image was here when it was wanted."""
        self._pulls: dict[tuple[str, str | None], _Pull] = {}
        self._turns = asyncio.Semaphore(settings.pulls_at_once)
        self._turns_of = defaultdict[str | None, asyncio.Semaphore](
            lambda: asyncio.Semaphore(math.ceil(settings.pulls_at_once / 2))
        )
        self._closed = False

    async def close(self) -> None:
        """End all pulls. What came completely is kept, and the next start of a service removes the rest."""
        self._closed = True
        tasks = [each.task for each in self._pulls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def at_hand(
        self, name: str, tenant: str | None, policy: PullPolicy
    ) -> ResolvedImage | None:
        """The image without a pull, held as `Images.resolve` does it. None: it has to be pulled.

        Raises NotFound for what is not here and is not to be pulled.
        """
        may_pull = policy is not PullPolicy.NEVER and is_reference(name)
        if may_pull and policy is PullPolicy.ALWAYS:
            return None
        try:
            image = await self.images.resolve(name, tenant)
        except NotFound:
            if may_pull:
                return None
            raise
        self.hits += 1
        return image

    async def ready(
        self,
        name: str,
        tenant: str | None,
        policy: PullPolicy,
        tell: Tell,
        seconds: float | None = None,
    ) -> ResolvedImage:
        """The image, pulled first if that has to be. Raises as `at_hand` and `pull`."""
        image = await self.at_hand(name, tenant, policy)
        if image is None:
            await self.pull(parse_reference(name), tenant, tell, seconds)
            image = await self.images.resolve(name, tenant)
        return image

    async def pull(
        self, reference: Reference, tenant: str | None, tell: Tell, seconds: float | None = None
    ) -> Pulled:
        """Have an image pulled, alone or with who waits for the same already. `tell` hears of what came so far, too.

        `seconds`: so long at most, if that is less than the operator's bound. Raises as `pulling.pull`, and NotAllowed.
        """
        check_registry(reference, self.settings)
        if self._closed:
            raise Unavailable("the service is shutting down", code="draining")
        most = self.settings.pull_seconds
        seconds = most if seconds is None else min(seconds, most)
        try:
            async with asyncio.timeout(seconds):
                accesses = await asyncio.to_thread(self._accesses_for, tenant)  # It reads files.
                whose = owner_of(accesses, reference)
                return await self._join(reference, accesses, tenant, whose, tell)
        except TimeoutError:
            detail = f"{reference} was not here after {seconds:g} s"
            raise Unavailable(detail, code="image_pull_timeout") from None

    async def push(
        self, name: str, destination: Reference, tenant: str | None, tell: Tell
    ) -> Pushed:
        """Send an image to a registry, with what the operator or the tenant has for it. Raises as `pushing.push`, and NotAllowed."""
        check_registry(destination, self.settings)
        most = self.settings.pull_seconds
        try:
            async with asyncio.timeout(most):
                accesses = await asyncio.to_thread(self._accesses_for, tenant)  # It reads files.
                async with _connections(accesses) as transport:
                    return await push(self.images, transport, name, destination, tell)
        except TimeoutError:
            detail = f"{destination} was not there after {most:g} s"
            raise Unavailable(detail, code="image_push_timeout") from None

    async def _join(
        self,
        reference: Reference,
        accesses: Accesses,
        tenant: str | None,
        whose: str | None,
        tell: Tell,
    ) -> Pulled:
        key = (str(reference), whose)
        current = self._pulls.get(key)
        if current is None:
            current = self._pulls[key] = _Pull()
            work = self._work(current, reference, accesses, whose, for_tenant=tenant is not None)
            current.task = asyncio.get_running_loop().create_task(work)
            current.task.add_done_callback(lambda _: self._end(key, current))
        for progress in tuple(current.progress.values()):
            tell(progress)
        self._stand_in_line(current, tenant)
        current.listeners.append(tell)
        try:
            return await asyncio.shield(current.task)
        except asyncio.CancelledError:
            if current.task.cancelled():
                # Not who waits was stopped, but what they wait for.
                raise Unavailable("the service is shutting down", code="draining") from None
            raise
        finally:
            current.listeners.remove(tell)
            if not current.listeners and not current.task.done():
                # From now on it is nobody's: who comes next begins anew.
                current.task.cancel()
                self._forget(key, current)

    async def _work(
        self,
        current: _Pull,
        reference: Reference,
        accesses: Accesses,
        whose: str | None,
        *,
        for_tenant: bool,
    ) -> Pulled:
        try:
            await current.has_turn.wait()
            async with self._turns:
                current.began = time.monotonic()
                async with _connections(accesses) as transport:
                    image = await pull(
                        self.images,
                        transport,
                        reference,
                        current.tell,
                        owner=whose or "",
                        for_tenant=for_tenant,
                    )
                return Pulled(image, current.fetched_bytes, time.monotonic() - current.began)
        finally:
            for line in current.lines.values():
                line.cancel()

    def _stand_in_line(self, current: _Pull, tenant: str | None) -> None:
        """A pull begins when the first of those who wait for it has a turn: nobody waits for what else another tenant pulls."""
        if tenant not in current.lines and not current.has_turn.is_set():
            line = self._take_turn(current, tenant)
            current.lines[tenant] = asyncio.get_running_loop().create_task(line)

    async def _take_turn(self, current: _Pull, tenant: str | None) -> None:
        async with self._turns_of[tenant]:
            if not current.has_turn.is_set():
                current.has_turn.set()
                await asyncio.Event().wait()  # Until the pull is over, which cancels this.

    def _end(self, key: tuple[str, str | None], current: _Pull) -> None:
        self._forget(key, current)
        outcome: PullOutcome = "abandoned"
        if not current.task.cancelled():
            outcome = "pulled" if current.task.exception() is None else "failed"
        seconds = time.monotonic() - current.began
        self.on_end(PullFigures(outcome, current.fetched_bytes, seconds))

    def _forget(self, key: tuple[str, str | None], current: _Pull) -> None:
        if self._pulls.get(key) is current:
            del self._pulls[key]


def owner_of(accesses: Accesses, reference: Reference) -> str | None:
    """The tenant with whose own credentials a registry is asked; None: with those that are everybody's, or none.

    Asked of who uses them: a registry may be called with its usual port, or without.
    """
    return Transport(accesses).access(reference.registry).owner or None


def check_registry(reference: Reference, settings: ImagesSettings) -> None:
    """Raises NotAllowed for an image of a registry that the operator does not want."""
    name = f"{reference.domain}/{reference.path}"
    if settings.registries and not matches_any(name, settings.registries):
        allowed = ", ".join(settings.registries)
        raise NotAllowed(
            f"{name} may not be used here: the operator allows only {allowed}.",
            policy=POLICY,
            of="service",
        )


@contextlib.asynccontextmanager
async def _connections(accesses: Accesses) -> AsyncIterator[Transport]:
    transport = Transport(accesses)
    try:
        yield transport
    finally:
        await transport.close()
