"""What goes, when, and what stays: prune, the size budget, and what is in use."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archives import entry, packed
from image_bench import ImageBench
from pulls import blobs_of, fetch, nothing_was_kept
from registries import BRIEF, Handler, Stub, digest_of, make_image
from running_service import byte_code
from sandbox_bench import run_in
from waiting import wait_for

from sandboxd.errors import Conflict, NotFound
from sandboxd.images.catalogue import Images
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.pulling import pull
from sandboxd.images.registries.terms import Access
from sandboxd.images.registries.transport import Transport
from sandboxd.images.store import trees
from sandboxd.images.store.pruning import Pruned
from sandboxd.images.transfers import Progress

pytestmark = pytest.mark.host

SIZE = 2**20
BASE = packed(entry("base", b"b" * SIZE))


def layer(name: str) -> bytes:
    return packed(entry(name, name.encode() * (SIZE // len(name))))


def names(images: ImageBench) -> list[str]:
    """The tags of what was pulled, and the names of what was imported."""
    listed = images.bench.do(images.images.list())[1:]
    return sorted(image.name.rpartition(":")[2] for image in listed)


def pulled(images: ImageBench, stub: Stub, *tags: str) -> dict[str, str]:
    """Images of one layer each. The first was not used for longest."""
    references = {tag: stub.offer(make_image(layer(tag)), tag=tag) for tag in tags}
    for age, reference in enumerate(references.values()):
        fetch(images, reference)
        used_at(images, reference, 1000.0 + age)
    return references


def file_of(images: ImageBench, name: str) -> Path:
    return images.images._names._file(name)


def used_at(images: ImageBench, name: str, when: float) -> None:
    os.utime(file_of(images, name), (when, when))


def prune(images: ImageBench, **how: Any) -> Pruned:
    return images.bench.do(images.images.prune(**how))


# Prune


def test_prune_removes_what_no_name_means_and_tells_how_much(
    stub: Stub, images: ImageBench
) -> None:
    pulled(images, stub, "kept", "lost")
    file_of(images, f"{stub.authority}/team/tools:lost").unlink()

    done = prune(images)

    assert (done.names, done.trees) == ([], 1)
    assert done.blobs == 3
    assert 2 * SIZE < done.freed_bytes < 2.1 * SIZE
    assert names(images) == ["kept"]
    assert prune(images) == Pruned()


def test_prune_gives_names_up_when_told_to(stub: Stub, images: ImageBench) -> None:
    references = pulled(images, stub, "old", "older", "used")
    images.load(packed(entry("imported")), "imported")
    used_at(images, "imported", 10.0)
    images.bench.do(images.images.resolve(references["used"]))

    assert prune(images).names == []
    assert sorted(prune(images, unused_seconds=3600).names) == sorted(
        ["imported", references["old"], references["older"]]
    )
    assert names(images) == ["used"]
    assert prune(images, all=True).names == []
    images.images.close()
    assert prune(images, all=True).names == [references["used"]]
    assert nothing_was_kept(images)
    assert images.images.trees.keys() == []
    assert blobs_of(images) == set()


def test_an_image_whose_name_was_taken_goes_when_nobody_uses_it_any_more(
    stub: Stub, images: ImageBench
) -> None:
    reference = pulled(images, stub, "tag")["tag"]
    images.bench.do(images.images.resolve(reference))
    stub.offer(make_image(layer("other")), tag="tag")
    fetch(images, reference)

    assert prune(images).trees == 0
    assert len(images.images.trees.keys()) == 2
    images.images.close()
    assert prune(images).trees == 1
    assert set(images.tree(reference)) == {"other"}


@pytest.mark.attack(73)
def test_what_a_pull_in_progress_has_is_not_pruned(stub: Stub, images: ImageBench) -> None:
    """Its first layer is unpacked, the second comes slowly."""
    last = layer("last")
    reference = stub.offer(make_image(BASE, last))
    path = f"/v2/team/tools/blobs/{digest_of(last)}"
    whole, go_on = stub.routes[path], threading.Event()

    def slow(handler: Handler) -> None:
        go_on.wait(30)
        whole(handler)

    stub.routes[path] = slow
    other = images.opened("other")

    async def both() -> None:
        pulling = asyncio.ensure_future(one(images.images, reference))
        await until(lambda: images.images.trees.keys())
        for catalogue in (images.images, other):
            assert await catalogue.prune(all=True) == Pruned()
        go_on.set()
        await pulling

    images.bench.do(both())

    assert set(images.tree(reference)) == {"base", "last"}


async def until(condition: Callable[[], object]) -> None:
    """What a thread of the registry or another task does: nobody tells of it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def one(catalogue: Images, reference: str, told: list[Progress] | None = None) -> Any:
    parsed = parse_reference(reference)
    transport = Transport({parsed.registry: Access(insecure=True)}, BRIEF)
    try:
        return await pull(catalogue, transport, parsed, (told if told is not None else []).append)
    finally:
        await transport.close()


