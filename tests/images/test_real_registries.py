"""Debian's docker-registry in each of the ways that people run it: with passwords, over HTTPS by an authority of their own, with tokens."""

import asyncio
import gzip
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archives import entry, packed
from asking import manifest_of, registry_for
from certificates import Authority
from image_bench import ImageBench
from registries import (
    BRIEF,
    HTPASSWD,
    PASSWORD,
    USERNAME,
    Registry,
    a_registry,
    a_stub,
    digest_of,
    make_image,
)
from token_services import IDENTITY_TOKEN, TokenService
from waiting import wait_for

from sandboxd.errors import Refused, Unavailable
from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.pulling import pull
from sandboxd.images.pushing import push
from sandboxd.images.registries.accesses import open_accesses
from sandboxd.images.registries.terms import Access
from sandboxd.images.registries.transport import Transport
from sandboxd.settings import RegistrySettings, TenantRegistrySettings

pytestmark = pytest.mark.host

LAYERS = [gzip.compress(packed(entry(f"file{number}", b"x"))) for number in range(6)]
IMAGE = make_image(*LAYERS)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def trusted(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.certificate)


@pytest.fixture
def tokens(tmp_path: Path, authority: Authority) -> Iterator[TokenService]:
    with a_stub() as stub:
        yield TokenService(stub, tmp_path, authority)


@pytest.fixture
def registry(
    tmp_path: Path, authority: Authority, trusted: ssl.SSLContext, tokens: TokenService
) -> Iterator[Registry]:
    """With tokens, over HTTPS."""
    with a_registry(
        tmp_path,
        tokens=tokens.settings,
        authorization=f"Bearer {tokens.sign('team/tools', 'pull', 'push')}",
        certified=authority.certify("127.0.0.1"),
        trusted=trusted,
    ) as made:
        yield made


Known = Callable[[Access], dict[str, Access]]


@pytest.fixture
def known(registry: Registry, tokens: TokenService, trusted: ssl.SSLContext) -> Known:
    return lambda access: {
        registry.authority: access._replace(tls=trusted),
        tokens.stub.authority: Access(tls=trusted),
    }


def fetch(images: ImageBench, reference: str, accesses: dict[str, Access]) -> None:
    async def fetched() -> None:
        transport = Transport(accesses, BRIEF)
        try:
            await pull(images.images, transport, parse_reference(reference), lambda _: None)
        finally:
            await transport.close()

    images.bench.do(fetched())


@pytest.mark.parametrize(
    "access", [Access(USERNAME, PASSWORD), Access(identity_token=IDENTITY_TOKEN)]
)
def test_an_image_is_pulled_with_a_token(
    access: Access, registry: Registry, known: Known, tokens: TokenService, images: ImageBench
) -> None:
    reference = registry.push(IMAGE)

    fetch(images, reference, known(access))

    assert "file5" in images.tree(reference)
    assert tokens.given() == 1


@pytest.mark.parametrize(
    "access", [Access(USERNAME, PASSWORD), Access(identity_token=IDENTITY_TOKEN)]
)
def test_an_image_is_pushed_with_a_token_and_mounted_from_where_it_was_pulled(
    access: Access, registry: Registry, known: Known, tokens: TokenService, images: ImageBench
) -> None:
    reference = registry.push(IMAGE)
    fetch(images, reference, known(access))
    for layer in LAYERS:  # Nobody reads it: it need not be sent.
        images.images.blobs.path(digest_of(layer)).chmod(0)
    before = tokens.given()

    send(images, reference, f"{registry.authority}/team/other:2", known(access))

    assert tokens.given() == before + 1
    for layer in LAYERS:
        images.images.blobs.path(digest_of(layer)).chmod(0o600)
    images.bench.do(images.images.remove(reference))
    fetch(images, f"{registry.authority}/team/other@{IMAGE.digest}", known(access))


def test_who_is_nobody_there_pushes_nothing(
    registry: Registry, known: Known, images: ImageBench
) -> None:
    reference = registry.push(IMAGE)
    fetch(images, reference, known(Access(USERNAME, PASSWORD)))
    for access in (Access(), Access(USERNAME, "wrong"), Access(identity_token="wrong")):
        with pytest.raises(Unavailable, match="does not let us write team/other"):
            send(images, reference, f"{registry.authority}/team/other:1", known(access))


def send(images: ImageBench, name: str, destination: str, accesses: dict[str, Access]) -> None:
    async def sent() -> None:
        transport = Transport(accesses, BRIEF)
        try:
            where = parse_reference(destination)
            await push(images.images, transport, name, where, lambda _: None)
        finally:
            await transport.close()

    images.bench.do(sent())


def test_who_is_nobody_there_is_told_so(registry: Registry, known: Known) -> None:
    reference = registry.push(IMAGE)
    for access, remedy in (
        (Access(), "credentials go into"),
        (Access(USERNAME, "wrong"), "are refused"),
        (Access(identity_token="wrong"), "are refused"),
    ):
        with pytest.raises(Unavailable, match=f"does not let us read team/tools.*{remedy}"):
            manifest_of(reference, known(access))


