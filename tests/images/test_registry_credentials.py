"""Who the service is at a registry: the settings, Docker's file, credential helpers, tenants; and the tokens that it gets."""

import asyncio
import base64
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from asking import manifest_of, registry_for
from registries import Handler, Stub, a_stub, digest_of, make_image, needs

from sandboxd.errors import SettingsError, Unavailable
from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.puller import owner_of
from sandboxd.images.registries.accesses import open_accesses
from sandboxd.images.registries.credential_helpers import ask_helper
from sandboxd.images.registries.credentials import Credentials
from sandboxd.images.registries.docker_config import read_docker_config
from sandboxd.images.registries.registry import Registry
from sandboxd.images.registries.terms import ANY_OTHER, Access
from sandboxd.images.registries.transport import Transport
from sandboxd.settings import ImagesSettings, RegistrySettings, TenantRegistrySettings

SECRET = "s3cret-word"
DOCKER = "registry-1.docker.io"
IMAGE = make_image(b"layer", run={})


@pytest.fixture
def other() -> Iterator[Stub]:
    with a_stub() as made:
        yield made


def auth(username: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def config(tmp_path: Path, **content: Any) -> str:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    return str(file)


# Docker's file


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("https://index.docker.io/v1/", DOCKER),
        ("index.docker.io", DOCKER),
        ("docker.io", DOCKER),
        ("https://registry-1.docker.io/v2/", DOCKER),
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://GHCR.io/", "ghcr.io"),
        ("http://10.0.0.5:5000/v2/", "10.0.0.5:5000"),
        ("localhost:5000", "localhost:5000"),
    ],
)
def test_a_registry_is_found_by_each_of_the_names_that_docker_has_for_it(
    key: str, host: str, tmp_path: Path
) -> None:
    read = read_docker_config(config(tmp_path, auths={key: auth("me")}))

    assert read.auths == {host: Credentials("me", SECRET)}


def test_credentials_are_read_in_each_of_their_forms(tmp_path: Path) -> None:
    read = read_docker_config(
        config(
            tmp_path,
            auths={
                "a.example": auth("me", "with:colon"),
                "b.example": {"username": "me", "password": SECRET, "email": "x"},
                "c.example": {"auth": auth("me")["auth"], "identitytoken": "t"},
                "d.example": auth("me", SECRET + "\0\0"),
                "e.example": {},
            },
            HttpHeaders={"X": "y"},
            currentContext="z",
        )
    )

    assert read.auths == {
        "a.example": Credentials("me", "with:colon"),
        "b.example": Credentials("me", SECRET),
        "c.example": Credentials(identity_token="t"),
        "d.example": Credentials("me", SECRET),
    }


def test_of_two_names_for_a_registry_the_one_counts_that_docker_writes(tmp_path: Path) -> None:
    read = read_docker_config(
        config(
            tmp_path,
            auths={
                "https://r.example/v1/": auth("old"),
                "r.example": auth("new"),
                "https://registry-1.docker.io/v2/": auth("old"),
                "https://index.docker.io/v1/": auth("new"),
            },
        )
    )

    assert {each.username for each in read.auths.values()} == {"new"}


@pytest.mark.attack(72)
def test_what_is_for_a_part_of_a_registry_is_not_sent_to_all_of_it(tmp_path: Path) -> None:
    assert read_docker_config(config(tmp_path, auths={"r.example/team": auth("me")})).auths == {}


@pytest.mark.attack(72)
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "is not JSON"),
        (b'{"auths": ["s3cret-word"]}', "is not JSON of the shape"),
        (b"\xff s3cret-word", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * (2**20 + 1), "larger than"),
        (b'{"auths": {"r": {"auth": "s3cret-word"}}}', 'auths."r"'),
        (b'{"auths": {"r": {"auth": "c2VjcmV0"}}}', 'auths."r"'),
        (b'{"auths": {"r": {"auth": 1}}}', 'auths."r"'),
        (b'{"credsStore": "../x"}', "name of a credential helper"),
        (b'{"credHelpers": {"r": "a/b"}}', "name of a credential helper"),
        (b'{"credHelpers": {"r": ""}}', "name of a credential helper"),
    ],
)
def test_a_file_of_another_shape_is_refused_without_its_content(
    content: bytes, fault: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)

    with pytest.raises(SettingsError, match=r"images\.docker_config") as refused:
        read_docker_config(str(file))

    assert fault in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        open_accesses({}, ImagesSettings(docker_config=f"{tmp_path}/none"))


