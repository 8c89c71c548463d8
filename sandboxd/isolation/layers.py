"""Applying one layer of an image to what the layers below it have made. Runs in init, inside the walls, beside `unpack`.

What is at `/` is an overlay: the trees of the layers below, and above them the directory that becomes this layer's tree. So whatever
is done here is kept as overlay keeps it: a directory that is only passed through has the mode and owner of the one below, what is removed
leaves a whiteout, a directory that replaces another is opaque. Where overlay cannot have such a directory, `/` is one tree for all layers.

A layer is a tar archive (plain, gzip, zstd) in which names that begin with `.wh.` are no files: they say what the layers below had
and this one has no more (https://github.com/opencontainers/image-spec, layer.md). They hide nothing of their own layer, in
whatever order it comes; so the archive is read twice, first for them alone.

The tar's digest (`diff_id`) is that of every byte up to the end of the file, also of what follows the end of the archive.
"""

import contextlib
import errno
import os
from collections.abc import Iterator

from sandboxd.isolation import syscalls
from sandboxd.isolation.decompress import Stream, decompressed
from sandboxd.isolation.protocol import Layer
from sandboxd.isolation.tar import BadArchive, Entry, Kind, TarReader
from sandboxd.isolation.unpack import (
    Unpacker,
    empty_directory,
    reading_archive,
    remove,
    split_name,
)

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_RESERVED = ".wh..wh."
"""Names of aufs's own, which Docker's tools know and no image means."""
_MARKS = ("user.overlay.", "user.containers.", "user.rootlesscontainers")
"""Of overlay, fuse-overlayfs and umoci."""
_MOST_ATTRIBUTES = 3000
"""Bytes of names and values: ext4 has a block for them, less its own."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def apply(archive_fd: int, root: str, request: Layer) -> tuple[int, int]:
    """Apply a layer below `root`. Returns (entries, bytes of file content).

    Raises BadArchive, and OSError for what is wrong with the disk.
    """
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    applier = _Applier(root_fd, request)
    try:
        if request.has_lower:
            with _opened(archive_fd, request) as (archive, _):
                for member in archive:
                    _hide(root_fd, split_name(member.name))
        with _opened(archive_fd, request) as (archive, stream):
            for member in archive:
                applier.add(archive, member)
            stream.drain()
    finally:
        os.close(root_fd)
    if stream.digest() != request.diff_id:
        raise BadArchive(f"the layer is {stream.digest()}, but was to be {request.diff_id}")
    return applier.entries, applier.written_bytes


class _Applier(Unpacker):
    """One layer on its way into a tree that is not empty."""

    def add(self, archive: TarReader, member: Entry) -> None:
        """Unpack one entry that is a file."""
        if any(part.startswith(_WHITEOUT) for part in split_name(member.name)):
            self.count()
        else:
            super().add(archive, member)

    def clear(self, parent: int, name: str) -> None:
        """Whatever was here goes, with all below it."""
        remove(parent, name)

    def set_owner_and_mode(self, descriptor: int, member: Entry) -> None:
        super().set_owner_and_mode(descriptor, member)
        if member.kind is Kind.DIRECTORY:  # It may be that of a layer below.
            _clear_attributes(descriptor)
        _set_attributes(descriptor, member.attributes)


def _clear_attributes(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # There are none on this disk.
        for name in os.listxattr(descriptor):
            if name.startswith("user."):
                os.removexattr(descriptor, name)


def _set_attributes(descriptor: int, attributes: tuple[tuple[str, bytes], ...]) -> None:
    """Those that any owner may set, if they are not too many, but for marks that somebody believes.

    All others grant something (`security.capability`) or mean something to one host alone.
    """
    kept = {name: value for name, value in attributes if not name.startswith(_MARKS)}
    if sum(len(os.fsencode(name)) + len(value) for name, value in kept.items()) > _MOST_ATTRIBUTES:
        return
    with contextlib.suppress(OSError):  # As on the disk of a job: it may have no room for any.
        for name, value in kept.items():
            os.setxattr(descriptor, name, value)


@contextlib.contextmanager
def _opened(archive_fd: int, request: Layer) -> Iterator[tuple[TarReader, Stream]]:
    """The archive from its beginning, and the stream that it is read from."""
    with (
        reading_archive(),
        decompressed(archive_fd, request.most_bytes, request.most_entries) as stream,
    ):
        yield TarReader(stream), stream


def _hide(root_fd: int, parts: list[str]) -> None:
    """Remove what an entry says that the layers below have and this image has not. Any other entry says nothing."""
    name = parts[-1] if parts else ""
    if not name.startswith(_WHITEOUT) or any(part.startswith(_WHITEOUT) for part in parts[:-1]):
        return
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in ("", ".", ".."):
        raise BadArchive(f"an entry hides nothing: {name}")
    directory = _open_lower(root_fd, parts[:-1])
    if directory is None:
        return
    try:
        if name == _OPAQUE:
            empty_directory(directory)
        elif not name.startswith(_RESERVED):
            remove(directory, hidden)
    finally:
        os.close(directory)


def _open_lower(root_fd: int, parts: list[str]) -> int | None:
    """A directory of the layers below. By no link: what is behind it is not what the entry names. None: there is none."""
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
    try:
        return syscalls.openat2(root_fd, "/".join(parts) or ".", _DIRECTORY, resolve)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
