"""Figures as a table for people, in a terminal or in a pipe, and as JSON; beside those of an earlier release."""

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from figures import Absent, Figure

from sandboxd.quotas.host import probe_host

STORED = Path(__file__).with_name("figures")
"""A file for each release, of a machine that did nothing else; the file says which."""
HEADINGS = ("", "", "p50", "p10", "p90", "unit", "of", "target", "", "then")


class Section(msgspec.Struct, frozen=True):
    """The figures of rows that took turns."""

    name: str
    figures: tuple[Figure, ...]
    absent: tuple[Absent, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the bench: the file."""

    version: str
    """Of sandboxd."""
    began_at: str
    quick: bool
    """Then the figures show that everything runs, and no more."""
    complete: bool = True
    """Not interrupted: else some figures are of fewer runs, and some are not there."""
    machine: dict[str, str | int]
    sections: tuple[Section, ...]


class Line(NamedTuple):
    cells: tuple[str, ...]
    met: bool | None = None
    there: bool = True


def newest_release() -> Path | None:
    """The stored figures of the last release."""
    found = STORED.glob("*.json") if STORED.is_dir() else ()
    return max(found, key=lambda path: _numbers(path.stem), default=None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def show(report: Report, about: dict[str, str], before: Report | None) -> None:
    """Print it: a table with lines and colours in a terminal, plain text in a pipe."""
    then = (
        {figure.name: figure for section in before.sections for figure in section.figures}
        if before
        else {}
    )
    sections = [(section.name, list(_lines(section, about, then))) for section in report.sections]
    headings = (*HEADINGS[:-1], before.version if before else "")
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    print(f"sandboxd {report.version}; {machine}")
    if report.quick:
        print("Few runs of each: that shows that they run, not how fast.")
    if not report.complete:
        print("It was interrupted: this is what there was until then.")
    if sys.stdout.isatty():
        _draw(sections, headings)
    else:
        _print_plain(sections, headings)


def _lines(section: Section, about: dict[str, str], then: dict[str, Figure]) -> Iterator[Line]:
    for figure in section.figures:
        cells = (
            figure.name,
            about.get(figure.name, ""),
            *(_number(value) for value in (figure.value, figure.low, figure.high)),
            figure.unit,
            str(figure.count),
            figure.target,
            {None: "", True: "met", False: "not met"}[figure.met],
            _change(figure, then.get(figure.name)),
        )
        yield Line(cells, figure.met)
    for absent in section.absent:
        word = "went wrong" if absent.went_wrong else "not here"
        cells = (absent.name, f"{word}: {absent.reason}", *[""] * (len(HEADINGS) - 2))
        yield Line(cells, there=False)


def _number(value: float) -> str:
    """Three digits are as much as a figure of time can say."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _change(now: Figure, then: Figure | None) -> str:
    if then is None or not then.value:
        return ""
    return f"{_number(then.value)} ({now.value / then.value - 1:+.0%})"


def _draw(sections: Sequence[tuple[str, list[Line]]], headings: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(pad_edge=False, box=None, header_style="bold")
    for number, heading in enumerate(headings):
        is_number = number in (2, 3, 4, 6)
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=number != 1)
    for name, lines in sections:
        table.add_row(Text(name, style="bold"))
        for line in lines:
            style = {None: "", True: "green", False: "red"}[line.met] if line.there else "dim"
            cells = [Text(cell) for cell in line.cells]
            cells[-2].stylize(style)
            table.add_row(*cells, style="" if line.there else "dim")
    Console().print(table)


def _print_plain(sections: Sequence[tuple[str, list[Line]]], headings: Sequence[str]) -> None:
    there = [line.cells for _, lines in sections for line in lines if line.there]
    widths = [max(map(len, column)) for column in zip(headings, *there, strict=True)]
    for name, lines in sections:
        print(f"\n{name}")
        print(_padded(headings, widths))
        for line in lines:
            print(_padded(line.cells, widths) if line.there else "  ".join(line.cells).rstrip())


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    words = [
        cell.rjust(width) if number in (2, 3, 4, 6) else cell.ljust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(words).rstrip()


def machine() -> dict[str, str | int]:
    """What the figures depend on besides us."""
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "processors": len(os.sched_getaffinity(0)),
        "memory MiB": int(memory) // 1024,
        "Linux": platform.release(),
        "Python": platform.python_version(),
        "memory counted by": str(probe_host().controllers["memory"].version),
    }
