"""Delivers the events of the outbox to the operator's URL: signed as Standard Webhooks say, again and again until it is taken.

What is to be delivered lies in the store, where the transaction that made it happen put it. A service that ends leaves the
rest to the next one; an event may come twice, and its id says so.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from sandboxd.errors import SandboxdError
from sandboxd.metrics import Metrics
from sandboxd.settings import WebhookSettings
from sandboxd.store.outbox import Undelivered
from sandboxd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    import httpx2

logger = structlog.get_logger(__name__)

_MINUTE, _HOUR = 60.0, 3600.0
RETRY_SECONDS = (
    5.0,
    5 * _MINUTE,
    30 * _MINUTE,
    2 * _HOUR,
    5 * _HOUR,
    10 * _HOUR,
    14 * _HOUR,
    20 * _HOUR,
    24 * _HOUR,
)
"""From one attempt to the next; after the last of them it is given up."""
_JITTER = 0.1
"""Of each pause, so that what failed together does not come back together."""
_ATTEMPT_SECONDS = 10.0
_AT_ONCE = 100
"""Events that are read together."""
_STORE_SECONDS = 5.0
"""Until a store that could not be asked is asked again."""


class Webhooks:
    """Who carries events out of the store."""

    def __init__(
        self,
        store: SqliteStore,
        metrics: Metrics,
        settings: WebhookSettings,
        *,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._url = settings.url
        self._key = settings.signing_key
        self._retry_seconds = retry_seconds
        self._wake = asyncio.Event()
        self._random = random.SystemRandom()

    def look(self) -> None:
        """There may be something new."""
        self._wake.set()

    async def run(self) -> None:
        """For ever: deliver what is due, then wait for more."""
        import httpx2  # Only where there is something to deliver to: it takes a while.

        async with httpx2.AsyncClient(follow_redirects=False, trust_env=False) as http:
            while True:
                self._wake.clear()
                try:
                    due_at = await self._deliver_due(http)
                except Exception as error:
                    # Whatever it is: what is to be delivered must be looked at again.
                    if not isinstance(error, SandboxdError):
                        logger.exception("webhooks failed")
                    else:
                        logger.warning("webhooks not looked at", error=str(error))
                    due_at = time.time() + _STORE_SECONDS
                pause = None if due_at is None else max(0.0, due_at - time.time())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()

    async def _deliver_due(self, http: "httpx2.AsyncClient") -> float | None:
        """Try each event that is due once. When the next one is (Unix time); None: there is none."""
        for event in await self._store.due_events(time.time(), _AT_ONCE):
            fault = await self._deliver(http, event)
            if fault is None:
                await self._store.note_attempt(event.id, None)
                self._metrics.webhook("delivered")
                continue
            last = event.attempts >= len(self._retry_seconds)
            await self._store.note_attempt(event.id, None if last else self._next_at(event))
            self._metrics.webhook("given_up" if last else "failed")
            logger.warning("webhook not delivered", event_id=event.id, error=fault, given_up=last)
        return await self._store.next_event_due()

    def _next_at(self, event: Undelivered) -> float:
        pause = self._retry_seconds[event.attempts]
        return time.time() + pause * (1 + self._random.uniform(0.0, _JITTER))

    async def _deliver(self, http: "httpx2.AsyncClient", event: Undelivered) -> str | None:
        """What went wrong; None: it was taken. Nothing of the answer but its status is read."""
        import httpx2

        body = event.body.encode()
        headers = {
            "content-type": "application/cloudevents+json",
            **signed_headers(self._key, event.id, int(time.time()), body),
        }
        try:
            async with (
                asyncio.timeout(_ATTEMPT_SECONDS),
                http.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                return None if answer.is_success else f"status {answer.status_code}"
        except TimeoutError:
            return f"no answer in {_ATTEMPT_SECONDS:g} s"
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return f"{type(error).__name__}: {error}"


def signed_headers(key: bytes, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Standard Webhooks 1.0: who has the key can tell that these bytes come from here, and are not old ones."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
