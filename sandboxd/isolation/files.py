"""Files into a sandbox and out of it. Runs in init, inside the walls and with no more rights than the command.

Whatever a path leads to is in the sandbox's own tree, so links are followed, but for one kind: the magic links of /proc lead to
whatever a process has open, and `self` there is init, which holds the writable layer itself. Every path is therefore resolved
by openat2(2) without them, and what is then done is done at the descriptor. What is never done is to wait for somebody: only
regular files are opened, without blocking, and what is not one is told of and passed over.

What is collected goes through a pipe as *entries*: a header, and for a file its content in chunks. Header and chunk are preceded by
their length (four bytes, big endian); a chunk of length 0 ends a file, a header of length 0 ends it all. A header is a JSON
array: path (UTF-8), kind, mode (of a file), note. A file that changes meanwhile is what was read of it.
"""

import errno
import fnmatch
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sandboxd.isolation import syscalls
from sandboxd.isolation.protocol import (
    Collect,
    Done,
    Look,
    Message,
    NotPlaced,
    Place,
    Read,
    Remove,
)
from sandboxd.isolation.spec import File

FILE, DIRECTORY, PASSED_OVER = "file", "directory", "passed_over"
CHUNK_BYTES = 2**20
_PLACED_BYTES = 2**18
"""So much is in the processor's cache from reading to writing."""
DEEPEST = 64
"""Levels of directories below where a pattern starts."""
_WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
_LISTED = os.O_RDONLY | os.O_DIRECTORY
_PARENT = os.O_PATH | os.O_DIRECTORY
_ITSELF = os.O_PATH | os.O_NOFOLLOW
_MAGIC = frozenset("*?[")


def carry_out(request: Place | Collect, descriptor: int) -> Message:
    """Do what the service asks for, and tell how it went."""
    if isinstance(request, Place):
        return place(request.files, descriptor)
    collector = Collector(request, descriptor)
    collector.collect()
    return Done(entries=collector.entries, size_bytes=collector.size_bytes)


def answer(request: Look | Remove | Read, descriptors: list[int]) -> Message:
    """Tell what is in a directory or in files, or remove what is at a path: a link is a link, and a directory must be empty."""
    try:
        match request:
            case Look():
                return Done(entries=_look(request, descriptors[0]), size_bytes=0)
            case Remove():
                _remove(request.path)
                return Done(entries=1, size_bytes=0)
            case _:
                return _read(request, descriptors)
    except OSError as error:
        return NotPlaced(0, error.errno or errno.EIO)


def _read(request: Read, outputs: list[int]) -> Done:
    """Write the beginning of each file that can be read to its descriptor. Links are followed."""
    entries = size_bytes = 0
    for path, output in zip(request.paths, outputs, strict=True):
        with suppress(OSError), _opened(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as opened:
            status = os.fstat(opened)
            if stat.S_ISREG(status.st_mode) and status.st_dev != os.stat("/proc").st_dev:
                content = os.read(opened, request.most_bytes)
                _write_all(output, content)
                entries += 1
                size_bytes += len(content)
    return Done(entries=entries, size_bytes=size_bytes)


def _look(request: Look, output: int) -> int:
    """Write an array for each entry (name, kind, mode, size, time of change), preceded by its length as all here."""
    entries = 0
    with _opened(request.path, _LISTED) as directory:
        if os.fstat(directory).st_dev == os.stat("/proc").st_dev:
            raise PermissionError(errno.EACCES, "there `self` is init")
        with os.scandir(directory) as found:
            for entry in found:
                if entries == request.most_entries:
                    break
                status = entry.stat(follow_symlinks=False)
                name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                mode = stat.S_IMODE(status.st_mode)
                seconds = max(0.0, status.st_mtime)
                told = [name, _kind_of(status.st_mode), mode, status.st_size, seconds]
                encoded = json.dumps(told).encode()
                _write_all(output, len(encoded).to_bytes(4, "big") + encoded)
                entries += 1
    _write_all(output, bytes(4))
    return entries


def _remove(path: str) -> None:
    parent, name = os.path.split(path)
    with _opened(parent, _PARENT) as directory:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)


