"""What is seen of an image's layers is what umoci unpacks, file by file: kind, mode, owner, attributes, content, links."""

import gzip
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from archives import directory, entry, hard_link, link, packed
from debian_image import EMPTIED, HIDDEN, push_debian
from host_tests import host_required
from image_bench import ImageBench
from pulls import fetch
from registries import Registry, make_image

pytestmark = [pytest.mark.host, pytest.mark.thorough]

LOOK = """
import hashlib, json, os, stat, sys
found, inodes = {}, {}
root = sys.argv[1].encode()
for path, directories, files in os.walk(root):
    directories.sort()
    files.sort()
    for name in [b"."] * (path == root) + directories + files:
        whole = os.path.join(path, name)
        status = os.lstat(whole)
        content = None
        if stat.S_ISLNK(status.st_mode):
            content = os.fsdecode(os.readlink(whole))
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(open(whole, "rb").read()).hexdigest()
        names = os.listxattr(whole, follow_symlinks=False)
        attributes = {name: os.getxattr(whole, name).hex() for name in names if name.startswith("user.")}
        shown = os.fsdecode(os.path.relpath(whole, root))
        same = inodes.setdefault(status.st_ino, shown) if content and status.st_nlink > 1 else shown
        found[shown] = [status.st_mode, status.st_uid, status.st_gid, content, attributes, same]
print(json.dumps(found))
"""
OWNER = "user.rootlesscontainers"
"""umoci, not being root, notes owners in this attribute: a message of protocol buffers with uid (1) and gid (2)."""

NO_ID = 2**32 - 1
"""What stands there for an owner who is root anyway."""


def with_attributes(name: str, content: bytes = b"", **attributes: str) -> Any:
    headers = {f"SCHILY.xattr.user.{key}": value for key, value in attributes.items()}
    return entry(name, content, pax_headers=headers)


IMAGES = {
    "whiteouts": (
        packed(
            directory("app", uid=12, gid=34, mode=0o750),
            entry("app/one", b"1", mode=0o755),
            entry("app/two", b"2", mode=0o640, uid=123, gid=456),
            link("app/link", "one"),
            directory("gone"),
            directory("gone/inner"),
            entry("gone/inner/file", b"g" * 10_000),
            directory("opaque", mode=0o711, uid=1),
            entry("opaque/old"),
            directory("opaque/inner"),
            entry("opaque/inner/old"),
        ),
        packed(entry("app/two", b"two"), entry(".wh.gone"), entry("app/new", b"n", uid=7)),
        packed(
            directory("opaque", mode=0o700, gid=2),
            entry("opaque/.wh..wh..opq"),
            entry("opaque/new", b"o"),
            entry("app/.wh.link"),
        ),
    ),
    "replaced": (
        packed(
            directory("a"),
            entry("a/b", b"1"),
            entry("c", b"2"),
            directory("d", uid=5),
            entry("d/e"),
            link("l", "c"),
            link("to-directory", "d"),
            directory("becomes-link"),
            entry("becomes-link/x"),
        ),
        packed(
            entry("a", b"a file now", uid=9),
            directory("c", mode=0o700),
            entry("c/f", b"3"),
            directory("l"),
            entry("l/in", b"i"),
            entry("to-directory", b"t"),
            link("becomes-link", "/elsewhere"),
        ),
        packed(entry("d/.wh.e"), entry("d/g", b"4"), link("c", "d/g"), directory("a")),
    ),
    "come back": (
        packed(directory("x"), entry("x/1", b"1"), entry("x/2", b"2"), directory("x/y")),
        packed(entry(".wh.x")),
        packed(directory("x", mode=0o750, gid=3), entry("x/3", b"3", mode=0o600)),
        packed(entry("x/.wh.3"), entry("y", b"y"), directory("x/y"), entry("x/y/4", b"4")),
        packed(entry("x/.wh..wh..opq"), directory("x/y", mode=0o777)),
    ),
    "links and attributes": (
        packed(
            with_attributes("one", b"1" * 3000, a="b", long="v" * 500),
            hard_link("two", "one"),
            directory("d"),
            hard_link("d/three", "one"),
            entry("alone", b"x"),
        ),
        packed(
            entry("one", b"changed"),
            hard_link("d/four", "d/three"),
            with_attributes("alone", b"y", new="1"),
            entry("fresh", b"f"),
            hard_link("fresher", "fresh"),
        ),
        packed(entry(".wh.two"), directory("d", mode=0o711), entry("d/.wh.three")),
    ),
}


def looked(root: Path | str) -> dict[str, list[Any]]:
    words = [sys.executable, "-c", LOOK, str(root)]
    return json.loads(subprocess.run(words, check=True, capture_output=True).stdout)


