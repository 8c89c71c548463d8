"""Files that commands read archives from and write them to, with `-` for our own input and nothing for our own output."""

import contextlib
import os
import pwd
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import click

from sandboxd.cli import output

OUR_INPUT = Path("-")


def check_readable(file: Path) -> None:
    """Raises UsageError if there is nothing to read."""
    if file == OUR_INPUT:
        if output.is_terminal(sys.stdin):
            raise click.UsageError("our input is a terminal: give the name of an archive")
    elif not os.access(file, os.R_OK):
        user = pwd.getpwuid(os.geteuid()).pw_name
        raise click.UsageError(f"{file} does not exist, or user {user} may not read it")


def check_writable(file: Path) -> None:
    """Raises UsageError if there can be no such file."""
    place = file.absolute().parent
    if not place.is_dir():
        raise click.UsageError(f"there is no directory {place}")
    if not os.access(file if file.exists() else place, os.W_OK):
        user = pwd.getpwuid(os.geteuid()).pw_name
        raise click.UsageError(f"user {user} may not write {file}")


@contextlib.contextmanager
def sent(file: Path) -> Iterator[BinaryIO]:
    """What a service is sent, with a bar of how much of it."""
    with contextlib.ExitStack() as stack:
        ours = file == OUR_INPUT
        opened = sys.stdin.buffer if ours else stack.enter_context(file.open("rb"))
        told = stack.enter_context(output.progress(f"sending {file.name}"))
        yield cast("BinaryIO", _Read(opened, told))


@contextlib.contextmanager
def written(file: Path | None) -> Iterator[BinaryIO]:
    """A file that is there whole or not at all; a device or a pipe as it is; our output for None."""
    if file is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if file.exists() and not file.is_file():
        with file.open("wb") as there:
            yield there
        return
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as made:
            yield made
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


class _Read:
    """An open file that tells how far it was read."""

    def __init__(self, file: BinaryIO, told: Callable[[int, int], None]) -> None:
        self._file = file
        self._told = told
        self.fileno = file.fileno
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        piece = self._file.read(size)
        status = os.fstat(self._file.fileno())
        if stat.S_ISREG(status.st_mode):
            self._told(self._file.tell(), status.st_size)
        return piece
