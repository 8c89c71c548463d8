"""Pulling: what a registry has becomes an image that jobs can name, whole and verified, or nothing at all."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard
from archives import directory, entry, link, packed
from image_bench import ImageBench
from pulls import blobs_of, fetch, nothing_was_kept
from registries import (
    BASIC,
    BRIEF,
    HTPASSWD,
    PASSWORD,
    USERNAME,
    Handler,
    Made,
    Registry,
    Stub,
    a_registry,
    a_stub,
    described,
    digest_of,
    document,
    make_image,
    make_index,
)
from running_service import byte_code
from waiting import wait_for

from sandboxd.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.pulling import pull
from sandboxd.images.registries.terms import Access
from sandboxd.images.registries.transport import Transport
from sandboxd.images.resolved import ResolvedImage
from sandboxd.images.transfers import Progress
from sandboxd.running.shapes import shape_of
from sandboxd.settings import DEFAULT_LIMITS

pytestmark = pytest.mark.host

zstd = zstandard.ZstdCompressor().compress
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:123:456:App:/srv/app:/bin/sh\n"
GROUP = (
    b"root:x:0:\nstaff:x:50:app\nmore:x:70:other,app\napples:x:71:apple\nbeyond:x:4000000000:app\n"
)
BASE = packed(
    directory("app"),
    entry("app/one", b"1", mode=0o755),
    entry("app/two", b"2", mode=0o640, uid=123, gid=456),
    link("app/link", "one"),
    directory("gone"),
    entry("gone/file"),
    directory("opaque"),
    entry("opaque/old"),
    directory("etc"),
    entry("etc/passwd", PASSWD),
    entry("etc/group", GROUP),
)
SECOND = packed(entry("app/two", b"two"), entry(".wh.gone"), entry("app/new", b"n"))
THIRD = packed(
    directory("opaque", mode=0o711),
    entry("opaque/.wh..wh..opq"),
    entry("opaque/new", b"o"),
    entry("app/.wh.link"),
)
PULL = """\
import asyncio, sys
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
    images = Images(base / "images", base / "host-other", launcher, Nowhere)
    transport = Transport({reference.registry: Access(insecure=True)})
    await pull(images, transport, reference, lambda _: None)

