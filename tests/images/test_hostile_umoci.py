"""What umoci, which is another program altogether, makes of the corpus: the same trees, or the difference has a reason that is written down."""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archive_bench import plain, read
from archive_tools import oci_files, write_layout
from archives import directory, entry, link, packed
from host_tests import host_required
from hostile_archives import CORPUS, Tree
from registries import make_image

from sandboxd.isolation import unpack

pytestmark = pytest.mark.host

_LEFT_OUT = (
    "umoci makes FIFOs, and empty files for devices that it may not make; here they are left out"
)
_NO_LINK = "umoci goes by the link; here a whiteout is about the directory that it names"
_NO_NAMES = "here nothing is a file whose path has a part that begins with .wh."
_NO_SET_ID = "umoci keeps set-id bits, and the sticky bit of files"
DIFFERENT = {
    "device nodes, left out": _LEFT_OUT,
    "a device that would be a whiteout to overlay": _LEFT_OUT,
    "a device with numbers that are none, left out": _LEFT_OUT,
    "a whiteout of overlay's, left out": _LEFT_OUT,
    "a FIFO, left out": _LEFT_OUT,
    "through a link, hiding nothing": _NO_LINK,
    "a file and a link, opaque": _NO_LINK,
    "marks of aufs": _NO_NAMES,
    "what is below a whiteout": _NO_NAMES,
    "set-id and sticky bits": _NO_SET_ID,
    "a mode below zero": _NO_SET_ID,
}
"""Archives that both take and of which they make something else, and why."""


@pytest.mark.attack(61, 62, 63, 64)
def test_umoci_makes_the_same_trees(tmp_path: Path) -> None:
    if shutil.which("umoci") is None:
        host_required("umoci is not installed")
    ours = {
        name: case
        for part in CORPUS.values()
        for name, case in part.items()
        if isinstance(case.layered, dict)
    }
    images = {
        f"t{number}": make_image(packed(*_entries(case.lower)), plain(case.archive))
        for number, case in enumerate(ours.values())
    }
    layout = write_layout(
        tmp_path / "layout", oci_files(*((image, tag) for tag, image in images.items()))
    )

    with ThreadPoolExecutor(2) as threads:
        trees = threads.map(functools.partial(_unpacked, layout), images)
        theirs = dict(zip(ours, trees, strict=True))

    taken = {name: tree for name, tree in theirs.items() if tree is not None}
    different = {name for name, tree in taken.items() if tree != ours[name].layered}
    assert different == DIFFERENT.keys()
    assert len(taken) > 0.8 * len(ours)


def _unpacked(layout: Path, tag: str) -> Tree | None:
    """What umoci makes of an image. None: it refuses it."""
    bundle = layout.parent / tag
    words = ["umoci", "unpack", "--rootless", "--image", f"{layout}:{tag}", str(bundle)]
    environment = {**os.environ, "HOME": str(layout.parent)}
    ran = subprocess.run(words, check=False, capture_output=True, env=environment, timeout=60)
    if ran.returncode != 0:
        return None
    root = bundle / "rootfs"
    root.chmod(0o700)
    try:
        return dict(read(root, foreign=True))
    finally:
        unpack.empty(str(root))


def _entries(tree: Tree) -> Iterator[tuple[object, bytes]]:
    for path, (kind, content, mode) in tree.items():
        if kind == "directory":
            yield directory(path, mode=mode)
        elif kind == "link":
            yield link(path, content or "")
        else:
            yield entry(path, (content or "").encode("latin-1"), mode=mode)