@pytest.mark.thorough
@pytest.mark.parametrize("told", [300.0, 6.0], ids=["not told", "told"])
def test_tokens_that_end_during_a_pull_are_replaced(
    told: float, registry: Registry, known: Known, tokens: TokenService
) -> None:
    """Whether or not the service says how soon they do."""
    reference = registry.push(IMAGE)
    tokens.valid_seconds, tokens.told_seconds = 6.0, told

    async def fetched() -> list[bytes]:
        found = []
        accesses = known(Access(USERNAME, PASSWORD))
        async with registry_for(reference, accesses) as repository:
            await repository.manifest("1")
            for layer in LAYERS[:2]:
                ends = time.time() + tokens.valid_seconds + 1  # Its clock has whole seconds.
                await asyncio.to_thread(wait_for, lambda ends=ends: time.time() > ends, "it ended")
                blob = Descriptor(media_type="", digest=digest_of(layer), size=len(layer))
                found.append(b"".join([piece async for piece in repository.blob(blob)]))
        return found

    assert asyncio.run(fetched()) == LAYERS[:2]
    assert tokens.given() == 3


def test_an_authority_that_is_not_known_is_not_trusted(
    registry: Registry, authority: Authority, known: Known
) -> None:
    reference = registry.push(IMAGE)

    with pytest.raises(
        Unavailable, match=r"not trusted: .* goes into registries.*\.ca_file"
    ) as told:
        manifest_of(reference, {registry.authority: Access(USERNAME, PASSWORD)})

    assert "tried" not in str(told.value)
    # It is for the address only.
    port = registry.authority.rpartition(":")[2]
    trusting = Access(tls=ssl.create_default_context(cafile=authority.certificate))
    with pytest.raises(Unavailable, match="not valid for 'localhost'"):
        manifest_of(f"localhost:{port}/team/tools:1", {f"localhost:{port}": trusting})


def test_what_was_mistaken_is_said_with_what_mends_it(registry: Registry, tmp_path: Path) -> None:
    """Of those mistakes that are no matter of credentials."""
    (tmp_path / "plain").mkdir()
    with a_registry(tmp_path / "plain") as plain, a_stub() as limited:
        limited.routes["/v2/team/tools/manifests/1"] = lambda handler: handler.answer(429)
        with a_stub() as gone:
            nobody = gone.authority
        plain.push(IMAGE)
        insecure = Access(insecure=True)
        for reference, access, said in (
            (f"{plain.authority}/team/tools:2", insecure, "has no team/tools:2: is name or tag"),
            (f"{plain.authority}/team/toolz:1", insecure, "has no team/toolz:1: is name or tag"),
            (f"{plain.authority}/team/tools:1", Access(), r"no TLS|insecure = true"),
            (f"{registry.authority}/team/tools:1", insecure, r"take `insecure` out"),
            ("registry.invalid/a:1", Access(), r"has no address: .*images\.proxy"),
            (f"{nobody}/a:1", Access(), "cannot be connected to: Connection refused"),
            (f"{limited.authority}/team/tools:1", insecure, "429.* credentials for it help"),
        ):
            with pytest.raises(Refused, match=said):
                manifest_of(reference, {reference.partition("/")[0]: access})


def test_each_tenant_pulls_as_who_it_is(tmp_path: Path, images: ImageBench) -> None:
    """Over HTTPS, with passwords, as the settings say it."""
    authority = Authority(tmp_path)
    for name, password in (("right", PASSWORD), ("wrong", "x")):
        (tmp_path / name).write_text(password)
    with a_registry(
        tmp_path,
        HTPASSWD,
        certified=authority.certify("127.0.0.1"),
        trusted=ssl.create_default_context(cafile=authority.certificate),
    ) as registry:
        reference = registry.push(IMAGE)
        settings = RegistrySettings(
            username=USERNAME,
            password_file=f"{tmp_path}/wrong",
            ca_file=str(authority.certificate),
            tenants={
                "acme": TenantRegistrySettings(username=USERNAME, password_file=f"{tmp_path}/right")
            },
        )

        for tenant in ("", "globex"):
            with pytest.raises(Unavailable, match="credentials of the settings are refused"):
                fetch(
                    images,
                    reference,
                    open_accesses({registry.authority: settings}, tenant=tenant),
                )
        fetch(images, reference, open_accesses({registry.authority: settings}, tenant="acme"))

    assert "file0" in images.tree(reference)


def test_a_registry_is_a_mirror_of_another(tmp_path: Path, images: ImageBench) -> None:
    """Of one that is not there: all comes from the mirror."""
    with a_registry(tmp_path) as mirror:
        mirror.push(IMAGE, name="hub/team/tools")
        accesses = open_accesses(
            {
                "registry.example": RegistrySettings(
                    mirrors=(f"http://{mirror.authority}/hub",), mirrors_only=True
                ),
                mirror.authority: RegistrySettings(insecure=True),
            }
        )

        fetch(images, "registry.example/team/tools:1", accesses)

    assert "file5" in images.tree("registry.example/team/tools:1")


def test_a_registry_is_pulled_through_a_mirror_that_fetches_what_it_lacks(
    tmp_path: Path, images: ImageBench
) -> None:
    for name in ("registry", "mirror"):
        (tmp_path / name).mkdir()
    with (
        a_registry(tmp_path / "registry") as registry,
        a_registry(tmp_path / "mirror", mirrored=f"http://{registry.authority}") as mirror,
    ):
        reference = registry.push(IMAGE)
        accesses = {
            registry.authority: Access(
                insecure=True, mirrors=(f"http://{mirror.authority}",), mirrors_only=True
            ),
            mirror.authority: Access(insecure=True),
        }

        fetch(images, reference, accesses)

    assert "file5" in images.tree(reference)
