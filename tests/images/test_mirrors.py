"""Mirrors: asked before the registry, believed no more than it, and told nothing that is the registry's."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asking import blob_of, manifest_of, registry_for
from registries import BRIEF, Handler, Stub, a_stub, digest_of, document, make_image

from sandboxd.errors import Invalid, NotFound, Refused, Unavailable
from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.registries.accesses import open_accesses
from sandboxd.images.registries.terms import Access
from sandboxd.settings import RegistrySettings

SECRET = "s3cret-word"
IMAGE = make_image(b"layer", run={})
CONTENT = b"0123456789" * 1000
BLOB = Descriptor(media_type="", digest=digest_of(CONTENT), size=len(CONTENT))
MANIFEST = "/v2/team/tools/manifests/1"
BLOBS = f"/v2/team/tools/blobs/{BLOB.digest}"


@pytest.fixture
def first() -> Iterator[Stub]:
    with a_stub() as made:
        yield made


@pytest.fixture
def second() -> Iterator[Stub]:
    with a_stub() as made:
        yield made


def accesses(stub: Stub, *mirrors: Stub, prefix: str = "", **more: Any) -> dict[str, Access]:
    urls = tuple(f"http://{mirror.authority}{prefix}" for mirror in mirrors)
    known = {mirror.authority: Access(insecure=True) for mirror in mirrors}
    return {**known, stub.authority: Access(insecure=True, mirrors=urls, **more)}


def reference(stub: Stub) -> str:
    return f"{stub.authority}/team/tools:1"


def test_the_first_mirror_that_has_it_is_the_only_one_asked(
    stub: Stub, first: Stub, second: Stub
) -> None:
    second.offer(IMAGE)

    found = manifest_of(reference(stub), accesses(stub, first, second))

    assert found.content == IMAGE.manifest
    assert len(first.asked) == len(second.asked) == 1
    assert stub.asked == []


def test_a_mirror_is_asked_below_its_prefix_and_told_whose_image_is_meant(
    stub: Stub, first: Stub
) -> None:
    first.offer(IMAGE, name="hub/team/tools")

    manifest_of(reference(stub), accesses(stub, first, prefix="/hub/"))

    path, _, query = first.asked[0].path.partition("?")
    assert path == "/v2/hub/team/tools/manifests/1"
    assert query == f"ns={stub.authority.replace(':', '%3A')}"


def test_the_registry_is_asked_where_mirrors_have_nothing_or_fail(
    stub: Stub, first: Stub, second: Stub
) -> None:
    stub.offer(IMAGE)
    stub.routes[BLOBS] = document(CONTENT)
    hasty = BRIEF._replace(read_seconds=2.0)  # The last of them says nothing more.
    for route in (
        lambda handler: handler.answer(500),
        lambda handler: handler.answer(403),
        lambda handler: handler.answer(307, Location="http://10.0.0.1/x"),
        lambda handler: handler.answer(401, WWW_Authenticate="Basic realm=x"),
        lambda handler: handler.wfile.write(b"SSH-2.0-x\r\n"),
    ):
        second.routes[MANIFEST] = second.routes[BLOBS] = route

        known = accesses(stub, first, second)
        assert manifest_of(reference(stub), known, hasty).content == IMAGE.manifest
        assert blob_of(reference(stub), BLOB, known, hasty) == CONTENT


def test_a_page_for_people_is_no_answer_of_a_mirror(stub: Stub, first: Stub) -> None:
    stub.offer(IMAGE)
    first.routes[MANIFEST] = document(b"<html>", "text/html")

    assert manifest_of(reference(stub), accesses(stub, first)).content == IMAGE.manifest


def test_a_mirror_that_is_not_there_is_passed_over(stub: Stub) -> None:
    stub.offer(IMAGE)
    with a_stub() as gone:
        known = accesses(stub, gone)

    assert manifest_of(reference(stub), known).content == IMAGE.manifest


def test_a_registry_that_is_not_to_be_asked_is_not(stub: Stub, first: Stub) -> None:
    stub.offer(IMAGE)
    known = accesses(stub, first, mirrors_only=True)

    with pytest.raises(NotFound, match=first.authority):
        manifest_of(reference(stub), known)
    with pytest.raises(NotFound):
        blob_of(reference(stub), BLOB, known)

    assert stub.asked == []


def test_if_all_fail_each_is_told_of(stub: Stub, first: Stub, second: Stub) -> None:
    first.routes[MANIFEST] = lambda handler: handler.answer(500)

    with pytest.raises(NotFound) as failed:
        manifest_of(reference(stub), accesses(stub, first, second))

    for each in (stub, first, second):
        assert each.authority in str(failed.value)
    assert "answered 500" in str(failed.value)


async def both(known: dict[str, Access], stub: Stub) -> bytes:
    async with registry_for(reference(stub), known) as registry:
        await registry.manifest("1")
        return b"".join([piece async for piece in registry.blob(BLOB)])


def test_a_mirror_that_failed_is_asked_for_nothing_more(stub: Stub, first: Stub) -> None:
    stub.offer(IMAGE)
    stub.routes[BLOBS] = document(CONTENT)
    first.routes[MANIFEST] = lambda handler: handler.answer(503)
    first.routes[BLOBS] = document(CONTENT)

    assert asyncio.run(both(accesses(stub, first), stub)) == CONTENT

    assert len(first.asked) == BRIEF.mirror_tries
    assert BLOBS in stub.paths()


def test_a_download_that_a_mirror_breaks_off_goes_on_at_the_next(
    stub: Stub, first: Stub, second: Stub
) -> None:
    def half(handler: Handler) -> None:
        handler.send_response(206 if handler.headers.get("Range") else 200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        if not handler.headers.get("Range"):
            handler.wfile.write(CONTENT[:3000])
        handler.close_connection = True

    def rest(handler: Handler) -> None:
        begin = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"
        handler.answer(206, CONTENT[begin:], Content_Range=span)

    first.routes[BLOBS] = half
    second.routes[BLOBS] = rest

    assert blob_of(reference(stub), BLOB, accesses(stub, first, second)) == CONTENT

    assert [asked.headers.get("range") for asked in second.asked] == ["bytes=3000-"]
    assert stub.asked == []


@pytest.mark.attack(67)
def test_what_a_mirror_sends_for_a_digest_is_verified(stub: Stub, first: Stub) -> None:
    stub.offer(IMAGE)
    by_digest = f"{stub.authority}/team/tools@{IMAGE.digest}"
    first.routes[f"/v2/team/tools/manifests/{IMAGE.digest}"] = document(b"{}", IMAGE.media_type)

    assert manifest_of(by_digest, accesses(stub, first)).content == IMAGE.manifest


@pytest.mark.attack(67)
def test_a_mirror_that_sends_a_wrong_blob_is_named(stub: Stub, first: Stub, second: Stub) -> None:
    stub.routes[BLOBS] = document(CONTENT)
    for sent in (CONTENT[:-1], CONTENT[:-1] + b"x", CONTENT + bytes(100_000), b""):
        second.routes[BLOBS] = document(sent)

        with pytest.raises(Invalid, match=f"{second.authority} sent something else for sha256:"):
            blob_of(reference(stub), BLOB, accesses(stub, first, second))


@pytest.mark.attack(66)
def test_a_slow_mirror_does_not_keep_the_registry_from_being_asked(stub: Stub, first: Stub) -> None:
    stub.offer(IMAGE)

    def slow(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.1)

    first.routes[MANIFEST] = slow
    began = time.monotonic()

    found = manifest_of(reference(stub), accesses(stub, first), BRIEF._replace(mirror_seconds=0.5))

    assert found.content == IMAGE.manifest
    assert time.monotonic() - began < 20


@pytest.mark.attack(72)
def test_a_mirror_is_not_told_the_registrys_credentials(stub: Stub, first: Stub) -> None:
    challenges = iter([f'Bearer realm="http://{first.authority}/token"', "Basic realm=x"])
    first.routes[MANIFEST] = lambda handler: handler.answer(401, WWW_Authenticate=next(challenges))
    first.routes["/token"] = lambda handler: handler.answer(200, b'{"token": "x"}')
    stub.offer(IMAGE)
    known = accesses(stub, first, username="me", password=SECRET)

    for _ in range(2):
        assert manifest_of(reference(stub), known).content == IMAGE.manifest

    assert first.asked[1].path.startswith("/token")
    for asked in first.asked:
        assert not asked.headers.get("authorization", "").startswith("Basic")


def test_a_mirror_gets_the_credentials_of_its_own_section(
    stub: Stub, first: Stub, tmp_path: Any
) -> None:
    (tmp_path / "password").write_text(SECRET)
    first.routes[MANIFEST] = lambda handler: (
        document(IMAGE.manifest, IMAGE.media_type)(handler)
        if handler.headers.get("Authorization")
        else handler.answer(401, WWW_Authenticate="Basic realm=x")
    )
    known = open_accesses(
        {
            stub.authority: RegistrySettings(
                mirrors=(f"http://{first.authority}",), mirrors_only=True
            ),
            first.authority: RegistrySettings(
                username="mirror", password_file=f"{tmp_path}/password", insecure=True
            ),
        }
    )

    assert manifest_of(reference(stub), known).content == IMAGE.manifest


@pytest.mark.attack(70)
def test_a_mirror_is_spoken_to_in_plain_text_only_if_its_own_section_says_so(
    stub: Stub, first: Stub
) -> None:
    first.offer(IMAGE)
    settings = RegistrySettings(
        insecure=True, mirrors=(f"http://{first.authority}",), mirrors_only=True
    )

    with pytest.raises(Unavailable, match="plain HTTP to"):
        manifest_of(reference(stub), open_accesses({stub.authority: settings}))

    assert first.asked == []


@pytest.mark.attack(70)
def test_a_mirror_leads_to_nowhere_that_a_registry_could_not_lead(stub: Stub, first: Stub) -> None:
    for target in ("http://169.254.169.254/", "https://127.0.0.1:1/", "file:///etc/passwd"):
        first.routes[MANIFEST] = lambda handler, target=target: handler.answer(307, Location=target)
        with pytest.raises(Refused):
            manifest_of(reference(stub), accesses(stub, first, mirrors_only=True))
