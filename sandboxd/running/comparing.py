"""Whether a command printed what was expected, and where it first did not. Pure.

Lines and words are made one by one: what was printed may be a great many of them, and the first difference is near the start.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable
from typing import NamedTuple, assert_never

from sandboxd.jobs import Difference
from sandboxd.steps import Checker, Comparison

SHOWN_BYTES = 200
_WORD = re.compile(rb"\S+")


class _Piece(NamedTuple):
    line: int
    content: bytes


def first_difference(expected: bytes, printed: bytes, checker: Checker) -> Difference | None:
    """None: it is what was expected. Not for Comparison.PROGRAM (ValueError)."""
    match checker.comparison:
        case Comparison.EXACT:
            return _compare(_lines(expected), _lines(printed))
        case Comparison.TRIMMED:
            return _compare(_trimmed(expected), _trimmed(printed))
        case Comparison.TOKENS:
            return _compare(_tokens(expected), _tokens(printed))
        case Comparison.FLOATS:
            return _compare(_tokens(expected), _tokens(printed), checker.tolerance)
        case Comparison.PROGRAM:
            raise ValueError("a program compares by itself")
        case _:
            assert_never(checker.comparison)


def _compare(
    expected: Iterable[_Piece], printed: Iterable[_Piece], tolerance: float | None = None
) -> Difference | None:
    last = 1
    for wanted, found in itertools.zip_longest(expected, printed):
        if found is not None:
            last = found.line
        if wanted is None or found is None or not _equal(wanted.content, found.content, tolerance):
            return Difference(
                line=found.line if found else last,
                expected=_shown(wanted.content) if wanted else "",
                printed=_shown(found.content) if found else "",
            )
    return None


def _equal(wanted: bytes, found: bytes, tolerance: float | None) -> bool:
    if wanted == found:
        return True
    if tolerance is None:
        return False
    first, second = _number(wanted), _number(found)
    if first is None or second is None:
        return False
    # isclose() is false for what is not finite, unless both are the same infinity.
    return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)


def _number(token: bytes) -> float | None:
    """A decimal number as C's printf writes it. (Python's float() also takes underscores.)"""
    if len(token) > SHOWN_BYTES or b"_" in token:
        return None
    try:
        return float(token)
    except ValueError:
        return None


def _lines(content: bytes) -> Iterable[_Piece]:
    """With their ends, so that a missing last newline is a difference."""
    for number, line in enumerate(io.BytesIO(content), 1):
        yield _Piece(number, line)


def _trimmed(content: bytes) -> Iterable[_Piece]:
    for number, line in enumerate(io.BytesIO(content.rstrip()), 1):
        yield _Piece(number, line.rstrip())


def _tokens(content: bytes) -> Iterable[_Piece]:
    for number, line in enumerate(io.BytesIO(content), 1):
        for word in _WORD.finditer(line):
            yield _Piece(number, word[0])


def _shown(content: bytes) -> str:
    return content[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
