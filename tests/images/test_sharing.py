"""Layers are kept apart: images share those that they have in common, and a sandbox sees them as one."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from archives import directory, entry, hard_link, link, packed
from host_tests import host_required
from image_bench import ImageBench
from pulls import fetch
from registries import Stub, digest_of, make_image
from waiting import TIME_FACTOR

from sandboxd.errors import Conflict
from sandboxd.files.changes import _Image
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation.spec import OciRuntime

pytestmark = pytest.mark.host

BASE = packed(
    directory("d", mode=0o775, uid=7, gid=8),
    entry("d/kept", b"k"),
    entry("d/gone", b"g"),
    directory("opaque", mode=0o755),
    entry("opaque/old"),
    directory("large"),
    *(entry(f"large/{number}", b"x" * 1000) for number in range(500)),
)
UPPER = packed(
    entry("d/new", b"n"),
    entry("d/.wh.gone"),
    directory("opaque"),
    entry("opaque/.wh..wh..opq"),
    entry(".wh.large"),
)
OTHER = packed(entry("other", b"o"))


def resolved(images: ImageBench, name: str) -> ResolvedImage:
    return images.bench.do(images.images.resolve(name))


def test_the_data_directory_of_tests_keeps_layers_apart(images: ImageBench) -> None:
    """All tests of layers would be of one tree otherwise."""
    assert images.bench.do(images.images.stacked())
    assert images.left_over() == []


def test_two_images_of_one_base_have_its_tree_once(stub: Stub, images: ImageBench) -> None:
    one = stub.offer(make_image(BASE, UPPER), tag="one")
    two = stub.offer(make_image(BASE, OTHER), tag="two")
    fetch(images, one)
    base = images.images.trees.rootfs(f"layer-{digest_of(BASE)[7:]}")
    made_at = base.stat().st_ctime_ns
    stub.asked.clear()

    fetch(images, two)

    assert [digest for digest in (BASE, OTHER) if digest_of(digest) in "".join(stub.paths())] == [
        OTHER
    ]
    assert resolved(images, one).below == resolved(images, two).below == (str(base),)
    assert base.stat().st_ctime_ns == made_at
    assert len(images.images.trees.keys()) == 3
    assert "d/gone" not in images.tree(one)
    assert images.tree(two)["d/gone"][4] == "g"
    assert images.tree(two)["other"][4] == "o"


def test_an_image_goes_with_its_own_layers_only(stub: Stub, images: ImageBench) -> None:
    one = stub.offer(make_image(BASE, UPPER), tag="one")
    two = stub.offer(make_image(BASE, OTHER), tag="two")
    three = stub.offer(make_image(BASE), tag="three")
    for reference in (one, two, three):
        fetch(images, reference)

    images.bench.do(images.images.remove(one))
    assert len(images.images.trees.keys()) == 2
    images.bench.do(images.images.remove(three))
    assert images.tree(two)["d/gone"][4] == "g"
    images.images.close()
    images.bench.do(images.images.remove(two))

    assert images.images.trees.keys() == []
    assert images.left_over() == []


def test_a_layer_holds_what_it_changed_and_nothing_else(images: ImageBench) -> None:
    """A directory that is only passed through has the mode and owner of the one below; what is hidden is not copied."""
    images.layer(BASE, UPPER)
    image = resolved(images, "made")

    top = images.images.trees.rootfs(os.path.basename(os.path.dirname(image.rootfs)))
    assert sorted(os.listdir(top)) == ["d", "large", "opaque"]
    whiteout = (top / "large").lstat()
    assert stat.S_ISCHR(whiteout.st_mode)
    assert whiteout.st_rdev == 0
    assert images.tree()["d"][1:4] == (0o775, 7, 8)
    assert images.tree()["opaque"][0] == "directory"
    assert {path for path in images.tree() if path.startswith(("opaque/", "large"))} == set()


def test_the_top_of_an_image_is_what_its_layers_say(images: ImageBench) -> None:
    images.layer(packed(directory(".", mode=0o750, uid=3, gid=4)), OTHER)
    image = resolved(images, "made")

    above, below = os.stat(image.rootfs), os.stat(image.below[0])
    assert stat.S_IMODE(above.st_mode) == 0o750
    assert (above.st_uid, above.st_gid) == (below.st_uid, below.st_gid)


def test_a_hard_link_may_be_to_a_file_of_a_layer_below(images: ImageBench) -> None:
    images.layer(
        packed(entry("one", b"1" * 5000, mode=0o640, uid=5)),
        packed(hard_link("two", "one")),
        packed(entry("one", b"changed")),
    )

    found = images.tree()
    assert found["two"][1:4] == (0o640, 5, 0)
    assert found["two"][4] == "1" * 100
    assert found["one"][4] == "changed"


@pytest.mark.attack(65)
def test_what_links_copy_from_the_layers_below_counts(images: ImageBench) -> None:
    small = images.opened("small", most_bytes=2**20)
    links = [hard_link(f"link{number}", f"f{number}") for number in range(4)]

    with pytest.raises(Exception, match="more than"):
        images.layer(
            packed(*(entry(f"f{number}", bytes(200_000)) for number in range(4))),
            packed(*links),
            images=small,
        )


@pytest.mark.thorough
def test_an_image_may_have_128_layers(images: ImageBench) -> None:
    layers = [
        packed(entry(f"f{number}", b"%d" % number), entry("top", b"%d" % number))
        for number in range(128)
    ]

    images.layer(*layers)

    found = images.tree()
    assert len([path for path in found if path.startswith("f")]) == 128
    assert found["top"][4] == "127"


def test_where_layers_cannot_be_kept_apart_an_image_is_one_tree(images: ImageBench) -> None:
    images.layer(BASE, UPPER, OTHER, stacked=False)

    image = resolved(images, "made")
    found = images.tree()
    assert image.below == ()
    assert found["d"][1:4] == (0o775, 7, 8)
    assert {path for path in found if found[path][0] == "file"} == {"d/kept", "d/new", "other"}


def test_an_image_of_the_last_release_is_used_on_and_removed(images: ImageBench) -> None:
    """It has one tree for all its layers, and its record does not tell them."""
    images.layer(BASE, UPPER, stacked=False)
    name_file = images.store / "names" / "made.json"
    key = next(iter(images.images.trees.keys()))
    digest = "sha256:" + key.rpartition("-")[2]
    name_file.write_text(
        f'{{"name":"made","digest":"{digest}","size_bytes":4,"created_at":0.0,"source":"registry","tree":"{key}"}}'
    )
    (images.store / "trees" / key / "entries").unlink()
    (images.store / "trees" / key / "size").write_bytes(b"")  # As after a power cut.

    assert images.tree()["d/new"][4] == "n"
    images.images.close()
    images.bench.do(images.images.remove("made"))
    assert images.images.trees.keys() == []


@pytest.mark.parametrize("name", [None, "runc", "crun"])
def test_a_command_sees_the_layers_as_one_and_has_the_groups_of_its_user(
    name: str | None, images: ImageBench
) -> None:
    """Also where an OCI runtime starts it."""
    program = None if name is None else shutil.which(name, path="/usr/sbin:/usr/bin")
    if name is not None and program is None:
        host_required(f"{name} is not installed")
    runtime = None if name is None else OciRuntime(name, program or "")
    images.layer(BASE, packed(entry("shared", b"s", mode=0o040, gid=70)), UPPER)
    image = resolved(images, "made")
    script = "id -G; cat /shared; ls /d /opaque; ls /large"

    ran = images.bench.run(
        "/usr/bin/sh",
        "-c",
        script,
        rootfs=image.rootfs,
        below=image.below,
        runtime=runtime,
        binds=tuple((os.path.realpath(path), path) for path in ("/usr", "/lib", "/lib64")),
        uid=123,
        gid=456,
        groups=(50, 70),
    )

    assert ran.out.decode().split() == ["456", "50", "70", "s/d:", "kept", "new", "/opaque:"]
    assert b"large" in ran.err


@pytest.mark.attack(11)
def test_with_one_id_only_a_command_has_no_groups_of_the_image(
    images_of_either: ImageBench,
) -> None:
    images_of_either.layer(BASE, UPPER)
    image = resolved(images_of_either, "made")
    spec = images_of_either.bench.spec(rootfs=image.rootfs, below=image.below, groups=(50,))
    binds = tuple((os.path.realpath(path), path) for path in ("/usr", "/lib", "/lib64"))

    ran = images_of_either.bench.run("/usr/bin/id", "-G", **spec._replace(binds=binds)._asdict())

    has_range = images_of_either.bench.ids is not None
    assert (b"50" in ran.out.split()) == has_range


# Seen from outside


def has(images: ImageBench, path: str) -> bool:
    image = _Image(resolved(images, "made").trees)
    try:
        return image.has(path)
    finally:
        image.close()


def test_changes_are_told_next_to_what_is_seen_of_the_layers(images: ImageBench) -> None:
    images.layer(
        BASE,
        packed(link("out", str(images.canary.parent)), link("d/up", "..")),
        UPPER,
        packed(entry("opaque/newer"), entry("d/kept", b"again")),
    )

    there = [
        "/d", "/d/kept", "/d/new", "/opaque", "/opaque/newer", "/out", "/d/up",
    ]  # fmt: skip
    not_there = [
        "/d/gone", "/opaque/old", "/large", "/large/1", "/out/canary", "/d/up/d", "/nothing",
        "/d/kept/x", "/d/kept/x/y",
    ]  # fmt: skip
    assert [path for path in there if not has(images, path)] == []
    assert [path for path in not_there if has(images, path)] == []


def test_every_layer_of_an_image_in_use_is_kept(stub: Stub, images: ImageBench) -> None:
    base = stub.offer(make_image(BASE), tag="base")
    one = stub.offer(make_image(BASE, UPPER), tag="one")
    fetch(images, base)
    fetch(images, one)
    resolved(images, one)
    other = images.opened("other")

    for reference in (base, one):
        images.bench.do(other.sweep())
        if reference == one:
            with pytest.raises(Conflict):
                images.bench.do(other.remove(reference))
        else:
            images.bench.do(other.remove(reference))

    assert len(images.images.trees.keys()) == 2
    assert images.tree(one)["d/new"][4] == "n"


# Where layers cannot be kept apart

ON_AN_OVERLAY = """\
import asyncio, sys, tarfile, hashlib
from pathlib import Path
from image_bench import Nowhere
from sandboxd.images.catalogue import Images
from sandboxd.isolation.launcher_client import Launcher

async def main(base):
    launcher = Launcher(stage=base / "stage", ids=None)
    images = Images(base / "data", base / "host", launcher, Nowhere)
    print(await images.stacked(), images.trees.leftovers())
    await launcher.close()

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("kind", ["overlay", "disk"])
def test_whether_layers_can_be_kept_apart_is_tried(kind: str, tmp_path: Path) -> None:
    """An overlay cannot write to a directory that is on an overlay, as one in a container without a volume is."""
    for name in ("lower", "upper", "work", "data", "stage"):
        (tmp_path / name).mkdir()
    mount = 'mount -t overlay -o "userxattr,lowerdir=$0/lower,upperdir=$0/upper,workdir=$0/work" overlay "$0/data"'
    script = f'{mount if kind == "overlay" else ":"} && exec {sys.executable} -c "$1" "$0"'
    here = str(Path(__file__).parent)
    unshare = ("unshare", "--user", "--map-root-user", "--mount")

    ran = subprocess.run(
        [*unshare, "sh", "-c", script, str(tmp_path), ON_AN_OVERLAY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])},
        capture_output=True,
        text=True,
        timeout=60 * TIME_FACTOR,
        check=False,
    )

    assert ran.stdout == f"{kind == 'disk'} []\n", ran.stderr