def _kind_of(mode: int) -> str:
    if stat.S_ISREG(mode):
        return FILE
    return DIRECTORY if stat.S_ISDIR(mode) else _kind(mode)


def place(files: tuple[File, ...], contents: int) -> Done | NotPlaced:
    """Make files and directories, with contents read from a descriptor one after the other."""
    size_bytes = 0
    for index, file in enumerate(files):
        try:
            if file.size_bytes is None:
                _make_directory(file)
            else:
                _make_file(file, file.size_bytes, contents)
                size_bytes += file.size_bytes
        except OSError as error:
            return NotPlaced(index, error.errno or errno.EIO)
    return Done(entries=len(files), size_bytes=size_bytes)


def _make_directory(file: File) -> None:
    _make_directories(file.path)
    with _opened(file.path, _PARENT) as directory:
        os.chmod(f"/proc/self/fd/{directory}", file.mode)


def _make_directories(path: str) -> None:
    """A directory and those above it, as far as they are missing."""
    try:
        with _opened(path, _PARENT):
            return
    except FileNotFoundError:
        parent, name = os.path.split(path)
    _make_directories(parent)
    with _opened(parent, _PARENT) as directory, suppress(FileExistsError):
        os.mkdir(name, dir_fd=directory)


def _make_file(file: File, size_bytes: int, contents: int) -> None:
    parent, name = os.path.split(file.path)
    _make_directories(parent)
    with _opened(parent, _PARENT) as directory:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        made = os.open(name, _WRITE_NEW, 0o600, dir_fd=directory)
    try:
        left = size_bytes
        space = memoryview(bytearray(min(left, _PLACED_BYTES)))
        while left:
            count = os.readv(contents, [space[:left]])
            if not count:
                raise OSError(errno.EPIPE, "the contents ended too early")
            _write_all(made, space[:count])
            left -= count
        os.fchmod(made, file.mode)
    finally:
        os.close(made)


class Collector:
    """One walk over what the patterns match, written to a descriptor within bounds."""

    def __init__(self, request: Collect, output: int) -> None:
        self.request = request
        self.output = output
        self.entries = 0
        self.size_bytes = 0
        self.seen: set[str] = set()
        self.proc = os.stat("/proc").st_dev
        """There `self` is init: it must not tell of itself what the command cannot know."""

    def collect(self) -> None:
        """Write all entries and their end. Whoever does not read any more ends it early."""
        try:
            for pattern in self.request.patterns:
                absolute = os.path.join(self.request.base, pattern)
                for path in matches(absolute):
                    if not self.take(path, DEEPEST):
                        return
        except BrokenPipeError:
            return
        finally:
            try:
                _write_all(self.output, bytes(4))
            except OSError:
                pass

    def take(self, path: str, levels: int) -> bool:
        """Write what is at a path, and what is below it. False: no more entries are wanted."""
        if path in self.seen:
            return True
        if self.entries == self.request.most_entries:
            self.write_header(path, PASSED_OVER, note="too_many")
            return False
        self.seen.add(path)
        self.entries += 1
        if not path.isascii() and not _is_utf8(path):
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            self.write_header(shown, PASSED_OVER, note="not_utf8")
            return True
        try:
            status = _status(path)
            if status.st_dev == self.proc:
                self.write_header(path, PASSED_OVER, note="proc")
                return True
            if stat.S_ISDIR(status.st_mode):
                return self.take_directory(path, levels)
            if stat.S_ISREG(status.st_mode):
                self.take_file(path)
            else:
                self.write_header(path, PASSED_OVER, note=_kind(status.st_mode))
        except BrokenPipeError:
            raise
        except OSError as error:
            self.write_header(path, PASSED_OVER, note=errno.errorcode.get(error.errno or 0, "EIO"))
        return True

    def take_directory(self, path: str, levels: int) -> bool:
        if levels == 0:
            self.write_header(path, PASSED_OVER, note="too_deep")
            return True
        with _opened(path, _LISTED | os.O_NOFOLLOW) as directory:
            status = os.fstat(directory)
            if status.st_dev == self.proc:
                self.write_header(path, PASSED_OVER, note="changed")
                return True
            names = sorted(os.listdir(directory))
        self.write_header(path, DIRECTORY, stat.S_IMODE(status.st_mode))
        return all(self.take(f"{path}/{name}", levels - 1) for name in names)

    def take_file(self, path: str) -> None:
        with _opened(path, _READ) as opened:
            status = os.fstat(opened)
            if status.st_dev == self.proc or not stat.S_ISREG(status.st_mode):
                self.write_header(path, PASSED_OVER, note="changed")
                return
            left = self.request.most_bytes - self.size_bytes
            if status.st_size > left:
                self.write_header(path, PASSED_OVER, note="too_large")
                return
            # It may fail: before anything is said of it.
            first = os.read(opened, min(CHUNK_BYTES, left))
            self.write_header(path, FILE, stat.S_IMODE(status.st_mode))
            self.write_content(opened, first, left)

    def write_content(self, opened: int, first: bytes, left: int) -> None:
        piece = first
        while piece:
            self.write_counted(piece)
            self.size_bytes += len(piece)
            left -= len(piece)
            piece = _read_or_end(opened, min(CHUNK_BYTES, left))
        _write_all(self.output, bytes(4))

    def write_header(self, path: str, kind: str, mode: int = 0, note: str = "") -> None:
        self.write_counted(json.dumps([path, kind, mode, note]).encode())

    def write_counted(self, content: bytes) -> None:
        _write_all(self.output, len(content).to_bytes(4, "big"))
        _write_all(self.output, content)


