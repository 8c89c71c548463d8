"""The output of one job: written while it runs (`JobLog`), kept afterwards (`StoredLog`), read in the same way.

Both streams lie in one spool in their order of arrival, first in memory, beyond a size in a file. An index says which
part belongs to which stream and when it came. Beside the file lies its index, which is written before the bytes that it
speaks of, so that the log of a service that was killed can be read up to the last byte (`reopen_log`).
"""

import asyncio
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from sandboxd.ids import is_id
from sandboxd.isolation import syscalls
from sandboxd.jobs import Stream
from sandboxd.store.log_index import MAX_ENTRIES, RECORD, Chunk, LogIndex

COALESCE_SECONDS = 1.0
"""Bytes of one stream that come within this time of one another are one chunk."""
_NEAR_BYTES = 512
"""Pieces of one stream that lie as near to one another are read together: a call costs more than some bytes."""
_TOGETHER_BYTES = 64 * 2**10
SYNCED_BYTES = 4 * 2**20
"""Of a long log brought to the disk at once: a disk takes some milliseconds for it."""
_TO_THE_DISK = (
    syscalls.SYNC_FILE_RANGE_WAIT_BEFORE
    | syscalls.SYNC_FILE_RANGE_WRITE
    | syscalls.SYNC_FILE_RANGE_WAIT_AFTER
)
_CANNOT_SYNC_IN_TURNS = frozenset({errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP})
_CREATE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class StoredLog:
    """The complete log of a job, from memory or from a file. Holds no descriptor between reads."""

    closed = True

    def __init__(
        self,
        index: LogIndex,
        *,
        body: bytes | None = None,
        path: Path | None = None,
        truncated: frozenset[Stream] = frozenset(),
    ) -> None:
        """The bytes are in the file `path` or, if that is None, `body`."""
        self.index = index
        self.body = body
        self.path = path
        self._truncated = truncated

    def size(self, stream: Stream | None = None) -> int:
        """Bytes kept, of one stream or of both."""
        return self.index.size(stream)

    def truncated(self, stream: Stream) -> bool:
        """Whether bytes of this stream are missing because the limit was reached."""
        return stream in self._truncated

    @property
    def empty(self) -> bool:
        """Whether nothing was written, not even what was cut."""
        return not self.size() and not self._truncated

    def chunks(self, offset: int = 0, stream: Stream | None = None) -> Iterator[Chunk]:
        """In order of arrival, the parts of the merged log, of one stream or of both, that end after `offset`."""
        return self.index.chunks(offset, stream)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes of both streams in order of arrival, from `offset`; less only at the end.

        Raises OSError if the file is gone.
        """
        with self._reader() as read:
            return read(offset, min(size, self.size() - offset))

    def read_stream(
        self, stream: Stream, offset: int, size: int, *, most_pieces: int | None = None
    ) -> bytes:
        """Up to `size` bytes of one stream from its own `offset`; less only at the end, or after `most_pieces`."""
        pieces = islice(self.index.pieces(stream, offset, size), most_pieces)
        with self._reader() as read:
            return _join(pieces, read)

    async def wait_changed(self, seen_size: int) -> None:
        """Returns at once: nothing changes any more."""

    def sync(self) -> None:
        """Bring the files to the disk, so that a record may say that they are there. Blocks."""
        if self.path is not None:
            for path in (self.path, index_path(self.path), self.path.parent):
                with _opened(path) as descriptor:
                    _sync_in_turns(descriptor)
                    os.fsync(descriptor)

    def in_memory(self) -> "StoredLog":
        """The same log without its files."""
        return StoredLog(self.index, body=self.read(0, self.size()), truncated=self._truncated)

    @property
    def kept_bytes(self) -> int:
        """What it takes where it is kept: both streams and the index."""
        return self.size() + self.index.encoded_bytes

    def cut(self, kept_bytes: int) -> "StoredLog":
        """The first of it, as much as `kept_bytes` hold. Its files stay as they are: `truncate_log`, `remove_log`."""
        if kept_bytes >= self.kept_bytes:
            return self
        size_bytes = self.index.size_within(kept_bytes)
        index = LogIndex.decode(self.index.encode(), size_bytes)
        lost = {stream for stream in Stream if index.size(stream) < self.size(stream)}
        truncated = self._truncated | lost
        if not size_bytes:
            return StoredLog(index, body=b"", truncated=truncated)
        body = None if self.body is None else self.body[:size_bytes]
        return StoredLog(index, body=body, path=self.path, truncated=truncated)

    @contextmanager
    def _reader(self) -> Iterator[Callable[[int, int], bytes]]:
        if self.path is None:
            body = self.body or b""
            yield lambda offset, size: body[offset : offset + max(0, size)]
        else:
            with _opened(self.path) as descriptor:
                yield partial(_read_fully, descriptor)


class JobLog:
    """The log of a job that runs. One task appends, any number read and wait; all on one event loop."""

    def __init__(
        self, directory: Path, job_id: str, *, limit_bytes: int, inline_bytes: int
    ) -> None:
        """No file is made, in `directory`, before more than `inline_bytes` came."""
        self._path = log_path(directory, job_id)
        self._limit_bytes = limit_bytes
        self._inline_bytes = inline_bytes
        self.index = LogIndex()
        self._memory = bytearray()
        self._files: tuple[int, int] | None = None
        """Descriptors of the log and of its index, once it was spilled."""
        self._truncated: set[Stream] = set()
        self._changed: asyncio.Event | None = None
        self._stored: StoredLog | None = None
        self._closed: StoredLog | None = None
        """What who holds on to this log reads when it is closed: the file of a short one goes when the record has it."""

    @property
    def closed(self) -> bool:
        """Whether the log is complete."""
        return self._stored is not None

    def append(self, stream: Stream, data: bytes | bytearray | memoryview, now: float) -> bool:
        """Keep what fits. False: the limit is reached, and not all of `data` was kept.

        Raises OSError if the disk does not take it; then nothing of `data` counts as kept.
        """
        if self.closed:
            raise ValueError("the log is closed")
        kept = min(len(data), self._limit_bytes - self.index.size())
        extends = self.index.extends(stream, now, COALESCE_SECONDS)
        if not extends and len(self.index) >= MAX_ENTRIES:
            kept = 0
        if kept > 0:
            self._write(stream, memoryview(data)[:kept], now, extends)
            self._wake()
        if kept < len(data):
            self._truncated.add(stream)
            return False
        return True

    def spill(self) -> None:
        """Go on in files from here, so that a killed service leaves what was written so far.

        Raises OSError if they cannot be made.
        """
        if self._files is not None or self.closed:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened: list[int] = []
        try:
            for path, data in (
                (index_path(self._path), self.index.encode()),
                (self._path, self._memory),
            ):
                opened.append(os.open(path, _CREATE, 0o600))
                _write_fully(opened[-1], data, 0)
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        index_file, file = opened
        self._files = file, index_file
        self._memory = bytearray()

    def size(self, stream: Stream | None = None) -> int:
        """Bytes kept so far, of one stream or of both."""
        return self.index.size(stream)

    def truncated(self, stream: Stream) -> bool:
        """Whether bytes of this stream are missing because the limit was reached."""
        return stream in self._truncated

    def chunks(self, offset: int = 0, stream: Stream | None = None) -> Iterator[Chunk]:
        """As of a StoredLog. The last one may still grow."""
        return self.index.chunks(offset, stream)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes of both streams in order of arrival, from `offset`; less only at the end so far."""
        if self._closed is not None:
            return self._closed.read(offset, size)
        size = max(0, min(size, self.index.size() - offset))
        if self._files is not None:
            return _read_fully(self._files[0], offset, size)
        return bytes(self._memory[offset : offset + size])

    def read_stream(
        self, stream: Stream, offset: int, size: int, *, most_pieces: int | None = None
    ) -> bytes:
        """As of a StoredLog; its end is the end so far."""
        if self._closed is not None:
            return self._closed.read_stream(stream, offset, size, most_pieces=most_pieces)
        return _join(islice(self.index.pieces(stream, offset, size), most_pieces), self.read)

    async def wait_changed(self, seen_size: int) -> None:
        """Return when there are more than `seen_size` bytes of both streams, or the log is closed."""
        while self.index.size() <= seen_size and not self.closed:
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._changed.wait()

    def close(self) -> StoredLog:
        """No more will come. Wakes everybody who waits; the log stays readable. Twice is harmless."""
        if self._stored is None:
            self._stored = StoredLog(
                self.index,
                body=None if self._files else bytes(self._memory),
                path=self._path if self._files else None,
                truncated=frozenset(self._truncated),
            )
            self._closed = self._stored
            if self._files and self.index.size() <= self._inline_bytes:
                body = _read_fully(self._files[0], 0, self.index.size())
                self._closed = StoredLog(self.index, body=body)
            for descriptor in self._files or ():
                os.close(descriptor)
            self._files = None
            self._memory = bytearray()
            self._wake()
        return self._stored

    def discard(self) -> None:
        """Close, and remove the files if there are any: this attempt's output is not kept."""
        stored = self.close()
        if stored.path is not None:
            remove_log(stored.path)

    def _write(self, stream: Stream, data: memoryview, now: float, extends: bool) -> None:
        offset = self.index.size()
        if offset + len(data) > self._inline_bytes:
            self.spill()
        if self._files is None:
            self._memory += data
        else:
            file, index_file = self._files
            if not extends:
                record = LogIndex.record(stream, now, offset)
                _write_fully(index_file, record, len(self.index) * RECORD.size)
            _write_fully(file, data, offset)
        self.index.add(stream, now, len(data), extends)

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


