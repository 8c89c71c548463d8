"""Pushing: what is here is at the registry afterwards, digest for digest, or nobody sees anything of it."""

import gzip
import http.client
import json
import socket
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
import zstandard
from archive_tools import archive_of, layers_in, oci_files, tool
from archives import directory, entry, packed
from image_bench import ImageBench
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
    digest_of,
    make_image,
)

from sandboxd.errors import Conflict, Invalid, NotFound, Unavailable
from sandboxd.images.archives.opening import opened
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.loading import load
from sandboxd.images.pulling import pull
from sandboxd.images.pushing import Pushed, destination_of, push
from sandboxd.images.registries.terms import Access
from sandboxd.images.registries.transport import Transport
from sandboxd.images.transfers import Progress

pytestmark = pytest.mark.host

zstd = zstandard.ZstdCompressor().compress
NAME = "registry.example/team/tools:1"
BASE = packed(directory("app"), entry("app/one", b"1", mode=0o755), entry("app/two", b"2", uid=7))
SECOND = packed(entry("app/.wh.one"), entry("app/new", b"n" * 100_000))
PLAIN = Access(insecure=True)


def have(images: ImageBench, made: Made, name: str = NAME) -> None:
    path = images.archive(archive_of(oci_files((made, name))), "images")

    async def loaded() -> None:
        with opened(path, images.images.blobs.directory) as source:
            await load(images.images, source, lambda _: None)

    images.bench.do(loaded())


def send(
    images: ImageBench,
    destination: str | None,
    name: str = NAME,
    access: Access = PLAIN,
    told: list[Progress] | None = None,
) -> Pushed:
    reference = destination_of(name, destination)

    async def sent() -> Pushed:
        transport = Transport({reference.registry: access}, BRIEF)
        tell = (lambda _: None) if told is None else told.append
        try:
            return await push(images.images, transport, name, reference, tell)
        finally:
            await transport.close()

    return images.bench.do(sent())


def fetch(images: ImageBench, text: str, access: Access = PLAIN) -> Any:
    reference = parse_reference(text)

    async def fetched() -> Any:
        transport = Transport({reference.registry: access}, BRIEF)
        try:
            return await pull(images.images, transport, reference, lambda _: None)
        finally:
            await transport.close()

    return images.bench.do(fetched())


def asked(registry: Registry, method: str, path: str) -> int:
    there = http.client.HTTPConnection(registry.authority, timeout=30)
    try:
        there.request(method, path)
        answer = there.getresponse()
        answer.read()
        return answer.status
    finally:
        there.close()


# To a real registry


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
def test_what_is_pushed_is_what_was_loaded(
    docker: bool, registry: Registry, images: ImageBench, tmp_path: Path
) -> None:
    second = gzip.compress(SECOND) if docker else zstd(SECOND)  # skopeo knows no other of Docker's.
    made = make_image(gzip.compress(BASE), second, docker=docker, run={"Cmd": ["x"]})
    have(images, made)
    told: list[Progress] = []

    pushed = send(images, f"{registry.authority}/new/place:2", told=told)

    assert pushed.digest == made.digest
    complete = {each.digest for each in told if each.done_bytes == each.size_bytes}
    assert complete == set(layers_in(made))
    where = f"docker://{registry.authority}/new/place:2"
    raw = tool("skopeo", "inspect", "--tls-verify=false", "--raw", where, home=tmp_path)
    assert raw.encode() == made.manifest
    shown = json.loads(tool("skopeo", "inspect", "--tls-verify=false", where, home=tmp_path))
    assert shown["Layers"] == layers_in(made)
    copied = tmp_path / "copied"
    tool("skopeo", "copy", "--src-tls-verify=false", where, f"oci:{copied}:1", home=tmp_path)
    images.bench.do(images.images.remove(NAME))
    assert fetch(images, pushed.reference).digest == made.digest
    assert images.tree(pushed.reference)["app/two"][4] == "2"


