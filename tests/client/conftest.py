from collections.abc import Iterator

import pytest
from api_service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The API without authentication, on ordinary processes."""
    with Service().running(tmp_path_factory.mktemp("service")) as running:
        yield running