# In use


def test_an_image_is_in_use_while_a_sandbox_of_it_lives(
    stub: Stub, images: ImageBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_HELD_SECONDS", 1.0)
    reference = stub.offer(make_image(BASE, layer("one")))
    fetch(images, reference)
    other = images.opened("other")

    async def while_it_lives() -> None:
        image = await images.images.resolve(reference)
        async with images.bench.sandbox(rootfs=image.rootfs, below=image.below, binds=()):
            await asyncio.sleep(1.5)
            with pytest.raises(Conflict):
                await other.remove(reference)
        await until(lambda: not images.images.trees._held)
        await other.remove(reference)

    images.bench.do(while_it_lives())

    assert images.images.trees.keys() == []


@pytest.mark.attack(73)
def test_a_job_that_starts_while_images_are_pruned_has_its_image_whole_or_is_told(
    stub: Stub, images: ImageBench
) -> None:
    reference = stub.offer(make_image(BASE, layer("one"), layer("two")))
    other = images.opened("other")
    seen: list[str] = []

    async def jobs(over: asyncio.Event) -> None:
        binds = tuple((os.path.realpath(path), path) for path in ("/usr", "/lib", "/lib64"))
        while not over.is_set():
            try:
                image = await images.images.resolve(reference)
                shape = {"rootfs": image.rootfs, "below": image.below, "binds": binds}
                async with images.bench.sandbox(uid=0, gid=0, **shape) as made:
                    ran = await run_in(made, "/usr/bin/wc", "-c", "/base", "/one", "/two")
                assert ran.out.split()[::2][:3] == [b"1048576", b"1048575", b"1048575"], ran
                seen.append("whole")
            except (NotFound, Conflict):
                seen.append("told")
                await asyncio.sleep(0.01)
            images.images.close()  # Or it would be held for a minute.

    async def race() -> None:
        over = asyncio.Event()
        running = asyncio.ensure_future(jobs(over))
        for _ in range(8):
            await one(other, reference)
            await until(lambda: seen[-1:] == ["whole"] or running.done())
            await other.prune(all=True)
        over.set()
        await running

    images.bench.do(race())

    assert seen.count("whole") >= 8
    assert "told" in seen


# The budget


def test_blobs_of_layers_go_first_the_oldest_before_the_others(
    stub: Stub, images: ImageBench
) -> None:
    pulled(images, stub, "a", "b", "c")
    small = images.opened("small", budget_bytes=7 * SIZE)
    last = stub.offer(make_image(layer("d")), tag="d")

    fetch(images, last, catalogue=small)

    assert names(images) == ["a", "b", "c", "d"]
    there = [tag for tag in "abcd" if digest_of(layer(tag))[7:] in blobs_of(images)]
    assert there == ["c", "d"]
    assert set(images.tree(f"{stub.authority}/team/tools:a")) == {"a"}


def test_images_that_were_not_used_for_longest_go_next(stub: Stub, images: ImageBench) -> None:
    references = pulled(images, stub, "a", "b", "c")
    images.bench.do(images.images.resolve(references["a"]))  # Used last, and then let go of.
    images.images.close()
    small = images.opened("small", budget_bytes=int(2.5 * SIZE))
    last = stub.offer(make_image(layer("d")), tag="d")

    fetch(images, last, catalogue=small)

    assert names(images) == ["a", "d"]
    assert len(images.images.trees.keys()) == 2
    assert images.images._pruner.used_bytes() <= 2.5 * SIZE


def test_what_is_in_use_or_was_imported_is_not_evicted(stub: Stub, images: ImageBench) -> None:
    references = pulled(images, stub, "a", "b")
    images.load(layer("imported"), "imported")
    used_at(images, "imported", 1.0)
    images.bench.do(images.images.resolve(references["a"]))
    used_at(images, references["a"], 1.0)
    small = images.opened("small", budget_bytes=1)
    last = stub.offer(make_image(layer("d")), tag="d")

    fetch(images, last, catalogue=small)

    assert names(images) == ["a", "d", "imported"]
    images.bench.do(images.images.resolve("host"))


def test_what_came_back_after_its_blobs_went_is_not_fetched_again(
    stub: Stub, images: ImageBench
) -> None:
    reference = pulled(images, stub, "a")["a"]
    small = images.opened("small", budget_bytes=1)
    images.bench.do(small.make_room(reference))
    assert digest_of(layer("a"))[7:] not in blobs_of(images)
    stub.asked.clear()

    fetch(images, reference, catalogue=small)

    assert not any(path.endswith(digest_of(layer("a"))) for path in stub.paths())
    record = images.images.record(reference)
    assert [each.digest for each in record.layers] == [digest_of(layer("a"))]


def test_the_use_of_an_image_is_noted_at_most_once_a_minute(stub: Stub, images: ImageBench) -> None:
    reference = pulled(images, stub, "a")["a"]

    images.bench.do(images.images.resolve(reference))
    first = file_of(images, reference).stat().st_mtime
    assert first > 10_000
    used_at(images, reference, 5.0)
    images.bench.do(images.images.resolve(reference))
    assert file_of(images, reference).stat().st_mtime == 5.0


# Once


PULL = """\
import asyncio, os, sys
from pathlib import Path
from image_bench import Nowhere
from sandboxd.images.catalogue import Images
from sandboxd.images.pulling import pull
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.registries.terms import Access
from sandboxd.images.registries.transport import Transport
from sandboxd.isolation import idmap
from sandboxd.isolation.launcher_client import Launcher

async def main(base, reference):
    launcher = Launcher(stage=base / "stage-other", ids=idmap.find_range())
    images = Images(base / "images", base / f"host-{os.getpid()}", launcher, Nowhere)
    transport = Transport({reference.registry: Access(insecure=True)})
    await pull(images, transport, reference, lambda _: None)

asyncio.run(main(Path(sys.argv[1]), parse_reference(sys.argv[2])))
"""


@pytest.mark.attack(73)
def test_two_processes_that_pull_the_same_image_fetch_and_unpack_it_once(
    stub: Stub, images: ImageBench
) -> None:
    reference = stub.offer(make_image(*(layer(name) for name in "abcdef")))
    (images.directory / "stage-other").mkdir()
    here = str(Path(__file__).parent)
    environment = {"PYTHONPATH": os.pathsep.join([here, *sys.path]), **byte_code()}
    words = [sys.executable, "-c", PULL, str(images.directory), reference]
    both = [subprocess.Popen(words, env=environment) for _ in range(2)]

    assert [process.wait(120) for process in both] == [0, 0]

    asked = [path for path in stub.paths() if "/blobs/" in path]
    assert len(asked) == len(set(asked)) == 7
    assert len(images.images.trees.keys()) == 6
    assert set(images.tree(reference)) == set("abcdef")
    assert prune(images) == Pruned()


def test_who_waits_for_a_layer_of_another_pull_is_told_how_far_it_is(
    stub: Stub, images: ImageBench
) -> None:
    reference = stub.offer(make_image(BASE))
    path = f"/v2/team/tools/blobs/{digest_of(BASE)}"
    go_on = threading.Event()

    def half(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BASE)))
        handler.end_headers()
        handler.wfile.write(BASE[: SIZE // 2])
        handler.wfile.flush()
        go_on.wait(30)
        handler.wfile.write(BASE[SIZE // 2 :])

    stub.routes[path] = half
    told: list[Progress] = []

    async def both() -> None:
        first: list[Progress] = []
        fetching = asyncio.ensure_future(one(images.images, reference, first))
        await until(lambda: any(each.done_bytes for each in first))
        waiting = asyncio.ensure_future(one(images.opened("other"), reference, told))
        await until(lambda: any(0 < each.done_bytes < len(BASE) for each in told))
        go_on.set()
        await asyncio.gather(fetching, waiting)

    images.bench.do(both())

    assert told[-1] == Progress(digest_of(BASE), len(BASE), len(BASE))
    assert sum(asked == path for asked in stub.paths()) == 1


def test_who_waits_goes_on_where_the_other_pull_is_given_up(stub: Stub, images: ImageBench) -> None:
    reference = stub.offer(make_image(BASE))
    path = f"/v2/team/tools/blobs/{digest_of(BASE)}"
    whole, over = stub.routes[path], threading.Event()
    stub.routes[path] = lambda _: over.wait(30)

    async def both() -> None:
        first = asyncio.ensure_future(one(images.images, reference))
        await until(lambda: path in stub.paths())
        second = asyncio.ensure_future(one(images.opened("other"), reference))
        await asyncio.sleep(0.2)
        stub.routes[path] = whole
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        over.set()
        await second

    images.bench.do(both())

    assert set(images.tree(reference)) == {"base"}
    wait_for(lambda: images.left_over() == [], "nothing is left")
