"""The image of a job: the one that is here, or the one that its registry has, which comes first then.

A job whose image has to come waits for it as a part of its start. It keeps no room meanwhile: those whose image is here go on.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import structlog

from sandboxd.errors import SettingsError, Unavailable
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.puller import Puller
from sandboxd.images.resolved import ResolvedImage
from sandboxd.images.transfers import Tell
from sandboxd.jobs import Job, Reason
from sandboxd.quantities import format_bytes
from sandboxd.running.commands import Stop
from sandboxd.running.verdict import Outcome

logger = structlog.get_logger(__name__)


async def _unrecorded(_: Reason, __: str) -> None:
    """Nobody keeps a record."""


class Meanwhile(NamedTuple):
    """What whoever has a job run wants to do while its image comes."""

    away: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext
    """Within, the job needs no room; at the end it waits until it has some again."""
    note: Callable[[Reason, str], Awaitable[None]] = _unrecorded
    """Hears of the events, each with its sentence."""
    tell: Tell = lambda _: None
    """Hears of the progress of each layer."""


async def fetch(
    puller: Puller, job: Job, outcome: Outcome, stop: Stop, meanwhile: Meanwhile
) -> ResolvedImage | None:
    """The image of a job. None: it was stopped before it came. Raises Refused, SandboxFailed.

    How long it took is in the outcome.
    """
    spec = job.spec
    tenant = job.tenant or None
    image = await puller.at_hand(spec.image, tenant, spec.pull)
    if image is not None:
        return image
    began = time.monotonic()
    try:
        return await stop.unless_stopped(_pull(puller, job, tenant, outcome, meanwhile))
    except SettingsError as error:
        logger.error("registries not usable", job_id=job.id, error=str(error))
        detail = "the service's own settings of this registry cannot be used"
        raise Unavailable(detail, code="registry_settings") from error
    finally:
        outcome.away_seconds = time.monotonic() - began


async def _pull(
    puller: Puller, job: Job, tenant: str | None, outcome: Outcome, meanwhile: Meanwhile
) -> ResolvedImage:
    spec = job.spec
    async with meanwhile.away():
        began = time.monotonic()
        await meanwhile.note(Reason.IMAGE_PULL_STARTED, spec.image)
        try:
            pulled = await puller.pull(
                parse_reference(spec.image), tenant, meanwhile.tell, spec.pull_seconds
            )
        finally:
            outcome.pull_seconds = time.monotonic() - began
        size = format_bytes(pulled.fetched_bytes)
        await meanwhile.note(
            Reason.IMAGE_PULLED,
            f"{pulled.image.digest}: {size} fetched in {outcome.pull_seconds:.1f} s",
        )
        came = time.monotonic()
    outcome.queue_seconds += time.monotonic() - came
    return await puller.images.resolve(spec.image, tenant)