# Who says it first


def test_a_section_says_more_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("of the section")
    path = config(tmp_path, auths={"a.example": auth("file"), "b.example": auth("file")})
    registries = {
        "a.example": RegistrySettings(username="section", password_file=f"{tmp_path}/password"),
        "b.example": RegistrySettings(insecure=True),
    }

    accesses = open_accesses(registries, ImagesSettings(docker_config=path))

    assert accesses["a.example"].username == "section"
    assert accesses["b.example"].username == "file"
    assert accesses["b.example"].insecure


@pytest.mark.attack(70)
def test_credentials_of_the_file_open_no_address_that_is_not_public(
    stub: Stub, tmp_path: Path
) -> None:
    stub.offer(IMAGE)
    path = config(tmp_path, auths={stub.authority: auth("me")})

    with pytest.raises(Unavailable, match="is not public"):
        manifest_of(
            f"{stub.authority}/team/tools:1", open_accesses({}, ImagesSettings(docker_config=path))
        )

    assert stub.asked == []


def test_a_tenant_with_credentials_of_its_own_uses_those_and_the_rest_the_operators(
    tmp_path: Path,
) -> None:
    for name in ("operator", "acme", "token"):
        (tmp_path / name).write_text(f"of {name}\n")
    registry = RegistrySettings(
        username="operator",
        password_file=f"{tmp_path}/operator",
        proxy="none",
        tenants={
            "acme": TenantRegistrySettings(username="acme", password_file=f"{tmp_path}/acme"),
            "globex": TenantRegistrySettings(token_file=f"{tmp_path}/token"),
        },
    )

    def who(tenant: str) -> tuple[str, str, str, str, str]:
        of = open_accesses({"r.example": registry}, tenant=tenant)["r.example"]
        return of.username, of.password, of.identity_token, of.owner, of.proxy

    assert who("acme") == ("acme", "of acme", "", "acme", "none")
    assert who("globex") == ("", "", "of token", "globex", "none")
    assert who("initech") == ("operator", "of operator", "", "", "none")
    assert who("") == ("operator", "of operator", "", "", "none")


@pytest.mark.attack(72)
def test_what_a_mirror_shows_to_a_tenant_alone_is_that_tenants(tmp_path: Path) -> None:
    """Or it would be there for all, who have no right to it."""
    (tmp_path / "token").write_text("t")
    mirror = RegistrySettings(
        tenants={"acme": TenantRegistrySettings(token_file=f"{tmp_path}/token")}
    )
    registries = {
        "r.example": RegistrySettings(mirrors=("https://one.example", "https://m.example:5000/x")),
        "m.example:5000": mirror,
    }

    def owner(tenant: str) -> str:
        return open_accesses(registries, tenant=tenant)["r.example"].owner

    assert owner("acme") == "acme"
    assert owner("globex") == ""


# Credential helpers

HELPER = """\
#!/bin/sh
read -r server
{body}
"""


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the PATH, in which the test puts programs."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def helper(helpers: Path, body: str, name: str = "test") -> None:
    file = helpers / f"docker-credential-{name}"
    file.write_text(HELPER.format(body=body))
    file.chmod(0o755)


def ask(seconds: float = 10.0) -> Credentials:
    return asyncio.run(ask_helper("test", "r.example", seconds=seconds))