def test_an_image_goes_where_its_name_says(registry: Registry, images: ImageBench) -> None:
    name = f"{registry.authority}/team/tools:1"
    made = make_image(gzip.compress(BASE))
    have(images, made, name)

    assert send(images, None, name).reference == name
    assert fetch(images, f"{registry.authority}/team/tools@{made.digest}").digest == made.digest


def test_what_is_there_is_not_sent_again_and_what_is_next_door_is_mounted(
    images: ImageBench, registry: Registry
) -> None:
    made = make_image(gzip.compress(BASE), gzip.compress(SECOND))
    reference = registry.push(made)
    fetch(images, reference)
    for digest in layers_in(made):
        images.images.blobs.path(digest).chmod(0)  # Nobody reads it: it need not be sent.

    for name in ("team/tools:2", "elsewhere/tools:1"):
        send(images, f"{registry.authority}/{name}", reference)

    for digest in layers_in(made):
        images.images.blobs.path(digest).chmod(0o600)
        assert asked(registry, "HEAD", f"/v2/elsewhere/tools/blobs/{digest}") == 200


def test_what_has_a_name_of_its_own_can_be_pushed_although_room_was_made(
    registry: Registry, images: ImageBench
) -> None:
    """The layers of what was pulled go first where there is no room, but not those that something else is made of, too."""
    made = make_image(gzip.compress(BASE), gzip.compress(SECOND))
    pulled = registry.push(made)
    other = registry.push(make_image(gzip.compress(BASE), gzip.compress(packed())), "other")
    for reference in (pulled, other):
        fetch(images, reference)
    images.bench.do(images.images.tag(pulled, "mine"))

    images.bench.do(images.opened("small", budget_bytes=1).make_room("mine"))

    names = [image.name for image in images.bench.do(images.images.list())]
    assert names == ["host", "mine"]
    assert send(images, f"{registry.authority}/again", "mine").digest == made.digest


def test_an_imported_tree_is_pushed_and_runs_elsewhere(
    registry: Registry, images: ImageBench
) -> None:
    images.load(packed(directory("app"), entry("app/one", b"1", uid=3)), "mine")
    with pytest.raises(Invalid, match="say where"):
        send(images, None, "mine")

    pushed = send(images, f"{registry.authority}/mine", "mine")

    assert fetch(images, pushed.reference).digest == pushed.digest
    ours, theirs = images.tree("mine"), images.tree(pushed.reference)
    assert {path: of[:5] for path, of in ours.items()} == {
        path: of[:5] for path, of in theirs.items()
    }


def test_a_registry_with_passwords_takes_from_who_has_one(
    tmp_path: Path, images: ImageBench
) -> None:
    made = make_image(gzip.compress(BASE))
    have(images, made)
    with a_registry(tmp_path, HTPASSWD) as registry:
        place = f"{registry.authority}/team/tools:1"
        with pytest.raises(Unavailable, match=r"does not let us write [^,]*: "):
            send(images, place)
        with pytest.raises(Unavailable, match="are refused"):
            send(images, place, access=Access(USERNAME, "wrong", insecure=True))

        send(images, place, access=Access(USERNAME, PASSWORD, insecure=True))

        access = Access(USERNAME, PASSWORD, insecure=True)
        assert fetch(images, place, access).digest == made.digest


def test_an_image_is_pushed_by_its_own_digest_only(registry: Registry, images: ImageBench) -> None:
    made = make_image(BASE)
    have(images, made)

    with pytest.raises(Invalid, match="cannot be pushed as"):
        send(images, f"{registry.authority}/a@sha256:{'0' * 64}")
    assert send(images, f"{registry.authority}/a@{made.digest}").digest == made.digest
    for name, error in (("nothing", NotFound), ("host", Conflict)):
        with pytest.raises(error):
            send(images, f"{registry.authority}/a", name)


