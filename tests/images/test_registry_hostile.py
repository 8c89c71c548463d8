"""A registry that means harm: each thing it can do ends in a sentence, soon, in little memory, and with nothing in the store."""

import asyncio
import ctypes
import gzip
import itertools
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from archives import entry, packed
from asking import manifest_of, registry_for
from certificates import Authority
from image_bench import ImageBench
from registries import (
    BASIC,
    BRIEF,
    PASSWORD,
    USERNAME,
    Handler,
    Stub,
    a_stub,
    described,
    digest_of,
    document,
    make_image,
    make_index,
)
from waiting import TIME_FACTOR

from sandboxd.errors import Invalid, NotFound, Refused, Unavailable
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.pulling import pull
from sandboxd.images.registries.mirrors import open_registry
from sandboxd.images.registries.terms import Access, Patience
from sandboxd.images.registries.transport import Transport

pytestmark = [pytest.mark.host, pytest.mark.attack(65, 66, 67, 68, 69, 70, 72)]

PATIENCE = BRIEF._replace(
    connect_seconds=1.0,
    read_seconds=0.5,
    documents_seconds=1.0,
    grace_seconds=1.0,
    least_bytes_per_second=2**20,
)
UNHURRIED = PATIENCE._replace(read_seconds=5.0, documents_seconds=20.0, grace_seconds=20.0)
"""For registries whose fault is another than that they take their time: a busy machine takes its own."""
MOST_SECONDS = 15.0
MOST_BYTES = 48 * 2**20
"""A manifest of 4 MiB with what becomes of it; a bomb would take a gigabyte."""

LAYER = packed(entry("file", b"x" * 50_000))
IMAGE = make_image(LAYER)
MANIFEST = "/v2/team/tools/manifests/1"
LAYER_PATH = f"/v2/team/tools/blobs/{digest_of(LAYER)}"
CONFIG_DIGEST = next(digest for digest in IMAGE.blobs if digest != digest_of(LAYER))
CONFIG_PATH = f"/v2/team/tools/blobs/{CONFIG_DIGEST}"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
AMD = {"os": "linux", "architecture": "amd64"}


@pytest.fixture
def other() -> Iterator[Stub]:
    with a_stub() as made:
        yield made


# What it does: routes that answer


Route = Callable[[Handler], None]


def manifest(content: bytes | dict[str, Any], media_type: str = IMAGE.media_type) -> Route:
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    return document(encoded, media_type)


def changed(**more: Any) -> dict[str, Any]:
    return {**json.loads(IMAGE.manifest), **more}


def begin(handler: Handler, **headers: str) -> None:
    handler.send_response(200)
    headers = {"Content-Type": IMAGE.media_type, **headers}
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.close_connection = True


def endless(handler: Handler) -> None:
    begin(handler)
    while True:
        handler.wfile.write(b" " * 65536)


def endless_chunks(handler: Handler) -> None:
    begin(handler, Transfer_Encoding="chunked")
    while True:
        handler.wfile.write(b"1\r\n \r\n" * 1000)


def endless_chunk_head(handler: Handler) -> None:
    begin(handler, Transfer_Encoding="chunked")
    while True:
        handler.wfile.write(b"0" * 65536)


def endless_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in itertools.count():
        handler.wfile.write(b"X-%d: %s\r\n" % (number, b"x" * 1000))


def endless_header(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        handler.wfile.write(b"x" * 65536)


def endless_beginnings(handler: Handler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)


def slow(handler: Handler) -> None:
    """A byte at a time, each well before the patience between two is over."""
    begin(handler)
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.1)


def slow_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.1)


def silent(handler: Handler) -> None:
    handler.rfile.read(1)  # Until the other side hangs up.


def hangs_up(handler: Handler) -> None:
    handler.close_connection = True


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    handler.close_connection = True


