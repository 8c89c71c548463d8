"""What was measured until now, group by group: at any time it can be made a report."""

import itertools
import statistics
from collections.abc import Iterable, Sequence

import msgspec
from figures import Absent, Blocks, Figure, compared, figure, percentile
from groups import RATIO
from rows import Group, Row
from table import Report, Section

PARTS = 5
"""The spread of a 99th percentile is that of so many parts of the run."""


class Measured:
    """Of one group: the blocks of its rows, and the rows that are not there."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.blocks: Blocks = {}
        self.absent: list[Absent] = []

    def failed(self, name: str, error: Exception) -> None:
        """A row that went wrong: the others are measured all the same."""
        self.blocks.pop(name, None)
        self.absent.append(Absent(name=name, reason=f"{error}", went_wrong=True))


class Record:
    """One run of the bench."""

    def __init__(
        self, *, version: str, began_at: str, quick: bool, machine: dict[str, str | int]
    ) -> None:
        self._version = version
        self._began_at = began_at
        self._quick = quick
        self._machine = machine
        self._groups: list[Measured] = []
        self.complete = False

    def begin(self, group: Group) -> Measured:
        """The next group."""
        self._groups.append(Measured(group))
        return self._groups[-1]

    def report(self) -> Report:
        """What there is."""
        return Report(
            version=self._version,
            began_at=self._began_at,
            quick=self._quick,
            complete=self.complete,
            machine=self._machine,
            sections=tuple(_section(measured) for measured in self._groups),
        )


def _section(measured: Measured) -> Section:
    blocks = {name: row_blocks for name, row_blocks in measured.blocks.items() if row_blocks}
    figures = tuple(_figures_of(measured.group, blocks))
    return Section(measured.group.name, figures, tuple(measured.absent))


def _figures_of(group: Group, blocks: Blocks) -> Iterable[Figure]:
    for row in group.rows:
        if row.name in blocks:
            yield figure(row.name, row.unit, _values_of(blocks[row.name]), row.target)
            if row.tail is not None:
                yield from _tail_of(row, blocks[row.name])
    for comparison in group.comparisons:
        found = compared(comparison, blocks)
        if found is not None:
            yield found


def _values_of(blocks: Sequence[Sequence[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(blocks))


def _tail_of(row: Row, blocks: Sequence[Sequence[float]]) -> Iterable[Figure]:
    """The 99th percentile, and how far it is from the median; its spread is that of parts of the run."""
    whole = _values_of(blocks)
    parts = [_values_of(blocks[number::PARTS]) for number in range(min(PARTS, len(blocks)))]
    p99s = [percentile(part, 99) for part in parts]
    multiples = [percentile(part, 99) / statistics.median(part) for part in parts]
    p99 = percentile(whole, 99)
    for name, unit, value, spread, target in (
        (f"{row.name} p99", row.unit, p99, p99s, None),
        (f"{row.name} p99 to p50", RATIO, p99 / statistics.median(whole), multiples, row.tail),
    ):
        base = figure(name, unit, spread, target)
        met = None if target is None else target.is_met_by(value)
        yield msgspec.structs.replace(base, value=value, met=met, count=len(whole))