def mounted(trees: tuple[str, ...], place: Path) -> dict[str, list[Any]]:
    """As mount(8) shows the trees in a user namespace of its own, with the ids that a launcher has."""
    place.mkdir()
    script = f'mount -t overlay -o userxattr,lowerdir="$1" overlay "$2" && exec {sys.executable} -c "$3" "$2"'
    unshare = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount"]
    words = [*unshare, "sh", "-c", script, "sh", ":".join(trees), str(place), LOOK]
    ran = subprocess.run(words, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, list[Any]] = json.loads(ran.stdout)
    # 0 is the service's own id; what is 0 in a sandbox comes after it.
    return {
        path: [mode, uid - 1, gid - 1, *rest] for path, (mode, uid, gid, *rest) in found.items()
    }


def owners(encoded: str) -> tuple[int, int]:
    """uid and gid of the message: varints, each after its number; 0 is left out."""
    content, ids, at = bytes.fromhex(encoded), {1: 0, 2: 0}, 0
    while at < len(content):
        field, shift, value = content[at] >> 3, 0, 0
        while True:
            at += 1
            value |= (content[at] & 0x7F) << shift
            shift += 7
            if content[at] < 0x80:
                break
        at += 1
        ids[field] = value
    uid, gid = (0 if each == NO_ID else each for each in ids.values())
    return uid, gid


def unpacked_by_umoci(reference: str, directory: Path) -> dict[str, list[Any]]:
    layout, bundle = directory / "layout", directory / "bundle"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    unpack = ["umoci", "unpack", "--rootless", "--image", f"{layout}:1", str(bundle)]
    for words in ([*copy, f"docker://{reference}", f"oci:{layout}:1"], unpack):
        environment = {**os.environ, "HOME": str(directory)}
        subprocess.run(words, check=True, capture_output=True, env=environment)
    found = looked(bundle / "rootfs")
    for path, (mode, _, _, content, attributes, same) in found.items():
        uid, gid = owners(attributes.pop(OWNER, ""))
        found[path] = [mode, uid, gid, content, attributes, same]
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_the_layers_show_what_umoci_unpacks(
    name: str, registry: Registry, images: ImageBench, tmp_path: Path
) -> None:
    for program in ("skopeo", "umoci", "unshare"):
        if shutil.which(program) is None:
            host_required(f"{program} is not installed")
    reference = registry.push(make_image(*map(gzip.compress, IMAGES[name])))

    fetch(images, reference)

    image = images.bench.do(images.images.resolve(reference))
    ours = mounted(image.trees, tmp_path / "seen")
    theirs = unpacked_by_umoci(reference, tmp_path)
    assert len(image.trees) == len(IMAGES[name])
    # The top of umoci's is its bundle's.
    ours.pop("."), theirs.pop(".")
    # A link cannot have umoci's attribute: its owner is not known.
    for path, of in theirs.items():
        if stat.S_ISLNK(of[0]):
            of[1:3] = ours[path][1:3]
    assert ours == theirs


@pytest.mark.timeout(900)  # It may have to be built.
def test_a_debian_shows_what_umoci_unpacks(
    registry: Registry, images: ImageBench, tmp_path: Path
) -> None:
    """But for what no image may have here: devices, and set-id bits."""
    reference = push_debian(registry, tmp_path)

    fetch(images, reference)

    image = images.bench.do(images.images.resolve(reference))
    ours = mounted(image.trees, tmp_path / "seen")
    theirs = unpacked_by_umoci(reference, tmp_path)
    ours.pop("."), theirs.pop(".")
    for path, of in list(theirs.items()):
        if stat.S_ISLNK(of[0]):
            of[1:3] = ours[path][1:3]
        elif path.startswith("dev/") and stat.S_ISREG(of[0]):
            del theirs[path]  # What umoci, not being root, makes in the place of a device.
        else:
            of[0] &= ~(stat.S_ISUID | stat.S_ISGID)
    assert len(image.trees) == 3
    assert len(ours) > 3000
    assert HIDDEN not in ours
    assert [path for path in ours if path.startswith(f"{EMPTIED}/")] == [f"{EMPTIED}/only"]
    assert ours == theirs


def test_the_blobs_are_a_layout_that_skopeo_reads(
    registry: Registry, images: ImageBench, tmp_path: Path
) -> None:
    if shutil.which("skopeo") is None:
        host_required("skopeo is not installed")
    kept, gone = (make_image(*map(gzip.compress, IMAGES[name])) for name in list(IMAGES)[:2])
    references = [
        registry.push(kept, tag="kept"),
        registry.push(gone, tag="gone"),
    ]
    for reference in references:
        fetch(images, reference)
    images.load(packed(entry("imported")), "imported")

    def copied(reference: str) -> bool:
        copy = ["skopeo", "--insecure-policy", "copy", "--quiet"]
        words = [*copy, f"oci:{images.store / 'oci'}:{reference}", f"dir:{tmp_path / 'copy'}"]
        environment = {**os.environ, "HOME": str(tmp_path)}
        ran = subprocess.run(words, check=False, capture_output=True, env=environment)
        return ran.returncode == 0

    assert all(map(copied, references))
    images.bench.do(images.images.remove(references[1]))

    assert copied(references[0])
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == kept.manifest
    assert not copied(references[1])