def two_lengths(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")
    handler.close_connection = True


def far_too_short(handler: Handler) -> None:
    begin(handler, Content_Length=str(10 * 2**30))
    handler.wfile.write(b"x")


def status(code: int, content: bytes = b"{}", **headers: str) -> Route:
    return lambda handler: handler.answer(code, content, **headers)


def redirect(to: str) -> Route:
    return status(307, Location=to)


BOMB = gzip.compress(bytes(2**29))
DEEP = b'{"schemaVersion":2,"config":' + b"[" * 2_000_000
DIGEST = "sha256:" + "0" * 64


def index_of(count: int) -> bytes:
    each = [described(b"", IMAGE.media_type, platform=AMD)] * count
    return json.dumps({"schemaVersion": 2, "manifests": each}).encode()


DOCUMENTS: dict[str, tuple[Route, str]] = {
    "a page for people": (status(200, b"<html>", Content_Type="text/html"), "no image"),
    "no type": (status(200, IMAGE.manifest), "no image"),
    "5 MB": (manifest(b" " * 5_000_000), "larger than 4194304 bytes"),
    "endless": (endless, "larger than 4194304 bytes"),
    "endless in chunks": (endless_chunks, "sent 1000 pieces of 1 bytes"),
    "endless head of a chunk": (endless_chunk_head, "tried 3 times|127.0.0.1"),
    "endless headers": (endless_headers, "tried 3 times"),
    "endless header": (endless_header, "tried 3 times"),
    "endless beginnings": (endless_beginnings, "bytes and no answer"),
    "slow": (slow, "did not tell in 1 s"),
    "slow headers": (slow_headers, "did not tell in 1 s"),
    "silent": (silent, "did not tell in 1 s|tried"),
    "hangs up": (hangs_up, "tried 3 times"),
    "no HTTP": (no_http, "tried 3 times"),
    "two lengths": (two_lengths, "tried 3 times"),
    "far too short": (far_too_short, "127.0.0.1"),
    "compressed on its way": (
        status(200, BOMB, Content_Type=IMAGE.media_type, Content_Encoding="gzip"),
        "is not valid",
    ),
    "deep": (manifest(DEEP), "is not valid"),
    "1025 manifests": (manifest(index_of(1025), INDEX_TYPE), "is not valid"),
    "129 layers": (
        manifest(changed(layers=[described(LAYER, "x")] * 129)),
        "is not valid",
    ),
    "an index in an index": (
        manifest(make_index((make_index((IMAGE, AMD)), AMD)).manifest, INDEX_TYPE),
        "which is no manifest",
    ),
    "index and manifest": (manifest(changed(manifests=[])), "at once"),
    "an index by its type": (manifest(IMAGE.manifest, INDEX_TYPE), "says that it is"),
    "schema 1": (manifest({"schemaVersion": 1, "fsLayers": []}), "schema 1"),
    "a huge configuration": (
        manifest(changed(config={**changed()["config"], "size": 2**40})),
        "configuration of .* is larger than",
    ),
    "layers beyond the disk": (
        manifest(changed(layers=[{**changed()["layers"][0], "size": 2**49}])),
        "there is room for",
    ),
    "long words": (
        manifest(
            json.dumps(
                {
                    "schemaVersion": 2,
                    "manifests": [
                        described(b"", "x", platform={"os": "\x1b[2J" * 9999, "architecture": "x"})
                    ],
                }
            ).encode(),
            INDEX_TYPE,
        ),
        "has no image for",
    ),
    "429 for ever": (status(429, Retry_After="31536000"), "answered 429"),
    "503 until a date": (
        status(503, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"),
        r"answered 503 .*tried 3 times",
    ),
    "500 of a gigabyte": (
        lambda handler: handler.answer(500, **{"Content-Length": str(2**30)}),
        "answered 500",
    ),
    "in a circle": (redirect(MANIFEST), "more than 5 redirects"),
    "to nowhere": (status(307), "more than 5 redirects"),
    "to a long place": (redirect("/" + "x" * 60_000), "names a URL that is none"),
    "to the metadata service": (redirect("http://169.254.169.254/"), "plain HTTP to"),
    "to it over HTTPS": (redirect("https://169.254.169.254/"), "is not public"),
    "to us": (redirect("https://127.0.0.1/"), "is not public"),
    "to us by IPv6": (redirect("https://[::1]/"), "is not public"),
    "to us, mapped": (redirect("https://[::ffff:127.0.0.1]/"), "is not public"),
    "to us, in decimal": (redirect("https://2130706433/"), "is not public"),
    "to us, in octal": (redirect("https://0177.0.0.1/"), "names a URL that is none"),
    "to us by name": (redirect("https://localhost/"), "is not public"),
    "to us, translated": (redirect("https://[64:ff9b::7f00:1]/"), "is not public"),
    "to a file": (redirect("file:///etc/passwd"), "names a URL"),
    "no right": (status(403), "credentials of the settings are refused"),
    "never enough": (status(401, WWW_Authenticate="Basic realm=x"), "are refused"),
    "a heap of challenges": (status(401, WWW_Authenticate="Basic x=y, " * 5000), "refused"),
    "a token of us": (status(401, WWW_Authenticate='Bearer realm="https://[::1]/"'), "not public"),
    "a token in plain text": (
        status(401, WWW_Authenticate='Bearer realm="http://r.example/"'),
        "where it is not safe",
    ),
    "another": (manifest({**changed(), "config": {"digest": DIGEST}}), "is not valid"),
    "is gone": (status(404), "has no team/tools:1"),
}
BLOBS: dict[str, tuple[Route, str]] = {
    "another": (
        lambda handler: handler.answer(200, b"X" + LAYER[1:]),
        "sent sha256:|sent more than",
    ),
    "longer": (
        lambda handler: handler.answer(200, LAYER + bytes(2**20)),
        "sent more than|sent sha",
    ),
    "shorter": (lambda handler: handler.answer(200, LAYER[:-1] or b"x"), "bytes for|sent"),
    "none": (lambda handler: handler.answer(200), "sent 0 bytes"),
    "endless": (endless, "sent more than"),
    "endless in chunks": (endless_chunks, "sent more than|sent 1000 pieces"),
    "endless headers": (endless_headers, "tried 3 times"),
    "endless beginnings": (endless_beginnings, "bytes and no answer"),
    "slow": (slow, "was not there after|did not tell in 1 s"),
    "silent": (silent, "tried|was not there|did not tell"),
    "a page for people": (status(200, b"<html>"), "sent 6 bytes"),
    "part of it": (
        lambda handler: handler.answer(206, LAYER[:10], Content_Range="bytes 5-14/99"),
        "another part",
    ),
    "no part": (lambda handler: handler.answer(206, LAYER[:10]), "another part"),
    "416": (status(416), "answered 416"),
    "is gone": (status(404), "has no team/tools@sha256:"),
    "to us": (redirect("https://127.0.0.1:1/"), "is not public"),
    "to a name of ours": (redirect("https://localhost:1/"), "is not public"),
    "in a circle": (lambda handler: redirect(handler.path)(handler), "more than 5 redirects"),
    "401 for ever": (status(401, WWW_Authenticate="Basic realm=x"), "are refused"),
    "429 for ever": (status(429, Retry_After="31536000"), "answered 429"),
}


class Told(NamedTuple):
    sentence: str
    seconds: float
    grown_bytes: int


def peak_bytes_from_now() -> int:
    """What it is now. What was freed goes back to the kernel first: who takes that again would not be seen."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    status_ = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status_)[1]) * 1024  # type: ignore[index]


def pull_in_vain(
    images: ImageBench, reference: str, accesses: dict[str, Access], patience: Patience = UNHURRIED
) -> Told:
    """It must be refused, and leave nothing."""

    async def pulled() -> str:
        transport = Transport(accesses, patience)
        try:
            with pytest.raises(Refused) as refused:
                await pull(images.images, transport, parse_reference(reference), lambda _: None)
        finally:
            await transport.close()
        assert isinstance(refused.value, NotFound | Unavailable | Invalid)
        return refused.value.detail

    before, began = peak_bytes_from_now(), time.monotonic()
    sentence = images.bench.do(pulled())
    told = Told(sentence, time.monotonic() - began, peak_bytes() - before)
    images.bench.do(images.images.sweep())
    assert [image.name for image in images.bench.do(images.images.list())] == ["host"]
    for place in ("oci/blobs/sha256", "oci/partial"):
        assert list((images.store / place).iterdir()) == []
    assert images.left_over() == images.images.trees.keys() == []
    return told


def test_what_a_bomb_would_take_is_seen() -> None:
    """Or the figures below would say nothing."""
    before = peak_bytes_from_now()
    content = bytearray(2 * MOST_BYTES)

    assert peak_bytes() - before > MOST_BYTES
    assert not any(content[:: 2**20])


def check(told: Told, fault: str) -> None:
    assert re.search(fault, told.sentence), told.sentence
    assert len(told.sentence) < 2000
    assert told.sentence.isprintable()
    assert PASSWORD not in told.sentence
    assert told.seconds < MOST_SECONDS * TIME_FACTOR
    assert told.grown_bytes < MOST_BYTES


def known(stub: Stub) -> dict[str, Access]:
    return {stub.authority: Access(USERNAME, PASSWORD, insecure=True)}


@pytest.mark.parametrize(("route", "fault"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_hostile_manifest_is_refused(
    route: Route, fault: str, stub: Stub, images: ImageBench
) -> None:
    reference = stub.offer(IMAGE)
    stub.routes[MANIFEST] = route

    patience = PATIENCE if "did not tell" in fault else UNHURRIED
    check(pull_in_vain(images, reference, known(stub), patience), fault)


@pytest.mark.parametrize("path", [LAYER_PATH, CONFIG_PATH], ids=["layer", "configuration"])
@pytest.mark.parametrize(("route", "fault"), BLOBS.values(), ids=BLOBS)
def test_a_hostile_blob_is_refused(
    route: Route, fault: str, path: str, stub: Stub, images: ImageBench
) -> None:
    reference = stub.offer(IMAGE)
    stub.routes[path] = route

    patience = PATIENCE if "did not tell" in fault else UNHURRIED
    check(pull_in_vain(images, reference, known(stub), patience), fault)


TOKENS: dict[str, tuple[Route, str]] = {
    "endless": (endless, "larger than"),
    "slow": (slow, "did not tell in 1 s"),
    "slow headers": (slow_headers, "did not tell in 1 s"),
    "endless headers": (endless_headers, "tried 3 times"),
    "deep": (lambda handler: handler.answer(200, b'{"token":' + b"[" * 500_000), "sent no token"),
    "a page for people": (status(200, b"<html>"), "sent no token"),
    "compressed": (status(200, BOMB[: 2**19], Content_Encoding="gzip"), "sent no token"),
    "no right": (status(401), "are refused"),
    "to us": (redirect("https://127.0.0.1:1/"), "is not public"),
    "in a circle": (redirect("/token"), "more than 5 redirects"),
    "429 for ever": (status(429, Retry_After="31536000"), "answered 429"),
}


@pytest.mark.parametrize(("route", "fault"), TOKENS.values(), ids=TOKENS)
def test_a_hostile_token_service_is_refused(
    route: Route, fault: str, stub: Stub, images: ImageBench
) -> None:
    challenge = f'Bearer realm="http://{stub.authority}/token"'
    reference = stub.offer(IMAGE)
    stub.routes[MANIFEST] = status(401, WWW_Authenticate=challenge)
    stub.routes["/token"] = route

    patience = PATIENCE if "did not tell" in fault else UNHURRIED
    check(pull_in_vain(images, reference, known(stub), patience), fault)


def test_no_credentials_go_to_whom_a_registry_leads(
    stub: Stub, other: Stub, images: ImageBench
) -> None:
    """By redirects of manifest, blob and token; the host is one that the operator allowed."""
    to_other = redirect(f"http://{other.authority}/x")
    reference = stub.offer(IMAGE)
    challenge = f'Bearer realm="http://{stub.authority}/token"'

    def guarded(route: Route) -> Route:
        return lambda handler: (
            route(handler)
            if "Authorization" in handler.headers
            else handler.answer(401, WWW_Authenticate=challenge)
        )

    both = {**known(stub), other.authority: Access(insecure=True)}
    for path in (MANIFEST, LAYER_PATH, CONFIG_PATH, "/token"):
        stub.offer(IMAGE)
        stub.routes["/token"] = status(200, b'{"token": "t"}')
        stub.routes[MANIFEST] = guarded(manifest(IMAGE.manifest))
        stub.routes[path] = to_other if path == "/token" else guarded(to_other)
        pull_in_vain(images, reference, both)

    assert len(other.asked) == 4
    assert [asked for asked in other.asked if {"authorization", "cookie"} & {*asked.headers}] == []
    assert BASIC in [asked.headers.get("authorization") for asked in stub.asked]


def test_https_does_not_become_plain_http(
    stub: Stub, other: Stub, tmp_path: Path, images: ImageBench
) -> None:
    authority = Authority(tmp_path)
    stub.speak_tls(*authority.certify("127.0.0.1"))
    reference = stub.offer(IMAGE)
    stub.routes[MANIFEST] = redirect(f"http://{other.authority}/x")
    trusted = Access(tls=ssl.create_default_context(cafile=authority.certificate))
    accesses = {stub.authority: trusted, other.authority: Access(insecure=True)}

    check(pull_in_vain(images, reference, accesses), "redirects from HTTPS to something else")
    assert other.asked == []


Answers = Iterator[list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], None]:
    """What is answered for rebound.example, each time that it is looked up."""
    real = socket.getaddrinfo

    def install(answers: Answers) -> None:
        def getaddrinfo(host: Any, port: Any, *words: Any, **more: Any) -> Any:
            if host != "rebound.example":
                return real(host, port, *words, **more)
            return [
                each for address in next(answers) for each in real(address, port, *words, **more)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return install


@pytest.mark.parametrize(
    "answers",
    [
        [["127.0.0.1"]],
        [["203.0.113.1", "127.0.0.1"]],
        [["::ffff:127.0.0.1"]],
        [["fd00::1"]],
        [["203.0.113.1"], ["127.0.0.1"]],
    ],
    ids=["private", "one of them", "mapped", "unique local", "the second time"],
)
def test_a_name_that_leads_to_us_is_not_followed(
    answers: list[list[str]], stub: Stub, other: Stub, names: Callable[[Answers], None]
) -> None:
    """DNS rebinding: the address that was looked at is the one that is connected to, and it is looked at each time."""
    names(itertools.chain(answers, itertools.repeat(answers[-1])))
    port = other.authority.rpartition(":")[2]
    stub.routes[MANIFEST] = redirect(f"https://rebound.example:{port}/x")

    with pytest.raises(Unavailable, match=r"rebound\.example:[0-9]+ is at .*, which is not public"):
        manifest_of(f"{stub.authority}/team/tools:1", known(stub), UNHURRIED)

    assert other.asked == []


@pytest.mark.attack(70)
def test_name_servers_that_do_not_answer_take_no_threads_of_others(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is looked up in a thread, which nobody can stop: a registry may name as many as it likes."""
    over, real = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: Any, *words: Any, **more: Any) -> Any:
        if str(host).endswith(".silent.example"):
            over.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")
        return real(host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    stub.routes[MANIFEST] = redirect("https://a.silent.example/x")
    threads = min(32, (os.cpu_count() or 1) + 4)  # Of an event loop.

    async def attack() -> None:
        patience = PATIENCE._replace(connect_seconds=30)
        reference = parse_reference(f"{stub.authority}/team/tools:1")
        transports = [Transport(known(stub), patience) for _ in range(threads)]
        asking = [
            asyncio.ensure_future(open_registry(each, reference).manifest("1"))
            for each in transports
        ]
        try:
            while len(stub.asked) < threads:  # noqa: ASYNC110 (the stub tells nobody)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            async with asyncio.timeout(20):
                await asyncio.to_thread(str)
        finally:
            over.set()
            for each in asking:
                each.cancel()
            await asyncio.wait(asking)
            for transport in transports:
                await transport.close()

    asyncio.run(attack())


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", ".example"])
def test_a_name_that_can_be_none_is_no_fault_of_ours(host: str, stub: Stub) -> None:
    stub.routes[MANIFEST] = redirect(f"https://{host}/x")

    with pytest.raises(Unavailable, match="has no address"):
        manifest_of(f"{stub.authority}/team/tools:1", known(stub), UNHURRIED)


FLOODS = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        client = server.accept()[0]
        with client:
            client.recv(65536)
            flood = b"HTTP/1.1 103 Early Hints\\r\\n\\r\\n" * 2000
            if sys.argv[1] == "crumbs":
                client.sendall(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
                flood = b"1\\r\\n \\r\\n" * 10000
            try:
                while True:
                    client.sendall(flood)
            except OSError:
                pass
"""


@pytest.mark.parametrize("flood", ["interim answers", "crumbs"])
def test_a_flood_does_not_hold_up_the_rest_of_the_service(flood: str) -> None:
    """From a process of its own, so that nothing but the client uses this one."""
    words = [sys.executable, "-c", FLOODS, flood.split()[-1]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        authority = f"127.0.0.1:{int(process.stdout.readline())}"

        async def ask() -> float:
            """The longest that another task had to wait, in CPU time, which other processes do not lengthen."""
            turns = [time.thread_time()]

            async def take_turns() -> None:
                while True:
                    await asyncio.sleep(0)
                    turns.append(time.thread_time())

            async with registry_for(
                f"{authority}/a:1", {authority: Access(insecure=True)}
            ) as asked:
                with pytest.raises(Unavailable):  # What is made once takes its time: TLS, a client.
                    await asked.manifest("1")
                turns[:] = [time.thread_time()]
                others = asyncio.ensure_future(take_turns())
                with pytest.raises(Unavailable, match=r"and no answer|1000 pieces"):
                    await asked.manifest("1")
                others.cancel()
            return max(later - earlier for earlier, later in itertools.pairwise(turns))

        try:
            longest = asyncio.run(ask())
        finally:
            process.kill()

    assert longest < 0.1 * TIME_FACTOR  # Without pacing it was 0.15 and 0.23 s, again and again.


def test_a_hostile_registry_holds_up_nobody_else(stub: Stub, images: ImageBench) -> None:
    good = stub.offer(IMAGE)
    stub.routes["/v2/evil/tools/manifests/1"] = slow
    evil = f"{stub.authority}/evil/tools:1"

    async def pulled(reference: str) -> None:
        patience = UNHURRIED._replace(documents_seconds=120.0, grace_seconds=60.0)
        transport = Transport(known(stub), patience)
        try:
            await pull(images.images, transport, parse_reference(reference), lambda _: None)
        finally:
            await transport.close()

    async def both() -> bool:
        hostile = asyncio.ensure_future(pulled(evil))
        await pulled(good)
        was_at_work = not hostile.done()
        hostile.cancel()
        await asyncio.gather(hostile, return_exceptions=True)
        return was_at_work

    assert images.bench.do(both())
    assert "file" in images.tree(good)
