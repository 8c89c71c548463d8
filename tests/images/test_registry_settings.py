"""Registries in the settings."""

from pathlib import Path

import pytest

from sandboxd.errors import SettingsError
from sandboxd.images.registries.accesses import open_accesses
from sandboxd.settings import ImagesSettings, RegistrySettings, TenantRegistrySettings
from sandboxd.settings_loader import Loaded, load_settings


def load(tmp_path: Path, file: str) -> Loaded:
    path = tmp_path / "config.toml"
    path.write_text(file)
    return load_settings({}, {"SANDBOXD_CONFIG": str(path)})


def test_there_is_none_at_first() -> None:
    assert load_settings({}, {"SANDBOXD_CONFIG": ""}).settings.registries == {}


def test_a_file_names_registries(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        '[registries."10.0.0.5:5000"]\ninsecure = true\n'
        '[registries."docker.io"]\nusername = "me"\npassword_file = "/p"\n'
        '[registries."r.example"]\nca_file = "/c"\n',
    )

    assert loaded.settings.registries == {
        "10.0.0.5:5000": RegistrySettings(insecure=True),
        "docker.io": RegistrySettings(username="me", password_file="/p"),
        "r.example": RegistrySettings(ca_file="/c"),
    }
    assert loaded.origins['registries."docker.io".username'] == f"file {tmp_path}/config.toml"


FAULTS = {
    "no section": ("registries = 1", "is a section"),
    "no section of its own": ('[registries]\n"r.example" = 1', "is a section"),
    "capitals": ('[registries."R.example"]', "in lower case"),
    "path": ('[registries."r.example/team"]', "HOST or HOST:PORT"),
    "unknown": ('[registries."r.example"]\npassword = "x"', "username, password_file"),
    "no boolean": ('[registries."r.example"]\ninsecure = "yes"', "true or false"),
    "no text": ('[registries."r.example"]\nca_file = 1', "a text"),
    "relative": ('[registries."r.example"]\nca_file = "ca.pem"', "absolute path"),
    "half": ('[registries."r.example"]\nusername = "me"', "go together"),
    "token and password": (
        '[registries."r.example"]\nusername = "me"\npassword_file = "/p"\ntoken_file = "/t"',
        "instead of username",
    ),
    "tenant is no section": ('[registries."r.example".tenants]\nacme = 1', "is a section"),
    "tenant has what": ('[registries."r.example".tenants.acme]\nca_file = "/c"', "a tenant has"),
    "tenant is half": ('[registries."r.example".tenants.acme]\nusername = "me"', "go together"),
    "tenant is nobody": ('[registries."r.example".tenants.acme]', "needs username"),
    "tenant is none": (
        '[registries."r.example".tenants."A b"]\ntoken_file = "/t"',
        "is no tenant",
    ),
    "tenants is no section": ('[registries."r.example"]\ntenants = 1', "a section"),
    "mirrors is no list": ('[registries."r.example"]\nmirrors = "https://m"', "a list of texts"),
    "only no mirrors": ('[registries."r.example"]\nmirrors_only = true', "no mirrors"),
    "many mirrors": (f'[registries."r.example"]\nmirrors = {["https://m"] * 9}', "more than 8"),
    "proxy": ('[registries."r.example"]\nproxy = "10.0.0.1:3128"', "http://HOST:PORT"),
    "proxy with credentials": (
        '[registries."r.example"]\nproxy = "http://me:s3cret@proxy:3128"',
        "has credentials in it",
    ),
    "images.proxy": ('[images]\nproxy = "none"', "http://HOST:PORT"),
    "images.docker_config": ('[images]\ndocker_config = "config.json"', "absolute path"),
    "everybody": ('[registries."*"]', "is called HOST"),
    "both": ('[registries."r.example"]\ninsecure = true\nca_file = "/c"', "plain HTTP"),
}


def test_a_registry_has_mirrors_a_proxy_and_tenants(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        '[images]\nproxy = "environment"\ndocker_config = "/d"\n'
        '[registries."docker.io"]\nmirrors = ["https://m.example:5000/hub", "http://[::1]"]\n'
        'mirrors_only = true\nproxy = "none"\n'
        '[registries."docker.io".tenants.acme]\nusername = "me"\npassword_file = "/p"\n',
    )

    assert loaded.settings.images == ImagesSettings(docker_config="/d", proxy="environment")
    assert loaded.settings.registries == {
        "docker.io": RegistrySettings(
            mirrors=("https://m.example:5000/hub", "http://[::1]"),
            mirrors_only=True,
            proxy="none",
            tenants={"acme": TenantRegistrySettings(username="me", password_file="/p")},
        )
    }
    assert 'registries."docker.io".tenants.acme.username' in loaded.origins


@pytest.mark.attack(70)
@pytest.mark.parametrize(
    "mirror",
    [
        "m.example",
        "ftp://m.example",
        "https://",
        "https://me:pw@m.example",
        "https://m.example/A",
        "https://m.example/a/../b",
        "https://m.example//a",
        "https://m.example/a?b",
        "https://m.example/a#b",
        "https://m.example:0",
        "https://m.example:99999",
        "https://M.example",
        "https://[::1",
        "https://m.example\\a",
    ],
)
def test_a_mirror_is_a_place_and_nothing_else(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not https://HOST"):
        load(tmp_path, f"[registries.\"r.example\"]\nmirrors = ['{mirror}']")


@pytest.mark.parametrize(("file", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_meant_is_refused(file: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=fault):
        load(tmp_path, file)


def test_a_password_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    registry = RegistrySettings(username="me", password_file=str(file))
    for content in (b"a b", b"a b\n", b"a b\r\nmore"):
        file.write_bytes(content)

        access = open_accesses({"docker.io": registry})["registry-1.docker.io"]

        assert (access.username, access.password) == ("me", "a b")


@pytest.mark.attack(72)
def test_a_file_that_cannot_be_used_is_named_without_its_content(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xffsecret")
    for registry, fault in (
        (RegistrySettings(username="me", password_file=str(file)), "is not text"),
        (RegistrySettings(username="me", password_file="/nowhere"), "No such file"),
        (RegistrySettings(ca_file=str(file)), "ca_file"),
        (RegistrySettings(ca_file="/nowhere"), "No such file"),
    ):
        with pytest.raises(SettingsError, match=fault) as refused:
            open_accesses({"r.example": registry})
        assert "secret" not in str(refused.value)