def test_a_helper_is_asked_for_the_registry_when_that_wants_to_know(
    helpers: Path, stub: Stub, tmp_path: Path
) -> None:
    needs(stub, IMAGE, Credentials("me", SECRET).basic or "", "Basic realm=x")
    helper(
        helpers,
        f'echo "$1 $server" >> {tmp_path}/asked\n'
        f'echo \'{{"ServerURL": "x", "Username": "me", "Secret": "{SECRET}"}}\'',
    )
    path = config(tmp_path, credHelpers={stub.authority: "test"})
    named = {stub.authority: RegistrySettings(insecure=True)}

    accesses = open_accesses(named, ImagesSettings(docker_config=path))
    assert not (tmp_path / "asked").exists()
    manifest_of(f"{stub.authority}/team/tools:1", accesses)

    assert (tmp_path / "asked").read_text() == f"get {stub.authority}\n"


def test_a_store_is_asked_for_every_registry_and_knows_dockers_by_its_old_name(
    helpers: Path, tmp_path: Path
) -> None:
    path = config(tmp_path, credsStore="test", auths={"r.example": auth("file")})

    accesses = open_accesses({}, ImagesSettings(docker_config=path))

    assert accesses[ANY_OTHER].helper == "test"
    assert accesses["r.example"].helper == "test"
    assert accesses["r.example"].username == "file"
    helper(
        helpers,
        f'echo "$server" > {tmp_path}/asked; echo credentials not found in native keychain; exit 1',
    )
    with a_stub() as docker:
        needs(docker, IMAGE, "nobody has it", "Basic realm=x")
        with pytest.raises(Unavailable, match="does not let us read"):
            manifest_of(
                f"{docker.authority}/team/tools:1",
                {docker.authority: Access(insecure=True, helper="test")},
            )
        assert (tmp_path / "asked").read_text() == f"{docker.authority}\n"


@pytest.mark.attack(72)
def test_a_helper_sees_nothing_of_the_services_own_variables(
    helpers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXD_WEBHOOKS_SECRET", SECRET)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", SECRET)
    monkeypatch.setenv("AWS_REGION", "eu-1")
    helper(helpers, f"env > {tmp_path}/env; echo {{}}")

    assert ask() == Credentials()

    assert SECRET not in (tmp_path / "env").read_text()
    assert "AWS_REGION=eu-1" in (tmp_path / "env").read_text()


def test_a_helper_may_know_an_identity_token(helpers: Path) -> None:
    helper(helpers, 'echo \'{"Username": "<token>", "Secret": "t"}\'')

    assert ask() == Credentials(identity_token="t")


@pytest.mark.attack(72)
@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (f"echo {SECRET}; exit 3", "ended with 3"),
        (f"echo {SECRET}", "did not answer as"),
        (f'echo \'{{"Secret": {{"x": "{SECRET}"}}}}\'', "did not answer as"),
        ("yes", "more than 65536 bytes"),
        ("exec sleep 1000", "said nothing in 3 s"),
        ("exec 1>&-; sleep 1000", "said nothing in 3 s"),
        ("sleep 1000 & wait", "said nothing in 3 s"),
    ],
)
def test_a_helper_that_fails_is_named_in_time_and_without_what_it_said(
    body: str, fault: str, helpers: Path
) -> None:
    helper(helpers, body)
    began = time.monotonic()

    with pytest.raises(Unavailable, match=fault) as refused:
        ask(seconds=3.0 if "said nothing" in fault else 30.0)

    assert time.monotonic() - began < 20
    assert "docker-credential-test" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_helper_that_is_not_there_is_named(helpers: Path) -> None:
    with pytest.raises(Unavailable, match="docker-credential-test is not in the PATH"):
        ask()


@pytest.mark.attack(72)
@pytest.mark.parametrize("name", ["../test", "a/b", "", "a b", "a;b", "A", "-a", "x" * 65])
def test_a_helpers_name_is_no_path(name: str, helpers: Path) -> None:
    with pytest.raises(Unavailable, match="is not in the PATH"):
        asyncio.run(ask_helper(name, "r.example"))


# Tokens


