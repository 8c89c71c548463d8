"""The corpus: archives made to break out, to break down, or to be taken for something that they are not, and what must come of each.

Each is imported into an empty tree, and applied as a layer above a tree that has `lower` things. What comes of it is a tree, exactly, or
words of the refusal. What an archive says of owners is not in here (see test_import_hostile): all that is kept belongs to root.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import zstandard
from archives import (
    Entry,
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

MOST_BYTES = 16 * 2**20
MOST_ENTRIES = 5000
"""What the trees of the corpus may have."""
END = bytes(1024)

Found = tuple[str, str | None, int | None]
"""Kind, content or target, permission bits."""
Tree = Mapping[str, Found]
Outcome = Tree | str
"""The tree, or words of the refusal (a regular expression)."""


class Case(NamedTuple):
    archive: bytes
    imported: Outcome | None
    """None: it says something only as a layer."""
    layered: Outcome | None
    lower: Tree


def file(content: str = "x", mode: int = 0o644) -> Found:
    return "file", content, mode


def folder(mode: int = 0o755) -> Found:
    return "directory", None, mode


def to(target: str) -> Found:
    return "link", target, None


LOWER: Tree = {
    "lower": folder(),
    "lower/file": file("lower"),
    "lower/dir": folder(0o700),
    "lower/dir/file": file("inner", 0o600),
    "lower-link": to("lower"),
    "lower-out": to("/../../tmp"),
}
DIR = folder()
GNU = tarfile.GNU_FORMAT


def kept(archive: bytes, tree: Tree) -> Case:
    """It makes this, in an empty tree as beside other things."""
    return Case(archive, tree, {**LOWER, **tree}, LOWER)


def refused(archive: bytes, words: str) -> Case:
    return Case(archive, words, words, LOWER)


def layer(archive: bytes, changes: Mapping[str, Found | None], lower: Tree = LOWER) -> Case:
    """Above `lower`, which it changes so; None: it is gone."""
    after = {**lower, **changes}
    layered = {path: found for path, found in after.items() if found is not None}
    return Case(archive, None, layered, lower)


def bad_layer(archive: bytes, words: str, lower: Tree = LOWER) -> Case:
    return Case(archive, None, words, lower)


def gone(*paths: str) -> dict[str, None]:
    return dict.fromkeys(paths)


def one(content: bytes = b"x") -> bytes:
    return packed(entry("f", content))


ONE: Tree = {"f": file()}


def pax(name: str = "f", content: bytes = b"", **records: str) -> Entry:
    """A file with these records of PAX."""
    return entry(name, content, pax_headers=records)


def said(*records: tuple[str, bytes], content: bytes = b"x", kind: bytes = b"0") -> bytes:
    """A file `f` after an extension header with these records."""
    text = b"".join(pax_record(key, value) for key, value in records)
    padded = content + bytes(-len(content) % 512)
    return extension(b"x", text) + header(b"f", size=b"%o" % len(content), kind=kind) + padded + END


def raw(*, change: tuple[int, bytes], content: bytes = b"") -> bytes:
    """A file `f` whose header was changed at a place, with the right checksum."""
    block = bytearray(header(b"f", size=b"%o" % len(content)))
    place, new = change
    block[place : place + len(new)] = new
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % 512) + END


NAMES: dict[str, Case] = {
    "a plain file": kept(one(), ONE),
    "an absolute name, taken below the root": kept(
        packed(entry("/a/f", b"x")), {"a": DIR, "a/f": file()}
    ),
    "names with . and empty parts": kept(
        packed(entry("./a//./f", b"x")), {"a": DIR, "a/f": file()}
    ),
    "the root by three names": kept(packed(directory("./"), directory("/"), directory(".")), {}),
    "no name at all, of a directory": kept(packed(directory("")), {}),
    "no name at all": refused(packed(entry("")), "in the place of the root"),
    "a file in the place of the root": refused(packed(entry("./.")), "in the place of the root"),
    "a link in the place of the root": refused(packed(link("/", "/tmp")), "in the place of the"),
    "a hard link in the place of the root": refused(
        packed(entry("f"), hard_link(".", "f")), "in the place of the root"
    ),
    "..": refused(packed(entry("../escape", b"x")), r'"\.\."'),
    ".. in the middle": refused(packed(directory("a"), entry("a/../../escape")), r'"\.\."'),
    ".. after ./": refused(packed(entry("./../escape")), r'"\.\."'),
    ".. alone": refused(packed(directory("..")), r'"\.\."'),
    ".. at the end": refused(packed(directory("a/..")), r'"\.\."'),
    ".. by PAX": refused(said(("path", b"../escape")), r'"\.\."'),
    ".. by the prefix of ustar": refused(raw(change=(345, b"../..")), r'"\.\."'),
    ".. by a long name of GNU": refused(
        extension(b"L", b"../escape\0") + header(b"f") + END, r'"\.\."'
    ),
    ".. absolute": refused(packed(entry("/../escape")), r'"\.\."'),
    "names that look like ..": kept(
        packed(
            *(
                entry(name, b"x")
                for name in ("...", "..a", "a..", "\u2024\u2024", "..\\x", "%2e%2e")
            )
        ),
        dict.fromkeys(("...", "..a", "a..", "\u2024\u2024", "..\\x", "%2e%2e"), file()),
    ),
    "a name with NUL": refused(said(("path", b"a\0b")), "NUL"),
    "a name of 255 bytes": kept(packed(entry("n" * 255, b"x")), {"n" * 255: file()}),
    "a name of 256 bytes": refused(packed(entry("n" * 256)), "cannot be made"),
    "a part of 256 bytes, in UTF-8": refused(packed(entry("é" * 128)), "cannot be made"),
    "a path of 4,096 bytes": refused(packed(entry("d/" * 2047 + "ab")), "too long"),
    "a path of 5,000 bytes": refused(packed(entry("/".join(["d"] * 2500))), "too long"),
    "a path of 64 KiB": refused(packed(entry("n" * 2**16)), "too long"),
    "a path of 2 MiB": refused(packed(entry("n" * 2**21)), "too large"),
    "directories 400 deep": kept(
        packed(directory("/".join(["d"] * 400))),
        {"/".join(["d"] * depth): DIR for depth in range(1, 401)},
    ),
    "a name that is no UTF-8": kept(
        packed(entry("f\udcff\udcfe", b"x"), form=GNU), {"f\udcff\udcfe": file()}
    ),
    "a name that is no UTF-8, by PAX": kept(said(("path", b"f\xff")), {"f\udcff": file()}),
    "a name of PAX that says it is binary": kept(
        said(("hdrcharset", b"BINARY"), ("path", b"f\xe9")), {"f\udce9": file()}
    ),
    "a name with a newline, a backslash and an escape": kept(
        packed(entry("a\n\\\x1b[2J", b"x")), {"a\n\\\x1b[2J": file()}
    ),
    "names that are options and patterns": kept(
        packed(entry("-rf", b"x"), entry("*", b"y")), {"-rf": file(), "*": file("y")}
    ),
    "names that differ in case": kept(
        packed(entry("F", b"1"), entry("f", b"2")), {"F": file("1"), "f": file("2")}
    ),
    "names that look the same": kept(
        packed(entry("é", b"1"), entry("e\u0301", b"2"), entry("x\u202ey", b"3"), entry("\uff46")),
        {"é": file("1"), "e\u0301": file("2"), "x\u202ey": file("3"), "\uff46": file("")},
    ),
    "a file with a slash at its end, a directory in v7": kept(
        header(b"d/", kind=b"\0") + END, {"d": folder(0o644)}
    ),
    "a file with a slash at its end, a file in ustar": kept(
        packed(entry("f/", b"x"), form=tarfile.USTAR_FORMAT), ONE
    ),
    "an archive in an archive, which stays one": kept(
        packed(entry("inner.tar", one()[:90])), {"inner.tar": file("f" + "\0" * 89)}
    ),
    "a prefix of ustar": kept(raw(change=(345, b"a/b")), {"a": DIR, "a/b": DIR, "a/b/f": file("")}),
    "a prefix of star, which is shorter": kept(
        raw(change=(345, b"a".ljust(131, b"\0") + b"7" * 12 + b"\0" * 20 + b"tar\0")),
        {"a": DIR, "a/f": file("")},
    ),
    "a prefix in a header of GNU, as Go had it once": kept(
        raw(change=(257, b"ustar  \0" + bytes(80) + b"a/b")),
        {"a": DIR, "a/b": DIR, "a/b/f": file("")},
    ),
    "times in a header of GNU, which are no prefix": kept(
        raw(change=(257, b"ustar  \0" + bytes(80) + b"07777777777\0" * 2)), {"f": file("")}
    ),
    ".. by a prefix in a header of GNU": refused(
        raw(change=(257, b"ustar  \0" + bytes(80) + b"../..")), r'"\.\."'
    ),
    "a header of v7, with rubbish after its fields": kept(
        raw(change=(257, b"\x01" * 255)), {"f": file("")}
    ),
}

LINKS: dict[str, Case] = {
    "an absolute symbolic link, and a file through it": kept(
        packed(directory("real"), link("way", "/real"), entry("way/f", b"x")),
        {"real": DIR, "way": to("/real"), "real/f": file()},
    ),
    "a link up and out, and a file through it, which stays below the root": kept(
        packed(directory("in"), link("out", "../../../../in"), entry("out/f", b"x")),
        {"in": DIR, "out": to("../../../../in"), "in/f": file()},
    ),
    "links to links": kept(
        packed(directory("d"), link("a", "b"), link("b", "/d"), entry("a/f", b"x")),
        {"d": DIR, "a": to("b"), "b": to("/d"), "d/f": file()},
    ),
    "a dangling link": kept(packed(link("l", "/nowhere/at/all")), {"l": to("/nowhere/at/all")}),
    "a file in the place of a link, which is replaced and not followed": kept(
        packed(entry("t", b"old"), link("l", "t"), entry("l", b"new")),
        {"t": file("old"), "l": file("new")},
    ),
    "a directory in the place of a link": kept(
        packed(directory("t"), link("l", "t"), directory("l"), entry("l/f", b"x")),
        {"t": DIR, "l": DIR, "l/f": file()},
    ),
    "a link in the place of a link": kept(packed(link("l", "a"), link("l", "b")), {"l": to("b")}),
    "a link to itself": kept(packed(link("l", "l")), {"l": to("l")}),
    "a link with a target of 4,000 bytes": kept(
        packed(link("l", "t" * 4000)), {"l": to("t" * 4000)}
    ),
    "a file through a link to a file": refused(
        packed(entry("f", b"x"), link("l", "f"), entry("l/g", b"y")), "cannot be made"
    ),
    "a file through a dangling link": refused(
        packed(link("l", "/not/there"), entry("l/f", b"x")), "cannot be made"
    ),
    "a file through a link to itself": refused(
        packed(link("l", "l"), entry("l/f", b"x")), "cannot be made"
    ),
    "a file through a circle of links": refused(
        packed(link("a", "b"), link("b", "c"), link("c", "a"), entry("a/f")), "cannot be made"
    ),
    "a file through 50 links": refused(
        packed(
            directory("l0"), *(link(f"l{n}", f"l{n - 1}") for n in range(1, 50)), entry("l49/f")
        ),
        "cannot be made",
    ),
    "a file through a link to /proc": refused(
        packed(link("l", "/proc/self/root"), entry("l/f", b"x")), "cannot be made"
    ),
    "a file through a link to a descriptor": refused(
        packed(link("l", "/dev/fd/3"), entry("l/f", b"x")), "cannot be made"
    ),
    "a link with an empty target": refused(packed(link("l", "")), "cannot be made"),
    "a link with a target of 5,000 bytes": refused(packed(link("l", "t" * 5000)), "cannot be made"),
    "a link with NUL in its target": refused(
        said(("linkpath", b"a\0b"), content=b"", kind=b"2"), "absurd"
    ),
    "a directory that becomes a link, and a file through it": Case(
        packed(directory("d"), entry("d/f"), link("d", "lower"), entry("d/g", b"x")),
        "cannot be made",
        {**LOWER, "d": to("lower"), "lower/g": file()},
        LOWER,
    ),
    "a file through a link of a lower layer": layer(
        packed(entry("lower-link/new", b"x")), {"lower/new": file()}
    ),
    "a file through a link of a lower layer that leads out": bad_layer(
        packed(entry("lower-out/new", b"x")), "cannot be made"
    ),
    "a directory in the place of a link of a lower layer": layer(
        packed(directory("lower-link"), entry("lower-link/f", b"x")),
        {"lower-link": DIR, "lower-link/f": file()},
    ),
    "a link in the place of a directory of a lower layer, and a file through it": layer(
        packed(link("lower", "/elsewhere"), directory("elsewhere"), entry("lower/f", b"x")),
        {
            **gone("lower/file", "lower/dir", "lower/dir/file"),
            "lower": to("/elsewhere"),
            "elsewhere": DIR,
            "elsewhere/f": file(),
        },
    ),
    "a file in the place of a directory of a lower layer, and one below it": bad_layer(
        packed(entry("lower", b"x"), entry("lower/f")), "cannot be made"
    ),
    "a file below a file of a lower layer": bad_layer(
        packed(entry("lower/file/f", b"x")), "cannot be made"
    ),
}

HARD_LINKS: dict[str, Case] = {
    "a hard link": kept(packed(entry("f", b"x"), hard_link("g", "f")), {"f": file(), "g": file()}),
    "a hard link with an absolute target": kept(
        packed(entry("f", b"x"), hard_link("g", "/f")), {"f": file(), "g": file()}
    ),
    "a hard link to a link, which is not followed": kept(
        packed(link("l", "/proc/self/exe"), hard_link("g", "l")),
        {"l": to("/proc/self/exe"), "g": to("/proc/self/exe")},
    ),
    "a hard link to a file that is replaced afterwards": kept(
        packed(entry("f", b"old"), hard_link("g", "f"), entry("f", b"new")),
        {"f": file("new"), "g": file("old")},
    ),
    "a hard link to a file that is there twice": kept(
        packed(entry("f", b"1"), entry("f", b"2"), hard_link("g", "f")),
        {"f": file("2"), "g": file("2")},
    ),
    "a hard link with set-id bits, which says nothing of the file": kept(
        packed(entry("f", b"x"), hard_link("g", "f", mode=0o6777)), {"f": file(), "g": file()}
    ),
    "a hard link with a size, and no content": kept(
        packed(entry("f", b"x"), hard_link("g", "f", size=5000)), {"f": file(), "g": file()}
    ),
    "a hard link up and out": refused(packed(hard_link("g", "../../etc/passwd")), r'"\.\."'),
    "a hard link to what is not there": refused(packed(hard_link("g", "/etc/shadow")), "missing"),
    "a hard link to a name that is no text and not there": refused(
        packed(hard_link("g\udcff", "gone\udcff"), form=GNU), r"missing file: g\\udcff"
    ),
    "a hard link to nothing": refused(packed(hard_link("g", "/")), "hard link to nothing"),
    "a hard link to itself": refused(packed(entry("f"), hard_link("f", "f")), "missing"),
    "a hard link to a file that comes later": refused(
        packed(hard_link("g", "f"), entry("f", b"x")), "missing"
    ),
    "a hard link through a link out": refused(
        packed(link("l", "/proc/1/root/etc"), hard_link("g", "l/passwd")), "missing"
    ),
    "a hard link to a directory": refused(
        packed(directory("d"), hard_link("g", "d")), "hard link to a directory"
    ),
    "a hard link to a device, which was left out": refused(
        packed(entry("c", type=tarfile.CHRTYPE), hard_link("g", "c")), "missing"
    ),
    "a hard link in a file": refused(
        packed(entry("f"), entry("g"), hard_link("f/g", "g")), "cannot be made"
    ),
    "a hard link to a file in a file": refused(
        packed(entry("f"), hard_link("g", "f/h")), "cannot be made"
    ),
    "a hard link to a file of a lower layer": layer(
        packed(hard_link("g", "lower/file")), {"g": file("lower")}
    ),
    "a hard link to a file of a lower layer, through its link": layer(
        packed(hard_link("g", "lower-link/file")), {"g": file("lower")}
    ),
    "a hard link to a directory of a lower layer": bad_layer(
        packed(hard_link("g", "lower")), "hard link to a directory"
    ),
    "a hard link to a file of a lower layer that this one hides": bad_layer(
        packed(hard_link("g", "lower/file"), entry("lower/.wh.file")), "missing"
    ),
    "a hard link in the place of the directory that its target is in": bad_layer(
        packed(hard_link("lower", "lower/file")), "missing"
    ),
}

WHITEOUTS: dict[str, Case] = {
    "a file and a directory, hidden": layer(
        packed(entry("lower/.wh.file"), entry("lower/.wh.dir")),
        gone("lower/file", "lower/dir", "lower/dir/file"),
    ),
    "what is not there, hidden": layer(packed(entry(".wh.no"), entry("no/.wh.f")), {}),
    "what is not there, hidden in a file": layer(packed(entry("lower/file/.wh.f")), {}),
    "the same, hidden twice": layer(
        packed(entry("lower/.wh.file"), entry("lower/.wh.file")), gone("lower/file")
    ),
    "a link, hidden, and not what it leads to": layer(
        packed(entry(".wh.lower-link"), entry(".wh.lower-out")), gone("lower-link", "lower-out")
    ),
    "through a link, hiding nothing": layer(
        packed(entry("lower-link/.wh.file"), entry("lower-out/.wh.canary")), {}
    ),
    "nothing of its own layer, in either order": layer(
        packed(
            entry("f", b"x"), entry(".wh.f"), entry("lower/.wh.file"), entry("lower/file", b"new")
        ),
        {"f": file(), "lower/file": file("new")},
    ),
    "a directory, hidden after a file was put into it": layer(
        packed(entry("lower/new", b"x"), entry(".wh.lower")),
        {**gone("lower/file", "lower/dir", "lower/dir/file"), "lower": DIR, "lower/new": file()},
    ),
    "a hidden name that is a whiteout's": layer(packed(entry(".wh..wh.x")), {}),
    "marks of aufs": layer(
        packed(entry(".wh..wh.aufs"), directory(".wh..wh.plnk"), entry(".wh..wh.orph/f", b"x")), {}
    ),
    "what is below a whiteout": layer(packed(entry(".wh.lower/file", b"x")), {}),
    "whiteouts that are directories, links and devices": layer(
        packed(
            directory("lower/.wh.file"),
            link("lower/.wh.dir", "/"),
            entry(".wh.lower-link", type=tarfile.CHRTYPE),
        ),
        gone("lower/file", "lower/dir", "lower/dir/file", "lower-link"),
    ),
    "a whiteout with content": layer(
        packed(entry("lower/.wh.file", b"content" * 200)), gone("lower/file")
    ),
    "an opaque directory": layer(
        packed(directory("lower"), entry("lower/.wh..wh..opq"), entry("lower/new", b"x")),
        {**gone("lower/file", "lower/dir", "lower/dir/file"), "lower/new": file()},
    ),
    "an opaque directory, told twice and after its files": layer(
        packed(entry("lower/new", b"x"), entry("lower/.wh..wh..opq"), entry("lower/.wh..wh..opq")),
        {**gone("lower/file", "lower/dir", "lower/dir/file"), "lower/new": file()},
    ),
    "the root, opaque": layer(
        packed(entry(".wh..wh..opq"), entry("f", b"x")), {**gone(*LOWER), **ONE}
    ),
    "a file and a link, opaque": layer(
        packed(entry("lower/file/.wh..wh..opq"), entry("lower-link/.wh..wh..opq")), {}
    ),
    "a directory that is not there, opaque": layer(packed(entry("no/.wh..wh..opq")), {}),
    "a directory in an opaque one, opaque": layer(
        packed(entry("lower/.wh..wh..opq"), entry("lower/dir/.wh..wh..opq")),
        gone("lower/file", "lower/dir", "lower/dir/file"),
    ),
    "a file that begins as a whiteout does, nearly": layer(
        packed(entry(".wh", b"x"), entry(".whf", b"x"), entry("f.wh.g", b"x"), entry(".WH.lower")),
        {".wh": file(), ".whf": file(), "f.wh.g": file(), ".WH.lower": file("")},
    ),
    "a whiteout of three dots, which is a name": layer(
        packed(entry(".wh....")), gone("..."), {"...": file(), "kept": file()}
    ),
    "a whiteout of no name": bad_layer(packed(entry("lower/.wh.")), "hides nothing"),
    "a whiteout of .": bad_layer(packed(entry(".wh..")), "hides nothing"),
    "a whiteout of ..": bad_layer(packed(entry("lower/.wh...")), "hides nothing"),
    "a whiteout in ..": bad_layer(packed(entry("../.wh.canary")), r'"\.\."'),
    "whiteouts in an archive that is imported, where they are names": Case(
        packed(entry(".wh.f", b"x"), entry(".wh..wh..opq", b"")),
        {".wh.f": file(), ".wh..wh..opq": file("")},
        None,
        LOWER,
    ),
    "a device that would be a whiteout to overlay": layer(
        packed(entry("lower/file", type=tarfile.CHRTYPE, devmajor=0, devminor=0)), {}
    ),
    "attributes that mean something to overlay": layer(
        packed(
            directory("lower", pax_headers={"SCHILY.xattr.user.overlay.opaque": "y"}),
            directory("lower/dir", pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"}),
            directory("d", pax_headers={"SCHILY.xattr.user.overlay.redirect": "/lower"}),
            pax(
                "lower/file",
                **{
                    "SCHILY.xattr.user.overlay.whiteout": "y",
                    "SCHILY.xattr.user.overlay.metacopy": "",
                    "SCHILY.xattr.user.overlay.origin": "x",
                },
            ),
            pax("e", **{"LIBARCHIVE.xattr.user.overlay.opaque": "eQ=="}),
        ),
        {"lower/file": file(""), "lower/dir": folder(0o755), "d": DIR, "e": file("")},
    ),
}

KINDS: dict[str, Case] = {
    "device nodes, left out": kept(
        packed(
            entry("c", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("b", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
            entry("absurd", type=tarfile.BLKTYPE, devmajor=2**20, devminor=2**20),
            entry("f", b"x"),
        ),
        ONE,
    ),
    "a whiteout of overlay's, left out": kept(
        packed(entry("w", type=tarfile.CHRTYPE, devmajor=0, devminor=0), entry("f", b"x")), ONE
    ),
    "a device with numbers that are none, left out": kept(
        raw(change=(156, b"3" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 64 + b"\xff" * 16)), {}
    ),
    "a FIFO, left out": kept(packed(entry("p", type=tarfile.FIFOTYPE), entry("f", b"x")), ONE),
    "entries of vendors, left out with their content": kept(
        packed(*(entry(f"q{kind}", b"abc", type=b"%c" % kind) for kind in b"ADEIMNQVWXYZ8~"))[
            :-1024
        ]
        + one(),
        ONE,
    ),
    "a contiguous file": kept(packed(entry("f", b"x", type=tarfile.CONTTYPE)), ONE),
    "a directory with a size": kept(
        packed(directory("d", size=5000), entry("f", b"x")), {"d": DIR, **ONE}
    ),
    "a link with a size": kept(
        packed(link("l", "f", size=5000), entry("f", b"x")), {"l": to("f"), **ONE}
    ),
    "duplicate names: the last one counts": kept(
        packed(entry("f", b"1"), entry("f", b"2"), entry("./f", b"3")), {"f": file("3")}
    ),
    "a name that is one kind after the other": kept(
        packed(
            entry("n", b"1"), directory("n"), link("n", "/"), entry("n", b"2"), hard_link("m", "n")
        ),
        {"n": file("2"), "m": file("2")},
    ),
    "a directory over a file": kept(
        packed(entry("f", b"1"), directory("f"), entry("f/g", b"2")),
        {"f": DIR, "f/g": file("2")},
    ),
    "a file over an empty directory": kept(
        packed(directory("f"), entry("f", b"1")), {"f": file("1")}
    ),
    "a file over a directory with something in it": Case(
        packed(directory("d"), entry("d/f"), entry("d", b"x")),
        "cannot be made",
        {**LOWER, "d": file()},
        LOWER,
    ),
    "a directory that nobody may enter, and a file in it": kept(
        packed(directory("d", mode=0), entry("d/f", b"x")), {"d": folder(0), "d/f": file()}
    ),
    "a directory of a lower layer, with another mode": layer(
        packed(directory("lower", mode=0o711)), {"lower": folder(0o711)}
    ),
    "set-id and sticky bits": kept(
        packed(
            entry("setuid", mode=0o4755),
            entry("setgid", mode=0o2755),
            entry("sticky-file", mode=0o1644),
            directory("sticky", mode=0o7777),
            entry("absurd", mode=0o7777777),
        ),
        {
            "setuid": file("", 0o755),
            "setgid": file("", 0o755),
            "sticky-file": file("", 0o644),
            "sticky": folder(0o1777),
            "absurd": file("", 0o777),
        },
    ),
    "a file with no mode": kept(packed(entry("f", b"x", mode=0)), {"f": file("x", 0)}),
    "extended attributes, all but one dropped": kept(
        packed(
            pax(
                "f",
                b"x",
                **{
                    "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\xff\xff",
                    "SCHILY.xattr.security.selinux": "unconfined_u",
                    "SCHILY.xattr.system.posix_acl_access": "\x02",
                    "SCHILY.xattr.user.overlay.redirect": "/etc",
                    "SCHILY.xattr.user.containers.override_stat": "0:0:04755",
                    "SCHILY.xattr.user.rootlesscontainers": "x",
                    "SCHILY.xattr.user.plain": "x",
                    "SCHILY.xattr.trusted.overlay.opaque": "y",
                    "SCHILY.acl.access": "user::rwx",
                    "LIBARCHIVE.xattr.user.plain": "eA==",
                    "RHT.security.selinux": "x",
                },
            )
        ),
        ONE,
    ),
    "an extended attribute of 300 KB, dropped": kept(
        packed(pax("f", b"x", **{"SCHILY.xattr.user.a": "v" * 300_000})), ONE
    ),
    "ten thousand extended attributes, dropped": kept(
        packed(pax("f", b"x", **{f"SCHILY.xattr.user.a{n}": "v" for n in range(10_000)})), ONE
    ),
}

NUMBERS: dict[str, Case] = {
    "times before and after all time": kept(
        packed(
            entry("old", mtime=-(10**15), pax_headers={}),
            entry("new", mtime=10**18, pax_headers={}),
            pax("odd", mtime="99999999999999999999999.9", atime="x", ctime="-"),
        ),
        {"old": file(""), "new": file(""), "odd": file("")},
    ),
    "a uid that no sandbox has": refused(packed(entry("f", uid=65536)), "owner"),
    "a uid of 2^32": refused(packed(entry("f", uid=2**32, pax_headers={})), "owner"),
    "a uid of 2^32 - 1, which means nobody to chown": refused(
        packed(entry("f", uid=2**32 - 1, pax_headers={})), "owner"
    ),
    "a negative uid": refused(packed(entry("f", uid=-1), form=GNU), "owner"),
    "a negative uid of PAX": refused(said(("uid", b"-1")), "absurd"),
    "a uid of PAX that is no number": refused(said(("uid", b"root")), "absurd"),
    "a uid of PAX in other digits": refused(said(("uid", "١٢".encode())), "absurd"),
    "a uid of PAX of 5,000 digits": refused(said(("uid", b"9" * 5000)), "absurd"),
    "an absurd gid": refused(packed(directory("d", gid=2**40, pax_headers={})), "owner"),
    "a link with an absurd gid": refused(packed(link("l", "f", gid=70_000)), "owner"),
    "a uid in all bits of base 256": refused(raw(change=(108, b"\x80" + b"\xff" * 7)), "owner"),
    "a mode that is no number": refused(raw(change=(100, b"rwxr-xr\0")), "is none"),
    "a mode with a sign": refused(raw(change=(100, b"-000644\0")), "is none"),
    "a mode in underscores": refused(raw(change=(100, b"0_0_644\0")), "is none"),
    "a mode in digits of 8 and 9": refused(raw(change=(100, b"0000989\0")), "is none"),
    "a mode that is empty": kept(raw(change=(100, bytes(8))), {"f": file("", 0)}),
    "a mode below zero": kept(raw(change=(100, b"\xff" * 8)), {"f": file("", 0o777)}),
    "numbers with blanks around them": kept(
        raw(change=(100, b"  644 \0 ")), {"f": file("", 0o644)}
    ),
    "a size below zero": refused(header(b"f", size=b"\xff" * 12) + END, "absurd"),
    "a size of 2^63": refused(said(("size", b"9223372036854775808")), "absurd"),
    "a size of 2^63 - 1": refused(said(("size", b"9223372036854775807")), "bytes of files|cut"),
    "a size of 2^63 - 1, in base 256": refused(
        header(b"f", size=b"\x80\0\0\0" + b"\x7f" + b"\xff" * 7) + END, "bytes of files|cut"
    ),
    "a size of 2^94, in base 256": refused(header(b"f", size=b"\xbf" + b"\xff" * 11), "absurd"),
    "a size of PAX below zero": refused(said(("size", b"-1")), "absurd"),
    "a size of PAX that is no number": refused(said(("size", b"many")), "absurd"),
    "a size larger than the archive": refused(
        header(b"f", size=b"%o" % 10**6) + b"abc", "cut short"
    ),
    "a size of an unknown entry larger than the archive": refused(
        header(b"q", size=b"%o" % 10**6, kind=b"Q") + END, "cut short"
    ),
    "a size of an unknown entry of 8 EiB": refused(
        header(b"q", size=b"\x80\0\0\0" + b"\x7f" + b"\xff" * 7, kind=b"Q") + END, "cut short"
    ),
}

_SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s"}


def sparse(content: bytes, **records: str) -> bytes:
    named = {f"GNU.sparse.{key}": value for key, value in records.items()}
    return packed(entry("other", content, pax_headers=named))


def sparse_1(map_text: bytes, content: bytes = b"", size: str = "1024") -> bytes:
    padded = map_text + bytes(-len(map_text) % 512)
    return packed(
        entry("other", padded + content, pax_headers={**_SPARSE, "GNU.sparse.realsize": size})
    )


def old_sparse(
    numbers: list[bytes],
    size: bytes,
    content: bytes,
    *,
    more: bytes = b"\0",
    following: bytes = b"",
) -> bytes:
    """As GNU tar writes it in its own format."""
    block = bytearray(header(b"s", size=b"%o" % len(content), kind=b"S"))
    block[257:265] = b"ustar  \0"
    block[345:] = bytes(512 - 345)
    text = b"".join(numbers)
    block[386 : 386 + len(text)] = text
    block[482:483] = more
    block[483:495] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + following + content + bytes(-len(content) % 512) + END


def octal(number: int) -> bytes:
    return b"%011o\0" % number


SPARSE_TREE: Tree = {"s": file("a" + "\0" * 1021 + "bc")}
SPARSE: dict[str, Case] = {
    "a sparse file of format 1.0": kept(sparse_1(b"2\n0\n1\n1022\n2\n", b"abc"), SPARSE_TREE),
    "a sparse file of format 0.1": kept(
        sparse(b"abc", name="s", map="0,1,1022,2", size="1024", numblocks="2"), SPARSE_TREE
    ),
    "a sparse file of format 0.0": kept(
        said(
            ("GNU.sparse.size", b"1024"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"1"),
            ("GNU.sparse.offset", b"1022"),
            ("GNU.sparse.numbytes", b"2"),
            content=b"abc",
        ),
        {"f": file("a" + "\0" * 1021 + "bc")},
    ),
    "a sparse file of GNU's old format": kept(
        old_sparse([octal(0), octal(1), octal(1022), octal(2)], octal(1024), b"abc"), SPARSE_TREE
    ),
    "a sparse file of GNU's old format, going on in another block": kept(
        old_sparse(
            [octal(n) for pair in ((0, 1), (100, 0), (200, 0), (300, 0)) for n in pair],
            octal(1024),
            b"abc",
            more=b"\1",
            following=(octal(1022) + octal(2)).ljust(512, b"\0"),
        ),
        SPARSE_TREE,
    ),
    "a sparse file that is a hole": kept(
        sparse_1(b"1\n1000\n0\n", size="1000"), {"s": file("\0" * 1000)}
    ),
    "a sparse file that would fill the disk": refused(
        sparse_1(b"0\n", size="9" * 13), "bytes of files"
    ),
    "a sparse file of an absurd size": refused(sparse_1(b"0\n", size="9" * 20), "absurd"),
    "a sparse file of a size below zero": refused(sparse_1(b"0\n", size="-5"), "absurd"),
    "a sparse map without end": refused(sparse_1(b"99999999\n" + b"1\n" * 2000), "absurd"),
    "a sparse map that says of itself more than there is": refused(
        sparse_1(b"9\n0\n1\n"), "absurd"
    ),
    "a sparse map of one line without end": refused(sparse_1(b"1" * 2**21), "absurd"),
    "a sparse map that is no numbers": refused(sparse_1(b"2\na\nb\nc\nd\n"), "absurd"),
    "a sparse map of 0.1 that is no numbers": refused(
        sparse(b"", name="s", map="a,b,c", size="9"), "absurd"
    ),
    "a sparse map of 0.1 with half a piece": refused(
        sparse(b"ab", name="s", map="0,1,5", size="9"), "absurd"
    ),
    "sparse pieces that overlap": refused(sparse_1(b"2\n0\n10\n5\n10\n", b"x" * 20), "absurd"),
    "sparse pieces in the wrong order": refused(sparse_1(b"2\n50\n5\n0\n5\n", b"x" * 10), "absurd"),
    "sparse pieces beyond the end": refused(sparse_1(b"1\n1020\n10\n", b"x" * 10), "absurd"),
    "sparse pieces of which nothing is stored": refused(sparse_1(b"1\n0\n1000\n"), "absurd"),
    "sparse pieces that leave something over": refused(sparse_1(b"1\n0\n1\n", b"x" * 10), "absurd"),
    "old sparse pieces below zero": refused(
        old_sparse([b"\xff" * 12, octal(5)], octal(1024), b"x" * 5), "absurd"
    ),
    "an old sparse map without end": refused(
        old_sparse(
            [octal(0), octal(0)],
            octal(1024),
            b"",
            more=b"\1",
            following=((octal(0) * 2) * 21 + b"\1").ljust(512, b"\0") * 3000,
        ),
        "absurd",
    ),
    "a sparse file of a version to come, which is taken as it is": kept(
        sparse(b"abc", name="s", major="2", minor="0", realsize="9"), {"other": file("abc")}
    ),
}

HEADERS: dict[str, Case] = {
    "garbage after the end": kept(one() + b"\x01garbage" * 500, ONE),
    "an archive after the end, which is none": kept(one() + packed(entry("g")), ONE),
    "a global extension header": kept(
        extension(b"g", pax_record("comment", b"hello")) + one(), ONE
    ),
    "a global owner and time, of no effect": kept(
        extension(b"g", pax_record("uid", b"99999") + pax_record("mtime", b"x")) + one(), ONE
    ),
    "a global name": refused(
        extension(b"g", pax_record("path", b"../escape")) + one(), "of all entries"
    ),
    "a global size": refused(extension(b"g", pax_record("size", b"100")) + one(), "of all entries"),
    "a global target": refused(
        extension(b"g", pax_record("linkpath", b"/etc")) + packed(link("l", "f")), "of all entries"
    ),
    "sizes that differ: that of PAX counts": kept(
        extension(b"x", pax_record("size", b"512"))
        + header(b"f", size=b"0")
        + header(b"smuggled")
        + END,
        {"f": file(header(b"smuggled").decode())},
    ),
    "sizes that differ: a smaller one of PAX": refused(
        extension(b"x", pax_record("size", b"0"))
        + header(b"f", size=b"%o" % 512)
        + b"not a header".ljust(512, b"\0")
        + END,
        "checksum",
    ),
    "sizes that differ: what would be content is the next entry": kept(
        extension(b"x", pax_record("size", b"0"))
        + header(b"f", size=b"%o" % 512)
        + header(b"next")
        + END,
        {"f": file(""), "next": file("")},
    ),
    "two extension headers: the last one counts": kept(
        extension(b"x", pax_record("path", b"one"))
        + extension(b"x", pax_record("path", b"two"))
        + header(b"f")
        + END,
        {"two": file("")},
    ),
    "a long name of GNU above one of PAX": kept(
        extension(b"L", b"gnu\0")
        + extension(b"x", pax_record("path", b"pax"))
        + header(b"f")
        + END,
        {"gnu": file("")},
    ),
    "two long names of GNU: the last one counts": kept(
        extension(b"L", b"one\0") + extension(b"L", b"two\0rest") + header(b"f") + END,
        {"two": file("")},
    ),
    "a long link of GNU": kept(
        extension(b"K", b"t" * 200 + b"\0") + header(b"l", kind=b"2") + END, {"l": to("t" * 200)}
    ),
    "a name of PAX that is taken back": kept(
        extension(b"x", pax_record("path", b"one") + pax_record("path", b"")) + header(b"f") + END,
        {"f": file("")},
    ),
    "all formats in one archive": kept(
        packed(entry("u", b"1"), form=tarfile.USTAR_FORMAT)[:-1024]
        + packed(entry("g" * 120, b"2"), form=GNU)[:-1024]
        + packed(entry("p" * 120, b"3"))[:-1024]
        + header(b"v", size=b"0").replace(b"ustar\x0000", bytes(8))[:148]
        + b"%06o\0 " % (sum(header(b"v").replace(b"ustar\x0000", bytes(8))[:148]) + 8 * 32 + 48)
        + header(b"v").replace(b"ustar\x0000", bytes(8))[156:]
        + END,
        {"u": file("1"), "g" * 120: file("2"), "p" * 120: file("3"), "v": file("")},
    ),
    "a checksum of signed bytes": kept(
        (block := packed(entry("é", b""), form=tarfile.USTAR_FORMAT))[:148]
        + b"%06o\0 "
        % (sum(b if b < 128 else b - 256 for b in block[:148] + block[156:512]) + 8 * 32)
        + block[156:],
        {"é": file("")},
    ),
    "a wrong checksum": refused(one().replace(b"0000644", b"0000777", 1), "checksum"),
    "a wrong checksum in the middle": refused(
        packed(entry("e"))[:512] + one().replace(b"0000644", b"0000777", 1), "checksum"
    ),
    "no checksum": refused((block := one())[:148] + bytes(8) + block[156:], "checksum"),
    "a lone block of zeros, and more": refused(
        one()[:1024] + bytes(512) + one(), "follows its end"
    ),
    "an extension header of 8 GB": refused(extension(b"x", b"1 a=b\n", 8 * 10**9), "too large"),
    "a long name of 2 MiB": refused(extension(b"L", b"n" * 2**21) + header(b"f"), "too large"),
    "an extension header below zero": refused(header(b"x", size=b"\xff" * 12, kind=b"x"), "absurd"),
    "an extension header that is cut": refused(extension(b"x", b"1", 600)[:900], "cut short"),
    "an extension header, and no entry": refused(extension(b"x", b"") + END, "extension header"),
    "a chain of 5,000 extension headers": refused(
        extension(b"x", pax_record("comment", b"x")) * 5000 + one(), "extension headers"
    ),
    "a chain of 5,000 global headers": refused(
        extension(b"g", pax_record("comment", b"x")) * 5000 + one(), "extension headers"
    ),
    "a chain of 5,000 long names": refused(extension(b"L", b"n\0") * 5000 + one(), "extension"),
    "an extension header of an extension header of itself": refused(
        (extension(b"x", b"") + extension(b"L", b"a\0") + extension(b"K", b"b\0")) * 40 + one(),
        "extension headers",
    ),
    "a record of PAX with an absurd length": refused(
        extension(b"x", b"99999999999999999999 path=x\n") + one(), "is none"
    ),
    "a record of PAX longer than its header": refused(
        extension(b"x", b"20 path=x\n") + one(), "is none"
    ),
    "a record of PAX with no length": refused(extension(b"x", b"path=x\n") + one(), "is none"),
    "a record of PAX of length 0": refused(extension(b"x", b"0 path=x\n") + one(), "is none"),
    "a record of PAX of length 2": refused(extension(b"x", b"2 path=x\n") + one(), "is none"),
    "a record of PAX below zero": refused(extension(b"x", b"-9 path=x\n") + one(), "is none"),
    "a record of PAX without =": refused(extension(b"x", b"8 path\n\n") + one(), "is none"),
    "a record of PAX without a key": refused(extension(b"x", b"5 =x\n") + one(), "is none"),
    "a record of PAX without a newline": refused(extension(b"x", b"9 path=xy") + one(), "is none"),
    "a header of PAX of one long number": refused(extension(b"x", b"1" * 2**20) + one(), "is none"),
    "a header of PAX of numbers and blanks": refused(
        extension(b"x", b"1" * 2**19 + b" " * 2**19) + one(), "is none"
    ),
    "a last block that is not filled, as of `umoci insert`": Case(
        header(b"f", size=b"1") + b"x", "no end", {**LOWER, **ONE}, LOWER
    ),
    "a last block that is filled in part": Case(
        header(b"f", size=b"1") + b"x" + bytes(30), "no end", {**LOWER, **ONE}, LOWER
    ),
    "no end-of-archive blocks": Case(
        packed(entry("f", b"x"), end=False), "no end", {**LOWER, **ONE}, LOWER
    ),
    "cut between two entries": Case(
        packed(entry("f", b"x"), entry("g", b"y"))[:1024], "no end", {**LOWER, **ONE}, LOWER
    ),
    "cut in a header": refused(one()[:1024] + one()[:300], "cut in a header"),
    "nothing at all": Case(b"", "no end", LOWER, LOWER),
    "only end-of-archive blocks": Case(bytes(10240), "empty", LOWER, LOWER),
    "text": refused(b"#!/bin/sh\necho hello\n" * 100, "not a tar"),
    "a zip archive": refused(b"PK\x03\x04" + b"\x14\x00\x08\x08" * 1000, "not a tar"),
    "a cpio archive": refused(b"070701" + b"0" * 600, "not a tar"),
}


def _gzip_bomb(content: bytes, times: int) -> bytes:
    """Members one after the other, each as large as `content`."""
    return gzip.compress(content) * times


def _zstd(content: bytes, *, level: int = 3, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=checksum).compress(content)


def _skippable(content: bytes) -> bytes:
    return b"\x53\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


def _changed(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 or len(content) :]


_NOTHING_MUCH = bytes(2**20)
_FILE_OF_20_MIB = packed(entry("f", bytes(20 * 2**20)))
_MANY_ENTRIES = packed(*(entry(f"f{number}") for number in range(MOST_ENTRIES + 1)))
_MANY_PATHS = packed(*(entry(f"{number}/" + "d/" * 1000 + "f") for number in range(10)))
_MANY_WHITEOUTS = packed(*(entry(f".wh.f{number}") for number in range(MOST_ENTRIES + 1)))
_MANY_DEVICES = packed(*(entry(f"f{n}", type=tarfile.FIFOTYPE) for n in range(MOST_ENTRIES + 1)))

COMPRESSED: dict[str, Case] = {
    "gzip": kept(gzip.compress(one()), ONE),
    "zstd": kept(_zstd(one()), ONE),
    "bzip2": kept(bz2.compress(one()), ONE),
    "xz": kept(lzma.compress(one()), ONE),
    "several members of gzip": kept(gzip.compress(one()[:700]) + gzip.compress(one()[700:]), ONE),
    "several frames of zstd": kept(_zstd(one()[:700]) + _zstd(one()[700:]), ONE),
    "frames of zstd to be skipped, before, between and after": kept(
        _skippable(b"a")
        + _zstd(one()[:700])
        + _skippable(b"b" * 9000)
        + _zstd(one()[700:])
        + _skippable(b""),
        ONE,
    ),
    "gzip with a name, a comment and more": kept(
        b"\x1f\x8b\x08\x1c"
        + bytes(5)
        + b"\xff"
        + b"\x03\0abc"
        + b"../../name\0"
        + b"comment\0"
        + zlib.compressobj(9, zlib.DEFLATED, -15).compress(b"")
        + (raw_deflate := zlib.compressobj(9, zlib.DEFLATED, -15)).compress(one())
        + raw_deflate.flush()
        + zlib.crc32(one()).to_bytes(4, "little")
        + len(one()).to_bytes(4, "little"),
        ONE,
    ),
    "gzip with zeros after it": kept(gzip.compress(one()) + bytes(1000), ONE),
    "gzip with rubbish after it": refused(gzip.compress(one()) + b"rubbish", "decompressed"),
    "gzip with an archive after it that is not compressed": refused(
        gzip.compress(one()) + one(), "decompressed"
    ),
    "gzip with a wrong checksum": refused(_changed(gzip.compress(one()), -6), "decompressed"),
    "gzip with a wrong length": refused(_changed(gzip.compress(one()), -2), "decompressed"),
    "gzip with a method that is none": refused(_changed(gzip.compress(one()), 2), "decompressed"),
    "gzip that is cut": refused(gzip.compress(one())[:-9], "decompressed"),
    "gzip without its checksum": refused(gzip.compress(one())[:-8], "decompressed"),
    "gzip of nothing": Case(gzip.compress(b""), "no end", LOWER, LOWER),
    "gzip in gzip": refused(gzip.compress(gzip.compress(one())), "not a tar"),
    "bzip2 that is cut": refused(bz2.compress(one())[:-9], "decompressed"),
    "bzip2 with a wrong checksum": refused(_changed(bz2.compress(one()), -5), "decompressed"),
    "xz that is cut": refused(lzma.compress(one())[:-9], "decompressed"),
    "xz with a wrong checksum": refused(_changed(lzma.compress(one()), -30), "decompressed"),
    "an xz dictionary of 1.5 GiB": refused(with_dictionary_of_1536_mib(one()), "too large"),
    "zstd with a wrong checksum": refused(_changed(_zstd(one()), -1), "decompressed"),
    "zstd with rubbish after it": refused(_zstd(one()) + b"rubbish!", "decompressed"),
    # RFC 8878, 3.1.1.1: no single segment, then a window descriptor with exponent 21: 2**31 bytes.
    "zstd with a window of 2 GiB": refused(
        b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00", "decompressed"
    ),
    "zstd that needs a dictionary": refused(
        b"\x28\xb5\x2f\xfd\x01\x58\x07" + b"\x01\x00\x00", "decompressed|no end"
    ),
    "a file larger than may be, in gzip": refused(gzip.compress(_FILE_OF_20_MIB), "bytes of files"),
    "a file larger than may be, in zstd": refused(_zstd(_FILE_OF_20_MIB), "bytes of files"),
    "a gigabyte after the end, in gzip": refused(
        gzip.compress(one()) + _gzip_bomb(_NOTHING_MUCH, 1000), "larger, uncompressed"
    ),
    "a gigabyte after the end, in zstd": refused(
        _zstd(one()) + _zstd(_NOTHING_MUCH) * 1000, "larger, uncompressed"
    ),
    "an entry of a gigabyte that is left out": refused(
        gzip.compress(header(b"q", size=b"%o" % 2**30, kind=b"Q"))
        + _gzip_bomb(_NOTHING_MUCH, 1024),
        "larger, uncompressed",
    ),
    "20,000 members of gzip, with nothing in them": kept(
        gzip.compress(b"") * 20_000 + gzip.compress(one()), ONE
    ),
    "20,000 frames of zstd, with nothing in them": kept(_zstd(b"") * 20_000 + _zstd(one()), ONE),
    "more entries than may be": refused(gzip.compress(_MANY_ENTRIES), "more than 5000 entries"),
    "more entries that are left out than may be": refused(
        gzip.compress(_MANY_DEVICES), "more than 5000 entries"
    ),
    "more directories than may be, in the names of ten entries": refused(
        gzip.compress(_MANY_PATHS), "more than 5000 entries"
    ),
    "more whiteouts than may be": bad_layer(
        gzip.compress(_MANY_WHITEOUTS), "more than 5000 entries"
    ),
}

CORPUS: dict[str, dict[str, Case]] = {
    "names": NAMES,
    "links": LINKS,
    "hard links": HARD_LINKS,
    "whiteouts": WHITEOUTS,
    "kinds": KINDS,
    "numbers": NUMBERS,
    "sparse files": SPARSE,
    "headers": HEADERS,
    "compressed": COMPRESSED,
}


def archives() -> dict[str, bytes]:
    """All of them by name."""
    return {name: case.archive for part in CORPUS.values() for name, case in part.items()}
