"""Everything that is measured, in one run: `make bench`, or in pieces `make bench ARGS="--row parked --row bwrap"`.

    python bench/all.py [--quick] [--row NAME]… [--long] [--jobs N] [--json FILE] [--compare FILE]
        [--data-dir DIR]

Rows of a group take turns, block by block, so that their ratios hold while the machine's speed drifts. What cannot be measured here
says why. A run that is interrupted shows and writes what there is until then. Run it as the service's user, on a machine that does
nothing else.
"""

import argparse
import contextlib
import datetime
import os
import pwd
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from subprocess import SubprocessError

import msgspec
import table
from figures import Absent
from groups import GROUPS, MANY_JOBS
from record import Measured, Record
from rows import Block, Ground, Group, NotHereError
from service import WentWrongError
from table import Report

import sandboxd

WRONG = (WentWrongError, NotHereError, AssertionError, HTTPException, OSError, SubprocessError)
"""An assertion of the tests' helpers is one: something did not come in time."""
QUICK_BLOCKS, QUICK_RUNS = 2, 3


def main() -> None:
    """Measure, print a table, write the file."""
    asked = arguments()
    if os.geteuid() == 0:
        sys.exit("run it as an ordinary user, as the service runs: make bench")
    groups = [chosen(group, asked.row, asked.jobs, long=asked.long) for group in GROUPS]
    groups = [group for group in groups if group.rows]
    if not groups:
        names = ", ".join(row.name for group in GROUPS for row in group.rows)
        sys.exit(f"no such row; there are: {names}")
    # All that is needed at the end is tried before anything is measured.
    before = earlier(asked.compare or table.newest_release())
    path = writable(asked.json)
    record = Record(
        version=sandboxd.__version__,
        began_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        quick=asked.quick,
        machine=table.machine(),
    )
    try:
        with ground(asked.data_dir) as shared:
            for group in groups:
                measure(group, shared, record.begin(group), quick=asked.quick)
        record.complete = True
    finally:
        report = record.report()
        said = written(report, path)
        about = {row.name: row.about for group in groups for row in group.rows}
        table.show(report, about, before)
        print(f"\n{said}", flush=True)
    if any(absent.went_wrong for section in report.sections for absent in section.absent):
        sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few runs of each: does it run?")
    parser.add_argument("--row", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--long", action="store_true", help="OCI runtimes and much of all, too")
    parser.add_argument("--jobs", type=int, help=f"of the row {MANY_JOBS.rows[0].name}; 20,000")
    parser.add_argument("--json", type=Path, help="where the file goes; a new one in /tmp")
    parser.add_argument("--compare", type=Path, help="such a file; that of the last release")
    parser.add_argument("--data-dir", type=Path, help="where services keep their data (a disk)")
    return parser.parse_args()


def chosen(group: Group, names: Sequence[str], jobs: int | None, *, long: bool) -> Group:
    """Of a group, the rows that are asked for, with as many jobs as that is where many are."""
    if group is MANY_JOBS and jobs is not None:
        group = group._replace(rows=tuple(row._replace(runs=jobs) for row in group.rows))
    if names:
        return group._replace(rows=tuple(row for row in group.rows if row.name in names))
    return group if long or not group.extra else group._replace(rows=())


def earlier(path: Path | None) -> Report | None:
    """The run to compare with."""
    if path is None:
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        sys.exit(f"{path.absolute()} cannot be read by {user()}: {error.strerror}")
    except msgspec.MsgspecError as error:
        sys.exit(f"{path.absolute()} is no file of this bench: {error}")


def writable(path: Path | None) -> Path:
    """Where the file goes: it can be written."""
    if path is None:
        descriptor, name = tempfile.mkstemp(prefix="sandboxd-bench-", suffix=".json")
        os.close(descriptor)
        return Path(name)
    try:
        path.open("ab").close()
    except OSError as error:
        sys.exit(f"{path.absolute()} cannot be written by {user()}: {error.strerror}")
    return path


def written(report: Report, path: Path) -> str:
    """Write the file. Returns what to say of it."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    except OSError as error:
        return f"{path} was not written: {error.strerror}"
    return f"The same as JSON: {path}"


def user() -> str:
    """Who the bench is: where root says `make bench`, the service's user."""
    return pwd.getpwuid(os.geteuid()).pw_name


@contextlib.contextmanager
def ground(data_dir: Path | None) -> Iterator[Ground]:
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="sandboxd-bench-", dir="/var/tmp")
        yield Ground(Path(stack.enter_context(made)), data_dir, stack)


def measure(group: Group, shared: Ground, found: Measured, *, quick: bool) -> None:
    """Block after block of each row in turns."""
    try:
        with contextlib.ExitStack() as stack:
            blocks = dict(opened(group, shared, found, stack))
            count = min(group.blocks, QUICK_BLOCKS) if quick else group.blocks
            for number in range(count):
                for row in [row for row in group.rows if row.name in blocks]:
                    tell(f"{group.name}: {number + 1} of {count}, {row.name}")
                    runs = min(row.runs, QUICK_RUNS) if quick else row.runs
                    try:
                        found.blocks[row.name].append(blocks[row.name](runs))
                    except WRONG as error:
                        found.failed(row.name, error)
                        del blocks[row.name]
    except WRONG as error:  # The rows have their figures; the next ones are measured all the same.
        found.failed(f"the end of {group.name}", error)
    tell("")


def opened(
    group: Group, shared: Ground, found: Measured, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Block]]:
    """The rows that are here, by name."""
    for row in group.rows:
        tell(f"{group.name}: {row.name}")
        try:
            block = stack.enter_context(row.open(shared))
        except NotHereError as error:
            found.absent.append(Absent(name=row.name, reason=str(error)))
        except WRONG as error:
            found.failed(row.name, error)
        else:
            found.blocks[row.name] = []
            yield row.name, block


def tell(what: str) -> None:
    """What goes on now, for who looks on."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def ended(number: int, _: object) -> None:
    """However it ends: what there is is written; services, daemons and what they left are taken away."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, ended)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