def bearer(stub: Stub) -> str:
    return f'Bearer realm="http://{stub.authority}/token",service="the service"'


def test_an_identity_token_is_exchanged_by_post(stub: Stub) -> None:
    needs(stub, IMAGE, "Bearer abc", bearer(stub))
    stub.routes["/token"] = lambda handler: handler.answer(200, b'{"access_token": "abc"}')
    access = Access(identity_token=SECRET, insecure=True)

    manifest_of(f"{stub.authority}/team/tools:1", {stub.authority: access})

    asked = stub.asked[1]
    assert (asked.method, asked.path) == ("POST", "/token")
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert parse_qs(asked.content.decode()) == {
        "grant_type": ["refresh_token"],
        "client_id": ["sandboxd"],
        "refresh_token": [SECRET],
        "service": ["the service"],
        "scope": ["repository:team/tools:pull"],
    }
    assert SECRET not in repr(access)


@pytest.mark.attack(70, 72)
def test_an_identity_token_follows_no_redirect(stub: Stub, other: Stub) -> None:
    needs(stub, IMAGE, "Bearer abc", bearer(stub))
    for status in (301, 302, 303, 307, 308):
        stub.routes["/token"] = lambda handler, status=status: handler.answer(
            status, Location=f"http://{other.authority}/token"
        )
        accesses = {
            stub.authority: Access(identity_token=SECRET, insecure=True),
            other.authority: Access(insecure=True),
        }
        with pytest.raises(Unavailable, match=f"answered {status}"):
            manifest_of(f"{stub.authority}/team/tools:1", accesses)

    assert other.asked == []


def test_a_token_is_asked_for_what_it_is_to_be_good_for(stub: Stub) -> None:
    needs(stub, IMAGE, "Bearer abc", bearer(stub))
    stub.routes["/token"] = lambda handler: handler.answer(200, b'{"token": "abc"}')

    async def fetch() -> None:
        transport = Transport({stub.authority: Access(insecure=True)})
        reference = parse_reference(f"{stub.authority}/team/tools:1")
        try:
            await Registry(transport, reference, actions="pull,push").manifest("1")
        finally:
            await transport.close()

    asyncio.run(fetch())

    assert "scope=repository%3Ateam%2Ftools%3Apull%2Cpush" in stub.asked[1].path


class Tokens:
    """A token service whose tokens are good until the test says that they are not."""

    def __init__(self, stub: Stub, expires_in: Any = 60) -> None:
        self.given = 0
        self.good = ""
        self._lock = threading.Lock()
        self._expires_in = expires_in
        self._stub = stub
        stub.routes["/token"] = self._give

    def guard(self, content: bytes) -> Descriptor:
        digest = digest_of(content)

        def blob(handler: Handler) -> None:
            if self.good and handler.headers.get("Authorization") == f"Bearer {self.good}":
                handler.answer(200, content)
            else:
                handler.answer(401, b"{}", WWW_Authenticate=bearer(self._stub))

        self._stub.routes[f"/v2/team/tools/blobs/{digest}"] = blob
        return Descriptor(media_type="", digest=digest, size=len(content))

    def _give(self, handler: Handler) -> None:
        with self._lock:
            self.given += 1
            self.good = f"t{self.given}"
        answer = {"token": self.good, "expires_in": self._expires_in}
        handler.answer(200, json.dumps(answer).encode())


def fetch_all(stub: Stub, blobs: list[Descriptor], tokens: Tokens, *, at_once: bool) -> list[bytes]:
    """Each in turn with a token that ends before it; or all at once with one that just ended."""

    async def one(registry: Registry, blob: Descriptor) -> bytes:
        return b"".join([piece async for piece in registry.blob(blob)])

    async def fetch() -> list[bytes]:
        accesses = {stub.authority: Access(insecure=True)}
        async with registry_for(f"{stub.authority}/team/tools:1", accesses) as registry:
            first = await one(registry, blobs[0])
            tokens.good = ""
            if at_once:
                rest = await asyncio.gather(*(one(registry, blob) for blob in blobs[1:]))
                return [first, *rest]
            found = [first]
            for blob in blobs[1:]:
                found.append(await one(registry, blob))
                tokens.good = ""
            return found

    return asyncio.run(fetch())


