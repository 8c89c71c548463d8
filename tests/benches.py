"""Launchers of the tests' own, as fixtures: each directory that names one has it once for all its tests."""

from collections.abc import Iterator

import pytest
from sandbox_bench import ALLOW_ALL_CALLS, Bench, a_bench, without


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """Sandboxes as they are. One was made already: what the first opens and starts stays, whichever test comes first."""
    with a_bench() as made:
        made.do(_one_sandbox(made))
        yield made


@pytest.fixture(scope="session")
def unfiltered() -> Iterator[Bench]:
    """Sandboxes whose filter allows every call: what is refused is refused by another wall."""
    with without(ALLOW_ALL_CALLS) as made:
        yield made


@pytest.fixture(scope="session", params=["range", "single", "range blank", "single blank"])
def either(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Sandboxes with subordinate ids, and with a single id, built in one go and of blanks."""
    mode, _, blank = request.param.partition(" ")
    with a_bench(mode, from_blanks=bool(blank)) as made:
        yield made


async def _one_sandbox(bench: Bench) -> None:
    async with bench.sandbox():
        pass
