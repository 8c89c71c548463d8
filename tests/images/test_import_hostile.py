"""Archives made to break out, to break down, or to be taken for something that they are not (ATTACKS 29, 45, 61-66)."""

import gzip
import io
import os
import random
import tarfile
from typing import Any

import pytest
from archives import (
    COMPRESSIONS,
    directory,
    entry,
    extension,
    hard_link,
    header,
    link,
    packed,
    pax_record,
    with_dictionary_of_1536_mib,
)
from image_bench import ImageBench

from sandboxd.errors import Invalid

MIB = 2**20
TOP = ("directory", 0o755)

ACCEPTED: dict[str, tuple[bytes, dict[str, Any]]] = {
    # Each path that is then in the tree: kind, and content or target.
    "a plain file": (packed(entry("f", b"x")), {"f": ("file", "x")}),
    "an absolute name, taken below the root": (
        packed(entry("/a/f", b"x")),
        {"a": ("directory", None), "a/f": ("file", "x")},
    ),
    "names with . and empty parts": (
        packed(entry("./a//./f", b"x")),
        {"a": ("directory", None), "a/f": ("file", "x")},
    ),
    "an absolute symbolic link, and a file through it": (
        packed(directory("real"), link("way", "/real"), entry("way/f", b"x")),
        {"real": ("directory", None), "way": ("link", "/real"), "real/f": ("file", "x")},
    ),
    "a link up and out, and a file through it, which stays below the root": (
        packed(directory("in"), link("out", "../../../../in"), entry("out/f", b"x")),
        {"in": ("directory", None), "out": ("link", "../../../../in"), "in/f": ("file", "x")},
    ),
    "links to links": (
        packed(directory("d"), link("a", "b"), link("b", "/d"), entry("a/f", b"x")),
        {"d": ("directory", None), "a": ("link", "b"), "b": ("link", "/d"), "d/f": ("file", "x")},
    ),
    "a dangling link": (
        packed(link("gone", "/nowhere/at/all")),
        {"gone": ("link", "/nowhere/at/all")},
    ),
    "a file in the place of a link, which is replaced and not followed": (
        packed(entry("t", b"old"), link("l", "t"), entry("l", b"new")),
        {"t": ("file", "old"), "l": ("file", "new")},
    ),
    "a directory in the place of a link": (
        packed(directory("t"), link("l", "t"), directory("l"), entry("l/f", b"x")),
        {"t": ("directory", None), "l": ("directory", None), "l/f": ("file", "x")},
    ),
    "a hard link": (
        packed(entry("f", b"x"), hard_link("g", "f")),
        {"f": ("file", "x"), "g": ("file", "x")},
    ),
    "a hard link with an absolute target": (
        packed(entry("f", b"x"), hard_link("g", "/f")),
        {"f": ("file", "x"), "g": ("file", "x")},
    ),
    "a hard link to a link, which is not followed": (
        packed(link("l", "/proc/self/exe"), hard_link("g", "l")),
        {"l": ("link", "/proc/self/exe"), "g": ("link", "/proc/self/exe")},
    ),
    "device nodes, left out": (
        packed(
            entry("c", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("b", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
            entry("absurd", type=tarfile.BLKTYPE, devmajor=2**20, devminor=2**20),
            entry("f"),
        ),
        {"f": ("file", "")},
    ),
    "a FIFO, left out": (
        packed(entry("p", type=tarfile.FIFOTYPE), entry("f")),
        {"f": ("file", "")},
    ),
    "an entry of an unknown type, left out": (
        packed(entry("q", b"abc", type=b"Q"), entry("f", b"x")),
        {"f": ("file", "x")},
    ),
    "duplicate names: the last one counts": (
        packed(entry("f", b"1"), entry("f", b"2"), entry("./f", b"3")),
        {"f": ("file", "3")},
    ),
    "a directory over a file": (
        packed(entry("f", b"1"), directory("f"), entry("f/g", b"2")),
        {"f": ("directory", None), "f/g": ("file", "2")},
    ),
    "a file over an empty directory": (
        packed(directory("f"), entry("f", b"1")),
        {"f": ("file", "1")},
    ),
    "a directory that nobody may enter, and a file in it": (
        packed(directory("d", mode=0), entry("d/f", b"x")),
        {"d": ("directory", None)},
    ),
    "a name that is no UTF-8": (
        packed(entry("f\udcff\udcfe", b"x"), form=tarfile.GNU_FORMAT),
        {"f\\xff\\xfe": ("file", "x")},
    ),
    "a name of 255 bytes": (packed(entry("n" * 255, b"x")), {"n" * 255: ("file", "x")}),
    "a name with a newline, a backslash and an escape": (
        packed(entry("a\n\\\x1b[2J", b"x")),
        {"a\n\\\x1b[2J": ("file", "x")},
    ),
    "names that are options and patterns": (
        packed(entry("-rf", b"x"), entry("*", b"y")),
        {"-rf": ("file", "x"), "*": ("file", "y")},
    ),
    "names that mean something to overlay or aufs in other tools": (
        packed(entry(".wh.f", b"x"), entry(".wh..wh..opq", b"")),
        {".wh.f": ("file", "x"), ".wh..wh..opq": ("file", "")},
    ),
    "extended attributes, dropped": (
        packed(
            entry(
                "f",
                b"x",
                pax_headers={
                    "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\xff\xff",
                    "SCHILY.xattr.user.overlay.redirect": "/etc",
                    "SCHILY.xattr.trusted.overlay.opaque": "y",
                },
            )
        ),
        {"f": ("file", "x")},
    ),
    "times before and after all time": (
        packed(
            entry("old", mtime=-(10**15), pax_headers={}),
            entry("new", mtime=10**18, pax_headers={}),
        ),
        {"old": ("file", ""), "new": ("file", "")},
    ),
    "a GNU sparse file": (
        packed(
            entry(
                "sparse",
                b"2\n0\n1\n1022\n2\n".ljust(512, b"\0") + b"abc",
                pax_headers={
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": "sparse",
                    "GNU.sparse.realsize": "1024",
                },
            )
        ),
        {"sparse": ("file", "a" + "\0" * 99)},
    ),
    "garbage after the end": (packed(entry("f", b"x")) + os.urandom(4096), {"f": ("file", "x")}),
    "a global extension header": (
        extension(b"g", pax_record("comment", b"hello")) + packed(entry("f", b"x")),
        {"f": ("file", "x")},
    ),
    "an archive in an archive, which stays one": (
        packed(entry("inner.tar", packed(entry("f", b"x"))[:90])),
        {"inner.tar": ("file", "f" + "\0" * 89)},
    ),
    "directories 400 deep": (
        packed(directory("/".join(["d"] * 400))),
        {"/".join(["d"] * depth): ("directory", None) for depth in range(1, 401)},
    ),
}

REFUSED: dict[str, tuple[bytes, str]] = {
    "..": (packed(entry("../escape", b"x")), r'"\.\."'),
    ".. in the middle": (packed(directory("a"), entry("a/../../escape", b"x")), r'"\.\."'),
    ".. after ./": (packed(entry("./../escape", b"x")), r'"\.\."'),
    ".. alone": (packed(directory("..")), r'"\.\."'),
    "a hard link up and out": (packed(hard_link("g", "../../etc/passwd")), r'"\.\."'),
    "a hard link to what is not there": (packed(hard_link("g", "/etc/shadow")), "missing file"),
    "a hard link to a name that is no text and not there": (
        packed(hard_link("g\udcff", "gone\udcff"), form=tarfile.GNU_FORMAT),
        r"missing file: g\\udcff",
    ),
    "a hard link to nothing": (packed(hard_link("g", "/")), "hard link to nothing"),
    "a hard link to itself": (packed(entry("f", b"x"), hard_link("f", "f")), "missing file"),
    "a hard link through a link out": (
        packed(link("l", "/proc/1/root/etc"), hard_link("g", "l/passwd")),
        "missing file",
    ),
    "a file through a link to a file": (
        packed(entry("f", b"x"), link("l", "f"), entry("l/g", b"y")),
        "cannot be made",
    ),
    "a file through a dangling link": (
        packed(link("l", "/not/there"), entry("l/f", b"x")),
        "cannot be made",
    ),
    "a file through a link to itself": (
        packed(link("l", "l"), entry("l/f", b"x")),
        "cannot be made",
    ),
    "a file over a directory with something in it": (
        packed(directory("d"), entry("d/f"), entry("d", b"x")),
        "cannot be made",
    ),
    "a link with an empty target": (packed(link("l", "")), "cannot be made"),
    "a link with a target of 5,000 bytes": (packed(link("l", "t" * 5000)), "cannot be made"),
    "a link with NUL in its target": (
        extension(b"x", pax_record("linkpath", b"a\0b")) + header(b"l", kind=b"2"),
        "absurd",
    ),
    "a name with NUL": (
        extension(b"x", pax_record("path", b"a\0b")) + header(b"f"),
        "holds NUL",
    ),
    "a name of 256 bytes": (packed(entry("n" * 256)), "cannot be made"),
    "a path of 5,000 bytes": (packed(entry("/".join(["d"] * 2500))), "too long"),
    "a path of 64 KiB": (packed(entry("n" * 2**16)), "too long"),
    "a uid that no sandbox has": (packed(entry("f", uid=65536)), "owner"),
    "a uid of 2^32": (packed(entry("f", uid=2**32, pax_headers={})), "owner"),
    "a negative uid": (packed(entry("f", uid=-1), form=tarfile.GNU_FORMAT), "owner"),
    "an absurd gid": (packed(directory("d", gid=2**40, pax_headers={})), "owner"),
    "a negative size": (header(b"f", size=b"\xff" * 12) + b"\0" * 1024, "."),
    "a size of 2^63": (
        extension(b"x", pax_record("size", b"9223372036854775808")) + header(b"f"),
        "absurd",
    ),
    "a size that is no number": (
        extension(b"x", pax_record("size", b"many")) + header(b"f", size=b"0") + b"\0" * 1024,
        "absurd",
    ),
    "no end-of-archive blocks": (packed(entry("f", b"x"), end=False), "no end"),
    "a size larger than the archive": (header(b"f", size=b"%o" % 10**6) + b"abc", "read"),
    "an extension header of 100 GB": (extension(b"x", b"1 a=b\n", 100 * 10**9), "."),
    "a negative extension header": (header(b"x", size=b"\xff" * 12, kind=b"x"), "."),
    "a chain of 5,000 extension headers": (
        extension(b"g", pax_record("comment", b"x")) * 5000 + packed(entry("f")),
        "extension headers",
    ),
    "a chain of 5,000 long names": (
        extension(b"L", b"n\0") * 5000 + packed(entry("f")),
        "extension headers",
    ),
    "a sparse map without end": (
        packed(
            entry(
                "s",
                b"99999999\n" + b"1\n" * 2000,
                pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
            )
        ),
        ".",
    ),
    "a sparse map that is no numbers": (
        packed(entry("s", pax_headers={"GNU.sparse.map": "a,b,c", "GNU.sparse.size": "9"})),
        ".",
    ),
    "nothing at all": (b"", "."),
    "only end-of-archive blocks": (b"\0" * 10240, "empty"),
    "text": (b"#!/bin/sh\necho hello\n" * 100, "not a tar"),
    "a zip archive": (b"PK\x03\x04" + os.urandom(4000), "not a tar"),
    "noise": (os.urandom(4096), "not a tar"),
    "gzip in gzip": (gzip.compress(gzip.compress(packed(entry("f")))), "not a tar"),
    "a wrong checksum": (packed(entry("f", b"x")).replace(b"0000644", b"0000777", 1), "not a tar"),
    "an xz dictionary of 1.5 GiB": (with_dictionary_of_1536_mib(packed(entry("f"))), "too large"),
}


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.attack(61, 62, 64)
def test_the_tree_holds_what_the_archive_says_and_nothing_else(
    case: tuple[bytes, dict[str, Any]], images: ImageBench
) -> None:
    content, expected = case

    images.load(content)

    found = images.tree()
    assert {path: (kind, text) for path, (kind, _, _, _, text, _) in found.items()} == expected
    assert images.left_over() == []


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
@pytest.mark.attack(61, 62, 64, 65)
def test_an_archive_that_is_refused_is_named_bad_and_leaves_nothing(
    case: tuple[bytes, str], images: ImageBench
) -> None:
    content, reason = case

    with pytest.raises(Invalid, match=reason) as raised:
        images.load(content)

    assert raised.value.code == "bad_archive"
    assert len(raised.value.detail) <= 600
    raised.value.detail.encode()
    assert images.left_over() == []
    assert list((images.store / "trees").iterdir()) == []
    assert list((images.store / "names").iterdir()) == []


@pytest.mark.attack(29, 64)
def test_set_id_bits_are_cleared_and_other_modes_kept(images: ImageBench) -> None:
    images.load(
        packed(
            entry("setuid", mode=0o4755),
            entry("setgid", mode=0o2755),
            entry("absurd", mode=0o7777777),
            directory("sticky", mode=0o7777),
            entry("plain", mode=0o640),
        )
    )

    modes = {path: of[1] for path, of in images.tree().items()}
    assert modes == {
        "setuid": 0o755,
        "setgid": 0o755,
        "absurd": 0o777,
        "sticky": 0o1777,
        "plain": 0o640,
    }


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


def test_entries_that_are_left_out_count_too(images: ImageBench) -> None:
    bounded = images.opened("bounded", most_entries=10)

    with pytest.raises(Invalid, match="more than 10 entries"):
        images.load(
            packed(*(entry(f"p{n}", type=tarfile.FIFOTYPE) for n in range(11))), images=bounded
        )


@pytest.mark.attack(65)
def test_more_bytes_than_allowed_are_refused_before_they_are_written(images: ImageBench) -> None:
    bounded = images.opened("bounded", most_bytes=MIB)
    images.load(packed(entry("f", b"\0" * MIB)), images=bounded)

    with pytest.raises(Invalid, match=f"more than {MIB} bytes"):
        images.load(gzip.compress(packed(entry("f", b"\0" * (MIB + 1)))), "more", images=bounded)

    assert images.left_over() == []


@pytest.mark.attack(64, 65)
def test_a_sparse_file_counts_with_its_whole_size(images: ImageBench) -> None:
    """Two kilobytes of archive must not become sixty gigabytes of disk."""
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s"}
    huge = packed(
        entry(
            "s", b"0\n".ljust(512, b"\0"), pax_headers={**fields, "GNU.sparse.realsize": "9" * 13}
        )
    )

    with pytest.raises(Invalid, match="bytes of files"):
        images.load(huge)


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
