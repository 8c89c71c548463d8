"""`sandboxd images pull`, and jobs in what it pulled: from a real registry to the output of a command."""

import base64
import gzip
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import directory, entry, link, packed
from command_line import Outcome, sandboxd, sandboxd_on_terminal
from host_tests import host_required
from registries import HTPASSWD, PASSWORD, USERNAME, Registry, a_registry, make_image

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]

BUSYBOX = Path("/usr/bin/busybox")
RUN = {
    "User": "app",
    "Env": ["GREETING=hello", "PATH=/bin"],
    "Entrypoint": ["sh", "-c", 'echo "$GREETING $* $HOME"; pwd; id -u; id -g', "sh"],
    "Cmd": ["from", "cmd"],
    "WorkingDir": "/srv",
}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with a_registry(tmp_path, HTPASSWD) as made:
        yield made


class Pulling:
    """A data directory, settings, and the command line with them."""

    def __init__(self, directory: Path, registry: Registry) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.config = directory / "config.toml"
        self.set(username=USERNAME, password_file=str(directory / "password"), insecure=True)
        (directory / "password").write_text(f"{PASSWORD}\n")
        self.authority = registry.authority

    def set(self, **fields: Any) -> None:
        lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
        self._lines = lines

    def __call__(self, *words: str, terminal: bool = False, **more: str) -> Outcome:
        section = f'[registries."{self.authority}"]'
        self.config.write_text("\n".join([section, *self._lines]) if self._lines else "")
        call = sandboxd_on_terminal if terminal else sandboxd
        variables = {"SANDBOXD_STORE_DATA_DIR": str(self.data), **more}
        return call(*words, SANDBOXD_CONFIG=str(self.config), **variables)


@pytest.fixture
def pulling(tmp_path: Path, registry: Registry) -> Iterator[Pulling]:
    made = Pulling(tmp_path, registry)
    yield made
    # Files of other owners are removed from inside a sandbox only.
    for image in json.loads(made("images", "list", "--json").output):
        if image["name"] != "host":
            made("images", "remove", image["name"])


def busybox() -> bytes:
    if not BUSYBOX.exists():
        host_required("busybox-static is not installed")
    return packed(
        directory("bin"),
        entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        *(link(f"bin/{name}", "busybox") for name in ("sh", "id", "cat", "ls", "pwd")),
        directory("etc"),
        entry("etc/passwd", b"app:x:12:34:App:/home/app:/bin/sh\n"),
        directory("srv"),
        entry("srv/gone", b"x"),
    )


@pytest.fixture
def reference(registry: Registry) -> str:
    changed = packed(entry("srv/.wh.gone"), entry("srv/there", b"there\n"))
    return registry.push(make_image(gzip.compress(busybox()), gzip.compress(changed), run=RUN))


def test_a_job_runs_in_an_image_as_its_author_wants(pulling: Pulling, reference: str) -> None:
    pulled = pulling("images", "pull", reference)
    assert pulled.code == 0, pulled
    assert pulled.output.startswith(f"pulled {reference} into {pulling.data}: ")
    assert len(pulled.errors.splitlines()) == 2
    assert all(line.startswith("layer ") for line in pulled.errors.splitlines())

    ran = pulling("run", "--image", reference)
    assert ran == (0, "hello from cmd /home/app\n/srv\n12\n34\n", "")


def test_a_job_says_otherwise(pulling: Pulling, reference: str) -> None:
    pulling("images", "pull", reference)

    ran = pulling(
        *("run", "--image", reference, "--user", "7:8", "-w", "/bin", "-e", "GREETING=bye"),
        *("--", "sh", "-c", 'echo "$GREETING"; pwd; id -u; ls /srv'),
    )

    assert ran == (0, "bye\n/bin\n7\nthere\n", "")


def test_a_record_has_the_command_and_the_digest_of_the_image(
    pulling: Pulling, reference: str
) -> None:
    image = json.loads(pulling("images", "pull", "--json", reference).output)

    job = json.loads(pulling("run", "--image", reference, "--json").output)

    assert job["command"] == [*RUN["Entrypoint"], *RUN["Cmd"]]
    assert job["image_digest"] == image["digest"]
    assert set(image) == {"name", "digest", "size_bytes", "created_at", "source"}


def test_people_see_a_bar_for_each_layer(pulling: Pulling, reference: str) -> None:
    shown = pulling("images", "pull", reference, terminal=True)

    assert shown.code == 0
    assert shown.output.count("━") > 20
    assert f"pulled {reference}" in shown.output.replace("\n", "")


def test_a_second_pull_is_told_like_the_first(pulling: Pulling, reference: str) -> None:
    pulling("images", "pull", reference)

    again = pulling("images", "pull", reference)

    assert again.code == 0
    assert again.errors == ""


def test_a_registry_that_is_not_configured_is_told_how(pulling: Pulling, reference: str) -> None:
    pulling.set()

    refused = pulling("images", "pull", reference)

    assert refused.code == 1
    assert f'[registries."{pulling.authority}"]' in refused.errors


def test_dockers_own_file_is_used_if_it_is_named(pulling: Pulling, reference: str) -> None:
    pulling.set(insecure=True)
    file = pulling.directory / "docker.json"
    auth = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    file.write_text(json.dumps({"auths": {f"http://{pulling.authority}/v2/": {"auth": auth}}}))
    (pulling.directory / ".docker").mkdir()
    shutil.copy(file, pulling.directory / ".docker/config.json")

    refused = pulling("images", "pull", reference, HOME=str(pulling.directory))
    pulled = pulling("images", "pull", reference, SANDBOXD_IMAGES_DOCKER_CONFIG=str(file))

    assert "credentials go into" in refused.errors
    assert pulled.code == 0
    assert PASSWORD not in pulled.output + pulled.errors


def test_wrong_credentials_are_told_without_them(pulling: Pulling, reference: str) -> None:
    (pulling.directory / "password").write_text("wrong-word")

    refused = pulling("images", "pull", reference)

    assert refused.code == 1
    assert "credentials of the settings are refused" in refused.errors
    assert "wrong-word" not in refused.errors + refused.output


def test_a_password_file_that_cannot_be_read_is_named(pulling: Pulling, reference: str) -> None:
    os.unlink(pulling.directory / "password")

    refused = pulling("images", "pull", reference)

    assert refused.code == 2
    assert f"{pulling.directory}/password: No such file" in refused.errors


def test_a_reference_that_is_none_is_a_mistake_of_usage(pulling: Pulling) -> None:
    refused = pulling("images", "pull", "Team/Tools")

    assert refused.code == 2
    assert "capitals" in refused.errors


def test_a_short_name_that_is_not_here_is_not_looked_for_elsewhere(pulling: Pulling) -> None:
    refused = pulling("run", "--image", "busybox", "--", "true")

    assert refused.code != 0
    assert "sandboxd images pull" in refused.errors
