"""Loading: what is in an archive becomes images that jobs can name, verified as those of a registry, or nothing at all."""

import contextlib
import gzip
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from archive_tools import (
    archive_of,
    blob_name,
    config_in,
    docker_files,
    index_of,
    layers_in,
    oci_files,
    tool,
    write_layout,
)
from archives import directory, entry, extension, hard_link, header, link, packed, pax_record
from image_bench import ImageBench
from registries import Made, described, make_image, make_index

from sandboxd.errors import Conflict, Invalid, NotFound, Refused
from sandboxd.images.archives.opening import opened, opened_file
from sandboxd.images.loading import load
from sandboxd.images.transfers import Progress

pytestmark = pytest.mark.host

zstd = zstandard.ZstdCompressor().compress
NAME = "registry.example/team/tools:1"
BASE = packed(directory("app"), entry("app/one", b"1", mode=0o755), entry("app/two", b"2", uid=7))
SECOND = packed(entry("app/.wh.one"), entry("app/new", b"n"))
AMD = {"os": "linux", "architecture": "amd64"}
ARM = {"os": "linux", "architecture": "arm64", "variant": "v8"}


def load_path(
    images: ImageBench, path: Path, name: str | None = None, told: list[Progress] | None = None
) -> list[Any]:
    tell = (lambda _: None) if told is None else told.append

    async def loaded() -> list[Any]:
        with opened(path, images.images.blobs.directory) as source:
            return await load(images.images, source, tell, name=name)

    return images.bench.do(loaded())


def load_bytes(images: ImageBench, content: bytes, name: str | None = None) -> list[Any]:
    return load_path(images, images.archive(content, "images"), name)


def contents(images: ImageBench, name: str = NAME) -> dict[str, Any]:
    found = images.tree(name)
    return {path: of[4] for path, of in found.items() if of[0] == "file"}


def untouched(images: ImageBench) -> bool:
    """Nothing is named, unpacked or half-done."""
    names = [image.name for image in images.bench.do(images.images.list())]
    left = [
        *images.left_over(),
        *images.images.trees.keys(),
        *(images.store / "oci/partial").iterdir(),
    ]
    return names == ["host"] and left == []


# What is loaded


