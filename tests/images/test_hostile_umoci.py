"""What umoci, which is another program altogether, makes of the corpus: the same trees, or the difference has a reason that is written down."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archive_bench import plain, read
from archives import directory, entry, link, packed
from host_tests import host_required
from hostile_archives import CORPUS, Tree

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
_TAR = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


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
    layout = Layout(tmp_path / "layout")
    for number, case in enumerate(ours.values()):
        layout.add(f"t{number}", packed(*_entries(case.lower)), plain(case.archive))
    layout.write()

    with ThreadPoolExecutor(2) as threads:
        trees = threads.map(layout.unpacked, [f"t{number}" for number in range(len(ours))])
        theirs = dict(zip(ours, trees, strict=True))

    taken = {name: tree for name, tree in theirs.items() if tree is not None}
    different = {name for name, tree in taken.items() if tree != ours[name].layered}
    assert different == DIFFERENT.keys()
    assert len(taken) > 0.8 * len(ours)


class Layout:
    """Images in a directory of OCI's shape, each of plain layers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._manifests: list[dict[str, object]] = []
        (directory / "blobs" / "sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(self, tag: str, *layers: bytes) -> None:
        described = [self._blob(content, _TAR) for content in layers]
        config = {
            "os": "linux",
            "architecture": "amd64",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in described]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._blob(json.dumps(config).encode(), _CONFIG),
            "layers": described,
        }
        named = {"annotations": {"org.opencontainers.image.ref.name": tag}}
        self._manifests.append(self._blob(json.dumps(manifest).encode(), _MANIFEST) | named)

    def write(self) -> None:
        index = {"schemaVersion": 2, "manifests": self._manifests}
        (self.directory / "index.json").write_text(json.dumps(index))

    def _blob(self, content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (self.directory / "blobs" / "sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def unpacked(self, tag: str) -> Tree | None:
        """What umoci makes of an image. None: it refuses it."""
        bundle = self.directory.parent / tag
        words = ["umoci", "unpack", "--rootless", "--image", f"{self.directory}:{tag}", str(bundle)]
        ran = subprocess.run(
            words,
            check=False,
            capture_output=True,
            env={**os.environ, "HOME": str(self.directory.parent)},
            timeout=60,
        )
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
