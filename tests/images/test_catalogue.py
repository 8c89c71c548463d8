"""Names and trees of images: replaced, shared, removed, cut short, and used by several processes at once."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from archives import directory, entry, link, packed
from image_bench import ImageBench
from running_service import byte_code
from waiting import wait_for

from sandboxd.errors import Conflict, Invalid, NotFound

SLOW_IMPORT = """\
import asyncio, sys
from pathlib import Path
from sandboxd.images.catalogue import Images
from sandboxd.isolation import idmap
from sandboxd.isolation.launcher_client import Launcher
from image_bench import Nowhere

async def main(base):
    launcher = Launcher(stage=base / "stage-other", ids=idmap.find_range())
    images = Images(base / "images", base / "host-other", launcher, Nowhere)
    await images.import_tar("cut", base / "archive.tar")

asyncio.run(main(Path(sys.argv[1])))
"""


def test_an_image_is_listed_with_its_digest_and_size(images: ImageBench) -> None:
    made = images.load(packed(entry("a", b"123"), entry("b", b"4567")))

    listed = images.bench.do(images.images.list())
    assert [image.name for image in listed] == ["host", "made"]
    assert listed[1] == made
    assert made.size_bytes == 7
    assert made.source == "import"


def test_a_second_import_under_the_same_name_replaces_the_image(images: ImageBench) -> None:
    images.load(packed(entry("old")))
    images.load(packed(entry("new")))

    assert set(images.tree()) == {"new"}


def test_the_same_archive_under_two_names_is_unpacked_once(images: ImageBench) -> None:
    content = packed(entry("f", b"x"))
    first, second = images.load(content, "first"), images.load(content, "second")

    assert first.digest == second.digest
    assert second.size_bytes == 1
    assert len(list((images.store / "trees").iterdir())) == 1
    images.bench.do(images.images.remove("first"))
    assert set(images.tree("second")) == {"f"}


@pytest.mark.attack(73)
def test_the_same_archive_imported_five_times_at_once_gives_one_tree(images: ImageBench) -> None:
    path = images.archive(packed(*(entry(f"f{n}", b"x" * 5000) for n in range(200))))

    async def all_at_once() -> None:
        await asyncio.gather(
            *(images.images.import_tar(f"name{n}", path) for n in range(4)),
            images.opened("other").import_tar("name4", path),
        )

    images.bench.do(all_at_once())

    assert len(images.bench.do(images.images.list())) == 6
    assert len(list((images.store / "trees").iterdir())) == 1
    assert images.left_over() == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "A", "a b", "-a", "a-", "a..b", "ä", "a" * 129, "a\n"]
)
@pytest.mark.attack(38, 71)
def test_a_name_that_no_image_can_have_is_refused(name: str, images: ImageBench) -> None:
    with pytest.raises(Invalid):
        images.load(packed(entry("f")), name)

    assert list((images.store / "trees").iterdir()) == []


@pytest.mark.attack(71)
def test_the_name_of_the_host_image_is_taken(images: ImageBench) -> None:
    with pytest.raises(Conflict):
        images.load(packed(entry("f")), "host")
    with pytest.raises(Conflict):
        images.bench.do(images.images.remove("host"))


@pytest.mark.attack(66)
def test_what_is_not_a_readable_file_is_refused_at_once(images: ImageBench) -> None:
    """Opening a FIFO must not wait for a writer: the whole service would wait."""
    fifo = images.directory / "fifo"
    os.mkfifo(fifo)
    secret = images.archive(packed(entry("f")), "secret")
    secret.chmod(0)

    for path in (fifo, images.directory, Path("/dev/zero"), secret):
        with pytest.raises(Invalid):
            images.bench.do(images.images.import_tar("x", path))
    with pytest.raises(NotFound):
        images.bench.do(images.images.import_tar("x", images.directory / "missing"))


def test_an_unknown_image_is_not_found(images: ImageBench) -> None:
    with pytest.raises(NotFound):
        images.bench.do(images.images.resolve("unknown"))
    with pytest.raises(NotFound):
        images.bench.do(images.images.remove("unknown"))


@pytest.mark.attack(9, 45)
def test_a_tree_of_any_shape_is_removed_without_a_trace(images: ImageBench) -> None:
    """Files of other owners, modes 000, 2,000 levels, links to the canary everywhere (ATTACKS 9, 45)."""
    canary = str(images.canary)
    images.load(
        packed(
            directory("locked", mode=0, uid=1000),
            directory("locked/inner", mode=0, uid=2000),
            entry("locked/inner/file", b"x", mode=0, uid=65535),
            directory("/".join(["d"] * 2000), mode=0),
            link("canary", canary),
            link("locked/canary", canary),
            link("locked/inner/up", os.path.dirname(canary)),
            entry(".moved-1-00000000"),
            directory("sticky", mode=0o1777, uid=7),
            entry("sticky/file", uid=8),
            directory(".", mode=0, uid=1000),
        )
    )

    images.bench.do(images.images.remove("made"))

    assert images.left_over() == []
    assert list((images.store / "trees").iterdir()) == []


@pytest.mark.attack(73)
def test_an_image_that_a_process_uses_is_not_removed_by_another(images: ImageBench) -> None:
    images.load(packed(entry("f", b"x")))
    images.bench.do(images.images.resolve("made"))
    other = images.opened("other")

    for catalogue in (images.images, other):
        with pytest.raises(Conflict):
            images.bench.do(catalogue.remove("made"))
    assert set(images.tree()) == {"f"}
    images.images.close()
    images.bench.do(other.remove("made"))
    with pytest.raises(NotFound):
        images.bench.do(images.images.resolve("made"))


def test_a_tree_that_was_removed_and_imported_again_is_held_anew(images: ImageBench) -> None:
    content = packed(entry("f", b"x"))
    images.load(content)
    other = images.opened("other")
    images.bench.do(other.remove("made"))
    images.load(content)

    images.bench.do(images.images.resolve("made"))

    with pytest.raises(Conflict):
        images.bench.do(other.remove("made"))


@pytest.mark.attack(73)
def test_an_image_whose_tree_is_being_removed_cannot_be_taken(images: ImageBench) -> None:
    """Its name is read, then the tree goes: who resolves it must not hold the lock of what is trash by then."""
    images.load(packed(entry("f", b"x")))
    name_file = images.store / "names" / "made.json"
    named = name_file.read_bytes()
    images.bench.do(images.images.remove("made"))
    name_file.write_bytes(named)

    with pytest.raises(NotFound):
        images.bench.do(images.images.resolve("made"))


@pytest.mark.attack(73)
def test_what_a_killed_import_leaves_is_swept_at_the_next_start(images: ImageBench) -> None:
    """SIGKILL while files are written: nothing under a name, and no file of a sub-id stays."""
    (images.directory / "stage-other").mkdir()
    content = packed(*(entry(f"f{n}", b"x" * 300_000, uid=1000) for n in range(200)))
    images.archive(content)
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT, str(images.directory)],
        env={"PYTHONPATH": os.pathsep.join([here, *sys.path]), **byte_code()},
    )
    wait_for(
        lambda: list((images.store / "incoming").glob("*/rootfs/f*")), "the first file is there"
    )
    process.send_signal(signal.SIGSTOP)  # It is not done before we have looked.
    # While it is at work nobody takes its tree away.
    images.bench.do(images.images.sweep())
    assert len(images.left_over()) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()

    def swept() -> bool:
        # init of the other process dies a moment after it.
        images.bench.do(images.images.sweep())
        return images.left_over() == []

    wait_for(swept, "nothing is left of the import")
    assert list((images.store / "names").iterdir()) == []
    assert list((images.store / "trees").iterdir()) == []
    assert images.load(content).size_bytes == 60_000_000


def test_directories_cut_short_before_they_had_a_lock_are_swept_too(images: ImageBench) -> None:
    (images.store / "incoming" / "tree_cut").mkdir()

    images.bench.do(images.images.sweep())

    assert images.left_over() == []


def test_a_leftover_that_cannot_be_removed_is_told_and_the_others_go(images: ImageBench) -> None:
    incoming = images.store / "incoming"
    for name in ("tree_a", "tree_b", "tree_c"):
        (incoming / name).mkdir()
        (incoming / name / "lock").touch()
    (incoming / "tree_b" / "not of ours").touch()
    (incoming / "tree_d" / "not of ours").mkdir(parents=True)
    (incoming / "file").touch()

    remaining = images.bench.do(images.images.sweep())

    assert images.left_over() == ["file", "tree_b", "tree_d"]
    assert sorted(path.name for path in remaining) == ["file", "tree_b", "tree_d"]
    assert "not empty" in remaining[incoming / "tree_b"]


def test_progress_is_told_up_to_the_whole_size(images: ImageBench) -> None:
    path = images.archive(packed(entry("f", b"x" * 3 * 2**20)))
    told: list[tuple[int, int]] = []

    images.bench.do(images.images.import_tar("x", path, lambda *done: told.append(done)))

    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.attack(73)
def test_an_archive_that_changes_while_it_is_imported_becomes_no_image(images: ImageBench) -> None:
    """Its digest would name a tree of other content, for everybody who imports the true archive later."""
    true = packed(entry("f", b"true"))
    path = images.archive(true)
    os.utime(path, (0, 0))  # The kernel's clock for files ticks every few milliseconds only.
    other = packed(entry("f", b"evil"))

    def exchange(read: int, size: int) -> None:
        assert read == size == len(other)
        path.write_bytes(other)

    with pytest.raises(Conflict, match="changed"):
        images.bench.do(images.images.import_tar("made", path, exchange))
    assert images.left_over() == []
    assert list((images.store / "trees").iterdir()) == []
    images.load(true)
    assert images.tree()["f"][4] == "true"


def test_a_replaced_tree_is_removed_with_its_last_name(images: ImageBench) -> None:
    images.load(packed(entry("first")), "one")
    images.load(packed(entry("first")), "two")

    images.load(packed(entry("second")), "one")
    shared = len(list((images.store / "trees").iterdir()))
    images.load(packed(entry("second")), "two")

    assert shared == 2
    assert len(list((images.store / "trees").iterdir())) == 1
    assert images.left_over() == []