# A registry that does what a test says


class Taking:
    """Takes what is pushed."""

    def __init__(self, stub: Stub, made: Made, name: str = "team/tools") -> None:
        self.stub = stub
        self.taken: dict[str, bytes] = {}
        self.digests: dict[str, str] = {}
        """What is answered for a digest that was sent."""
        self.prefix = f"/v2/{name}"
        self.place = f"{stub.authority}/{name}:1"
        self.upload = f"{self.prefix}/blobs/uploads/7?state=a%2Fb"
        self.failures: list[int] = []
        stub.routes[f"{self.prefix}/blobs/uploads/"] = self.begin
        stub.routes[f"{self.prefix}/blobs/uploads/7"] = self.take
        stub.routes[f"{self.prefix}/manifests/1"] = self.name_it
        for digest in made.blobs:
            stub.routes[f"{self.prefix}/blobs/{digest}"] = self.tell

    def tell(self, handler: Handler) -> None:
        digest = handler.path.rpartition("/")[2]
        handler.answer(200 if digest in self.taken else 404)

    def begin(self, handler: Handler) -> None:
        handler.answer(202, Location=self.upload)

    def take(self, handler: Handler) -> None:
        if self.failures:
            handler.answer(self.failures.pop())
            return
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(handler.path).query)
        (digest,) = query["digest"]
        self.taken[digest] = self.stub.asked[-1].content
        assert query["state"] == ["a/b"]
        handler.answer(201, Docker_Content_Digest=self.digests.get(digest, digest))

    def name_it(self, handler: Handler) -> None:
        content = self.stub.asked[-1].content
        self.taken["1"] = content
        handler.answer(201, Docker_Content_Digest=self.digests.get("1", digest_of(content)))


def test_uploads_go_in_one_piece_and_the_name_comes_last(stub: Stub, images: ImageBench) -> None:
    made = make_image(BASE, SECOND, BASE)
    have(images, made)
    taking = Taking(stub, made)

    send(images, taking.place)

    assert taking.taken == {**made.blobs, "1": made.manifest}
    puts = [each for each in stub.asked if each.method == "PUT"]
    assert len(puts) == len(made.blobs) + 1
    assert puts[-1].path.endswith("/manifests/1")
    assert puts[-1].headers["content-type"] == made.media_type
    assert all("transfer-encoding" not in each.headers for each in puts)


def test_an_upload_that_breaks_off_begins_anew(stub: Stub, images: ImageBench) -> None:
    made = make_image(SECOND)
    have(images, made)
    taking = Taking(stub, made)
    taking.failures = [503, 404]

    send(images, taking.place)
    assert taking.taken[digest_of(SECOND)] == SECOND

    taking.taken.clear()
    taking.failures = [503] * 10
    with pytest.raises(Unavailable, match="answered 503"):
        send(images, taking.place)
    assert "1" not in taking.taken


def test_a_registry_that_hangs_up_is_given_up(stub: Stub, images: ImageBench) -> None:
    made = make_image(SECOND)
    have(images, made)
    taking = Taking(stub, made)

    def hang_up(handler: Handler) -> None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    stub.routes[f"{taking.prefix}/blobs/uploads/7"] = hang_up

    with pytest.raises(Unavailable, match="broke off"):
        send(images, taking.place)


@pytest.mark.attack(67)
@pytest.mark.parametrize("of", ["1", "layer"])
def test_a_registry_that_took_something_else_is_not_believed(
    of: str, stub: Stub, images: ImageBench
) -> None:
    made = make_image(BASE)
    have(images, made)
    taking = Taking(stub, made)
    taking.digests["1" if of == "1" else digest_of(BASE)] = f"sha256:{'0' * 64}"

    with pytest.raises(Unavailable, match="took sha256:"):
        send(images, taking.place)
    assert of == "1" or "1" not in taking.taken