asyncio.run(main(Path(sys.argv[1]), parse_reference(sys.argv[2])))
"""
AMD = {"os": "linux", "architecture": "amd64"}
ARM = {"os": "linux", "architecture": "arm64", "variant": "v8"}


def resolved(images: ImageBench, name: str) -> ResolvedImage:
    return images.bench.do(images.images.resolve(name))


# What becomes of an image


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
def test_an_image_of_a_real_registry_becomes_its_tree(
    docker: bool, registry: Registry, images: ImageBench
) -> None:
    layers = [gzip.compress(layer) for layer in (BASE, SECOND, THIRD)]
    made = make_image(*layers, docker=docker)
    reference = registry.push(made)
    told: list[Progress] = []

    image = fetch(images, reference, told=told)

    assert image.name == reference
    assert image.digest == made.digest
    assert image.source == "registry"
    assert images.bench.do(images.images.list())[1] == image
    found = images.tree(reference)
    assert {path: found[path][4] for path in found if found[path][0] == "file"} == {
        "app/one": "1",
        "app/two": "two",
        "app/new": "n",
        "opaque/new": "o",
    }
    assert found["opaque"][1] == 0o711
    fetched = {each.digest for each in told if each.done_bytes == each.size_bytes}
    assert fetched == set(map(digest_of, layers))


def test_layers_may_be_zstd_or_plain_and_come_by_an_index(
    registry: Registry, images: ImageBench
) -> None:
    made = make_image(zstd(BASE), SECOND)
    other = make_image(BASE, architecture="arm64")
    registry.push(made)
    registry.push(other, tag="arm")
    index = make_index((other, ARM), (made, AMD))
    reference = registry.push(index, tag="all")

    image = fetch(images, reference)

    assert image.digest == made.digest
    assert images.tree(reference)["app/two"][4] == "two"


def test_an_image_is_pulled_by_its_digest(registry: Registry, images: ImageBench) -> None:
    made = make_image(BASE)
    registry.push(made)
    reference = f"{registry.authority}/team/tools:9@{made.digest}"

    assert fetch(images, reference).name == reference
    assert resolved(images, reference).digest == made.digest


def test_a_registry_with_passwords_gives_to_who_has_one(tmp_path: Path, images: ImageBench) -> None:
    with a_registry(tmp_path, HTPASSWD) as registry:
        reference = registry.push(make_image(BASE))

        with pytest.raises(Unavailable, match="credentials go into"):
            fetch(images, reference)
        with pytest.raises(Unavailable, match="are refused"):
            fetch(images, reference, access=Access(USERNAME, "wrong", insecure=True))
        assert nothing_was_kept(images)
        fetch(images, reference, access=Access(USERNAME, PASSWORD, insecure=True))

    assert "app/one" in images.tree(reference)
    assert BASIC not in "".join(path.read_text() for path in images.store.glob("references/*"))


def test_what_is_there_is_not_fetched_again(stub: Stub, images: ImageBench) -> None:
    one, two = make_image(BASE, SECOND), make_image(BASE, SECOND, run={"Cmd": ["x"]})
    first, second = stub.offer(one, tag="1"), stub.offer(two, tag="2")
    fetch(images, first)
    stub.asked.clear()

    fetch(images, second)

    layers = {digest_of(BASE), digest_of(SECOND)}
    assert not any(path.endswith(tuple(layers)) for path in stub.paths())
    assert len(images.images.trees.keys()) == 2
    images.bench.do(images.images.remove(first))
    assert "app/one" in images.tree(second)


def test_a_tag_that_means_something_else_now_replaces_the_image(
    stub: Stub, images: ImageBench
) -> None:
    reference = stub.offer(make_image(BASE))
    fetch(images, reference)
    stub.offer(make_image(SECOND))

    fetch(images, reference)

    assert "app/one" not in images.tree(reference)
    assert len(images.images.trees.keys()) == 1


def test_a_removed_image_leaves_nothing(stub: Stub, images: ImageBench) -> None:
    reference = stub.offer(make_image(BASE))
    fetch(images, reference)

    images.bench.do(images.images.remove(reference))

    assert nothing_was_kept(images)
    assert blobs_of(images) == set()
    assert images.images.trees.keys() == []
    with pytest.raises(NotFound):
        resolved(images, reference)


def test_the_same_layer_twice_is_fetched_once(stub: Stub, images: ImageBench) -> None:
    reference = stub.offer(make_image(BASE, SECOND, BASE))

    fetch(images, reference)

    assert images.tree(reference)["app/one"][4] == "1"
    assert sum(digest_of(BASE) in path for path in stub.paths()) == 1


@pytest.mark.attack(71)
def test_a_name_of_an_imported_image_is_never_one_of_a_registry(
    stub: Stub, images: ImageBench
) -> None:
    reference = stub.offer(make_image(BASE), name="tools", tag="latest")
    fetch(images, reference)

    with pytest.raises(NotFound):
        resolved(images, "tools")
    images.load(packed(entry("imported")), "tools")

    assert set(images.tree("tools")) == {"imported"}
    assert "app/one" in images.tree(reference)


@pytest.mark.attack(71)
def test_one_image_has_one_name_however_it_is_written(stub: Stub, images: ImageBench) -> None:
    reference = stub.offer(make_image(BASE), tag="latest")
    fetch(images, reference)

    assert resolved(images, reference.removesuffix(":latest")).name == reference


# How it is run


def run_as(images: ImageBench, stub: Stub, *layers: bytes, **run: Any) -> ResolvedImage:
    reference = stub.offer(make_image(*(layers or (BASE,)), run=run))
    fetch(images, reference)
    return resolved(images, reference)


def test_an_image_says_how_it_is_run(stub: Stub, images: ImageBench) -> None:
    image = run_as(images, stub, User="app", Env=["A=1", "PATH=/x"], WorkingDir="/app", Labels=None)

    assert image.user == (123, 456)
    assert image.env == {"A": "1", "PATH": "/x", "HOME": "/srv/app"}
    assert image.workdir == "/app"


def test_an_image_that_says_nothing_is_run_by_root_at_the_top(
    stub: Stub, images: ImageBench
) -> None:
    image = run_as(images, stub)

    assert (image.user, image.workdir, image.env["HOME"]) == ((0, 0), "/", "/root")


@pytest.mark.parametrize(
    ("user", "ids", "home"),
    [
        ("app:staff", (123, 50), "/srv/app"),
        ("app:7", (123, 7), "/srv/app"),
        ("123", (123, 456), "/srv/app"),
        ("99", (99, 0), "/"),
        ("99:98", (99, 98), "/"),
        ("0:staff", (0, 50), "/root"),
        (":staff", (0, 50), "/root"),
    ],
)
def test_a_user_is_found_as_docker_finds_it(
    user: str, ids: tuple[int, int], home: str, stub: Stub, images: ImageBench
) -> None:
    image = run_as(images, stub, User=user)

    assert (image.user, image.env["HOME"]) == (ids, home)


@pytest.mark.parametrize(
    ("user", "groups"),
    [("app", (50, 70)), ("123", (50, 70)), ("app:staff", ()), ("99", ()), ("", ())],
)
@pytest.mark.attack(11)
def test_a_user_has_the_groups_that_list_it_unless_the_image_names_one(
    user: str, groups: tuple[int, ...], stub: Stub, images: ImageBench
) -> None:
    image = run_as(images, stub, User=user)

    assert image.groups == groups
    spec = shape_of(image, None, DEFAULT_LIMITS)
    said = images.bench.run(
        "id", "-G", uid=spec.uid, gid=spec.gid, groups=spec.groups
    ).out.split()  # fmt: skip
    assert sorted(map(int, said)) == sorted({spec.gid, *groups})
    assert shape_of(image, (5, 6), DEFAULT_LIMITS).groups == ()


@pytest.mark.parametrize(
    "user", ["nobody-here", "app:none", "4000000000", "-1", "../x", "app:app:"]
)
@pytest.mark.attack(12, 74)
def test_a_user_that_cannot_be_is_refused(user: str, stub: Stub, images: ImageBench) -> None:
    with pytest.raises(Invalid, match="is to run as"):
        run_as(images, stub, User=user)

    images.bench.do(images.images.sweep())
    assert nothing_was_kept(images)
    assert images.images.trees.keys() == []


@pytest.mark.attack(13, 74)
def test_accounts_are_those_of_the_image_whatever_its_files_are_links_to(
    stub: Stub, images: ImageBench
) -> None:
    for passwd in (
        [link("etc/passwd", "/etc/passwd")],
        [link("etc/passwd", "../../../../../../../../etc/passwd")],
        [link("etc/passwd", "/proc/self/root/etc/passwd")],
        [directory("etc/passwd")],
        [entry("etc/passwd", type=tarfile.FIFOTYPE)],
        [entry("etc/passwd", b"\xff\0:::" * 500_000)],
    ):
        with pytest.raises(Invalid, match="is to run as"):
            run_as(images, stub, packed(directory("etc"), *passwd), User="sandboxd")


def test_the_command_of_an_image_is_its_entry_point_with_arguments(
    stub: Stub, images: ImageBench
) -> None:
    reference = stub.offer(make_image(BASE, run={"Entrypoint": ["/e", "x"], "Cmd": ["c"]}))
    fetch(images, reference)

    assert images.images.command_of(reference, []) == ("/e", "x", "c")
    assert images.images.command_of(reference, ["mine"]) == ("/e", "x", "mine")
    assert images.images.command_of("host", ["mine"]) == ()


# A hostile registry


def lying(stub: Stub, made: Made, digest: str, sent: bytes) -> str:
    reference = stub.offer(made)
    stub.routes[f"/v2/team/tools/blobs/{digest}"] = document(sent)
    return reference


@pytest.mark.attack(67)
def test_a_blob_of_another_digest_or_size_is_refused(stub: Stub, images: ImageBench) -> None:
    made = make_image(BASE)
    for digest, content in made.blobs.items():
        for sent in (content[:-1], content + b"x", b"X" + content[1:], b""):
            with pytest.raises(Refused):
                fetch(images, lying(stub, made, digest, sent))

    assert nothing_was_kept(images)
    assert images.images.trees.keys() == []


@pytest.mark.attack(67)
def test_an_endless_layer_is_refused_at_once(stub: Stub, images: ImageBench) -> None:
    reference = stub.offer(make_image(BASE))

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(65536))

    stub.routes[f"/v2/team/tools/blobs/{digest_of(BASE)}"] = endless

    with pytest.raises(Invalid, match="more than"):
        fetch(images, reference)
    assert nothing_was_kept(images)


@pytest.mark.attack(66)
def test_a_layer_that_drips_is_given_up(stub: Stub, images: ImageBench) -> None:
    reference = stub.offer(make_image(BASE))

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BASE)))
        handler.end_headers()
        for number in range(len(BASE)):
            handler.wfile.write(BASE[number : number + 1])
            time.sleep(0.01)

    stub.routes[f"/v2/team/tools/blobs/{digest_of(BASE)}"] = drip
    patience = BRIEF._replace(grace_seconds=0.3, least_bytes_per_second=2**30)

    with pytest.raises(Unavailable, match="was not there after"):
        fetch(images, reference, patience=patience)
    assert nothing_was_kept(images)


@pytest.mark.attack(66, 69)
def test_documents_that_drip_are_given_up(stub: Stub, images: ImageBench) -> None:
    reference = stub.offer(make_image(BASE))
    asked = threading.Event()

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not asked.wait(0.05):
            handler.wfile.write(b" ")

    stub.routes["/v2/team/tools/manifests/1"] = drip
    patience = BRIEF._replace(documents_seconds=0.3)
    try:
        with pytest.raises(Unavailable, match="did not tell in 0 s"):
            fetch(images, reference, patience=patience)
    finally:
        asked.set()


@pytest.mark.attack(65)
def test_a_layer_that_is_not_what_the_configuration_says_is_refused(
    stub: Stub, images: ImageBench
) -> None:
    rootfs = {"type": "layers", "diff_ids": [digest_of(SECOND)]}
    reference = stub.offer(make_image(gzip.compress(BASE), rootfs=rootfs))

    with pytest.raises(Invalid, match="was to be"):
        fetch(images, reference)
    assert nothing_was_kept(images)


@pytest.mark.attack(68, 69)
def test_an_index_that_is_ambiguous_nested_or_lies_is_refused(
    stub: Stub, images: ImageBench
) -> None:
    made = make_image(BASE)
    stub.offer(made)
    nested = make_index((made, AMD))
    stub.offer(nested, tag="nested")
    both = json.loads(nested.manifest) | {
        "layers": [],
        "config": described(b"", "application/vnd.oci.image.config.v1+json"),
    }
    wrong_size = json.loads(nested.manifest)
    wrong_size["manifests"][0]["size"] += 1
    wrong_type = json.loads(nested.manifest)
    wrong_type["manifests"][0]["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
    masked = json.loads(make_index((nested, AMD)).manifest)
    masked["manifests"][0]["mediaType"] = made.media_type
    for index in (
        make_index((nested, AMD)).manifest,
        json.dumps(both).encode(),
        json.dumps(wrong_size).encode(),
        json.dumps(wrong_type).encode(),
        json.dumps(masked).encode(),
    ):
        reference = stub.offer(Made({}, index, nested.media_type), tag="bad")
        with pytest.raises(Invalid):
            fetch(images, reference)

    assert nothing_was_kept(images)


@pytest.mark.attack(70)
def test_addresses_in_a_manifest_are_not_asked(stub: Stub, images: ImageBench) -> None:
    """Foreign layers (CVE-2020-15157): whoever wrote the manifest would have our credentials sent to a host of theirs."""
    made = make_image(BASE)
    with a_stub() as elsewhere:
        manifest = json.loads(made.manifest)
        manifest["layers"][0]["urls"] = [f"http://{elsewhere.authority}/layer"]
        foreign = made._replace(manifest=json.dumps(manifest).encode())

        fetch(images, stub.offer(foreign))

        assert elsewhere.asked == []


@pytest.mark.attack(73)
def test_pulls_of_the_same_image_at_once_fetch_and_unpack_it_once(
    stub: Stub, images: ImageBench
) -> None:
    reference = parse_reference(stub.offer(make_image(BASE, SECOND)))

    async def one(catalogue: Any) -> Any:
        transport = Transport({reference.registry: Access(insecure=True)}, BRIEF)
        try:
            return await pull(catalogue, transport, reference, lambda _: None)
        finally:
            await transport.close()

    async def all_at_once() -> list[Any]:
        other = images.opened("other")
        return await asyncio.gather(*(one(each) for each in (images.images, other, images.images)))

    pulled = images.bench.do(all_at_once())

    assert len({image.digest for image in pulled}) == 1
    assert len(images.images.trees.keys()) == 2
    assert images.left_over() == []
    assert list((images.store / "making").iterdir()) == []
    asked = [path for path in stub.paths() if "/blobs/" in path]
    assert len(asked) == len(set(asked)) == 3


@pytest.mark.attack(73)
def test_a_pull_that_is_cut_short_leaves_nothing_that_counts(
    stub: Stub, images: ImageBench
) -> None:
    """Cancelled while a layer comes; the next pull completes it."""
    reference = stub.offer(make_image(BASE, SECOND))
    path = f"/v2/team/tools/blobs/{digest_of(SECOND)}"
    whole = stub.routes[path]
    came = asyncio.Event()

    def half(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(SECOND)))
        handler.end_headers()
        handler.wfile.write(SECOND[:100])
        handler.wfile.flush()
        time.sleep(0.5)

    def tell(progress: Progress) -> None:
        if progress.digest == digest_of(SECOND) and progress.done_bytes:
            came.set()

    async def cut() -> None:
        parsed = parse_reference(reference)
        transport = Transport({parsed.registry: Access(insecure=True)}, BRIEF)
        pulling = asyncio.ensure_future(pull(images.images, transport, parsed, tell))
        await came.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        await transport.close()

    stub.routes[path] = half
    images.bench.do(cut())
    assert nothing_was_kept(images)
    stub.routes[path] = whole

    fetch(images, reference)

    assert images.tree(reference)["app/two"][4] == "two"


@pytest.mark.attack(73)
@pytest.mark.parametrize("moment", ["fetching", "unpacking"])
def test_a_killed_pull_leaves_nothing_that_the_next_start_does_not_remove(
    moment: str, stub: Stub, images: ImageBench
) -> None:
    many = packed(*(entry(f"f{number}", bytes(300_000), uid=7) for number in range(200)))
    reference = stub.offer(make_image(BASE, many))
    path = f"/v2/team/tools/blobs/{digest_of(many)}"
    whole, over = stub.routes[path], threading.Event()

    def half(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(many)))
        handler.end_headers()
        handler.wfile.write(many[:100_000])
        over.wait(30)

    if moment == "fetching":
        stub.routes[path] = half
    (images.directory / "stage-other").mkdir()
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", PULL, str(images.directory), reference],
        env={"PYTHONPATH": os.pathsep.join([here, *sys.path]), **byte_code()},
    )
    fetched = f"oci/partial/{digest_of(many).removeprefix('sha256:')}.*"
    place = fetched if moment == "fetching" else "incoming/*/rootfs/f*"
    wait_for(lambda: list(images.store.glob(place)), "it is at work")
    process.send_signal(signal.SIGSTOP)  # It is not done before we have looked.
    # While it is nobody takes away what it has.
    images.bench.do(images.images.sweep())
    assert list(images.store.glob(place))
    process.send_signal(signal.SIGKILL)
    process.wait()
    over.set()

    def swept() -> bool:
        # init of the other process dies a moment after it.
        images.bench.do(images.images.sweep())
        return nothing_was_kept(images)

    wait_for(swept, "what it left is removed")
    assert blobs_of(images) == set()
    stub.routes[path] = whole

    fetch(images, reference)

    assert "f199" in images.tree(reference)


def test_nothing_is_swept_away_under_a_pull(stub: Stub, images: ImageBench) -> None:
    with images.images.blobs.in_use():
        images.bench.do(images.images.sweep())
        with pytest.raises(Conflict):
            images.images.blobs.keep_only(set)
