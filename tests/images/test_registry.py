"""What is asked of a registry, how often and with which rights; and what a hostile one cannot bring about."""

import asyncio
import base64
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import BRIEF, Handler, Stub, a_stub, digest_of, make_image, needs

from sandboxd.errors import Invalid, NotFound, Refused, Unavailable
from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.registries.challenges import Challenge, parse_challenges
from sandboxd.images.registries.registry import Document, Registry
from sandboxd.images.registries.terms import Access
from sandboxd.images.registries.transport import Transport

SECRET = "s3cret-word"
IMAGE = make_image(b"layer", run={})
CONTENT = b"0123456789" * 1000
BLOB = Descriptor(media_type="", digest=digest_of(CONTENT), size=len(CONTENT))
PLAIN = Access(insecure=True)
KNOWN = Access(username="me", password=SECRET, insecure=True)


@pytest.fixture
def other() -> Iterator[Stub]:
    with a_stub() as made:
        yield made


def fetch(stub: Stub, target: str = "1", registries: dict[str, Access] | None = None) -> Document:
    """The manifest `target` of team/tools."""
    known = {stub.authority: PLAIN} if registries is None else registries

    async def ask() -> Document:
        transport = Transport(known, BRIEF)
        try:
            reference = parse_reference(f"{stub.authority}/team/tools:1")
            return await Registry(transport, reference).manifest(target)
        finally:
            await transport.close()

    return asyncio.run(asyncio.wait_for(ask(), 30))


def download(stub: Stub, access: Access = PLAIN, **more: Access) -> bytes:
    """The blob of team/tools."""

    async def ask() -> bytes:
        transport = Transport({stub.authority: access, **more}, BRIEF)
        try:
            reference = parse_reference(f"{stub.authority}/team/tools:1")
            registry = Registry(transport, reference)
            return b"".join([piece async for piece in registry.blob(BLOB)])
        finally:
            await transport.close()

    return asyncio.run(asyncio.wait_for(ask(), 30))


def blob_path() -> str:
    return f"/v2/team/tools/blobs/{BLOB.digest}"


def test_a_manifest_is_asked_for_in_every_format_that_is_known(stub: Stub) -> None:
    stub.offer(IMAGE)

    assert fetch(stub) == Document(IMAGE.manifest, IMAGE.media_type)
    assert fetch(stub, IMAGE.digest).content == IMAGE.manifest
    accepted = stub.asked[0].headers["accept"]
    assert "vnd.oci.image.index.v1+json" in accepted
    assert "vnd.docker.distribution.manifest.v2+json" in accepted
    assert "authorization" not in stub.asked[0].headers


def test_what_is_not_there_is_not_found(stub: Stub) -> None:
    with pytest.raises(NotFound, match="has no team/tools"):
        fetch(stub, "2")


@pytest.mark.attack(67)
def test_a_manifest_that_is_not_the_one_asked_for_is_refused(stub: Stub) -> None:
    """Whatever its header says (`Docker-Content-Digest`)."""
    lie = b"{}"
    stub.routes[f"/v2/team/tools/manifests/{IMAGE.digest}"] = lambda handler: handler.answer(
        200, lie, Content_Type=IMAGE.media_type, Docker_Content_Digest=IMAGE.digest
    )

    with pytest.raises(Invalid, match=digest_of(lie)):
        fetch(stub, IMAGE.digest)


# The right to read


def bearer(realm: str, service: str = "the service") -> str:
    scope = "repository:team/tools:pull,push"
    return f'Bearer realm="{realm}",service="{service}",scope="{scope}"'


def basic(access: Access) -> str:
    return "Basic " + base64.b64encode(f"{access.username}:{access.password}".encode()).decode()


