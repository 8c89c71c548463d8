"""What a sandbox's commands changed: the entries of its writable layer, told of when no command is left, or all of it as an archive.
Runs in init.

Overlay keeps in that layer what was made or changed, a character device 0:0 where something of the image was removed, and an
attribute on a directory that hides the image's. init holds the layer as a mount of its own with nothing above it: `..` leads nowhere.
"""

import contextlib
import errno
import json
import os
import signal
import stat
from collections.abc import Iterator

from sandboxd.isolation.packing import CannotPack, Packer
from sandboxd.isolation.protocol import Changes, Done, Failed, PackChanges

DEEPEST = 64
_LONGEST_REASON = 500
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def tell_changes(request: Changes, layer: int, made: frozenset[str], output: int) -> Done:
    """Write a header (see `files`) for each entry but those that we made ourselves.

    The note says what it is: `file` (or anything that is no directory), `directory`, `opaque` (a directory that hides the
    image's), `deleted`; of what cannot be read it is the errno; `too_many` ends it early.
    """
    entries = 0
    try:
        for path, note in _entries(layer, "", DEEPEST):
            if path in made:
                continue
            if entries == request.most_entries:
                _write(output, path, "too_many")
                break
            _write(output, path, note)
            entries += 1
        os.write(output, bytes(4))
    except BrokenPipeError:
        pass
    return Done(entries=entries, size_bytes=0)


def pack_changes(
    request: PackChanges,
    layer: int,
    made: frozenset[str],
    writable: frozenset[str],
    output: int,
) -> Done | Failed:
    """Write the layer as an archive (see `packing`), without what we made ourselves but for `writable` directories in use."""
    packer = Packer(output, request.most_bytes, keep_times=True)
    if request.stop:
        _signal_all(signal.SIGSTOP)
    try:
        packer.pack_changes(layer, made, writable)
        packer.end()
    except CannotPack as error:
        return Failed("pack", _short(str(error)))
    except OSError as error:
        return Failed("read changes", _short(str(error)))
    finally:
        if request.stop:
            _signal_all(signal.SIGCONT)
    return Done(entries=packer.entries, size_bytes=packer.size_bytes)


def _signal_all(number: signal.Signals) -> None:
    """Every process of this sandbox but us (kill(2)): one that forks meanwhile has no child before it has had the signal."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, number)


def _short(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()[:_LONGEST_REASON]


def _entries(layer: int, path: str, levels: int) -> Iterator[tuple[str, str]]:
    try:
        directory = os.open(f".{path}", _DIRECTORY, dir_fd=layer)
    except OSError as error:
        yield path, _name_of(error)
        return
    try:
        names = sorted(os.listdir(directory))
        kinds = [_kind(directory, name) for name in names]
    finally:
        os.close(directory)
    for name, kind in zip(names, kinds, strict=True):
        inner = f"{path}/{name}"
        yield inner, kind
        if kind in ("directory", "opaque"):
            if levels == 0:
                yield inner, "too_deep"
            else:
                yield from _entries(layer, inner, levels - 1)


def _kind(directory: int, name: str) -> str:
    try:
        status = os.lstat(name, dir_fd=directory)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            return "deleted"
        if not stat.S_ISDIR(status.st_mode):
            return "file"
        inner = os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        return _name_of(error)
    try:
        opaque = os.getxattr(inner, "user.overlay.opaque") == b"y"
    except OSError:
        opaque = False
    finally:
        os.close(inner)
    return "opaque" if opaque else "directory"


def _name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "EIO")


def _write(output: int, path: str, note: str) -> None:
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    content = json.dumps([shown, "passed_over", 0, note]).encode()
    view = memoryview(len(content).to_bytes(4, "big") + content)
    while view:
        view = view[os.write(output, view) :]
