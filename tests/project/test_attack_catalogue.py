"""docs/attacks.md and the markers of the tests say the same."""

from collections import Counter

import attack_report
import pytest
from attack_catalogue import TREE, Row, marked_rows, read_rows

ROWS = read_rows()
MARKED = marked_rows()


def test_the_table_has_every_row_once_and_in_order() -> None:
    assert [row.number for row in ROWS] == list(range(1, 76))
    assert [row.number for row in ROWS if not row.technique or not row.wall] == []


def test_no_marker_names_a_row_that_is_not_there() -> None:
    known = {row.number for row in ROWS}

    assert {module: rows - known for module, rows in MARKED.items() if rows - known} == {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_a_row_names_just_the_modules_that_try_it_or_says_why_none_does(
    row: Row,
) -> None:
    assert row.modules == {module for module, rows in MARKED.items() if row.number in rows}
    assert row.modules or row.reason.startswith(("Does not apply yet: ", "Not tried yet"))


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        ({}, "not tried"),
        ({"skipped": 3}, "not tried"),
        ({"passed": 1, "skipped": 3}, "stopped"),
        ({"passed": 40, "failed": 1}, "NOT STOPPED"),
        ({"failed": 1, "skipped": 1}, "NOT STOPPED"),
    ],
)
def test_one_failure_means_that_an_attack_was_not_stopped(
    outcomes: dict[str, int], word: str
) -> None:
    assert attack_report.verdict(Counter(outcomes)) == word


INSIDE = """
import pytest

@pytest.mark.attack(3, 7)
def test_stopped(): pass

@pytest.mark.attack(7)
def test_not_stopped(): assert False

@pytest.fixture
def leaking():
    yield
    raise RuntimeError

@pytest.mark.attack(9)
def test_that_leaves_something(leaking): pass

@pytest.mark.attack(11)
@pytest.mark.skip
def test_skipped(): pass

def test_other(): assert False
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_only_attacks_run_and_each_row_has_its_verdict(
    workers: list[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{TREE / 'tests'}:{TREE}")
    pytester.makepyfile(INSIDE)
    pytester.makeini("[pytest]\nmarkers = attack\n")

    ran = pytester.runpytest_subprocess("-p", "attack_report", "--attacks", *workers)

    ran.assert_outcomes(passed=2, failed=1, errors=1, skipped=1, deselected=0 if workers else 1)
    ran.stdout.re_match_lines(
        [
            r" +3 .* 1  stopped$",
            r" +7 .* 2  NOT STOPPED$",
            r" +8 .* 0  not tried: Does not apply yet: .*",
            r" +9 .* 1  NOT STOPPED$",
            r" +11 .* 1  not tried: not in this run, or skipped$",
            r"75 rows: 1 stopped, 2 NOT STOPPED, 72 not tried$",
        ]
    )