def test_a_token_is_fetched_for_reading_this_repository_only(stub: Stub) -> None:
    needs(stub, IMAGE, "Bearer abc", bearer(f"http://{stub.authority}/token?x=1"))
    stub.routes["/token"] = lambda handler: handler.answer(200, b'{"access_token": "abc"}')

    assert fetch(stub).content == IMAGE.manifest
    token_asked = stub.paths()[1]
    assert token_asked == ("/token?x=1&service=the+service&scope=repository%3Ateam%2Ftools%3Apull")
    assert "authorization" not in stub.asked[1].headers


def test_credentials_go_to_the_token_service(stub: Stub) -> None:
    needs(stub, IMAGE, "Bearer abc", bearer(f"http://{stub.authority}/token"))
    stub.routes["/token"] = lambda handler: handler.answer(200, b'{"token": "abc"}')

    fetch(stub, registries={stub.authority: KNOWN})

    assert stub.asked[1].headers["authorization"] == basic(KNOWN)
    assert stub.asked[2].headers["authorization"] == "Bearer abc"


def test_credentials_are_sent_as_they_are_where_the_registry_asks_for_that(stub: Stub) -> None:
    needs(stub, IMAGE, basic(KNOWN), 'Basic realm="x"')

    assert fetch(stub, registries={stub.authority: KNOWN}).content == IMAGE.manifest
    # Not before it asked.
    assert "authorization" not in stub.asked[0].headers


@pytest.mark.attack(72)
@pytest.mark.parametrize("challenge", ['Basic realm="x"', "", "Negotiate", "Bearer", ","])
def test_whoever_has_no_right_is_told_so_without_a_secret(challenge: str, stub: Stub) -> None:
    needs(stub, IMAGE, "nobody has it", challenge)

    for access in (PLAIN, KNOWN):
        with pytest.raises(Unavailable) as refused:
            fetch(stub, registries={stub.authority: access})
        assert SECRET not in str(refused.value)
    assert SECRET not in repr(KNOWN)
    assert len(stub.asked) <= 6


@pytest.mark.attack(70)
def test_a_token_service_elsewhere_is_not_asked_in_plain_text(stub: Stub, other: Stub) -> None:
    for realm in (
        f"http://{other.authority}/token",
        f"http://{stub.authority}.example/token",
        f"http://{stub.authority}@{other.authority}/token",
        "file:///etc/passwd",
        "gopher://x/",
        "",
    ):
        needs(stub, IMAGE, "nobody has it", bearer(realm))
        with pytest.raises(Unavailable, match="not safe"):
            fetch(stub, registries={stub.authority: KNOWN})

    assert other.asked == []


@pytest.mark.attack(70)
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "localhost",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "127.1",
    ],
)
def test_a_token_service_at_an_address_that_is_not_public_is_not_asked(
    host: str, stub: Stub
) -> None:
    needs(stub, IMAGE, "nobody has it", bearer(f"https://{host}/token"))

    with pytest.raises(Unavailable, match="not public"):
        fetch(stub, registries={stub.authority: KNOWN})


@pytest.mark.attack(72)
@pytest.mark.parametrize(
    "token", [b'{"token": "a\\r\\nX: y"}', b"{}", b"[]", b"\xff", b'{"token": 1}', b"x" * 2**21]
)
def test_a_token_that_is_none_goes_into_no_header(token: bytes, stub: Stub) -> None:
    needs(stub, IMAGE, "nobody has it", bearer(f"http://{stub.authority}/token"))
    stub.routes["/token"] = lambda handler: handler.answer(200, token)

    with pytest.raises(Unavailable):
        fetch(stub)

    assert len(stub.asked) == 2


def test_challenges_are_read_as_they_are_written() -> None:
    assert parse_challenges('Basic realm="a b", Bearer realm="https://x/y?z",service=q') == [
        Challenge("basic", {"realm": "a b"}),
        Challenge("bearer", {"realm": "https://x/y?z", "service": "q"}),
    ]
    assert parse_challenges('bearer realm="a\\"b"') == [Challenge("bearer", {"realm": 'a"b'})]
    assert parse_challenges("Basic, Negotiate") == [
        Challenge("basic", {}),
        Challenge("negotiate", {}),
    ]
    assert parse_challenges("") == []
    parse_challenges('Bearer realm="' + "\\" * 100_000)


