"""Unpacking an image's tar archive, and removing what was unpacked. Runs in init, inside the walls.

The tree that is written to is the root of this process: a name or a link in the archive cannot lead out of it. What is
kept is what a root file system needs: directories, files, links, owners, permission bits and when files were changed (Python compares
that of a module with what is in its compiled file). Device nodes and FIFOs are
left out, set-id bits are cleared, extended attributes are dropped (a layer may have some, see
`layers`): nothing in an archive can become a mark of overlay's.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from sandboxd.isolation import syscalls
from sandboxd.isolation.decompress import decompressed
from sandboxd.isolation.protocol import Layer, Unpack
from sandboxd.isolation.tar import BadArchive, Entry, Kind, TarReader

_LONGEST_PATH = 4095
"""PATH_MAX, without the NUL."""
_CLOCK_REALTIME_COARSE = 5
"""The clock of files. Python has no name for it (linux/time.h)."""
_HOST_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM})
"""What is wrong with the disk, not with the archive."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KEPT = frozenset({Kind.DIRECTORY, Kind.FILE, Kind.LINK, Kind.HARD_LINK})


def unpack(archive_fd: int, root: str, request: Unpack) -> tuple[int, int]:
    """Unpack a (possibly compressed) tar archive below `root`. Returns (entries, bytes of file content).

    Raises BadArchive, and OSError for what is wrong with the disk.
    """
    root_fd = os.open(root, _DIRECTORY)
    unpacker = Unpacker(root_fd, request)
    try:
        with (
            reading_archive(),
            decompressed(archive_fd, request.most_bytes, request.most_entries) as stream,
        ):
            archive = TarReader(stream)
            for member in archive:
                unpacker.add(archive, member)
            if not archive.has_end:
                raise BadArchive("not a tar archive that can be read: it has no end")
            stream.drain()
    finally:
        os.close(root_fd)
    if not unpacker.entries:
        raise BadArchive("the archive is empty")
    return unpacker.entries, unpacker.written_bytes


@contextlib.contextmanager
def reading_archive() -> Iterator[None]:
    """Within, whatever a bad archive leads to is BadArchive. OSError is what is wrong with the disk."""
    try:
        yield
    except MemoryError as error:
        raise BadArchive("a header or a dictionary of the archive is too large") from error
    except ValueError as error:
        # What the system calls say of NUL in the target of a link.
        raise BadArchive(f"an entry has absurd numbers or names: {error}") from error
    except OSError as error:
        if error.errno in _HOST_ERRORS:
            raise
        raise BadArchive(f"an entry cannot be made: {error}") from error


