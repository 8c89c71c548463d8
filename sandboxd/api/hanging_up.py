"""Requests that are held: as long as somebody waits for the answer."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from sandboxd.api.parts import Call

T = TypeVar("T")


async def while_connected(call: Call, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns. Raises ClientDisconnect as soon as the client hangs up; the work is cancelled then."""
    end = asyncio.ensure_future(work)
    hang_up = asyncio.ensure_future(_hang_up(call))
    try:
        await asyncio.wait((end, hang_up), return_when=asyncio.FIRST_COMPLETED)
        if not end.done():
            raise ClientDisconnect
        return end.result()
    finally:
        end.cancel()
        hang_up.cancel()


async def _hang_up(call: Call) -> None:
    """Returns when the client has closed its connection."""
    while (await call.receive())["type"] != "http.disconnect":
        pass  # the rest of a body that nobody asked for
