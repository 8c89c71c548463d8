"""Images as people have them: a Debian with Python and a busybox, made by umoci, pushed by skopeo, pulled by a job."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_image import push_busybox, push_debian
from registries import a_registry
from running_service import running_service

from sandboxd.client import Client

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.host,
    pytest.mark.timeout(900),  # The Debian may have to be built.
]


@pytest.fixture(scope="module")
def pushed(prepared_host: None) -> Iterator[tuple[str, str, Client]]:
    """The references of both, and who talks to a service that may pull them."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        place = Path(directory)
        with a_registry(place) as registry:
            debian, busybox = push_debian(registry, place), push_busybox(registry, place)
            config = place / "config.toml"
            config.write_text(f'[registries."{registry.authority}"]\ninsecure = true\n')
            with (
                running_service(flags=("--no-auth", "--config", str(config))) as service,
                service.client() as client,
            ):
                yield debian, busybox, client


def test_a_job_runs_the_python_of_a_debian(pushed: tuple[str, str, Client]) -> None:
    debian, _, client = pushed
    code = "import os, pwd, json; print(pwd.getpwuid(os.getuid()).pw_name, json.dumps([1]))"

    job = client.run(["python3", "-c", code], image=debian)

    assert job.state == "succeeded", job.error
    assert job.text == "www-data [1]\n"


def test_a_job_without_a_command_runs_what_umoci_was_told(pushed: tuple[str, str, Client]) -> None:
    debian, busybox, client = pushed

    of_debian, of_busybox = client.run(image=debian), client.run(image=busybox)

    assert of_debian.text == "Debian 3 []\n", of_debian.error
    assert of_busybox.text == "busybox\n", of_busybox.error


def test_packages_of_a_debian_are_what_its_own_tool_installed(
    pushed: tuple[str, str, Client],
) -> None:
    debian, _, client = pushed
    words = ["dpkg", "--verify", "base-files", "libc6", "python3.11-minimal"]

    job = client.run(words, image=debian, user="0:0", workdir="/")

    assert job.state == "succeeded", (job.text, job.error)
    assert job.text == ""
