"""How commands show what they found: tables for people, tab-separated lines for pipes, JSON for programs."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click
import msgspec

STATE_COLOURS = {
    "succeeded": "green",
    "queued": "cyan",
    "retrying": "cyan",
    "starting": "cyan",
    "running": "cyan",
    "cancelled": "yellow",
    "expired": "yellow",
    "stopped": "green",
    "not tried": "yellow",
}
"""Of jobs, and outcomes of attempts. Every other one is a failure of some kind: red."""


def print_json(value: Any) -> None:
    """One JSON document: Structs, dicts, lists and what they hold."""
    encoded = msgspec.json.format(msgspec.json.encode(value), indent=2)
    click.echo(encoded.decode())


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    empty: str,
    state: int | None = None,
    cut: Sequence[int] = (),
) -> None:
    """A table on a terminal; in a pipe a line of names and then one line per row, separated by tabs.

    `state` is the column that holds job states, which are coloured. `empty` is said (on stderr) of no rows.
    With `cut` each row is one line: these columns are shortened to what the terminal has room for, no other is.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(empty, err=True)
    elif is_terminal(sys.stdout):
        _print_rich_table(columns, cells, state, cut)
    else:
        for line in (columns, *cells):
            click.echo("\t".join(line))


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """One thing and its parts, a line each: aligned on a terminal, `name<TAB>value` in a pipe."""
    shown = [(name, printable(value)) for name, value in fields]
    if not is_terminal(sys.stdout):
        for name, value in shown:
            click.echo(f"{name}\t{value}")
        return
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(f"{colour(name.ljust(width), 'cyan', sys.stdout)}  {value}")


def print_error(message: str) -> None:
    """What went wrong and what to do about it, on stderr."""
    sentence = "sandboxd: " + printable(message, keep="\n")
    click.echo(colour(sentence, "red", sys.stderr), err=True)


def print_note(message: str) -> None:
    """Something worth knowing that is not the command's result, on stderr."""
    click.echo(printable(message), err=True)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Within, what is given takes (done, in all) and shows a bar: on a terminal's stderr, nowhere else."""
    hidden = not is_terminal(sys.stderr)
    with click.progressbar(length=1, label=label, file=sys.stderr, hidden=hidden) as bar:

        def tell(done: int, size: int) -> None:
            bar.length = size
            bar.update(done - bar.pos)

        yield tell


def printable(text: str, *, keep: str = "") -> str:
    """The text without power over the terminal: names and commands are other people's words."""
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in text
    )


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads this stream."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def colour(text: str, name: str, stream: TextIO) -> str:
    """The text in a colour, where there is a terminal that wants it (https://no-color.org)."""
    if is_terminal(stream) and not os.environ.get("NO_COLOR"):
        return click.style(text, fg=name)
    return text


def _print_rich_table(
    columns: Sequence[str], cells: list[list[str]], state: int | None, cut: Sequence[int]
) -> None:
    # Imported here: rich takes longer to load than most commands to run.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell_text(index: int, cell: str) -> Text:
        style = STATE_COLOURS.get(cell, "red") if index == state else ""
        if index in cut:
            return Text(cell, style=style, no_wrap=True, overflow="ellipsis")
        return Text(cell, style=style)

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
        header_style="bold",
    )
    for index, column in enumerate(columns):
        # The first column names the row: never cut, so that it can be copied.
        whole = index == 0 or (bool(cut) and index not in cut)
        heading = Text(column.upper(), no_wrap=True, overflow="crop")
        table.add_column(heading, no_wrap=whole, overflow="fold")
    for row in cells:
        table.add_row(*(cell_text(index, cell) for index, cell in enumerate(row)))
    Console(highlight=False).print(table)
