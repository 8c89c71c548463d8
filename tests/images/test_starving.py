"""A tenant whose registry never comes to an end with anything keeps nobody else from an image."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archives import entry, packed
from image_bench import ImageBench
from registries import Handler, Made, Stub, a_stub, digest_of, make_image

from sandboxd.errors import Conflict, Invalid
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.puller import Puller
from sandboxd.images.registries.terms import Access
from sandboxd.images.store.free_space import room_in
from sandboxd.images.store.trees import Room, Size
from sandboxd.settings import ImagesSettings

pytestmark = pytest.mark.host

SECONDS = 30
LAYER = packed(entry("layer", b"l" * 2**20))
IMAGE = make_image(LAYER)


@pytest.fixture
def evil() -> Iterator[Stub]:
    with a_stub() as made:
        yield made


@contextlib.contextmanager
def never(stub: Stub, path: str) -> Iterator[Callable[[], bool]]:
    """It says that it answers, and does not. Yields whether it was asked."""
    over = threading.Event()

    def begin(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.wfile.flush()
        over.wait(SECONDS)

    stub.routes[path] = begin
    try:
        yield lambda: path in stub.paths()
    finally:
        over.set()


def a_puller(images: ImageBench, *stubs: Stub, pulls_at_once: int = 4) -> Puller:
    known = {stub.authority: Access(insecure=True) for stub in stubs}
    return Puller(images.images, ImagesSettings(pulls_at_once=pulls_at_once), lambda _: known)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 (it is of another process's making)
            await asyncio.sleep(0.01)


def pulling(puller: Puller, reference: str, tenant: str) -> "asyncio.Future[object]":
    return asyncio.ensure_future(puller.pull(parse_reference(reference), tenant, lambda _: None))


@pytest.mark.attack(73)
def test_who_joins_a_pull_does_not_wait_for_what_else_its_first_tenant_pulls(
    stub: Stub, evil: Stub, images: ImageBench
) -> None:
    reference = stub.offer(IMAGE)
    puller = a_puller(images, stub, evil, pulls_at_once=2)

    async def attack() -> None:
        with never(evil, "/v2/never/manifests/1") as asked:
            stuck = pulling(puller, f"{evil.authority}/never:1", "eve")
            await until(asked)
            waits = pulling(puller, reference, "eve")
            await asyncio.sleep(0)
            async with asyncio.timeout(SECONDS):
                await pulling(puller, reference, "ada")
            await waits
            assert not stuck.done()
            await puller.close()
            await asyncio.wait([stuck])

    images.bench.do(attack())

    assert set(images.tree(reference)) == {"layer"}


def test_a_pull_takes_the_turn_of_one_tenant_and_gives_it_back(
    stub: Stub, images: ImageBench
) -> None:
    puller = a_puller(images, stub, pulls_at_once=2)
    references = [stub.offer(make_image(LAYER, packed(entry(tag))), tag=tag) for tag in "abcd"]

    async def pulled() -> None:
        async with asyncio.timeout(SECONDS):
            wanted = [(each, who) for each in references for who in ("ada", "eve", "zoe")]
            await asyncio.gather(*(pulling(puller, *each) for each in wanted))
            for who in ("ada", "eve", "zoe"):
                await pulling(puller, references[0], who)

    images.bench.do(pulled())

    assert sum("/manifests/" in path for path in stub.paths()) == len(references) + 3


@pytest.mark.attack(73)
def test_a_registry_that_claims_to_have_a_blob_delays_no_other(
    stub: Stub, evil: Stub, images: ImageBench
) -> None:
    """Its manifest is the very same, and so are the digests."""
    reference, claim = stub.offer(IMAGE), evil.offer(IMAGE)
    puller = a_puller(images, stub, evil)

    async def attack() -> None:
        with never(evil, f"/v2/team/tools/blobs/{digest_of(LAYER)}") as asked:
            stuck = pulling(puller, claim, "eve")
            await until(asked)
            async with asyncio.timeout(SECONDS):
                await pulling(puller, reference, "ada")
            assert not stuck.done()
            await puller.close()
            await asyncio.wait([stuck])

    images.bench.do(attack())

    assert set(images.tree(reference)) == {"layer"}
    assert not [path for path in (images.store / "oci/partial").iterdir()]


@pytest.mark.attack(73)
def test_a_layer_that_claims_to_be_another_delays_no_other(images: ImageBench) -> None:
    """What it is turns out only when all of it is unpacked."""
    trees = images.images.trees
    has_begun = asyncio.Event()

    async def endless(_: Path, __: Room) -> Size:
        has_begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def fill(_: Path, __: Room) -> Size:
        return Size(0, 0)

    async def attack() -> None:
        with contextlib.ExitStack() as lease:
            stuck = asyncio.ensure_future(trees.make("layer-a", endless, lease, source="claim"))
            await has_begun.wait()
            async with asyncio.timeout(SECONDS):
                await trees.make("layer-a", fill, lease, source="layer")
            stuck.cancel()
            await asyncio.wait([stuck])

    images.bench.do(attack())

    assert trees.keys() == ["layer-a"]
    assert images.left_over() == []


@pytest.mark.attack(65)
def test_what_came_for_no_image_does_not_stay(stub: Stub, images: ImageBench) -> None:
    """Two layers that are what they should be, and one that is another than the configuration says."""
    puller = a_puller(images, stub)
    kept = stub.offer(make_image(LAYER), tag="kept")
    honest = make_image(LAYER, packed(entry("above", b"a" * 2**20)), packed(entry("last")))
    config = next(each for each in honest.blobs.values() if each.startswith(b"{"))
    wrong = config.replace(digest_of(packed(entry("last"))).encode(), b"sha256:" + b"0" * 64)
    manifest = honest.manifest.replace(digest_of(config).encode(), digest_of(wrong).encode())
    blobs = honest.blobs | {digest_of(wrong): wrong}
    broken = stub.offer(Made(blobs, manifest, honest.media_type), tag="broken")

    async def attack() -> None:
        await pulling(puller, kept, "ada")
        before = images.images.blobs.sizes(), images.images.trees.keys()
        with pytest.raises(Invalid):
            await pulling(puller, broken, "eve")
        assert (images.images.blobs.sizes(), images.images.trees.keys()) == before

    images.bench.do(attack())

    assert set(images.tree(kept)) == {"layer"}


def test_what_images_may_take_leaves_some_of_the_disk(tmp_path: Path) -> None:
    figures = os.statvfs(tmp_path)
    free, total = figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize

    assert 0 <= room_in(tmp_path) <= max(0, free - total // 100)


@pytest.mark.attack(71)
def test_a_tenant_s_pull_takes_no_name_from_what_the_operator_made_here(
    stub: Stub, images: ImageBench
) -> None:
    """It may exist nowhere else, and only the operator removes images."""
    puller = a_puller(images, stub)
    made = stub.offer(IMAGE, tag="made")
    name = stub.offer(make_image(packed(entry("other"))), tag="kept")

    async def attack() -> None:
        await puller.pull(parse_reference(made), None, lambda _: None)
        await images.images.tag(made, name)
        with pytest.raises(Conflict, match="by the operator's word"):
            await pulling(puller, name, "eve")
        assert images.images.record(name).digest == IMAGE.digest
        stub.offer(IMAGE, tag="kept")
        await pulling(puller, name, "eve")
        stub.offer(make_image(packed(entry("newer"))), tag="kept")
        await pulling(puller, name, "eve")  # Now it is what the registry says that it is.

    images.bench.do(attack())

    assert set(images.tree(name)) == {"newer"}
