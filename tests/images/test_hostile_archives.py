"""Every archive of the corpus, imported and as a layer, by init in a real sandbox: the tree is what it must be, or the refusal is.

Each within bounds of time and memory, with nothing else touched and no process left (see ArchiveBench).
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_bench import ArchiveBench
from hostile_archives import (
    COMPRESSED,
    CORPUS,
    HARD_LINKS,
    HEADERS,
    KINDS,
    LINKS,
    NAMES,
    NUMBERS,
    SPARSE,
    WHITEOUTS,
    Case,
    Outcome,
    Tree,
)
from sandbox_bench import Bench, a_bench

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def single() -> Iterator[Bench]:
    with a_bench("single") as made:
        yield made


@pytest.fixture
def bench_of_archives(single: Bench) -> Iterator[ArchiveBench]:
    with tempfile.TemporaryDirectory(prefix="sandboxd-archives-", dir="/dev/shm") as directory:
        yield ArchiveBench(single, Path(directory))


PARTS = [
    *(pytest.param(case, id=name, marks=pytest.mark.attack(61)) for name, case in NAMES.items()),
    *(pytest.param(case, id=name, marks=pytest.mark.attack(61)) for name, case in LINKS.items()),
    *(
        pytest.param(case, id=name, marks=pytest.mark.attack(62))
        for name, case in HARD_LINKS.items()
    ),
    *(
        pytest.param(case, id=name, marks=pytest.mark.attack(63))
        for name, case in WHITEOUTS.items()
    ),
    *(
        pytest.param(case, id=name, marks=pytest.mark.attack(29, 64))
        for name, case in KINDS.items()
    ),
    *(pytest.param(case, id=name, marks=pytest.mark.attack(64)) for name, case in NUMBERS.items()),
    *(
        pytest.param(case, id=name, marks=pytest.mark.attack(64, 65))
        for name, case in SPARSE.items()
    ),
    *(
        pytest.param(case, id=name, marks=pytest.mark.attack(64, 66))
        for name, case in HEADERS.items()
    ),
    *(
        pytest.param(case, id=name, marks=pytest.mark.attack(65, 66))
        for name, case in COMPRESSED.items()
    ),
]


def test_no_archive_is_in_the_corpus_twice() -> None:
    every = [case.archive for part in CORPUS.values() for case in part.values()]

    assert len(every) >= 200
    assert len(PARTS) == len(every)
    assert len({part.id for part in PARTS}) == len(every)


@pytest.mark.thorough
@pytest.mark.parametrize("case", PARTS)
def test_an_archive_becomes_what_it_must_or_is_refused(
    case: Case, bench_of_archives: ArchiveBench
) -> None:
    if case.imported is not None:
        _compare(case.imported, *bench_of_archives.imported(case.archive))
    if case.layered is not None:
        whole = not isinstance(case.layered, str)
        applied = bench_of_archives.layered(case.archive, case.lower, whole=whole)
        _compare(case.layered, *applied)


def _compare(expected: Outcome, tree: Tree, refusal: str | None) -> None:
    if isinstance(expected, str):
        assert refusal is not None, f"it was taken: {tree}"
        assert re.search(expected, refusal), refusal
        assert len(refusal) <= 500
    else:
        assert refusal is None
        assert tree == expected
