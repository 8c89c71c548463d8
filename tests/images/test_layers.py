"""Layers applied to one tree: what hides what, in which compressions, and what is refused."""

import gzip
import hashlib
from collections.abc import Callable

import pytest
import zstandard
from archives import directory, entry, hard_link, link, packed
from image_bench import ImageBench

from sandboxd.errors import Invalid
from sandboxd.images.store.layers import LayerFile, Step, steps_of

zstd = zstandard.ZstdCompressor().compress
BASE = packed(
    directory("d"),
    entry("d/a", b"a"),
    entry("d/b", b"b"),
    directory("d/inner"),
    entry("d/inner/c", b"c"),
    entry("top", b"top"),
)


def files(images: ImageBench, name: str = "made") -> set[str]:
    return {path for path, found in images.tree(name).items() if found[0] != "directory"}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_a_layer_is_plain_or_compressed(
    compress: Callable[[bytes], bytes], images: ImageBench
) -> None:
    images.layer(compress(BASE), compress(packed(entry("more", b"m"))))

    assert files(images) == {"d/a", "d/b", "d/inner/c", "top", "more"}


def test_several_frames_and_members_are_one_layer(images: ImageBench) -> None:
    half = len(BASE) // 2
    for number, compress in enumerate((gzip.compress, zstd)):
        images.layer(compress(BASE[:half]) + compress(BASE[half:]), name=f"n{number}")

        assert "top" in files(images, f"n{number}")


def test_what_follows_the_end_of_an_archive_belongs_to_the_layer(images: ImageBench) -> None:
    images.layer(gzip.compress(BASE + b"\0" * 20_000 + b"and this"))

    assert "top" in files(images)


@pytest.mark.parametrize("make", ["layer", "load"])
def test_files_have_the_time_at_which_they_were_changed(make: str, images: ImageBench) -> None:
    """Python takes a compiled file for stale otherwise, and compiles each module anew in each job."""
    archive = packed(
        entry("module", mtime=1_500_000_000.75),
        entry("old", mtime=-5.0, pax_headers={}),
        entry("far", mtime=10**15, pax_headers={}),
    )
    getattr(images, make)(archive)
    times = (
        "import os; print([int(os.stat('/' + name).st_mtime) for name in ('module', 'old', 'far')])"
    )

    module, old, far = images.run("/usr/bin/python3", "-c", times).json()

    assert (module, old) == (1_500_000_000, 0)
    assert far > 2**32


def test_a_layer_may_be_empty(images: ImageBench) -> None:
    images.layer(BASE, packed())

    assert "top" in files(images)


def test_a_file_of_a_later_layer_replaces_whatever_was_there(images: ImageBench) -> None:
    images.layer(
        BASE,
        packed(entry("d", b"now a file"), directory("top"), entry("top/x", b"x")),
    )

    found = images.tree()
    assert found["d"][0] == "file"
    assert found["d"][4] == "now a file"
    assert files(images) == {"d", "top/x"}


def test_a_directory_of_a_later_layer_changes_its_mode_and_keeps_its_files(
    images: ImageBench,
) -> None:
    images.layer(BASE, packed(directory("d", mode=0o775, uid=7, gid=8), entry("d/a", b"new")))

    found = images.tree()
    assert found["d"][1:4] == (0o775, 7, 8)
    assert found["d/a"][4] == "new"
    assert found["d/b"][4] == "b"


@pytest.mark.attack(63)
def test_a_whiteout_removes_what_is_below_it(images: ImageBench) -> None:
    images.layer(BASE, packed(entry("d/.wh.a"), entry(".wh.top"), entry("d/.wh.inner")))

    assert files(images) == {"d/b"}


@pytest.mark.attack(63)
def test_an_opaque_directory_has_nothing_of_the_layers_below(images: ImageBench) -> None:
    images.layer(BASE, packed(directory("d"), entry("d/.wh..wh..opq"), entry("d/new", b"n")))

    assert files(images) == {"top", "d/new"}


@pytest.mark.attack(63)
def test_a_whiteout_hides_nothing_of_its_own_layer_in_whatever_order_it_comes(
    images: ImageBench,
) -> None:
    images.layer(
        BASE,
        packed(
            entry("d/a", b"made before"),
            entry("d/.wh.a"),
            entry("d/.wh.b"),
            entry("d/b", b"made after"),
            entry("d/inner/new", b"child before"),
            entry("d/inner/.wh..wh..opq"),
            entry("d/inner/.wh.new"),
        ),
    )

    found = images.tree()
    assert files(images) == {"d/a", "d/b", "d/inner/new", "top"}
    assert found["d/a"][4] == "made before"
    assert found["d/b"][4] == "made after"


@pytest.mark.attack(63)
def test_what_was_hidden_may_come_back(images: ImageBench) -> None:
    images.layer(BASE, packed(entry(".wh.d")), packed(entry("d/back", b"x")))

    assert files(images) == {"top", "d/back"}


@pytest.mark.attack(63)
def test_a_whiteout_goes_through_no_link_and_out_of_no_tree(images: ImageBench) -> None:
    below = packed(
        directory("real"),
        entry("real/kept", b"k"),
        link("inside", "real"),
        link("outside", str(images.canary.parent)),
        link("up", "../../../../../../../.."),
    )
    hiding = packed(
        entry("inside/.wh.kept"),
        entry("outside/.wh.canary"),
        entry("up/.wh.tmp"),
        entry("missing/.wh.x"),
        entry("real/kept/.wh.x"),
        entry("inside/.wh..wh..opq"),
    )
    images.layer(below, hiding)

    assert "real/kept" in files(images)


