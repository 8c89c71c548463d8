"""A catalogue of images in a directory of the test, with canaries around it."""

import contextlib
import gzip
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from sandbox_bench import Bench, Ran

from sandboxd.images.catalogue import Images
from sandboxd.images.store.layers import LayerFile, steps_of, unpack
from sandboxd.images.store.names import Record

CANARY = b"nobody may change or read this\n"

FIND = """
import json, os, stat
found = {}
for path, directories, files in os.walk(b"/"):
    directories[:] = [name for name in directories if path != b"/" or name not in
                      (b"proc", b"sys", b"dev", b"usr", b"lib", b"lib64", b"etc", b"work", b"tmp")]
    for name in directories + files:
        whole = os.path.join(path, name)
        status = os.lstat(whole)
        word = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link"}
        link = stat.S_ISLNK(status.st_mode)
        content = os.fsdecode(os.readlink(whole)) if link else None
        if stat.S_ISREG(status.st_mode) and os.access(whole, os.R_OK):
            content = open(whole, "rb").read(100).decode("latin-1")
        found[whole.decode("utf-8", "backslashreplace")[1:]] = [
            word.get(stat.S_IFMT(status.st_mode), "other"), stat.S_IMODE(status.st_mode),
            status.st_uid, status.st_gid, content, status.st_ino]
print(json.dumps(found))
"""


class Nowhere:
    """A place without a cgroup."""

    def join_files(self) -> tuple[str, ...]:
        return ()

    def directory_fd(self) -> int | None:
        return None

    def kill(self) -> None:
        pass

    def remove(self) -> bool:
        return True


class ImageBench:
    def __init__(self, bench: Bench, directory: Path) -> None:
        self.bench = bench
        self.directory = directory
        self.store = directory / "images"
        self.images = self.opened("first")
        self.canary = directory / "canary"
        self.canary.write_bytes(CANARY)

    def opened(self, name: str, **bounds: int) -> Images:
        """Another process's view of the same images: it shares files and locks, not memory."""
        host_tree = self.directory / f"host-{name}"
        return Images(self.store, host_tree, self.bench.launcher, Nowhere, **bounds)

    def archive(self, content: bytes, name: str = "archive") -> Path:
        path = self.directory / f"{name}.tar"
        path.write_bytes(content)
        return path

    def load(self, content: bytes, name: str = "made", images: Images | None = None) -> Any:
        """Import an archive."""
        catalogue = images or self.images
        return self.bench.do(catalogue.import_tar(name, self.archive(content)))

    def layer(
        self,
        *archives: bytes,
        name: str = "made",
        images: Images | None = None,
        stacked: bool | None = None,
    ) -> Any:
        """Make an image of layers, the lowest first. Each is compressed or not, as it is given."""
        files = []
        for content in archives:
            plain = hashlib.sha256(uncompressed(content)).hexdigest()
            path = self.archive(content, f"layer-{len(files)}")
            files.append(LayerFile(path, f"sha256:{plain}"))
        return self.bench.do(self.unpacked(files, name, images or self.images, stacked))

    async def unpacked(
        self, files: list[LayerFile], name: str, images: Images, stacked: bool | None = None
    ) -> Any:
        async def layer_file(number: int) -> LayerFile:
            return files[number]

        if stacked is None:
            stacked = await images.stacked()
        with contextlib.ExitStack() as lease:
            steps = steps_of([file.diff_id for file in files], stacked=stacked)
            stack = await unpack(images.trees, steps, layer_file, lease)
            record = Record(
                name=name,
                digest="sha256:" + stack.keys[0].rpartition("-")[2],
                size_bytes=stack.size_bytes,
                created_at=0.0,
                source="registry",
                trees=stack.keys,
            )
            return await images.add(record)

    def run(self, *argv: str, name: str = "made", uid: int = 0) -> Ran:
        """Run a command in an image; the host's programs and libraries are bound over it."""
        image = self.bench.do(self.images.resolve(name))
        binds = tuple((os.path.realpath(path), path) for path in ("/usr", "/lib", "/lib64"))
        shape = {
            "rootfs": image.rootfs,
            "below": image.below,
            "binds": binds,
            "writable": image.writable,
        }
        return self.bench.run(*argv, uid=uid, gid=uid, **shape)

    def tree(self, name: str = "made") -> dict[str, Any]:
        """Path to (kind, mode, uid, gid, content) of everything in an image that the archive put there."""
        found = self.run("/usr/bin/python3", "-c", FIND, name=name).json()
        return {path: tuple(of) for path, of in found.items()}

    def left_over(self) -> list[str]:
        return sorted(path.name for path in (self.store / "incoming").iterdir())

    def remove_everything(self) -> None:
        """Files of other owners can be removed from inside a sandbox only."""
        for place in ("trees", "incoming"):
            for tree in (self.store / place).iterdir():
                if (tree / "rootfs").exists():
                    self.bench.do(self.images.trees._remove(tree))


def uncompressed(content: bytes) -> bytes:
    """What a layer is of."""
    if content[:2] == b"\x1f\x8b":
        return gzip.decompress(content)
    if content[:4] == b"\x28\xb5\x2f\xfd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        return decompressor.stream_reader(content, read_across_frames=True).read()
    return content


@contextlib.contextmanager
def an_image_bench(bench: Bench, directory: Path) -> Iterator[ImageBench]:
    made = ImageBench(bench, directory)
    try:
        yield made
        assert made.canary.read_bytes() == CANARY
    finally:
        made.images.close()
        made.remove_everything()
