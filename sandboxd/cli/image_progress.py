"""How the layers of an image are doing: a bar for each on a terminal, a line for each that is there in a pipe."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sandboxd.cli import output
from sandboxd.quantities import format_bytes

if TYPE_CHECKING:
    from sandboxd.client import LayerProgress
    from sandboxd.images.transfers import Progress as OurProgress

    Progress = OurProgress | LayerProgress

_DIGITS = 12
"""Of a digest: as many as tell the layers of an image apart."""


@contextmanager
def shown(*, silent: bool) -> Iterator[Callable[["Progress"], None]]:
    """Within, what is given takes the progress of layers and shows it on stderr."""
    if silent:
        yield lambda _: None
    elif output.is_terminal(sys.stderr):
        with _bars() as tell:
            yield tell
    else:
        yield _tell_in_lines


def last_of(steps: Iterable[Any], tell: Callable[["Progress"], None]) -> Any:
    """What came of a pull or push by a service, whose layers are told of meanwhile."""
    from sandboxd.client import LayerProgress

    last = None
    for step in steps:
        if isinstance(step, LayerProgress):
            tell(step)
        else:
            last = step
    return last


def _tell_in_lines(progress: "Progress") -> None:
    if progress.done_bytes == progress.size_bytes and not progress.cached:
        size = format_bytes(progress.size_bytes)
        output.print_note(f"layer {_short(progress)}: {size}")


@contextmanager
def _bars() -> Iterator[Callable[["Progress"], None]]:
    # Imported here: rich takes longer to load than most commands to run.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def tell(progress: "Progress") -> None:
            if progress.digest not in tasks:
                tasks[progress.digest] = bars.add_task(_short(progress), total=progress.size_bytes)
            bars.update(tasks[progress.digest], completed=progress.done_bytes)

        yield tell


def _short(progress: "Progress") -> str:
    return progress.digest.removeprefix("sha256:")[:_DIGITS]
