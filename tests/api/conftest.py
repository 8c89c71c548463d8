from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from api_service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service without authentication for the tests of a module."""
    with Service().running(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[httpx2.Client]:
    with service.client() as http:
        yield http


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """A service that the test may break."""
    with Service().running(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service that asks for keys."""
    with Service(auth=True).running(tmp_path_factory.mktemp("guarded")) as running:
        yield running