# Whom it leads us to


def redirect(to: str, status: int = 307) -> Any:
    return lambda handler: handler.answer(status, Location=to)


def test_a_redirect_is_followed_to_the_same_registry_with_its_authorization(stub: Stub) -> None:
    stub.routes["/here"] = lambda handler: handler.answer(200, CONTENT)
    stub.routes[blob_path()] = lambda handler: (
        handler.answer(307, Location="/here")
        if handler.headers.get("Authorization")
        else handler.answer(401, WWW_Authenticate="Basic realm=x")
    )

    assert download(stub, KNOWN) == CONTENT
    assert stub.asked[-1].headers["authorization"] == basic(KNOWN)


@pytest.mark.attack(70)
def test_a_redirect_to_another_host_loses_the_authorization(stub: Stub, other: Stub) -> None:
    other.routes["/there"] = lambda handler: handler.answer(200, CONTENT)
    stub.routes[blob_path()] = lambda handler: (
        handler.answer(307, Location=f"http://{other.authority}/there")
        if handler.headers.get("Authorization")
        else handler.answer(401, WWW_Authenticate="Basic realm=x")
    )

    assert download(stub, KNOWN, **{other.authority: PLAIN}) == CONTENT
    assert "authorization" not in other.asked[0].headers


@pytest.mark.attack(70)
def test_a_redirect_to_what_the_operator_did_not_allow_is_not_followed(
    stub: Stub, other: Stub
) -> None:
    for target in (
        f"http://{other.authority}/x",
        f"https://{other.authority}/x",
        "http://169.254.169.254/latest/meta-data/",
        "https://[::1]:1/x",
        "file:///etc/passwd",
        "ftp://example.org/x",
        f"http://me:pw@{stub.authority}/x",
        "http://[",
        "//",
        "http://x:99999/",
        "\x7f",
    ):
        stub.routes[blob_path()] = redirect(target)
        with pytest.raises(Refused):
            download(stub)

    assert other.asked == []


@pytest.mark.attack(70)
def test_redirects_in_a_circle_end(stub: Stub) -> None:
    stub.routes[blob_path()] = redirect(blob_path())

    with pytest.raises(Unavailable, match="more than 5 redirects"):
        download(stub)

    assert len(stub.asked) == 6


@pytest.mark.attack(70)
def test_a_registry_that_is_not_public_is_asked_only_if_the_operator_named_it(stub: Stub) -> None:
    stub.offer(IMAGE)

    with pytest.raises(Unavailable, match=r'section \[registries\."127.0.0.1'):
        fetch(stub, registries={})
    with pytest.raises(Unavailable):
        fetch(stub, registries={stub.authority: Access()})  # speaks no TLS

    assert stub.asked == []


def test_a_certificate_is_checked_against_the_authority_that_was_named(
    stub: Stub, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]  # noqa: RUF005
        + ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    stub.server.socket = context.wrap_socket(stub.server.socket, server_side=True)
    stub.offer(IMAGE)
    trusted = Access(tls=ssl.create_default_context(cafile=certificate))

    assert fetch(stub, registries={stub.authority: trusted}).content == IMAGE.manifest
    with pytest.raises(Unavailable, match="certificate") as refused:
        fetch(stub, registries={stub.authority: Access()})
    assert "tried" not in str(refused.value)


# Not now, and broken off


def test_a_registry_that_is_busy_is_asked_again(stub: Stub) -> None:
    answers = iter([429, 503])
    stub.offer(IMAGE)
    route = stub.routes["/v2/team/tools/manifests/1"]

    def busy(handler: Handler) -> None:
        status = next(answers, 200)
        handler.answer(status, Retry_After="1") if status != 200 else route(handler)

    stub.routes["/v2/team/tools/manifests/1"] = busy

    assert fetch(stub).content == IMAGE.manifest
    assert len(stub.asked) == 3


