"""Files into a job's sandbox before its command, and out of it afterwards.

init makes and reads them, from inside the walls. Between it and us is a pipe; a thread is at our end, so that neither a slow
disk nor a sandbox that does not do its part holds up anything else. A sandbox that takes too long is killed, which ends the pipe
and with it the thread; and each thread ends by itself at its deadline.
"""

import asyncio
import contextlib
import fcntl
import os
import select
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TypeVar

from sandboxd.errors import SandboxFailed
from sandboxd.files.changes import changes_of
from sandboxd.files.content import Contents, StorageFailed
from sandboxd.files.keeping import Keeper, Kept
from sandboxd.isolation import protocol
from sandboxd.isolation.entries import BadEntries, Entries, TooLate
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import File, NotMade
from sandboxd.jobs import Changes, Job

MOST_ENTRIES = 10_000
"""So many entries of a writable layer are looked at."""
_MOST_THREADS = 64
_PIPE_BYTES = 2**20
_CHUNK_BYTES = 2**20

_NO_FILES: Mapping[str, bytes] = MappingProxyType({})

T = TypeVar("T")


class _TooLong(Exception):
    """The time for a transfer is over."""


class Transfers:
    """Puts files into sandboxes, and keeps what comes out of them."""

    def __init__(
        self,
        *,
        uploads: Contents,
        artifacts: Contents,
        most_bytes: int,
        most_entries: int,
        seconds: float,
    ) -> None:
        """`most_bytes` and `most_entries` are kept of a job; each way may take so many `seconds`."""
        self._uploads = uploads
        self._artifacts = artifacts
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="transfer")

    def close(self) -> None:
        """Nothing more will be asked for."""
        self._threads.shutdown(wait=False)

    async def place(
        self, sandbox: Sandbox, job: Job, workdir: str, more: Mapping[str, bytes] = _NO_FILES
    ) -> NotMade | None:
        """Make a job's files in a sandbox, and `more` (absolute path to content). Returns the one that could not be made.

        Raises SandboxFailed, and StorageFailed if what was uploaded cannot be read.
        """
        wanted = [
            File(os.path.join(workdir, file.path), file.mode, file.size_bytes)
            for file in job.spec.files
        ]
        wanted += [File(path, 0o644, len(content)) for path, content in more.items()]
        reading, writing = _pipe()
        deadline = time.monotonic() + self._seconds
        feeding = self._begin(lambda: self._feed(job, more, writing, deadline))
        try:
            async with self._time_limit("make files"):
                answer = await sandbox.place(wanted, reading)
        except _TooLong as error:
            raise SandboxFailed("make files", str(error)) from None
        finally:
            os.close(reading)  # init closes its own: the thread ends, whether or not all was read.
            fault = await asyncio.shield(feeding)
        if fault is not None:
            raise StorageFailed(f"what was uploaded cannot be read: {fault}")
        if isinstance(answer, protocol.NotPlaced):
            if answer.number >= len(wanted):
                raise SandboxFailed("make files", f"init speaks of file {answer.number}")
            return NotMade(wanted[answer.number].path, answer.errno)
        return None

    async def collect(
        self, sandbox: Sandbox, job: Job, workdir: str, *, stopped: Callable[[], bool]
    ) -> Kept:
        """Keep the files that a job's patterns name; they are on the disk when this returns.

        If the job is `stopped` meanwhile, or if it takes too long, what came until then is kept. Raises SandboxFailed,
        StorageFailed.
        """
        request = protocol.Collect(workdir, job.spec.outputs, self._most_bytes, self._most_entries)
        reading, writing = _pipe()
        deadline = time.monotonic() + self._seconds
        keeper = Keeper(self._artifacts, job, workdir)
        keeping = self._begin(lambda: self._read(keeper, reading, deadline))
        cut_short = ""
        try:
            async with self._time_limit("collect files"):
                await sandbox.collect(request, writing)
        except _TooLong:
            cut_short = "time_limit"
        except SandboxFailed:
            if not stopped():
                raise
            cut_short = "stopped"
        finally:
            os.close(writing)
            fault = await asyncio.shield(keeping)
        if isinstance(fault, StorageFailed):
            raise fault
        if isinstance(fault, TooLate):  # The thread's clock may be first.
            cut_short = cut_short or "time_limit"
        if fault is not None and not cut_short:
            raise SandboxFailed("collect files", str(fault))
        return keeper.kept(cut_short)

    async def changes(
        self, sandbox: Sandbox, trees: Sequence[str], *, stopped: Callable[[], bool]
    ) -> Changes | None:
        """What was created, changed and deleted in a sandbox whose image has these trees, the uppermost first; None if it was stopped meanwhile.

        Raises SandboxFailed.
        """
        reading, writing = _pipe()
        deadline = time.monotonic() + self._seconds
        comparing = self._begin(lambda: _compare(reading, trees, deadline))
        try:
            async with self._time_limit("list changes"):
                await sandbox.changes(protocol.Changes(MOST_ENTRIES), writing)
        except _TooLong as error:
            raise SandboxFailed("list changes", str(error)) from None
        except SandboxFailed:
            if not stopped():
                raise
            return None
        finally:
            os.close(writing)
            found = await asyncio.shield(comparing)
        if isinstance(found, Changes):
            return found
        raise SandboxFailed("list changes", str(found))

    def _begin(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextlib.asynccontextmanager
    async def _time_limit(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._seconds):
                yield
        except TimeoutError:
            raise _TooLong(f"it took more than {self._seconds:g} s to {what}") from None

    # In threads: each owns the descriptor that it is given

    def _feed(
        self, job: Job, more: Mapping[str, bytes], writing: int, deadline: float
    ) -> OSError | None:
        """Write a job's contents into the pipe, then those of `more`. Returns what went wrong on the disk.

        They are copied: pages of a file of the host's have no place in a pipe that a sandbox holds.
        """
        try:
            os.set_blocking(writing, False)
            write_in_time(writing, memoryview(job.spec.contents), deadline)
            uploaded = [file for file in job.spec.files if file.offset is not None]
            if uploaded:
                with contextlib.closing(self._uploads.open(job.id)) as upload:
                    for file in uploaded:
                        for piece in upload.views(file.offset or 0, file.size_bytes or 0):
                            write_in_time(writing, piece, deadline)
            for content in more.values():
                write_in_time(writing, memoryview(content), deadline)
        except (BrokenPipeError, TimeoutError):
            return None  # init will say, or be made to.
        except OSError as error:
            return error
        finally:
            os.close(writing)
        return None

    def _read(self, keeper: Keeper, reading: int, deadline: float) -> Exception | None:
        """Keep what comes out of the pipe. Returns what went wrong."""
        entries = Entries(
            reading,
            most_bytes=self._most_bytes,
            most_entries=self._most_entries,
            deadline=deadline,
        )
        try:
            keeper.keep(entries)
        except (StorageFailed, BadEntries) as error:
            return error
        finally:
            os.close(reading)
        return None


def _compare(reading: int, trees: Sequence[str], deadline: float) -> Changes | Exception:
    """What the entries in the pipe are next to an image, or what is wrong with them. In a thread; closes the pipe."""
    try:
        entries = Entries(reading, most_bytes=0, most_entries=MOST_ENTRIES, deadline=deadline)
        return changes_of(entries, trees)
    except (BadEntries, OSError) as error:
        return error
    finally:
        os.close(reading)


def _pipe() -> tuple[int, int]:
    """(reading end, writing end), as large as the kernel gives."""
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):  # One user may have only so much in large pipes (pipe(7)).
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing


def write_in_time(pipe: int, content: memoryview, deadline: float) -> None:
    """Write all of it. Raises BrokenPipeError, and TimeoutError at the deadline (time.monotonic())."""
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    while content:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        with contextlib.suppress(BlockingIOError):
            content = content[os.write(pipe, content[:_CHUNK_BYTES]) :]
