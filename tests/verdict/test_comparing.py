"""Whether what was printed is what was expected."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.running.comparing import first_difference
from sandboxd.steps import Checker, Comparison

EXACT, TRIMMED, TOKENS, FLOATS = (
    Checker(comparison=comparison)
    for comparison in (Comparison.EXACT, Comparison.TRIMMED, Comparison.TOKENS, Comparison.FLOATS)
)


@pytest.mark.parametrize(
    ("checker", "expected", "printed", "line"),
    [
        (EXACT, b"a\n", b"a\n", None),
        (EXACT, b"", b"", None),
        (EXACT, b"a\n", b"a", 1),
        (EXACT, b"a\nb\n", b"a\nb \n", 2),
        (EXACT, b"a\r\n", b"a\n", 1),
        (EXACT, b"\xff\0", b"\xff\0", None),
        (TRIMMED, b"a\nb\n", b"a  \nb\t\n\n\n", None),
        (TRIMMED, b"a\r\nb", b"a\nb", None),
        (TRIMMED, b"a b", b"a  b", 1),
        (TRIMMED, b"a\n\nb", b"a\nb", 2),
        (TRIMMED, b"", b" \n\n", None),
        (TRIMMED, b" a", b"a", 1),
        (TOKENS, b"1 2\n3", b" 1\n2 3 ", None),
        (TOKENS, b"1 2", b"1 2 3", 1),
        (TOKENS, b"1 2 3", b"1\n2", 2),
        (TOKENS, b"1", b"1.0", 1),
        (FLOATS, b"1", b"1.0", None),
        (FLOATS, b"0.3333333", b"0.33333331", None),
        (FLOATS, b"1e9", b"1000000001", None),
        (FLOATS, b"1", b"1.1", 1),
        (FLOATS, b"1", b"nan", 1),
        (FLOATS, b"nan", b"nan", None),
        (FLOATS, b"inf", b"infinity", None),
        (FLOATS, b"inf", b"1e308", 1),
        (FLOATS, b"yes 1", b"no 1", 1),
        (FLOATS, b"1000", b"1_000", 1),
    ],
)
def test_each_comparison(
    checker: Checker, expected: bytes, printed: bytes, line: int | None
) -> None:
    found = first_difference(expected, printed, checker)

    assert (None if found is None else found.line) == line


def test_the_difference_shows_both_sides_and_not_all_of_them() -> None:
    found = first_difference(b"same\n" + b"x" * 10_000, b"same\ny\xff\n", TRIMMED)

    assert found is not None
    assert (found.line, len(found.expected), found.printed) == (2, 200, "y\\xff")


def test_the_tolerance_is_the_checker_s() -> None:
    coarse = Checker(comparison=Comparison.FLOATS, tolerance=0.1)

    assert first_difference(b"100", b"109", coarse) is None
    assert first_difference(b"100", b"112", coarse) is not None


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(), st.binary(), st.sampled_from([EXACT, TRIMMED, TOKENS, FLOATS]))
def test_anything_is_itself_and_the_order_does_not_matter(
    one: bytes, other: bytes, checker: Checker
) -> None:
    assert first_difference(one, one, checker) is None
    assert (first_difference(one, other, checker) is None) == (
        first_difference(other, one, checker) is None
    )


@pytest.mark.parametrize("checker", [EXACT, TRIMMED, TOKENS, FLOATS])
def test_a_great_many_lines_take_no_more_memory_than_they_have_bytes(checker: Checker) -> None:
    printed = b"1\n" * 1_000_000
    tracemalloc.start()
    try:
        found = first_difference(b"1\n2\n", printed, checker)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert found is not None
    assert found.line == 2
    assert peak_bytes < 2 * len(printed)