@pytest.mark.attack(45, 63)
def test_with_one_id_only_layers_hide_and_replace_what_nobody_may_read(
    images_of_either: ImageBench,
) -> None:
    images_of_either.layer(
        packed(
            directory("locked", mode=0, uid=5),
            directory("locked/inner", mode=0, uid=6),
            entry("locked/inner/file", b"x", mode=0, uid=7),
            directory("other", mode=0),
            entry("other/file", mode=0),
            directory("opaque", mode=0),
            entry("opaque/old", mode=0),
        ),
        packed(
            entry(".wh.locked"),
            entry("other", b"now a file"),
            directory("opaque"),
            entry("opaque/.wh..wh..opq"),
        ),
    )

    assert files(images_of_either) == {"other"}


@pytest.mark.attack(45, 63)
def test_a_deep_tree_of_other_owners_is_hidden_whole(images: ImageBench) -> None:
    deep = "/".join(["x"] * 1000)
    images.layer(
        packed(directory("deep"), directory(f"deep/{deep}", mode=0, uid=5), entry("kept")),
        packed(entry(".wh.deep")),
    )

    assert files(images) == {"kept"}


@pytest.mark.attack(61, 62)
def test_a_layer_writes_through_links_of_a_lower_one_inside_the_tree_only(
    images: ImageBench,
) -> None:
    """As a link to /usr in place of /lib has it. One that leads out of the tree leads to nothing."""
    images.layer(
        packed(directory("real"), link("absolute", "/real"), entry("shared", b"s")),
        packed(hard_link("same", "shared"), entry("absolute/new", b"n")),
    )

    found = images.tree()
    assert found["same"][5] == found["shared"][5]
    assert found["real/new"][4] == "n"
    with pytest.raises(Invalid):
        images.layer(
            packed(link("out", str(images.canary.parent))),
            packed(entry("out/canary", b"overwritten")),
            name="other",
        )


@pytest.mark.attack(62)
def test_a_file_that_a_later_layer_changes_stays_in_its_other_links(images: ImageBench) -> None:
    images.layer(
        packed(entry("one", b"old"), hard_link("two", "one")),
        packed(entry("one", b"new")),
    )

    assert images.tree()["one"][4] == "new"
    assert images.tree()["two"][4] == "old"


def with_diff_id_of(images: ImageBench, content: bytes, claimed: bytes) -> None:
    path = images.archive(content, "layer")
    diff_id = f"sha256:{hashlib.sha256(claimed).hexdigest()}"
    images.bench.do(images.unpacked([LayerFile(path, diff_id)], "made", images.images))


@pytest.mark.attack(65)
def test_a_layer_that_is_another_than_its_configuration_says_is_refused(
    images: ImageBench,
) -> None:
    for content in (gzip.compress(BASE), zstd(BASE), BASE, BASE + b"x"):
        with pytest.raises(Invalid, match="was to be"):
            with_diff_id_of(images, content, b"something else")

    assert images.left_over() == []
    assert images.images.trees.keys() == []


@pytest.mark.attack(65, 66)
def test_a_layer_that_is_cut_short_or_followed_by_rubbish_is_refused(images: ImageBench) -> None:
    for compress in (gzip.compress, zstd):
        whole = compress(BASE)
        for content in (whole[:-1], whole[: len(whole) // 2], whole[:20], whole + b"rubbish"):
            with pytest.raises(Invalid):
                with_diff_id_of(images, content, BASE)

    assert images.left_over() == []


@pytest.mark.attack(65)
def test_a_layer_that_unpacks_to_more_than_an_image_may_have_is_refused(
    images: ImageBench,
) -> None:
    small = images.opened("small", most_bytes=2**20, most_entries=64)
    bomb = bytes(64 * 2**20)
    for content in (
        packed(entry("bomb", bomb)),
        BASE + bomb,  # after the archive's end: no file, and still to be read
        packed(*(entry(f"f{number}") for number in range(100))),
        packed(*(entry(f".wh.f{number}") for number in range(100))),
    ):
        for compress in (gzip.compress, zstd):
            with pytest.raises(Invalid):
                images.layer(compress(content), images=small)
    # The layers of an image count together.
    with pytest.raises(Invalid):
        images.layer(*[packed(entry(f"f{n}", bytes(600_000))) for n in range(2)], images=small)


def test_a_frame_may_have_the_largest_window_that_zstd_makes_by_itself(images: ImageBench) -> None:
    """`zstd --ultra -22`: 128 MiB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = compressor.compress(BASE) + compressor.flush()
    assert zstandard.get_frame_parameters(content).window_size == 2**27

    images.layer(content)

    assert "top" in files(images)


@pytest.mark.attack(64)
def test_a_layer_says_nothing_to_overlay_by_attributes(images: ImageBench) -> None:
    """They would hide layers below, or show what is elsewhere in them."""
    marks = {"opaque": "y", "redirect": "/secret", "metacopy": "", "whiteout": "y"}
    headers = {f"SCHILY.xattr.user.overlay.{name}": value for name, value in marks.items()}
    others = {
        "SCHILY.xattr.security.capability": "\x01",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
    }
    images.layer(
        packed(directory("d"), entry("d/below", b"b"), directory("secret"), entry("f", b"f")),
        packed(directory("d", pax_headers=headers | others), entry("f", pax_headers=headers)),
    )

    found = images.tree()
    assert found["d/below"][4] == "b"
    assert found["f"][4] == ""


def test_a_tree_is_named_by_the_chain_of_its_layers() -> None:
    one, two = ("sha256:" + digit * 64 for digit in "ab")
    chain = hashlib.sha256(f"{one} {two}".encode()).hexdigest()

    assert [step.key for step in steps_of([one, two], stacked=True)] == [
        "layer-" + "a" * 64,
        f"layer-{chain}",
    ]
    assert steps_of([one, two], stacked=False) == [Step(f"layers-{chain}", range(2))]