@pytest.mark.parametrize("compressed", [None, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_archive_becomes_an_image(
    kind: str, compressed: Callable[[bytes], bytes] | None, images: ImageBench
) -> None:
    made = make_image(
        gzip.compress(BASE), zstd(SECOND), run={"Cmd": ["x"]}, docker=kind == "docker"
    )
    files = oci_files((made, NAME)) if kind == "oci" else docker_files(made, NAME)
    content = archive_of(files)

    (image,) = load_bytes(images, compressed(content) if compressed else content)

    assert (image.name, image.source) == (NAME, "archive")
    assert contents(images) == {"app/two": "2", "app/new": "n"}
    assert images.tree(NAME)["app/two"][2] == (7 if images.bench.launcher.ids else 0)
    assert images.images.command_of(NAME, []) == ("x",)
    if kind == "oci":
        assert image.digest == made.digest


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_what_skopeo_writes_is_loaded_and_runs(
    form: str, images: ImageBench, tmp_path: Path
) -> None:
    made = make_image(gzip.compress(BASE), gzip.compress(SECOND))
    layout = write_layout(tmp_path / "made", oci_files((made, "1")))
    place = tmp_path / "written"
    tool("skopeo", "copy", f"oci:{layout}:1", f"{form}:{place}:{NAME}", home=tmp_path)
    told: list[Progress] = []

    (image,) = load_path(images, place, told=told)

    assert image.name == NAME
    assert contents(images) == {"app/two": "2", "app/new": "n"}
    assert images.run("/usr/bin/cat", "/app/new", name=NAME).out == b"n"
    assert sum(each.done_bytes == each.size_bytes for each in told) == 2
    if form != "docker-archive":
        assert image.digest == made.digest


def test_an_old_archive_has_links_for_layers_that_are_there_twice(images: ImageBench) -> None:
    made = make_image(BASE, SECOND, BASE)
    files = docker_files(made, NAME, "registry.example/team/tools:latest")
    third = f"{2:064x}/layer.tar"
    del files[third]

    loaded = load_bytes(images, archive_of(files, link(third, f"../{0:064x}/layer.tar")))

    assert [image.name for image in loaded] == [NAME, "registry.example/team/tools:latest"]
    assert len(images.images.trees.keys()) == 3
    assert contents(images) == {"app/one": "1", "app/two": "2", "app/new": "n"}


def test_an_archive_may_hold_several_images_and_platforms(images: ImageBench) -> None:
    one, other = make_image(BASE), make_image(BASE, SECOND)
    arm = make_image(BASE, architecture="arm64")
    index = make_index((arm, ARM), (other, AMD))
    files = oci_files((one, "a.example/one:1"), (index, "a.example/two"))
    for image in (other, arm):
        files |= oci_files((image, None)) | {"index.json": files["index.json"]}

    loaded = load_bytes(images, archive_of(files))

    assert [image.name for image in loaded] == ["a.example/one:1", "a.example/two:latest"]
    assert [image.digest for image in loaded] == [one.digest, other.digest]


def test_an_image_without_a_whole_name_is_given_one(images: ImageBench) -> None:
    made = make_image(BASE)
    for name in (None, "1", "latest"):
        with pytest.raises(Invalid, match="give it a name"):
            load_bytes(images, archive_of(oci_files((made, name))))
    with pytest.raises(Invalid, match="give it a name"):
        load_bytes(images, archive_of(docker_files(made)))
    assert untouched(images)

    assert load_bytes(images, archive_of(oci_files((made, "1"))), "mine")[0].name == "mine"
    assert load_bytes(images, archive_of(docker_files(made)), "mine/too")[0].name == (
        "docker.io/mine/too:latest"
    )
    assert "app/one" in contents(images, "mine")


def test_an_archive_comes_through_a_pipe(images: ImageBench) -> None:
    content = archive_of(oci_files((make_image(BASE), NAME)))
    reading, writing = os.pipe()

    def feed() -> None:
        with contextlib.closing(os.fdopen(writing, "wb")) as pipe:
            pipe.write(content)

    feeding = threading.Thread(target=feed)
    feeding.start()

    async def loaded() -> list[Any]:
        with opened_file(reading, images.images.blobs.directory) as source:
            return await load(images.images, source, lambda _: None)

    (image,) = images.bench.do(loaded())

    feeding.join()
    os.close(reading)
    assert image.name == NAME


def test_what_an_archive_may_be_uncompressed_is_bounded(images: ImageBench, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(archive_of({"index.json": bytes(2**20)})))

    with (
        pytest.raises(Invalid, match="larger, uncompressed"),
        opened(path, tmp_path, most_bytes=2**19),
    ):
        pass


def test_a_removed_image_of_an_archive_leaves_nothing(images: ImageBench) -> None:
    load_bytes(images, archive_of(docker_files(make_image(BASE), NAME)))

    images.bench.do(images.images.remove(NAME))

    assert untouched(images)
    assert list((images.store / "oci/blobs/sha256").iterdir()) == []


# Hostile archives


OUTSIDE = ("../../etc/passwd", "/etc/passwd", "a/../../b", "..", "./../x")


@pytest.mark.attack(75)
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_member_whose_name_leads_out_is_refused(name: str, images: ImageBench) -> None:
    files = oci_files((make_image(BASE), NAME))

    with pytest.raises(Invalid, match="leads out of it"):
        load_bytes(images, archive_of(files, entry(name, b"x")))

    assert untouched(images)


@pytest.mark.attack(75)
@pytest.mark.parametrize("name", [*OUTSIDE, "/proc/self/environ", "canary", "nothing\0here"])
def test_an_index_that_names_other_files_finds_none(
    name: str, images: ImageBench, tmp_path: Path
) -> None:
    made = make_image(BASE)
    for changed in ({"Config": name}, {"Layers": [name]}, {"Layers": [f"../{name}"]}):
        with pytest.raises(Invalid, match="has no"):
            load_bytes(images, archive_of(docker_files(made, NAME, **changed)))
        layout = write_layout(tmp_path / "layout", docker_files(made, NAME, **changed))
        with pytest.raises(Invalid, match="has no"):
            load_path(images, layout)

    assert untouched(images)


@pytest.mark.attack(75)
@pytest.mark.parametrize(
    "target", ["../../../etc/passwd", "/etc/passwd", "nothing", "..", "../../../../proc/self/exe"]
)
def test_a_layer_that_is_a_link_out_of_the_archive_is_refused(
    target: str, images: ImageBench
) -> None:
    files = docker_files(make_image(BASE), NAME)
    layer = f"{0:064x}/layer.tar"
    del files[layer]

    with pytest.raises(Invalid, match="a link at"):
        load_bytes(images, archive_of(files, link(layer, target)))

    assert untouched(images)


@pytest.mark.attack(75)
def test_links_and_special_files_in_a_layout_are_not_there(
    images: ImageBench, tmp_path: Path
) -> None:
    made = make_image(BASE)
    blob = blob_name(layers_in(made)[0])
    outside = tmp_path / "outside"
    outside.write_bytes(BASE)
    for number, name in enumerate(("index.json", blob, blob_name(config_in(made)), "blobs")):
        layout = write_layout(tmp_path / str(number), oci_files((made, NAME)))
        moved = tmp_path / f"moved-{number}"
        (layout / name).rename(moved)
        (layout / name).symlink_to(moved)
        with pytest.raises(Invalid, match="has no"):
            load_path(images, layout)
    fifo = write_layout(tmp_path / "fifo", oci_files((made, NAME)))
    (fifo / blob).unlink()
    os.mkfifo(fifo / blob)
    with pytest.raises(Invalid, match="has nothing"):
        load_path(images, fifo)

    assert untouched(images)


@pytest.mark.attack(75)
@pytest.mark.parametrize("name", ["index.json", "manifest.json", "oci-layout"])
def test_an_index_that_is_a_link_is_refused(name: str, images: ImageBench) -> None:
    made = make_image(BASE)
    files = docker_files(made, NAME) if name == "manifest.json" else oci_files((made, NAME))
    content = files.pop(name)
    files["elsewhere"] = content

    if name == "oci-layout":  # Its content says nothing: it is never read.
        assert load_bytes(images, archive_of(files, link(name, "elsewhere")))
        return
    with pytest.raises(Invalid, match="has no file"):
        load_bytes(images, archive_of(files, link(name, "elsewhere")))
    assert untouched(images)


def strange_members() -> dict[str, bytes]:
    good = archive_of(oci_files((make_image(BASE), NAME)))[: -2 * 512]
    end = bytes(1024)
    sparse = pax_record("GNU.sparse.map", b"0,0") + pax_record("GNU.sparse.size", b"9")
    return {
        "hard link": good + packed(hard_link("x", "index.json")),
        "device": good + packed(entry("x", type=tarfile.CHRTYPE)),
        "FIFO": good + packed(entry("x", type=tarfile.FIFOTYPE)),
        "sparse": good + header(b"x", kind=b"S") + end,
        "sparse by pax": good + extension(b"x", sparse) + header(b"x") + end,
        "unknown kind": good + header(b"x", kind=b"Z") + end,
        "twice": good + packed(entry("index.json", b"{}")),
        "twice, written differently": good + packed(entry("./index.json", b"{}")),
        "twice, a directory": good + packed(directory("index.json")),
        "twice, a link": good + packed(link("index.json", "oci-layout")),
        "twice, by pax": good
        + extension(b"x", pax_record("path", b"index.json"))
        + header(b"y")
        + end,
        "no name": good + header(b"") + end,
        "not UTF-8": good + header(b"\xff\xfe") + end,
        "a name of all": good
        + extension(b"g", pax_record("path", b"index.json"))
        + header(b"y")
        + end,
        "huge": good + header(b"x", size=b"7" * 11) + end,
        "huge, base 256": good + header(b"x", size=b"\x80" + b"\xff" * 11) + end,
        "negative": good + header(b"x", size=b"\xff" * 12) + end,
        "no number": good + header(b"x", size=b"-0000000001") + end,
        "a size by pax": good + extension(b"x", pax_record("size", b"9" * 18)) + header(b"x") + end,
        "a size that is none": good
        + extension(b"x", pax_record("size", b"-1"))
        + header(b"x")
        + end,
        "a large header": good
        + extension(b"x", pax_record("path", b"y" * 70_000))
        + header(b"x")
        + end,
        "a long name": good + extension(b"L", b"y" * 2000) + header(b"x") + end,
        "NUL by pax": good + extension(b"x", pax_record("path", b"a\0b")) + header(b"x") + end,
        "a broken header": good + extension(b"x", b"99 path=x\n") + header(b"x") + end,
        "checksum": good + header(b"x")[:148] + b"0000000\0" + header(b"x")[156:] + end,
        "cut short": good,
        "cut in a file": good[:-100],
        "no archive": b"#!/bin/sh\n" + bytes(2000),
        "empty": b"",
        "nothing in it": end,
        "gzip that breaks off": gzip.compress(good + end)[:-20],
        "gzip that is none": b"\x1f\x8b" + bytes(100),
        "zstd that is none": b"\x28\xb5\x2f\xfd" + b"\xff" * 100,
        "zstd that breaks off": zstd(good + end)[:-20],
    }


@pytest.mark.attack(75)
@pytest.mark.parametrize("case", strange_members())
def test_what_readers_of_tar_disagree_about_is_refused(case: str, images: ImageBench) -> None:
    with pytest.raises(Invalid) as refused:
        load_bytes(images, strange_members()[case])

    assert refused.value.code == "bad_archive"
    assert untouched(images)


@pytest.mark.attack(75)
def test_an_archive_of_a_hundred_thousand_members_is_refused(images: ImageBench) -> None:
    many = b"".join(header(b"%d" % number) for number in range(100_000)) + bytes(1024)

    with pytest.raises(Invalid, match="more than 20000 members"):
        load_bytes(images, many)
    with pytest.raises(Invalid, match="more than 99 extension headers"):
        load_bytes(images, extension(b"g", b"") * 100_000)

    assert untouched(images)


@pytest.mark.attack(75)
def test_a_huge_index_is_refused(images: ImageBench) -> None:
    made = make_image(BASE)
    saved = json.loads(docker_files(made, NAME)["manifest.json"])[0]
    huge = {
        "bytes": docker_files(made, NAME) | {"manifest.json": b" " * (4 * 2**20 + 1)},
        "images": docker_files(made) | {"manifest.json": json.dumps([saved] * 65).encode()},
        "layers": docker_files(made, NAME, Layers=saved["Layers"] * 129),
        "tags": docker_files(made, NAME, RepoTags=[f"a.example/x:{n}" for n in range(1025)]),
        "manifests": oci_files((made, NAME)) | {"index.json": index_of(*[(made, NAME)] * 1025)},
        "names": oci_files((made, NAME))
        | {"index.json": index_of(*((made, f"a.example/x:{n}") for n in range(65)))},
        "depth": oci_files((made, NAME)) | {"index.json": b"[" * 10**6},
    }
    for files in huge.values():
        with pytest.raises(Invalid):
            load_bytes(images, archive_of(files))

    assert untouched(images)


@pytest.mark.attack(75)
def test_the_documents_of_all_images_together_are_bounded(images: ImageBench) -> None:
    files: dict[str, bytes] = {}
    saved = []
    for number in range(20):
        made = make_image(BASE, comment=" " * (4 * 2**20 - 1000), author=str(number))
        more = docker_files(made, f"a.example/x:{number}")
        saved += json.loads(more["manifest.json"])
        files |= more
    files["manifest.json"] = json.dumps(saved).encode()

    with pytest.raises(Invalid, match="bytes of manifests"):
        load_bytes(images, archive_of(files))


def changed_blob(made: Made, digest: str, content: bytes | None) -> dict[str, bytes]:
    files = oci_files((made, NAME))
    if content is None:
        del files[blob_name(digest)]
    else:
        files[blob_name(digest)] = content
    return files


@pytest.mark.attack(65, 67, 75)
def test_what_is_missing_or_has_another_digest_is_refused(images: ImageBench) -> None:
    made = make_image(BASE)
    content = {made.digest: made.manifest, **made.blobs}
    for digest, right in content.items():
        for wrong in (None, b"", right + b" ", b" " + right[1:]):
            with pytest.raises(Invalid, match=r"has nothing|has \d+ bytes|sha256:.* for sha256:"):
                load_bytes(images, archive_of(changed_blob(made, digest, wrong)))
    other = docker_files(made, NAME)
    config = next(name for name in other if name.endswith(".json") and name != "manifest.json")
    with pytest.raises(Invalid, match="for"):
        load_bytes(images, archive_of(other | {config: other[config] + b" "}))
    with pytest.raises(Invalid, match="was to be"):
        load_bytes(images, archive_of(other | {f"{0:064x}/layer.tar": SECOND}))

    assert untouched(images)


@pytest.mark.attack(68, 71, 75)
def test_an_index_that_is_ambiguous_is_refused(images: ImageBench) -> None:
    made, other = make_image(BASE), make_image(SECOND)
    nested = make_index((make_index((made, AMD)), AMD))
    both = {**json.loads(index_of((made, NAME))), "layers": [], "config": described(b"", "x")}
    twice = docker_files(made, NAME)
    saved = json.loads(twice["manifest.json"])
    for files in (
        oci_files((nested, NAME)),
        oci_files((made, NAME)) | {"index.json": json.dumps(both).encode()},
        oci_files((made, NAME), (other, NAME)),
        twice | {"manifest.json": json.dumps(saved * 2).encode()},
        oci_files((made._replace(media_type="text/plain"), NAME)),
        oci_files((make_image(BASE, architecture="s390x"), NAME)),
        docker_files(make_image(BASE, os="windows"), NAME),
        oci_files((make_image(), NAME)),
    ):
        with pytest.raises(Invalid):
            load_bytes(images, archive_of(files))

    assert untouched(images)


@pytest.mark.attack(71, 75)
@pytest.mark.parametrize(
    "name",
    [
        "UPPER/case:1",
        "a/b:1@sha256:" + "0" * 64,
        "../../etc:1",
        "a.example/../x:1",
        "a.example/x:" + "t" * 200,
        "a.example/x\x1b[2J:1",
    ],
)
def test_a_name_that_no_image_can_have_is_refused(name: str, images: ImageBench) -> None:
    made = make_image(BASE)
    for content in (archive_of(oci_files((made, name))), archive_of(docker_files(made, name))):
        with pytest.raises(Invalid):
            load_bytes(images, content)
    with pytest.raises(Invalid):
        load_bytes(images, archive_of(oci_files((made, NAME))), name)

    assert untouched(images)


@pytest.mark.attack(71)
def test_no_archive_can_take_the_name_of_the_host_s_image(images: ImageBench) -> None:
    content = archive_of(oci_files((make_image(BASE), "host")))
    with pytest.raises(Invalid, match="give it a name"):
        load_bytes(images, content)
    with pytest.raises(Conflict):
        load_bytes(images, content, "host")

    assert untouched(images)


def test_what_is_no_archive_at_all_is_said(images: ImageBench, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_path(images, tmp_path / "nothing")
    with pytest.raises(Refused, match="neither"):
        load_path(images, tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Invalid):
        load_path(images, tmp_path / "fifo")