@pytest.mark.attack(70, 72)
def test_credentials_do_not_go_to_where_an_upload_is_sent(stub: Stub, images: ImageBench) -> None:
    made = make_image(BASE)
    have(images, made)
    taking = Taking(stub, made)

    def want_password(handler: Handler) -> None:
        if "Authorization" in handler.headers:
            taking.begin(handler)
        else:
            handler.answer(401, WWW_Authenticate='Basic realm="x"')

    stub.routes[f"{taking.prefix}/blobs/uploads/"] = want_password
    with a_stub() as elsewhere:
        Taking(elsewhere, made)
        taking.upload = f"http://{elsewhere.authority}{taking.upload}"
        reference = parse_reference(taking.place)
        access = Access(USERNAME, PASSWORD, insecure=True)

        async def sent() -> None:
            transport = Transport({stub.authority: access, elsewhere.authority: PLAIN}, BRIEF)
            try:
                await push(images.images, transport, NAME, reference, lambda _: None)
            finally:
                await transport.close()

        images.bench.do(sent())

        assert {each.method for each in elsewhere.asked} == {"PUT"}
        assert BASIC not in str(elsewhere.asked)
        assert BASIC in str(stub.asked)


@pytest.mark.attack(70)
@pytest.mark.parametrize(
    "place", ["http://127.0.0.2:1/x", "http://169.254.169.254/x", "file:///etc/passwd", "", "//"]
)
def test_nothing_is_sent_to_where_a_registry_must_not_lead(
    place: str, stub: Stub, images: ImageBench
) -> None:
    made = make_image(BASE)
    have(images, made)
    taking = Taking(stub, made)
    taking.upload = place

    with pytest.raises(Unavailable):
        send(images, taking.place)
    assert "1" not in taking.taken


@pytest.mark.attack(70)
def test_an_upload_follows_no_redirect(stub: Stub, images: ImageBench) -> None:
    made = make_image(BASE)
    have(images, made)
    taking = Taking(stub, made)
    with a_stub() as elsewhere:
        stub.routes[f"{taking.prefix}/blobs/uploads/7"] = lambda handler: handler.answer(
            307, Location=f"http://{elsewhere.authority}/"
        )
        with pytest.raises(Unavailable, match="answered 307"):
            send(images, taking.place)
        assert elsewhere.asked == []


@pytest.mark.attack(72)
def test_a_token_for_pushing_is_good_for_that_repository_and_the_one_it_mounts_from(
    stub: Stub, images: ImageBench
) -> None:
    made = make_image(BASE)
    fetch(images, stub.offer(made, "base/tools"))
    stub.asked.clear()
    taking = Taking(stub, made)
    realm = f'Bearer realm="http://{stub.authority}/token",service="s",scope="everything:*"'

    def want_token(handler: Handler) -> None:
        if handler.headers.get("Authorization") != "Bearer abc":
            handler.answer(401, WWW_Authenticate=realm)
        elif "mount" in handler.path:
            handler.answer(201)
        else:
            taking.begin(handler)

    for digest in made.blobs:
        stub.routes[f"{taking.prefix}/blobs/{digest}"] = lambda handler: (
            handler.answer(404)
            if "Authorization" in handler.headers
            else handler.answer(401, WWW_Authenticate=realm)
        )
    stub.routes[f"{taking.prefix}/blobs/uploads/"] = want_token
    stub.routes["/token"] = lambda handler: handler.answer(200, b'{"token": "abc"}')

    send(images, taking.place, f"{stub.authority}/base/tools:1")

    assert taking.taken == {"1": made.manifest}  # Everything else was mounted.
    tokens = [each.path for each in stub.asked if each.path.startswith("/token")]
    scopes = urllib.parse.parse_qs(urllib.parse.urlsplit(tokens[0]).query)["scope"]
    assert len(tokens) == 1
    assert scopes == ["repository:team/tools:pull,push", "repository:base/tools:pull"]