class Unpacker:
    """One archive on its way into a tree: the counts that bound it."""

    def __init__(self, root_fd: int, request: Unpack | Layer) -> None:
        self.root_fd = root_fd
        self.most_bytes = request.most_bytes
        self.most_entries = request.most_entries
        self.id_count = request.id_count
        self.entries = 0
        self.written_bytes = 0
        # What is older was there before.
        self.began_ns = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)

    def add(self, archive: TarReader, member: Entry) -> None:
        """Unpack one entry; what is not kept is passed over."""
        self.count()
        parts = split_name(member.name)
        if member.kind not in _KEPT:
            return
        if not parts:
            if member.kind is not Kind.DIRECTORY:
                raise BadArchive(f"a {member.kind.value} in the place of the root")
            self.set_owner_and_mode(self.root_fd, member)
            return
        parent = self.open_parent(parts[:-1])
        try:
            self.place(archive, member, parent, parts[-1])
        finally:
            os.close(parent)

    def count(self) -> None:
        """One entry more. Raises BadArchive."""
        self.entries += 1
        if self.entries > self.most_entries:
            raise BadArchive(f"more than {self.most_entries} entries")

    def count_bytes(self, size: int) -> None:
        """So many more bytes of files. Raises BadArchive."""
        self.written_bytes += size
        if self.written_bytes > self.most_bytes:
            raise BadArchive(f"more than {self.most_bytes} bytes of files")

    def place(self, archive: TarReader, member: Entry, parent: int, name: str) -> None:
        if member.kind is Kind.DIRECTORY:
            self.make_directory(member, parent, name)
            return
        self.clear(parent, name)
        match member.kind:
            case Kind.LINK:
                os.symlink(member.target, name, dir_fd=parent)
                self.set_link_owner(member, parent, name)
            case Kind.HARD_LINK:
                self.make_hard_link(member, parent, name)
            case _:
                self.write_file(archive, member, parent, name)

    def clear(self, parent: int, name: str) -> None:
        """Make room for an entry that is no directory."""
        clear_place(parent, name)

    def open_parent(self, parts: list[str]) -> int:
        """The directory at `parts`, made where it is missing; links inside the tree are followed, but never out of it.

        The way there is gone a few times and no more: by links it can be much longer than the name.
        """
        with contextlib.suppress(FileNotFoundError):
            return self.open_in_root("/".join(parts) or ".")
        there, missing = 0, len(parts)
        while missing - there > 1:
            middle = (there + missing) // 2
            try:
                os.close(self.open_in_root("/".join(parts[:middle])))
                there = middle
            except FileNotFoundError:
                missing = middle
        current = self.open_in_root("/".join(parts[:there]) or ".")
        for part in parts[there:]:
            try:
                # It counts: the name of one entry can have two thousand of them.
                self.count()
                os.mkdir(part, 0o755, dir_fd=current)
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
            finally:
                os.close(current)
            current = below
        return current

    def open_in_root(self, path: str) -> int:
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        return syscalls.openat2(self.root_fd, path, _DIRECTORY, resolve)

    def make_directory(self, member: Entry, parent: int, name: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
        directory = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            self.set_owner_and_mode(directory, member)
        finally:
            os.close(directory)

    def write_file(self, archive: TarReader, member: Entry, parent: int, name: str) -> None:
        self.count_bytes(member.size)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            for offset, chunk in archive.content(member):
                write_all(file, offset, chunk)
            if member.pieces is not None:
                os.truncate(file, member.size)
            self.set_owner_and_mode(file, member)
            os.utime(file, (member.modified_at, member.modified_at))
        finally:
            os.close(file)

    def make_hard_link(self, member: Entry, parent: int, name: str) -> None:
        """To a file or a link that is in the tree, and to nothing else."""
        parts = split_name(member.target)
        if not parts:
            raise BadArchive(f"a hard link to nothing: {member.name[:100]}")
        directory = -1
        try:
            directory = self.open_in_root("/".join(parts[:-1]) or ".")
            status = os.stat(parts[-1], dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                raise BadArchive(f"a hard link to a directory: {member.name[:100]}")
            if status.st_ctime_ns < self.began_ns:
                self.count_bytes(status.st_size)  # Of a layer below: overlay copies it.
            os.link(parts[-1], name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise BadArchive(f"a hard link to a missing file: {member.name[:100]}") from None
        finally:
            if directory != -1:
                os.close(directory)

    def set_owner_and_mode(self, descriptor: int, member: Entry) -> None:
        if self.id_count:
            os.chown(descriptor, *self.owner_of(member))
        # No set-id bits: nothing in an image needs more rights than the command has.
        os.fchmod(descriptor, member.mode & (0o1777 if member.kind is Kind.DIRECTORY else 0o777))

    def owner_of(self, member: Entry) -> tuple[int, int]:
        """(uid, gid). Raises BadArchive for ids that a sandbox does not have."""
        if not (0 <= member.uid < self.id_count and 0 <= member.gid < self.id_count):
            raise BadArchive(
                f"{member.name[:100]} has owner {member.uid}:{member.gid}; here are ids from 0 to {self.id_count - 1}"
            )
        return member.uid, member.gid

    def set_link_owner(self, member: Entry, parent: int, name: str) -> None:
        if self.id_count:
            os.chown(name, *self.owner_of(member), dir_fd=parent, follow_symlinks=False)


def write_all(file: int, offset: int, content: bytes) -> None:
    """A disk that is nearly full takes only a part, and says so at the next write."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(file, rest, offset)
        offset += written
        rest = rest[written:]


def split_name(name: str) -> list[str]:
    """The parts of a name in an archive, taken below the root.

    Raises BadArchive for a name with `..` or NUL in it, or one that is too long.
    """
    if len(os.fsencode(name)) > _LONGEST_PATH or "\0" in name:
        raise BadArchive("an entry has a name that is too long or holds NUL")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadArchive(f'an entry has ".." in its name: {name[:100]}')
    return parts


def clear_place(parent: int, name: str) -> None:
    """A later entry of the same name replaces an earlier one, but never a directory with something in it."""
    if not unlink_file(parent, name):
        os.rmdir(name, dir_fd=parent)


def unlink_file(parent: int, name: str) -> bool:
    """Whether there is no file of that name any more; False: it is a directory."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        return False
    return True


def empty(root: str) -> tuple[int, int]:
    """Remove everything below `root`. Returns (entries removed, 0)."""
    root_fd = os.open(root, _DIRECTORY)
    try:
        return empty_directory(root_fd), 0
    finally:
        os.close(root_fd)


def empty_directory(root_fd: int) -> int:
    """Remove everything in an open directory. Returns how many entries that was.

    From the bottom up, by one descriptor at a time: depth exhausts nothing. Nothing is moved: overlay refuses that to a directory of
    the layers below (EXDEV), and what is hidden of theirs costs a name each and no copy.
    """
    current = os.dup(root_fd)
    try:
        removed, inner = _remove_files(current)
        left = [inner]  # The directories that are still there, level by level down to this one.
        while True:
            if left[-1]:
                current = _exchange(current, _open_to_empty(current, left[-1][-1]))
                files, inner = _remove_files(current)
                removed += files
                left.append(inner)
            elif len(left) > 1:
                left.pop()
                current = _exchange(current, os.open("..", _DIRECTORY, dir_fd=current))
                os.rmdir(left[-1].pop(), dir_fd=current)
                removed += 1
            else:
                return removed
    finally:
        os.close(current)


def _remove_files(directory: int) -> tuple[int, list[str]]:
    """Returns how many were removed, and the names of the directories."""
    with os.scandir(directory) as found:
        kinds = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    inner = [name for name, is_directory in kinds if is_directory]
    for name, is_directory in kinds:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
    return len(kinds) - len(inner), inner


def _open_to_empty(parent: int, name: str) -> int:
    if os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=parent)
    return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)


def _exchange(former: int, descriptor: int) -> int:
    os.close(former)
    return descriptor


def remove(parent: int, name: str) -> None:
    """A file, or a directory with all in it, or nothing."""
    if unlink_file(parent, name):
        return
    directory = _open_to_empty(parent, name)
    try:
        empty_directory(directory)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=parent)
