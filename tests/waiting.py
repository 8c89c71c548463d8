"""Waiting for what sends no event, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

_LOOK_AGAIN_SECONDS = 0.01


def wait_for(look: Callable[[], Found], what: str, *, seconds: float = 15.0) -> Found:
    """What `look` returns as soon as that is true. Fails after `seconds`, with the last thing that it returned."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s; last seen: {found!r}"
        time.sleep(_LOOK_AGAIN_SECONDS)
    return found
