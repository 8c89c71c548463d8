"""Hostile archives on the whole way of an import: through the catalogue, in sandboxes with ids of their own, up to what is left on the disk.

What becomes of each archive of the corpus is in test_hostile_archives.
"""

import gzip
import io
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from archives import (
    COMPRESSIONS,
    directory,
    entry,
    hard_link,
    header,
    link,
    packed,
)
from hostile_archives import (
    COMPRESSED,
    HARD_LINKS,
    HEADERS,
    KINDS,
    LINKS,
    NAMES,
    NUMBERS,
    SPARSE,
    Case,
)
from image_bench import ImageBench, an_image_bench
from sandbox_bench import Bench

from sandboxd.errors import Invalid

MIB = 2**20
TOP = ("directory", 0o755)
KEPT: dict[str, Case] = {
    name: part[name]
    for part, name in (
        (NAMES, "a name with a newline, a backslash and an escape"),
        (LINKS, "a link up and out, and a file through it, which stays below the root"),
        (HARD_LINKS, "a hard link to a link, which is not followed"),
        (KINDS, "device nodes, left out"),
        (KINDS, "extended attributes, all but one dropped"),
        (SPARSE, "a sparse file of format 1.0"),
        (COMPRESSED, "zstd"),
    )
}
REFUSED: dict[str, Case] = {
    name: part[name]
    for part, name in (
        (NAMES, ".."),
        (LINKS, "a file through a link to /proc"),
        (HARD_LINKS, "a hard link to a name that is no text and not there"),
        (KINDS, "a file over a directory with something in it"),
        (NUMBERS, "a uid that no sandbox has"),
        (NUMBERS, "a size of 2^63"),
        (SPARSE, "a sparse map without end"),
        (HEADERS, "a chain of 5,000 extension headers"),
        (HEADERS, "nothing at all"),
        (HEADERS, "only end-of-archive blocks"),
        (COMPRESSED, "gzip with a wrong checksum"),
        (COMPRESSED, "an xz dictionary of 1.5 GiB"),
    )
}


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
@pytest.mark.attack(61, 62, 64)
def test_the_tree_holds_what_the_archive_says_and_nothing_else(
    case: Case, images: ImageBench
) -> None:
    images.load(case.archive)

    found = images.tree()
    assert isinstance(case.imported, dict)
    assert {path: (kind, text) for path, (kind, _, _, _, text, _) in found.items()} == {
        path: (kind, None if text is None else text[:100])
        for path, (kind, text, _) in case.imported.items()
    }
    assert images.left_over() == []


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
@pytest.mark.attack(61, 62, 64, 65)
def test_an_archive_that_is_refused_is_named_bad_and_leaves_nothing(
    case: Case, images: ImageBench
) -> None:
    assert isinstance(case.imported, str)

    with pytest.raises(Invalid, match=case.imported) as raised:
        images.load(case.archive)

    assert raised.value.code == "bad_archive"
    assert len(raised.value.detail) <= 600
    raised.value.detail.encode()
    assert images.left_over() == []
    assert list((images.store / "trees").iterdir()) == []
    assert list((images.store / "names").iterdir()) == []


def test_owners_are_kept_where_there_are_ids_for_them(images_of_either: ImageBench) -> None:
    images = images_of_either
    images.load(
        packed(
            entry("f", uid=1000, gid=65535),
            directory("d", uid=33, gid=33),
            link("l", "f", uid=7, gid=8),
        )
    )

    owners = {path: of[2:4] for path, of in images.tree().items()}
    if images.bench.mode == "range":
        assert owners == {"f": (1000, 65535), "d": (33, 33), "l": (7, 8)}
    else:
        assert owners == {"f": (0, 0), "d": (0, 0), "l": (0, 0)}


def test_a_hard_link_is_the_same_file(images: ImageBench) -> None:
    images.load(packed(entry("f", b"x"), hard_link("g", "f")))
    image = images.bench.do(images.images.resolve("made"))

    assert os.path.samefile(f"{image.rootfs}/f", f"{image.rootfs}/g")


@pytest.mark.attack(61)
def test_nothing_outside_is_touched_by_links_to_the_canary(images: ImageBench) -> None:
    """By its absolute path, through /proc, and by climbing up."""
    canary = str(images.canary)
    ways = [canary, f"/proc/1/root{canary}", "../" * 40 + canary, f"/proc/self/cwd{canary}"]
    for number, way in enumerate(ways):
        climbing = packed(link("l", os.path.dirname(way)), entry("l/canary", b"overwritten"))
        replacing = packed(link("canary", way), entry("canary", b"overwritten"))
        linking = packed(link("l", os.path.dirname(way)), hard_link("taken", "l/canary"))
        for content in (climbing, linking):
            with pytest.raises(Invalid):
                images.load(content, f"image{number}")
        images.load(replacing, f"image{number}")

    assert images.left_over() == []