def matches(pattern: str) -> Iterator[str]:
    """The existing paths that an absolute pattern names: `*`, `?` and `[…]` within a name, `**` for any directories."""
    found = [""]
    parts = [part for part in pattern.split("/") if part and part != "."]
    for part in parts:
        found = [path for directory in found for path in _matching(directory, part)]
    yield from found if parts else ["/"]


def _matching(directory: str, part: str) -> Iterator[str]:
    if part == "**":
        yield from _directories(directory, DEEPEST)
    elif not _MAGIC & set(part):
        if _mode(f"{directory}/{part}"):
            yield f"{directory}/{part}"
    else:
        for name in _names(directory):
            if fnmatch.fnmatchcase(name, part) and (name[0] != "." or part[0] == "."):
                yield f"{directory}/{name}"


def _directories(directory: str, levels: int) -> Iterator[str]:
    yield directory
    if levels == 0:
        return
    for name in _names(directory):
        path = f"{directory}/{name}"
        if stat.S_ISDIR(_mode(path)):
            yield from _directories(path, levels - 1)


def _names(directory: str) -> list[str]:
    try:
        with _opened(directory or "/", _LISTED) as opened:
            return sorted(os.listdir(opened))
    except OSError:
        return []


def _mode(path: str) -> int:
    """Kind and permissions of what is at a path, a link being a link; 0 if there is nothing."""
    try:
        return _status(path).st_mode
    except OSError:
        return 0


def _status(path: str) -> os.stat_result:
    with _opened(path, _ITSELF) as opened:
        return os.fstat(opened)


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    """A descriptor of what is at a path: the only way from a path to anything here. Raises OSError (ELOOP: a magic link)."""
    opened = syscalls.openat2(syscalls.AT_FDCWD, path, flags, syscalls.RESOLVE_NO_MAGICLINKS)
    try:
        yield opened
    finally:
        os.close(opened)


def _read_or_end(opened: int, size: int) -> bytes:
    """What cannot be read any more ends the file: its header is out already."""
    try:
        return os.read(opened, size)
    except OSError:
        return b""


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _kind(mode: int) -> str:
    for is_kind, name in (
        (stat.S_ISLNK, "symlink"),
        (stat.S_ISFIFO, "fifo"),
        (stat.S_ISSOCK, "socket"),
    ):
        if is_kind(mode):
            return name
    return "device"
