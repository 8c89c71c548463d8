"""Writing a tree as the tar archive of a layer. Runs in init, inside the walls; the standard library's `tarfile` would be in every
sandbox's memory.

The format is that of pax(1), with the headers of ustar where they suffice: the same tree gives the same bytes. What a layer cannot
hold (sockets, devices, FIFOs) is left out; a name that a layer takes for a whiteout ends it.
"""

import os
import stat

from sandboxd.isolation import syscalls

_BLOCK = 512
_CHUNK_BYTES = 256 * 2**10
_LONGEST_NAME = 100
_LONGEST_PATH = 4096
_LARGEST_ID = 0o7777777
_LARGEST_NUMBER = 0o77777777777
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


class CannotPack(Exception):
    """There is something that a layer cannot hold, or more than was allowed; the message is for the user."""


class Packer:
    """One archive on its way out: the counts that bound it."""

    def __init__(self, output: int, most_bytes: int, *, keep_times: bool) -> None:
        self._output = output
        self._left = most_bytes
        self._keep_times = keep_times
        self._first: dict[tuple[int, int], bytes] = {}
        """Of each file with several links the name that came first."""
        self.entries = 0
        self.size_bytes = 0

    def pack_tree(self, root: int) -> None:
        """All below a directory, and the directory itself. Raises CannotPack, OSError."""
        self._write_header(b"./", os.fstat(root), b"5")
        self._pack(root, frozenset(), frozenset(), of_overlay=False)

    def pack_changes(self, layer: int, made: frozenset[str], kept: frozenset[str]) -> None:
        """The upper layer of an overlay, but what was `made` before any command; of that, `kept` directories that hold something.

        Raises CannotPack, OSError.
        """
        self._pack(layer, made, kept, of_overlay=True)

    def end(self) -> None:
        self._write(bytes(2 * _BLOCK))

    def _pack(
        self, root: int, made: frozenset[str], kept: frozenset[str], *, of_overlay: bool
    ) -> None:
        waiting = [""]
        while waiting:
            path = waiting.pop()
            directory = _open_directory(root, path)
            try:
                names = sorted(os.listdir(directory))
                if path and (path not in made or (path in kept and names)):
                    self._write_header(_encoded(path) + b"/", os.fstat(directory), b"5")
                if of_overlay and path and _is_opaque(directory):
                    self._write_whiteout(f"{path}/{_OPAQUE}")
                below = self._pack_files(directory, path, names, made, of_overlay=of_overlay)
            finally:
                os.close(directory)
            waiting.extend(reversed(below))

    def _pack_files(
        self,
        directory: int,
        path: str,
        names: list[str],
        made: frozenset[str],
        *,
        of_overlay: bool,
    ) -> list[str]:
        """What is in a directory and is none itself. Returns the paths of those that are."""
        below = []
        for name in names:
            inner = f"{path}/{name}"
            try:
                status = os.lstat(name, dir_fd=directory)
            except FileNotFoundError:
                continue  # Removed meanwhile.
            mode = status.st_mode
            if of_overlay and stat.S_ISCHR(mode) and status.st_rdev == 0:
                self._write_whiteout(f"{path}/{_WHITEOUT}{name}")
                continue
            if name.startswith(_WHITEOUT):
                raise CannotPack(f"a layer cannot have a file of the name {inner[:200]}")
            if stat.S_ISDIR(mode):
                below.append(inner)
            elif inner in made:
                continue
            elif stat.S_ISLNK(mode):
                target = os.fsencode(os.readlink(name, dir_fd=directory))
                self._write_header(_encoded(inner), status, b"2", target=target)
            elif stat.S_ISREG(mode):
                self._pack_file(directory, name, inner, status)
        return below

    def _pack_file(self, directory: int, name: str, path: str, status: os.stat_result) -> None:
        encoded = _encoded(path)
        if status.st_nlink > 1:
            first = self._first.setdefault((status.st_dev, status.st_ino), encoded)
            if first != encoded:
                self._write_header(encoded, status, b"1", target=first)
                return
        file = _open_file(directory, name, path)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise CannotPack(f"{path[:200]} changed while it was read")
            self._write_header(encoded, status, b"0", size=status.st_size)
            self._write_content(file, status.st_size)
        finally:
            os.close(file)
        self.size_bytes += status.st_size

    def _write_content(self, file: int, size: int) -> None:
        """Just so many bytes: the header is out. What is missing, because the file became shorter, is zeros."""
        left = size
        while left and (piece := os.read(file, min(left, _CHUNK_BYTES))):
            self._write(piece)
            left -= len(piece)
        while left:
            piece = bytes(min(left, _CHUNK_BYTES))
            self._write(piece)
            left -= len(piece)
        self._write(bytes(-size % _BLOCK))

    def _write_whiteout(self, path: str) -> None:
        nobody = os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        self._write_header(_encoded(path), nobody, b"0")

    def _write_header(
        self,
        name: bytes,
        status: os.stat_result,
        kind: bytes,
        *,
        target: bytes = b"",
        size: int = 0,
    ) -> None:
        self.entries += 1
        # What does not fit is in a header of its own before, and the field says something that fits.
        records = b""
        if len(name) > _LONGEST_NAME:
            records += _record(b"path", name)
        if len(target) > _LONGEST_NAME:
            records += _record(b"linkpath", target)
        if size > _LARGEST_NUMBER:
            records += _record(b"size", b"%d" % size)
        for key, number in ((b"uid", status.st_uid), (b"gid", status.st_gid)):
            if number > _LARGEST_ID:
                records += _record(key, b"%d" % number)
        # A directory has the time at which it was unpacked.
        seconds = int(status.st_mtime) if self._keep_times or kind != b"5" else 0
        if records:
            self._write(_block(b"pax", 0o644, 0, 0, len(records), 0, b"x", b""))
            self._write(records + bytes(-len(records) % _BLOCK))
        self._write(
            _block(
                name[:_LONGEST_NAME],
                stat.S_IMODE(status.st_mode),
                min(status.st_uid, _LARGEST_ID),
                min(status.st_gid, _LARGEST_ID),
                min(size, _LARGEST_NUMBER),
                min(max(0, seconds), _LARGEST_NUMBER),
                kind,
                target[:_LONGEST_NAME],
            )
        )

    def _write(self, content: bytes) -> None:
        self._left -= len(content)
        if self._left < 0:
            raise CannotPack("it is more than may be kept (a file with holes counts in full)")
        view = memoryview(content)
        while view:
            view = view[os.write(self._output, view) :]