def log_path(directory: Path, job_id: str) -> Path:
    """Where a job's log lies once it is a file."""
    if not (is_id(job_id, "job") or is_id(job_id, "exe")):
        raise ValueError(f"{job_id!r} is not the id of a job or of a command in a sandbox")
    return directory / f"{job_id}.log"


def index_path(log: Path) -> Path:
    """Where the index of this log file lies."""
    return log.with_suffix(".index")


def reopen_log(directory: Path, job_id: str) -> StoredLog | None:
    """What a service that was killed left of the log of a job; None if it had not been spilled."""
    path = log_path(directory, job_id)
    try:
        with _opened(path) as descriptor:
            size = os.fstat(descriptor).st_size
        return StoredLog(read_index(path, size), path=path)
    except FileNotFoundError:
        return None


def read_index(path: Path, size: int) -> LogIndex:
    """The index of the first `size` bytes of the log file `path`.

    Raises FileNotFoundError if it is missing.
    """
    with _opened(index_path(path)) as descriptor:
        records = _read_fully(descriptor, 0, os.fstat(descriptor).st_size)
    return LogIndex.decode(records, size)


def truncate_log(log: StoredLog) -> None:
    """Forget what the files of a log have behind its end. Raises OSError."""
    if log.path is None:
        return
    for path, size_bytes in (
        (log.path, log.size()),
        (index_path(log.path), log.index.encoded_bytes),
    ):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)


