"""What is measured, as values: figures with their spread, comparisons of figures of one run, and what they are to be."""

import operator
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec


class Target(NamedTuple):
    """What a figure is to be: at most, or at least, this."""

    word: str
    bound: float

    def __str__(self) -> str:
        return f"{self.word} {self.bound:,g}"

    def is_met_by(self, value: float) -> bool:
        compare = operator.le if self.word == "≤" else operator.ge
        return bool(compare(value, self.bound))


def at_most(bound: float) -> Target:
    return Target("≤", bound)


def at_least(bound: float) -> Target:
    return Target("≥", bound)


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table, and of the file beside it."""

    name: str
    unit: str
    value: float
    """The median."""
    low: float
    high: float
    """A tenth of what was measured is below `low`, a tenth above `high`."""
    count: int
    target: str = ""
    met: bool | None = None


class Absent(msgspec.Struct, frozen=True, kw_only=True):
    """A row that cannot be measured here."""

    name: str
    reason: str
    went_wrong: bool = False
    """Not because something is not installed: the bench ends with 1."""


Blocks = dict[str, list[list[float]]]
"""Row by row what each of its blocks gave; the blocks with one number ran one after the other."""


class Comparison(NamedTuple):
    """A figure that comes from two rows: from each pair of neighbouring blocks, so that it holds while the machine's speed drifts."""

    name: str
    unit: str
    one: str
    other: str
    of: Callable[[float, float], float]
    target: Target | None = None


def figure(name: str, unit: str, values: Sequence[float], target: Target | None = None) -> Figure:
    """The median and the spread of what was measured."""
    value = statistics.median(values)
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values
    return Figure(
        name=name,
        unit=unit,
        value=value,
        low=tenths[0],
        high=tenths[-1],
        count=len(values),
        target=str(target or ""),
        met=None if target is None else target.is_met_by(value),
    )


def percentile(values: Sequence[float], hundredth: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[hundredth - 1]


def compared(comparison: Comparison, blocks: Blocks) -> Figure | None:
    """None where one of the rows is not there."""
    pairs = list(
        zip(blocks.get(comparison.one, []), blocks.get(comparison.other, []), strict=False)
    )
    if not pairs:
        return None
    values = [comparison.of(statistics.median(one), statistics.median(two)) for one, two in pairs]
    return figure(comparison.name, comparison.unit, values, comparison.target)
