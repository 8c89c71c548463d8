"""Waiting for what sends no event, with a deadline."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

TIME_FACTOR = float(os.environ.get("TEST_TIME_FACTOR", "1"))
"""How much longer things may take here than on a usual machine: an emulated one is many times slower."""

_LOOK_AGAIN_SECONDS = 0.01


def wait_for(look: Callable[[], Found], what: str, *, seconds: float = 15.0) -> Found:
    """What `look` returns as soon as that is true. Fails after `seconds`, with the last thing that it returned."""
    allowed = seconds * TIME_FACTOR
    deadline = time.monotonic() + allowed
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {allowed} s; last seen: {found!r}"
        time.sleep(_LOOK_AGAIN_SECONDS)
    return found
