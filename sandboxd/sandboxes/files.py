"""Single files of a sandbox that lives: written, read, listed, removed, all by its init, from inside the walls.

What comes and goes lies in a file of ours meanwhile, so that init never waits for a slow client: a pipe is between it and a thread.
"""

import asyncio
import errno
import glob
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from sandboxd.errors import Conflict, NotFound, SandboxFailed, Unavailable
from sandboxd.files.content import check_free
from sandboxd.files.transfers import write_in_time
from sandboxd.isolation.entries import BadEntries, Entries, Listed
from sandboxd.isolation.protocol import Collect, Look, NotPlaced
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import File
from sandboxd.isolation.streams import READ_BYTES

MOST_LISTED = 10_000
_SECONDS = 120.0
"""A transfer that takes longer ends the sandbox: its init does nothing else meanwhile."""

_THREADS = ThreadPoolExecutor(64, thread_name_prefix="sandbox-file")
"""Of their own: a sandbox that does not do its part holds one until the deadline, and up nobody else."""

T = TypeVar("T")


class Opened(NamedTuple):
    """A file that was read: the caller closes it."""

    file: IO[bytes]
    size_bytes: int
    mode: int


def spool(directory: Path) -> IO[bytes]:
    """A file without a name, for what is under way."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=directory)


async def write(
    sandbox: Sandbox, path: str, content: IO[bytes], size_bytes: int, mode: int
) -> None:
    """Make a file of a content from its beginning. Raises NotFound, Conflict, SandboxFailed."""
    content.seek(0)
    reading, writing = os.pipe()
    feeding = asyncio.get_running_loop().run_in_executor(
        _THREADS, _feed, content, writing, time.monotonic() + _SECONDS
    )
    try:
        files = (File(path, mode, size_bytes),)
        answer = await _in_time(sandbox, lambda: sandbox.place(files, reading))
    finally:
        os.close(reading)
        await asyncio.shield(feeding)
    if isinstance(answer, NotPlaced):
        raise _refusal(path, answer.errno)


async def read(
    sandbox: Sandbox, path: str, directory: Path, *, most_bytes: int, min_free_bytes: int
) -> Opened:
    """A copy of a file, in a directory on whose disk `min_free_bytes` stay free.

    Raises NotFound, Conflict (it is none, or too large), Unavailable (no space), SandboxFailed.
    """
    request = Collect("/", (glob.escape(path),), most_bytes, 1)
    copy = spool(directory)
    try:
        found = await _through_pipe(
            sandbox,
            lambda output: sandbox.collect(request, output),
            lambda reading: _read_first(reading, copy, most_bytes, min_free_bytes),
        )
        if found is None:
            raise _refusal(path, errno.ENOENT)
        kind, mode, note = found
        if kind != "file":
            raise Conflict(f"{path} is no file that can be read ({note or kind})", code="no_file")
    except BaseException:
        copy.close()
        raise
    size_bytes = copy.tell()
    copy.seek(0)
    return Opened(copy, size_bytes, mode)


async def list_directory(sandbox: Sandbox, path: str) -> tuple[list[Listed], bool]:
    """What is in a directory, and whether there is more. Raises NotFound, Conflict, SandboxFailed."""

    async def ask(output: int) -> object:
        answer = await sandbox.look(Look(path, MOST_LISTED + 1), output)
        if isinstance(answer, NotPlaced):
            # Nothing is written into the pipe here: one that is full would hold up the whole service.
            raise _refusal(path, answer.errno)
        return answer

    listed = await _through_pipe(sandbox, ask, _read_listed)
    return sorted(listed)[:MOST_LISTED], len(listed) > MOST_LISTED


async def remove(sandbox: Sandbox, path: str) -> None:
    """Remove a file, or a directory that is empty. Raises NotFound, Conflict, SandboxFailed."""
    answer = await _in_time(sandbox, lambda: sandbox.remove(path))
    if isinstance(answer, NotPlaced):
        raise _refusal(path, answer.errno)


async def _through_pipe(
    sandbox: Sandbox, ask: Callable[[int], Awaitable[object]], read: Callable[[int], T]
) -> T:
    """Have init write into a pipe and read it in a thread. Raises SandboxFailed, and what `read` raises."""
    reading, writing = os.pipe()
    taking = asyncio.get_running_loop().run_in_executor(_THREADS, _taken, read, reading)
    try:
        await _in_time(sandbox, lambda: ask(writing))
    finally:
        os.close(writing)
        taken = await asyncio.shield(taking)
    if isinstance(taken, BadEntries | OSError):
        sandbox.kill()  # init does not speak like this.
        raise SandboxFailed("read files", str(taken))
    return taken


async def _in_time(sandbox: Sandbox, ask: Callable[[], Awaitable[T]]) -> T:
    try:
        async with asyncio.timeout(_SECONDS):
            return await ask()
    except TimeoutError:
        sandbox.kill()
        raise SandboxFailed("move files", f"it took more than {_SECONDS:g} s") from None


# In threads: each owns the descriptor that it is given


def _feed(content: IO[bytes], writing: int, deadline: float) -> None:
    try:
        os.set_blocking(writing, False)
        while piece := content.read(READ_BYTES):
            write_in_time(writing, memoryview(piece), deadline)
    except (BrokenPipeError, TimeoutError):
        pass  # init will say why, or has said something else without having read it.
    finally:
        os.close(writing)


def _taken(read: Callable[[int], T], reading: int) -> T | BadEntries | OSError:
    try:
        return read(reading)
    except (BadEntries, OSError) as error:
        return error
    finally:
        os.close(reading)


def _read_first(
    reading: int, copy: IO[bytes], most_bytes: int, min_free_bytes: int
) -> tuple[str, int, str] | None:
    """Kind, mode and note of the first entry, with its content in `copy`; None: there is none.

    Raises Unavailable (no space), BadEntries, OSError.
    """
    entries = Entries(
        reading, most_bytes=most_bytes, most_entries=1, deadline=time.monotonic() + _SECONDS
    )
    for entry in entries:
        for piece in entries.content():
            try:
                check_free(copy.fileno(), min_free_bytes + len(piece))
                copy.write(piece)
                copy.flush()
            except OSError as error:
                raise no_space(error) from error
        return entry.kind, entry.mode, entry.note
    return None


def _read_listed(reading: int) -> list[Listed]:
    entries = Entries(
        reading,
        most_bytes=0,
        most_entries=MOST_LISTED + 1,
        deadline=time.monotonic() + _SECONDS,
    )
    return list(entries.listed())


def no_space(error: OSError) -> Unavailable:
    """What a client is told where its file cannot be kept meanwhile."""
    detail = f"There is no place for this file now: {error.strerror}."
    return Unavailable(detail, code="no_space", retry_after_seconds=60)


def _refusal(path: str, number: int) -> Conflict | NotFound:
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"there is no {path}", code="file_not_found")
    return Conflict(f"{path}: {os.strerror(number)}", code="file_unusable")
