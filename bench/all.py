"""Everything that is measured, in one run: `make bench`, or in pieces `make bench ARGS="--row parked --row bwrap"`.

    python bench/all.py [--quick] [--row NAME]… [--long] [--json FILE] [--compare FILE] [--data-dir DIR]

Rows of a group take turns, block by block, so that their ratios hold while the machine's speed drifts. What cannot be measured here
says why. Run it as the service's user, on a machine that does nothing else.
"""

import argparse
import contextlib
import datetime
import itertools
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from subprocess import SubprocessError

import msgspec
import table
from figures import Absent, Blocks, Figure, compared, figure, percentile
from groups import GROUPS, RATIO
from rows import Ground, Group, NotHereError, Row
from service import WentWrongError
from table import Report, Section

import sandboxd

WRONG = (WentWrongError, NotHereError, AssertionError, HTTPException, OSError, SubprocessError)
"""An assertion of the tests' helpers is one: something did not come in time."""
QUICK_BLOCKS, QUICK_RUNS = 2, 3
PARTS = 5
"""The spread of a 99th percentile is that of so many parts of the run."""


def main() -> None:
    """Measure, print a table, write the file."""
    asked = arguments()
    if os.geteuid() == 0:
        sys.exit("run it as an ordinary user, as the service runs: make bench")
    groups = [chosen(group, asked.row, long=asked.long) for group in GROUPS]
    groups = [group for group in groups if group.rows]
    if not groups:
        names = ", ".join(row.name for group in GROUPS for row in group.rows)
        sys.exit(f"no such row; there are: {names}")
    began_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="sandboxd-bench-", dir="/var/tmp")
        )
        ground = Ground(Path(directory), asked.data_dir, stack)
        sections = tuple(measured(group, ground, quick=asked.quick) for group in groups)
    report = Report(
        version=sandboxd.__version__,
        began_at=began_at,
        quick=asked.quick,
        machine=table.machine(),
        sections=sections,
    )
    about = {row.name: row.about for group in groups for row in group.rows}
    before = asked.compare or table.newest_release()
    then = msgspec.json.decode(before.read_bytes(), type=Report) if before else None
    table.show(report, about, then)
    print(f"\nThe same as JSON: {written(report, asked.json)}")
    if any(absent.went_wrong for section in sections for absent in section.absent):
        sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few runs of each: does it run?")
    parser.add_argument("--row", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--long", action="store_true", help="OCI runtimes and how it scales, too")
    parser.add_argument("--json", type=Path, help="where the file goes; a new one in /tmp")
    parser.add_argument("--compare", type=Path, help="such a file; that of the last release")
    parser.add_argument("--data-dir", type=Path, help="where services keep their data (a disk)")
    return parser.parse_args()


def chosen(group: Group, names: Sequence[str], *, long: bool) -> Group:
    """Of a group, the rows that are asked for."""
    if names:
        return group._replace(rows=tuple(row for row in group.rows if row.name in names))
    return group if long or not group.extra else group._replace(rows=())


def measured(group: Group, ground: Ground, *, quick: bool) -> Section:
    """Block after block of each row in turns."""
    absent: list[Absent] = []
    blocks: Blocks = {}
    with contextlib.ExitStack() as stack:
        opened = []
        for row in group.rows:
            tell(f"{group.name}: {row.name}")
            try:
                opened.append((row, stack.enter_context(row.open(ground))))
                blocks[row.name] = []
            except NotHereError as error:
                absent.append(Absent(name=row.name, reason=str(error)))
            except WRONG as error:
                absent.append(failed(row, error))
        for number in range(QUICK_BLOCKS if quick else group.blocks):
            for row, block in list(opened):
                tell(f"{group.name}: {number + 1} of {group.blocks}, {row.name}")
                try:
                    blocks[row.name].append(block(min(row.runs, QUICK_RUNS) if quick else row.runs))
                except WRONG as error:
                    absent.append(failed(row, error))
                    opened.remove((row, block))
                    del blocks[row.name]
    tell("")
    return Section(group.name, tuple(figures_of(group, blocks)), tuple(absent))


def failed(row: Row, error: Exception) -> Absent:
    """A row that went wrong: the others are measured all the same."""
    return Absent(name=row.name, reason=f"{error}", went_wrong=True)


def tell(what: str) -> None:
    """What goes on now, for who looks on."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def figures_of(group: Group, blocks: Blocks) -> Iterable[Figure]:
    for row in group.rows:
        if row.name in blocks:
            yield figure(row.name, row.unit, values_of(blocks[row.name]), row.target)
            if row.tail is not None:
                yield from tail_of(row, blocks[row.name])
    for comparison in group.comparisons:
        found = compared(comparison, blocks)
        if found is not None:
            yield found


def values_of(blocks: Sequence[Sequence[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(blocks))


def tail_of(row: Row, blocks: Sequence[Sequence[float]]) -> Iterable[Figure]:
    """The 99th percentile, and how far it is from the median; its spread is that of parts of the run."""
    whole = values_of(blocks)
    parts = [values_of(blocks[number::PARTS]) for number in range(min(PARTS, len(blocks)))]
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


def written(report: Report, path: Path | None) -> Path:
    if path is None:
        descriptor, name = tempfile.mkstemp(prefix="sandboxd-bench-", suffix=".json")
        os.close(descriptor)
        path = Path(name)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return path


if __name__ == "__main__":
    # However it ends: services, daemons and what they left are taken away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