@pytest.mark.attack(45, 65)
def test_more_entries_than_allowed_are_refused(images: ImageBench) -> None:
    bounded = images.opened("bounded", most_entries=10)
    images.load(packed(*(entry(f"f{n}") for n in range(10))), images=bounded)

    with pytest.raises(Invalid, match="more than 10 entries"):
        images.load(packed(*(entry(f"g{n}") for n in range(11))), "more", images=bounded)

    assert images.left_over() == []


@pytest.mark.attack(65)
def test_more_bytes_than_allowed_are_refused_before_they_are_written(images: ImageBench) -> None:
    bounded = images.opened("bounded", most_bytes=MIB)
    images.load(packed(entry("f", b"\0" * MIB)), images=bounded)

    with pytest.raises(Invalid, match=f"more than {MIB} bytes"):
        images.load(gzip.compress(packed(entry("f", b"\0" * (MIB + 1)))), "more", images=bounded)

    assert images.left_over() == []


@pytest.mark.attack(44, 65)
def test_an_import_leaves_room_on_the_disk(images: ImageBench) -> None:
    """Nothing is written of a file that would fill the disk, whatever the limit."""
    unbounded = images.opened("unbounded", most_bytes=2**62)
    free = os.statvfs(images.store)
    size = free.f_bavail * free.f_frsize
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s"}
    sized = {**fields, "GNU.sparse.realsize": str(size)}

    with pytest.raises(Invalid, match="bytes of files"):
        images.load(
            packed(entry("s", b"0\n".ljust(512, b"\0"), pax_headers=sized)), images=unbounded
        )


@pytest.mark.attack(65)
def test_a_compressed_header_bomb_takes_bounded_memory(images: ImageBench) -> None:
    """A PAX header of 3 GB in a few megabytes of gzip: it would be read whole into memory."""
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=1) as packing:
        packing.write(header(b"x", size=b"%o" % (3 * 2**30), kind=b"x"))
        for _ in range(40):
            packing.write(b"\0" * 16 * MIB)

    with pytest.raises(Invalid, match="too large"):
        images.load(bomb.getvalue())

    assert images.left_over() == []


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.attack(66)
def test_compressed_archives_are_read_and_cut_ones_refused_at_every_place(
    compress: Any, images: ImageBench
) -> None:
    # Always the same: an archive that is cut right between two files, and has no end mark, is an archive of fewer files.
    content_of = random.Random(66).randbytes
    content = compress(packed(*(entry(f"f{n}", content_of(300)) for n in range(5))))
    images.load(content)
    assert len(images.tree()) == 5

    # What is missing at the very end is padding and a checksum, which tar itself does not read either.
    cuts = range(1, len(content) * 3 // 4, len(content) // 12)
    for cut in cuts:
        with pytest.raises(Invalid) as raised:
            images.load(content[:cut], "cut")
        assert raised.value.code == "bad_archive"

    assert images.left_over() == []


def test_a_plain_archive_cut_in_a_file_is_refused(images: ImageBench) -> None:
    content = packed(entry("f", b"x" * 2000), end=False)

    for cut in (1, 511, 513, 1024, 2000):
        with pytest.raises(Invalid):
            images.load(content[:cut], "cut")

    assert images.left_over() == []


@pytest.mark.attack(65)
def test_directories_ten_thousand_deep_are_made_and_removed(bench: Bench) -> None:
    """No name can say so many: each way goes on where the last one ended."""
    step = "/".join(["d"] * 1000)
    entries = [directory(step), link("l0", step)]
    for number in range(1, 10):
        entries += [directory(f"l{number - 1}/{step}"), link(f"l{number}", f"l{number - 1}/{step}")]
    with (
        tempfile.TemporaryDirectory(prefix="sandboxd-deep-", dir="/dev/shm") as place,
        an_image_bench(bench, Path(place)) as images,
    ):
        made = images.load(packed(*entries, entry("l9/f", b"x")))

        assert made.size_bytes == 1
        images.bench.do(images.images.remove("made"))
        assert images.left_over() == []
        assert list((images.store / "trees").iterdir()) == []
