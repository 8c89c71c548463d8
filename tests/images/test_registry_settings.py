"""Registries in the settings."""

from pathlib import Path

import pytest

from sandboxd.errors import SettingsError
from sandboxd.images.accesses import open_accesses
from sandboxd.settings import RegistrySettings
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
    "both": ('[registries."r.example"]\ninsecure = true\nca_file = "/c"', "plain HTTP"),
}


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