def _block(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    kind: bytes,
    target: bytes,
) -> bytes:
    """A header of ustar."""
    block = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%sustar\x0000" % (
        name.ljust(_LONGEST_NAME, b"\0"),
        mode,
        uid,
        gid,
        size,
        seconds,
        kind,
        target.ljust(_LONGEST_NAME, b"\0"),
    )
    block = block.ljust(_BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, the length counting itself."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def _encoded(path: str) -> bytes:
    """As in an archive: without the first slash."""
    encoded = os.fsencode(path[1:])
    if len(encoded) >= _LONGEST_PATH:
        raise CannotPack(f"a path is longer than {_LONGEST_PATH} bytes: {path[:200]}")
    return encoded


def _open_directory(root: int, path: str) -> int:
    """By no link, wherever somebody puts one meanwhile."""
    try:
        return syscalls.openat2(root, path[1:] or ".", _DIRECTORY, _RESOLVE)
    except PermissionError:
        raise CannotPack(f"{path[:200]} cannot be read by the user of this sandbox") from None


def _open_file(directory: int, name: str, path: str) -> int:
    """A file without permission for its owner, who we are, is given it for a moment."""
    try:
        return os.open(name, _FILE, dir_fd=directory)
    except PermissionError:
        pass
    itself = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(itself)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise CannotPack(f"{path[:200]} cannot be read by the user of this sandbox")
        os.chmod(f"/proc/self/fd/{itself}", stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
        try:
            return os.open(name, _FILE, dir_fd=directory)
        finally:
            os.chmod(f"/proc/self/fd/{itself}", stat.S_IMODE(status.st_mode))
    finally:
        os.close(itself)


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, "user.overlay.opaque") == b"y"
    except OSError:
        return False