@pytest.mark.attack(66)
def test_a_registry_that_stays_busy_is_given_up_however_long_it_wants_us_to_wait(
    stub: Stub,
) -> None:
    stub.routes["/v2/team/tools/manifests/1"] = lambda handler: handler.answer(
        429, Retry_After="1000000"
    )
    began = time.monotonic()

    with pytest.raises(Unavailable, match=r"answered 429 \(tried 3 times\)"):
        fetch(stub)

    assert time.monotonic() - began < 20


def breaking_off(stub: Stub, most_at_once: int, *, ranges: bool) -> None:
    """Each answer ends after some bytes."""

    def some(handler: Handler) -> None:
        begin = 0
        if ranges and (asked := handler.headers.get("Range")):
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        rest = CONTENT[begin:]
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Length", str(len(rest)))
        if begin:
            end = len(CONTENT) - 1
            handler.send_header("Content-Range", f"bytes {begin}-{end}/{len(CONTENT)}")
        handler.end_headers()
        handler.wfile.write(rest[:most_at_once])
        handler.close_connection = True

    stub.routes[blob_path()] = some


def test_a_download_that_breaks_off_goes_on_where_it_was(stub: Stub) -> None:
    breaking_off(stub, 3000, ranges=True)

    assert download(stub) == CONTENT
    assert [asked.headers.get("range") for asked in stub.asked] == [
        None,
        "bytes=3000-",
        "bytes=6000-",
        "bytes=9000-",
    ]


def test_what_a_registry_without_ranges_sends_twice_is_taken_once(stub: Stub) -> None:
    breaking_off(stub, 6000, ranges=False)
    whole = threading.Event()
    route = stub.routes[blob_path()]

    def first_cut(handler: Handler) -> None:
        if whole.is_set():
            handler.answer(200, CONTENT)
        else:
            whole.set()
            route(handler)

    stub.routes[blob_path()] = first_cut

    assert download(stub) == CONTENT


@pytest.mark.attack(66)
def test_a_download_that_never_gets_further_is_given_up(stub: Stub) -> None:
    breaking_off(stub, 0, ranges=True)

    with pytest.raises(Unavailable, match="broke off"):
        download(stub)

    assert len(stub.asked) == 3


def test_an_answer_of_which_only_the_end_is_missing_is_whole(stub: Stub) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(CONTENT), CONTENT))
        handler.close_connection = True

    stub.routes[blob_path()] = endless

    assert download(stub) == CONTENT
    assert len(stub.asked) == 1


@pytest.mark.attack(67)
def test_another_part_than_the_one_asked_for_is_refused(stub: Stub) -> None:
    breaking_off(stub, 3000, ranges=True)
    route = stub.routes[blob_path()]

    def lying(handler: Handler) -> None:
        if handler.headers.get("Range"):
            handler.answer(206, b"x", Content_Range="bytes 0-0/10000")
        else:
            route(handler)

    stub.routes[blob_path()] = lying

    with pytest.raises(Invalid, match="another part"):
        download(stub)


@pytest.mark.attack(69)
def test_an_endless_manifest_is_given_up(stub: Stub) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", IMAGE.media_type)
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 65536)

    stub.routes["/v2/team/tools/manifests/1"] = endless

    with pytest.raises(Unavailable, match="larger than"):
        fetch(stub)


@pytest.mark.attack(66)
def test_a_registry_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        authority = f"127.0.0.1:{silent.getsockname()[1]}"

        async def ask() -> None:
            transport = Transport({authority: PLAIN}, BRIEF._replace(read_seconds=0.1))
            try:
                await Registry(transport, parse_reference(f"{authority}/a:1")).manifest("1")
            finally:
                await transport.close()

        with pytest.raises(Unavailable, match="tried 3 times"):
            asyncio.run(asyncio.wait_for(ask(), 30))
