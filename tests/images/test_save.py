"""Saving: what goes out is what came in, digest for digest, and other tools read it."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from archive_tools import archive_of, config_in, docker_files, layers_in, oci_files, tool
from archives import directory, entry, hard_link, link, packed
from image_bench import ImageBench
from registries import Made, make_image

from sandboxd.errors import Conflict, Invalid, NotFound
from sandboxd.images.archives.opening import opened
from sandboxd.images.history import read_history
from sandboxd.images.loading import load
from sandboxd.images.new_names import new_name
from sandboxd.images.saving import save

pytestmark = pytest.mark.host

zstd = zstandard.ZstdCompressor().compress
NAME = "registry.example/team/tools:1"
BASE = packed(directory("app"), entry("app/one", b"1", mode=0o755), entry("app/two", b"2", uid=7))
SECOND = packed(entry("app/.wh.one"), entry("app/new", b"n"))
HISTORY = [
    {"created": "2026-01-02T03:04:05Z", "created_by": "ADD base", "comment": "the base"},
    {"created_by": "ENV A=1", "empty_layer": True},
    {"created_by": "RUN \x1b[31mred"},
]


def load_files(images: ImageBench, files: dict[str, bytes]) -> list[Any]:
    return load_path(images, images.archive(archive_of(files), "images"))


def load_path(
    images: ImageBench, path: Path, catalogue: Any = None, name: str | None = None
) -> list[Any]:
    async def loaded() -> list[Any]:
        there = catalogue or images.images
        with opened(path, there.blobs.directory) as source:
            return await load(there, source, lambda _: None, name=name)

    return images.bench.do(loaded())


def saved(images: ImageBench, *names: str, docker: bool = True) -> bytes:
    async def all_of_it() -> bytes:
        return b"".join([piece async for piece in save(images.images, names, docker=docker)])

    return images.bench.do(all_of_it())


def made_of(*layers: bytes, docker: bool) -> Made:
    return make_image(
        *layers, docker=docker, run={"Cmd": ["x"], "Labels": {"a": "b"}}, history=HISTORY
    )


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
@pytest.mark.parametrize("docker", [False, True], ids=["oci image", "docker image"])
def test_skopeo_reads_what_is_saved(
    docker: bool, form: str, images: ImageBench, tmp_path: Path
) -> None:
    made = made_of(gzip.compress(BASE), gzip.compress(SECOND), docker=docker)
    load_files(images, oci_files((made, NAME)))
    path = tmp_path / "saved.tar"
    path.write_bytes(saved(images, NAME, docker=form == "docker-archive"))
    name = f":{NAME}"

    shown = json.loads(tool("skopeo", "inspect", f"{form}:{path}{name}", home=tmp_path))
    raw = tool("skopeo", "inspect", "--raw", f"{form}:{path}{name}", home=tmp_path)
    tool("skopeo", "copy", f"{form}:{path}{name}", f"dir:{tmp_path / 'copied'}", home=tmp_path)

    assert shown["Labels"] == {"a": "b"}
    copied = {each.name for each in (tmp_path / "copied").iterdir()}
    assert config_in(made).removeprefix("sha256:") in copied
    if form == "oci-archive":
        assert docker or raw.encode() == made.manifest
        assert {each.removeprefix("sha256:") for each in layers_in(made)} <= copied
    else:
        plain = {hashlib.sha256(layer).hexdigest() for layer in (BASE, SECOND)}
        assert {each.removeprefix("sha256:") for each in shown["Layers"]} == plain


def test_umoci_unpacks_what_is_saved(images: ImageBench, tmp_path: Path) -> None:
    made = made_of(gzip.compress(BASE), gzip.compress(SECOND), docker=False)
    load_files(images, oci_files((made, NAME)))
    layout = tmp_path / "layout"
    with tarfile.open(fileobj=io.BytesIO(saved(images, NAME, docker=False))) as archive:
        archive.extractall(layout)  # noqa: S202 (of our own)
    tool("skopeo", "copy", f"oci:{layout}:{NAME}", f"oci:{layout}:1", home=tmp_path)

    tool(
        "umoci",
        "unpack",
        "--rootless",
        "--image",
        f"{layout}:1",
        tmp_path / "bundle",
        home=tmp_path,
    )

    rootfs = tmp_path / "bundle/rootfs"
    assert sorted(path.name for path in (rootfs / "app").iterdir()) == ["new", "two"]


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
def test_what_is_saved_and_loaded_elsewhere_is_the_same_image(
    docker: bool, images: ImageBench, tmp_path: Path
) -> None:
    made = made_of(gzip.compress(BASE), zstd(SECOND), docker=docker)
    other = made_of(gzip.compress(BASE), docker=docker)
    loaded = load_files(images, oci_files((made, NAME), (other, "a.example/other:2")))
    path = tmp_path / "saved.tar"
    path.write_bytes(saved(images, NAME, "a.example/other:2", docker=docker))
    for image in loaded:
        images.bench.do(images.images.remove(image.name))

    again = load_path(images, path)

    assert [each.name for each in again] == [NAME, "a.example/other:2"]
    assert [each.digest for each in again] == [made.digest, other.digest]
    assert images.tree(NAME)["app/new"][4] == "n"
    assert images.images.command_of(NAME, []) == ("x",)
    assert saved(images, NAME, "a.example/other:2", docker=docker) == path.read_bytes()


def test_an_image_of_docker_s_in_an_archive_of_oci_s_has_another_manifest_only(
    images: ImageBench, tmp_path: Path
) -> None:
    made = made_of(gzip.compress(BASE), zstd(SECOND), docker=True)
    load_files(images, oci_files((made, NAME)))
    path = tmp_path / "saved.tar"
    path.write_bytes(saved(images, NAME, docker=False))

    (image,) = load_path(images, path)

    assert image.digest != made.digest
    assert set(images.images.record(NAME).blobs) == {image.digest, *made.blobs}


def test_one_image_of_two_names_is_saved_once(images: ImageBench, tmp_path: Path) -> None:
    load_files(images, docker_files(made_of(BASE, docker=True), "tools:1", "team/tools"))

    content = saved(images, "tools:1", "docker.io/team/tools:latest", "tools:1")

    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = archive.getnames()
        (listed,) = json.load(archive.extractfile("manifest.json") or io.BytesIO())
    assert listed["RepoTags"] == ["tools:1", "team/tools:latest"]
    assert len(names) == len(set(names))
    assert sum(name.startswith("blobs/sha256/") for name in names) == 3


def test_what_is_saved_of_an_archive_of_docker_s_is_its_configuration_and_layers(
    images: ImageBench,
) -> None:
    made = made_of(BASE, SECOND, docker=True)
    load_files(images, docker_files(made, NAME))

    with tarfile.open(fileobj=io.BytesIO(saved(images, NAME))) as archive:
        names = set(archive.getnames())

    for digest in made.blobs:
        assert f"blobs/sha256/{digest.removeprefix('sha256:')}" in names


# An imported tree


TREE = (
    directory("etc"),
    entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
    directory("srv", mode=0o2755, uid=3, gid=4),
    entry("srv/file", b"content" * 1000, mode=0o640, uid=3, gid=4),
    hard_link("srv/same", "srv/file"),
    entry("srv/empty", b"", mode=0o000),
    link("srv/link", "../etc/passwd"),
    link("srv/long", "x" * 150),
    directory("srv/" + "d" * 90),
    entry("srv/" + "d" * 90 + "/" + "f" * 120, b"deep"),
    entry("srv/\udcff", b"no text"),
)


def without_inodes(tree: dict[str, Any]) -> dict[str, Any]:
    return {path: of[:5] for path, of in tree.items()}


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
def test_an_imported_tree_is_saved_as_it_is(
    docker: bool, images_of_either: ImageBench, tmp_path: Path
) -> None:
    images = images_of_either
    images.load(packed(*TREE), "mine")
    path = tmp_path / "saved.tar"
    path.write_bytes(saved(images, "mine", docker=docker))

    (image,) = load_path(images, path)

    assert image.name == "docker.io/library/mine:latest"
    tree = images.tree(image.name)
    assert without_inodes(tree) == without_inodes(images.tree("mine"))
    assert tree["srv/file"][5] == tree["srv/same"][5]
    assert saved(images, "mine", docker=docker) == path.read_bytes()
    shown = json.loads(tool("skopeo", "inspect", f"oci-archive:{path}", home=tmp_path))
    assert shown["Env"][0].startswith("PATH=/")


def test_a_tree_that_no_layer_can_hold_is_not_saved(images: ImageBench) -> None:
    """A tar that is imported is taken as it is; in a layer the name would hide something."""
    images.load(packed(entry("a/.wh.b", b"x")), "mine")

    with pytest.raises(Conflict, match=r"\.wh\.b"):
        saved(images, "mine")
    assert list((images.store / "oci/partial").iterdir()) == []


def test_what_was_packed_goes_again(images: ImageBench) -> None:
    images.load(packed(*TREE), "mine")
    saved(images, "mine")

    images.bench.do(images.images.sweep())

    assert list((images.store / "oci/blobs/sha256").iterdir()) == []


# What cannot be


def test_what_is_not_there_or_is_the_machine_s_own_is_not_saved(images: ImageBench) -> None:
    with pytest.raises(NotFound):
        saved(images, "nothing")
    with pytest.raises(Conflict, match="cannot be passed on"):
        saved(images, "host")


def test_an_image_of_which_something_is_missing_is_not_saved(images: ImageBench) -> None:
    made = made_of(gzip.compress(BASE), docker=False)
    load_files(images, oci_files((made, NAME)))
    for digest in (made.digest, *made.blobs):
        blob = images.images.blobs.path(digest)
        content = blob.read_bytes()
        blob.unlink()
        with pytest.raises(Conflict, match="is not here"):
            saved(images, NAME)
        blob.write_bytes(content)
    assert saved(images, NAME)


# Names and history


def test_a_tag_is_another_name_of_the_same_image(images: ImageBench) -> None:
    made = made_of(BASE, docker=False)
    load_files(images, oci_files((made, NAME)))

    for name in ("other/name", "short"):
        image = images.bench.do(images.images.tag(NAME, new_name(name)))
        assert image.digest == made.digest
    images.bench.do(images.images.remove(NAME))

    assert images.tree("docker.io/other/name:latest")["app/one"][4] == "1"
    assert images.images.command_of("short", []) == ("x",)
    assert len(images.images.trees.keys()) == 1
    with pytest.raises(NotFound):
        images.images.tag(NAME, "again")


@pytest.mark.attack(71)
@pytest.mark.parametrize("name", ["host", "", "A", "a b", "x:1@sha256:" + "0" * 64, "../x"])
def test_a_name_that_no_image_can_have_is_not_given(name: str) -> None:
    with pytest.raises((Conflict, Invalid)):
        new_name(name)


def test_the_history_is_told_with_its_layers(images: ImageBench) -> None:
    made = made_of(gzip.compress(BASE), SECOND, docker=False)
    load_files(images, oci_files((made, NAME)))

    told = read_history(images.images, NAME)

    assert [(step.created_by, step.layer, step.comment) for step in told] == [
        ("ADD base", layers_in(made)[0], "the base"),
        ("ENV A=1", None, ""),
        ("RUN \x1b[31mred", layers_in(made)[1], ""),
    ]
    assert told[2].size_bytes == len(SECOND)


@pytest.mark.attack(74)
@pytest.mark.parametrize(
    "more",
    [{"history": 1}, {"history": [{"created_by": 1}]}, {"history": [{}] * 1025}],
)
def test_a_history_that_makes_no_sense_is_not_told(more: Any, images: ImageBench) -> None:
    load_files(images, oci_files((make_image(BASE, **more), NAME)))

    with pytest.raises(Invalid, match="is not valid"):
        read_history(images.images, NAME)


def test_a_history_of_too_few_or_too_many_steps_still_has_every_layer(images: ImageBench) -> None:
    for steps in ([], [{}], [{}] * 5):
        made = make_image(BASE, SECOND, history=steps)
        load_files(images, oci_files((made, NAME)))
        told: Sequence[Any] = read_history(images.images, NAME)
        assert [step.layer for step in told if step.layer] == layers_in(made)


def test_the_history_of_an_import_is_its_import(images: ImageBench) -> None:
    images.load(packed(*TREE), "mine")

    (step,) = read_history(images.images, "mine")

    assert step.created_by == "sandboxd images import"
