"""What a row of the table is: a thing that is measured in blocks, one job each."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from figures import Comparison, Target
from service import MeasuredService, running_service

PAUSE_SECONDS = 0.02
"""Before each run that is measured alone: a parked sandbox that was used is replaced meanwhile."""


class NotHereError(Exception):
    """This row cannot be measured on this machine, and why."""


class Ground:
    """What the rows of one run share."""

    def __init__(self, directory: Path, data_dir: Path | None, stack: contextlib.ExitStack) -> None:
        """`directory`: for files of the rows; `data_dir`: where services keep their data, None: on the disk of /var/tmp."""
        self.directory = directory
        self.data_dir = data_dir
        self._stack = stack
        self._service: MeasuredService | None = None

    def service(self) -> MeasuredService:
        """The service with settings as they come, for every row that needs no other."""
        if self._service is None:
            self._service = self._stack.enter_context(running_service(self.data_dir))
        return self._service


Block = Callable[[int], list[float]]
"""So many runs in a row; what each gave, in the unit of the row."""
Opened = contextlib.AbstractContextManager[Block]


class Row(NamedTuple):
    """One thing that is measured."""

    name: str
    about: str
    open: Callable[[Ground], Opened]
    """Raises NotHereError."""
    unit: str = "ms"
    runs: int = 10
    """In one block."""
    target: Target | None = None
    tail: Target | None = None
    """Of the 99th percentile, as a multiple of the median."""


class Group(NamedTuple):
    """Rows whose blocks take turns."""

    name: str
    rows: tuple[Row, ...]
    blocks: int
    comparisons: tuple[Comparison, ...] = ()
    extra: bool = False
    """Measured only when it is asked for: it takes long."""


def program(name: str, package: str) -> str:
    """The path of a program. Raises NotHereError."""
    found = shutil.which(name)
    if found is None:
        raise NotHereError(f"{name} is not installed (Debian: {package})")
    return found


def each_alone(action: Callable[[], object], pause_seconds: float = PAUSE_SECONDS) -> Block:
    """Milliseconds of each of some runs, with a pause before each."""

    def block(runs: int) -> list[float]:
        taken = []
        for _ in range(runs):
            time.sleep(pause_seconds)
            taken.append(1000 * seconds_of(action))
        return taken

    return block


def seconds_of(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@contextlib.contextmanager
def ready(block: Block) -> Iterator[Block]:
    """A row that has nothing to set up or to take down."""
    yield block
