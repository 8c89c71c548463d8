"""An image from a registry, pulled on the command line while the service runs, and jobs over HTTP in it."""

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from archives import directory, entry, link, packed
from host_tests import host_required
from registries import Registry, a_registry, make_image
from running_service import RunningService

from sandboxd.client import Client

RUN = {
    "User": "12:34",
    "Env": ["PATH=/bin", "A=image", "B=image"],
    "Entrypoint": ["sh", "-c", 'echo "$A $B $* $(id -u):$(id -g) $(pwd)"; cat there', "sh"],
    "Cmd": ["cmd"],
    "WorkingDir": "/srv",
}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with a_registry(tmp_path) as made:
        yield made


@pytest.fixture
def image(registry: Registry, real_service: RunningService, tmp_path: Path) -> str:
    """Two layers: busybox, and what is changed above it."""
    found = shutil.which("busybox")
    if found is None:
        host_required("this host has no busybox (busybox-static)")
    base = packed(
        directory("bin"),
        entry("bin/busybox", Path(found).resolve().read_bytes(), mode=0o755),
        *(link(f"bin/{applet}", "busybox") for applet in ("sh", "id", "cat", "ls", "pwd")),
        directory("srv"),
        entry("srv/gone"),
    )
    above = packed(entry("srv/.wh.gone"), entry("srv/there", b"there\n"))
    reference = registry.push(make_image(gzip.compress(base), gzip.compress(above), run=RUN))
    config = tmp_path / "config.toml"
    config.write_text(f'[registries."{registry.authority}"]\ninsecure = true\n')
    pulled = real_service.command("images", "pull", reference, "--config", str(config))
    assert pulled.returncode == 0, pulled.stderr
    return reference


def test_a_job_without_a_command_runs_what_the_image_says(client: Client, image: str) -> None:
    job = client.run(image=image)

    assert job.state == "succeeded", job.error
    assert job.text == "image image cmd 12:34 /srv\nthere\n"
    assert job.command == (*RUN["Entrypoint"], *RUN["Cmd"])
    listed = {each.name: each for each in client.images()}
    assert listed[image].source == "registry"
    assert listed[image].digest == job.image_digest


def test_arguments_take_the_place_of_the_image_s_own(client: Client, image: str) -> None:
    job = client.run(image=image, args=["x", "y"], env={"B": "job"}, user="5:6", workdir="/")

    assert job.text == "image job x y 5:6 /\n"


def test_a_command_takes_the_place_of_the_entry_point(client: Client, image: str) -> None:
    job = client.run(["ls", "/srv"], image=image)

    assert job.text == "there\n"


def test_an_image_that_says_nothing_needs_a_command(real_service: RunningService) -> None:
    answer = httpx2.post(f"{real_service.url}/v1/jobs", json={"image": "host", "args": ["true"]})

    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": "/command", "detail": "is required: this image does not say what it runs"}
    ]


def test_an_image_that_is_not_here_and_is_not_to_be_pulled_is_not_found(
    real_service: RunningService,
) -> None:
    body = {"image": "ghcr.io/team/tools:1", "pull": "never"}
    answer = httpx2.post(f"{real_service.url}/v1/jobs", json=body)

    assert answer.status_code == 404
    assert answer.json()["code"] == "image_not_found"
