"""Layers on their way, some at a time: how far each is, and what all of it failed of."""

from collections.abc import Callable
from typing import NamedTuple

Tell = Callable[["Progress"], None]


class Progress(NamedTuple):
    """How far a layer is."""

    digest: str
    done_bytes: int
    size_bytes: int
    cached: bool = False
    """It was here before."""


def first_of(failed: BaseException) -> BaseException:
    """What a group of tasks failed of."""
    while isinstance(failed, BaseExceptionGroup):
        failed = failed.exceptions[0]
    return failed