CONTENTS = [b"%d" % number * 100 for number in range(4)]


def test_a_token_that_ends_between_layers_is_replaced(stub: Stub) -> None:
    tokens = Tokens(stub)

    assert fetch_all(stub, [*map(tokens.guard, CONTENTS)], tokens, at_once=False) == CONTENTS
    assert tokens.given == 4


def test_downloads_at_once_whose_token_has_ended_fetch_one_new_one(stub: Stub) -> None:
    tokens = Tokens(stub)

    assert fetch_all(stub, [*map(tokens.guard, CONTENTS)], tokens, at_once=True) == CONTENTS
    assert tokens.given == 2


def test_a_token_is_renewed_before_it_ends(stub: Stub) -> None:
    """So that no request is made in vain: what the registry refuses is asked for twice."""
    tokens = Tokens(stub, expires_in=0.001)

    fetch_all(stub, [tokens.guard(CONTENTS[0])] * 3, tokens, at_once=False)

    assert [path for path in stub.paths() if path.startswith("/token")][1:]
    refused = len(stub.asked) - tokens.given - 3
    assert refused == 1


@pytest.mark.attack(72)
@pytest.mark.parametrize("expires_in", [-1, 0, 1e300, "soon", None, [], True])
def test_a_time_that_a_token_cannot_have_is_the_usual_one(expires_in: Any, stub: Stub) -> None:
    tokens = Tokens(stub, expires_in)

    fetch_all(stub, [tokens.guard(CONTENTS[0])] * 2, tokens, at_once=True)

    assert tokens.given == 2


@pytest.mark.attack(70, 72)
def test_who_a_registry_redirects_to_does_not_learn_who_we_are(stub: Stub, other: Stub) -> None:
    """Its challenge would have the credentials sent to a token service of its choosing."""
    challenges = ("Basic realm=x", f'Bearer realm="http://{stub.authority}/token"')
    for challenge in challenges:
        other.routes["/x"] = lambda handler, challenge=challenge: handler.answer(
            401, b"{}", WWW_Authenticate=challenge
        )
        stub.routes["/v2/team/tools/manifests/1"] = lambda handler: handler.answer(
            307, Location=f"http://{other.authority}/x"
        )
        accesses = {
            stub.authority: Access("me", SECRET, insecure=True),
            other.authority: Access(insecure=True),
        }
        with pytest.raises(Unavailable, match="another host, which wants credentials"):
            manifest_of(f"{stub.authority}/team/tools:1", accesses)

    assert not any("authorization" in asked.headers for asked in [*stub.asked, *other.asked])
    assert "/token" not in "".join(stub.paths())


def test_of_several_challenges_the_one_for_a_token_is_answered(stub: Stub) -> None:
    needs(stub, IMAGE, "Bearer abc", f'Negotiate, Basic realm="a, b", {bearer(stub)}, Digest x=1')
    stub.routes["/token"] = lambda handler: handler.answer(200, b'{"token": "abc"}')
    access = Access("me", SECRET, insecure=True)

    assert manifest_of(f"{stub.authority}/team/tools:1", {stub.authority: access}).content


@pytest.mark.parametrize("section", ["ghcr.io", "ghcr.io:443"])
def test_whose_an_image_is_does_not_depend_on_how_the_registry_is_written(
    tmp_path: Path, section: str
) -> None:
    (tmp_path / "password").write_text(SECRET)
    own = TenantRegistrySettings(username="ada", password_file=str(tmp_path / "password"))
    registries = {section: RegistrySettings(tenants={"ada": own})}
    reference = parse_reference("ghcr.io/team/tools:1")

    assert owner_of(open_accesses(registries, tenant="ada"), reference) == "ada"
    assert owner_of(open_accesses(registries, tenant="eve"), reference) is None
