"""Registries behind a proxy, which is a process of its own here."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import manifest_of
from certificates import Authority
from proxy_process import Proxy, a_proxy
from registries import Stub, a_stub, make_image

from sandboxd.errors import Unavailable
from sandboxd.images.registries.proxies import proxy_for
from sandboxd.images.registries.terms import ANY_OTHER, Access

IMAGE = make_image(b"layer", run={})
VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY", "REQUEST_METHOD")


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with a_proxy(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def reference(stub: Stub, host: str = "") -> str:
    return f"{host or stub.authority}/team/tools:1"


def test_plain_http_goes_to_the_proxy_by_whole_urls(stub: Stub, proxy: Proxy) -> None:
    stub.offer(IMAGE)
    known = {stub.authority: Access(insecure=True, proxy=proxy.url)}

    assert manifest_of(reference(stub), known).content == IMAGE.manifest

    assert proxy.asked() == [f"GET http://{stub.authority}/v2/team/tools/manifests/1"]
    assert stub.asked[0].headers["host"] == stub.authority


def test_https_goes_through_a_tunnel_to_a_name_that_only_the_proxy_knows(
    stub: Stub, tmp_path: Path
) -> None:
    """And its certificate is checked as ever."""
    name = "registry.corp.test"
    authority = Authority(tmp_path)
    stub.speak_tls(*authority.certify(name))
    stub.offer(IMAGE)
    trusted = ssl.create_default_context(cafile=authority.certificate)
    with a_proxy(tmp_path, f"{name}={stub.authority}") as proxy:
        known = {name: Access(tls=trusted, proxy=proxy.url)}

        assert manifest_of(reference(stub, name), known).content == IMAGE.manifest
        assert proxy.asked() == [f"CONNECT {name}:443"]
        with pytest.raises(Unavailable, match="certificate"):
            manifest_of(reference(stub, name), {ANY_OTHER: Access(proxy=proxy.url)})


def test_a_proxy_may_speak_tls_itself(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a certificate that the machine trusts, whatever the registry's is."""
    stub.offer(IMAGE)
    authority = Authority(tmp_path)
    with a_proxy(tmp_path, certified=authority.certify("127.0.0.1")) as proxy:
        url = f"https://{proxy.authority}"
        known = {stub.authority: Access(insecure=True, proxy=url)}

        with pytest.raises(Unavailable, match=f"or the proxy {url}, has a certificate"):
            manifest_of(reference(stub), known)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        assert manifest_of(reference(stub), known).content == IMAGE.manifest


def test_a_proxy_of_the_environment_is_used_if_the_settings_say_so(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.offer(IMAGE)
    with a_proxy(tmp_path, "me:s3cret") as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:s3cret@{proxy.authority}")

        for setting in ("", "none"):
            manifest_of(reference(stub), {stub.authority: Access(insecure=True, proxy=setting)})
        assert proxy.asked() == []
        manifest_of(reference(stub), {stub.authority: Access(insecure=True, proxy="environment")})
        assert len(proxy.asked()) == 1
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        manifest_of(reference(stub), {stub.authority: Access(insecure=True, proxy="environment")})
        assert len(proxy.asked()) == 1


def test_which_proxy_is_meant_is_read_as_curl_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    monkeypatch.setenv("http_proxy", "http://other:1")
    monkeypatch.setenv("no_proxy", ".corp.test,10.0.0.5,r.example:5000")

    def found(scheme: str, host: str, port: int = 443) -> str | None:
        return proxy_for("environment", scheme, host, port)

    assert found("https", "r.example") == "http://proxy:3128"
    assert found("http", "r.example") == "http://other:1"
    assert found("https", "x.corp.test") is None
    assert found("https", "10.0.0.5") is None
    assert found("https", "r.example", 5000) is None
    assert proxy_for("http://mine:1", "https", "10.0.0.5", 443) == "http://mine:1"


@pytest.mark.attack(70)
@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "localhost:1", "[::1]:1", "169.254.169.254", "10.0.0.1"]
)
def test_a_proxy_is_not_asked_for_what_is_not_public(host: str, proxy: Proxy) -> None:
    with pytest.raises(Unavailable, match="is not public"):
        manifest_of(f"{host}/team/tools:1", {ANY_OTHER: Access(is_named=False, proxy=proxy.url)})

    assert proxy.asked() == []


@pytest.mark.attack(70)
def test_nor_where_a_registry_leads_to(stub: Stub, proxy: Proxy) -> None:
    known = {
        stub.authority: Access(insecure=True, proxy=proxy.url),
        ANY_OTHER: Access(is_named=False, proxy=proxy.url),
    }
    for target in ("https://169.254.169.254/x", "https://2130706433/x", "https://[::ffff:a00:1]/"):
        stub.routes["/v2/team/tools/manifests/1"] = lambda handler, target=target: handler.answer(
            307, Location=target
        )
        with pytest.raises(Unavailable, match="is not public"):
            manifest_of(reference(stub), known)

    assert all(stub.authority in line for line in proxy.asked())


@pytest.mark.attack(72)
def test_a_proxy_that_refuses_is_named_without_our_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_proxy(tmp_path, "me:right") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@{proxy.authority}")

        with pytest.raises(Unavailable, match=f"proxy http://{proxy.authority} refuses") as told:
            manifest_of("r.example.test/team/tools:1", {ANY_OTHER: Access(proxy="environment")})

        assert "407" in str(told.value)
        assert "s3cret" not in str(told.value)
        assert len(proxy.asked()) == 1  # It will not be another answer the next time.


def test_a_proxy_that_is_not_there_is_named() -> None:
    with a_stub() as gone:
        proxy = f"http://{gone.authority}"

    with pytest.raises(Unavailable, match=f"through the proxy {proxy}"):
        manifest_of("r.example.test/team/tools:1", {ANY_OTHER: Access(proxy=proxy)})
