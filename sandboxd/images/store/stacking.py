"""Whether the layers of images can be kept apart in a data directory, each above the others by overlay: tried once, with a layer.

Its upper directory must be on a file system that has user xattrs and is neither an overlay itself nor a network's. Where it cannot be
had, all layers of an image are applied to one tree, and images share none.
"""

import hashlib
import io
import os
import tarfile
from pathlib import Path

from sandboxd.errors import SandboxFailed
from sandboxd.images.store.trees import Trees
from sandboxd.isolation.protocol import Layer

_OPAQUE = "user.overlay.opaque"
_WALLS = frozenset({"mount_file_system", "unpack", "use disk"})
"""What fails in a sandbox where the file system will not do."""


async def can_stack(trees: Trees) -> bool:
    """Try it: a directory is removed and made again above a tree that has it. Raises SandboxFailed for what has to do with neither."""
    try:
        async with trees.trial() as lower, trees.trial() as upper:
            await _apply(trees, lower / "rootfs", _archive("d"))
            await _apply(trees, upper / "rootfs", _archive(".wh.d", "d"), str(lower / "rootfs"))
            return os.getxattr(upper / "rootfs" / "d", _OPAQUE) == b"y"
    except OSError:
        return False
    except SandboxFailed as error:
        if error.step not in _WALLS:
            raise
        return False


async def _apply(trees: Trees, rootfs: Path, archive: bytes, *below: str) -> None:
    diff_id = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    request = Layer(
        len(archive), 10, trees.sandboxes.id_count, has_lower=bool(below), diff_id=diff_id
    )
    descriptor = os.memfd_create("layer", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, archive)
        await trees.sandboxes.work(rootfs, request, [descriptor], below)
    finally:
        os.close(descriptor)


def _archive(*names: str) -> bytes:
    """A layer with these directories; a whiteout may as well be one."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name in names:
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
    return written.getvalue()
