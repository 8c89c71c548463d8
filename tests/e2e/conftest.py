"""Jobs of the real service: each test leaves nothing behind, and beside some a neighbour works."""

from collections.abc import Iterator

import httpx2
import pytest
from neighbour import neighbour, nothing_is_left
from pulling_service import pulling
from registries import registry
from running_service import RunningService
from sandbox_client import Box

__all__ = ["neighbour", "nothing_is_left", "pulling", "registry"]


@pytest.fixture
def http(real_service: RunningService, client: object) -> Iterator[httpx2.Client]:
    with real_service.http() as connected:
        yield connected


@pytest.fixture
def box(http: httpx2.Client) -> Iterator[Box]:
    with Box(http) as made:
        yield made