def remove_log(path: Path) -> None:
    """Remove a log file and its index; either may be gone already."""
    path.unlink(missing_ok=True)
    index_path(path).unlink(missing_ok=True)


def _sync_in_turns(descriptor: int) -> None:
    """Bring a long file to the disk piece by piece: the commit of another job has to wait for one of them at most, not for all.

    Raises OSError: what sync_file_range(2) has told of a page that was not written, fsync does not tell again.
    """
    try:
        for offset in range(0, os.fstat(descriptor).st_size, SYNCED_BYTES):
            syscalls.sync_file_range(descriptor, offset, SYNCED_BYTES, _TO_THE_DISK)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_IN_TURNS:
            raise


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _join(pieces: Iterable[Chunk], read: Callable[[int, int], bytes]) -> bytes:
    """The bytes of pieces of a merged log; those that lie near one another are read at once."""
    parts: list[bytes] = []
    together: list[Chunk] = []

    def finish() -> None:
        if together:
            start, end = together[0].offset, together[-1].offset + together[-1].size
            block = read(start, end - start)
            parts.extend(block[p.offset - start : p.offset - start + p.size] for p in together)
            together.clear()

    for piece in pieces:
        if together:
            near = piece.offset - together[-1].offset - together[-1].size <= _NEAR_BYTES
            if not near or piece.offset + piece.size - together[0].offset > _TOGETHER_BYTES:
                finish()
        together.append(piece)
    finish()
    return b"".join(parts)


def _read_fully(descriptor: int, offset: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def _write_fully(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
