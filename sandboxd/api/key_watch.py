"""What lasts longer than a request: it does not outlive the key that it was asked for with."""

import asyncio
from collections.abc import AsyncIterator, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sandboxd.api.parts import Call

KEY_SECONDS = 5.0
"""So often the key is looked at again."""


async def watch_key(call: Call) -> None:
    """Raises Refused when the key is no longer valid, or cannot be looked up."""
    while True:
        await asyncio.sleep(KEY_SECONDS)
        await call.authentication.principal(call.scope)


class KeyedStream(StreamingResponse):
    """A stream that is broken off when its key is no longer valid: the client sees that it is not whole."""

    def __init__(
        self,
        call: Call,
        content: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streaming = asyncio.ensure_future(super().__call__(scope, receive, send))
        watching = asyncio.ensure_future(watch_key(self._call))
        both = (streaming, watching)
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
