"""An image from a registry, pulled on the command line while the service runs, and jobs over HTTP in it."""

import gzip
import shutil
from pathlib import Path
from urllib.parse import quote

import patient_http
import pytest
from archives import directory, entry, link, packed
from host_tests import host_required
from registries import Registry, make_image
from running_service import RunningService

from sandboxd.client import Client

LABELS = {
    "io.containerd.runtime.v2": "/srv/there",
    "io.kubernetes.cri-o.Devices": "/dev/mem",
    "io.podman.annotations.privileged": "TRUE",
    "run.oci.keep_original_groups": "1",
    "run.oci.handler": "krun",
    "krun.ram_mib": "100000",
    "org.criu.config": "/srv/there",
    "org.systemd.property.ExecStop": "['true']",
    "cdi.k8s.io/gpu": "vendor.com/device=all",
    "com.nvidia.volumes.needed": "nvidia_driver",
    "org.opencontainers.image.title": "\x1b[2J<script>",
}
"""What other programs do something at."""
RUN = {
    "User": "12:34",
    "Env": ["PATH=/bin", "A=image", "B=image"],
    "Entrypoint": ["sh", "-c", 'echo "$A $B $* $(id -u):$(id -g) $(pwd)"; cat there', "sh"],
    "Cmd": ["cmd"],
    "WorkingDir": "/srv",
    "StopSignal": "USR1",
    "Labels": LABELS,
}


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


@pytest.mark.attack(30)
def test_labels_are_shown_and_change_nothing(
    client: Client, image: str, real_service: RunningService
) -> None:
    with_labels = client.run(["ls", "/dev"], image=image)
    without = client.run(["ls", "/dev"], image="host")

    assert with_labels.text == without.text
    assert with_labels.enforcement == without.enforcement
    shown = patient_http.get(f"{real_service.url}/v1/images/{quote(image, safe='')}").json()
    assert shown["config"]["labels"] == LABELS


def test_a_job_that_is_cancelled_gets_the_stop_signal(client: Client, image: str) -> None:
    """That of the image, or its own."""
    script = 'for s in TERM USR1 INT; do trap "echo $s; exit 7" $s; done; echo ready; while :; do :; done'
    for asked, expected in (({}, "USR1"), ({"stop_signal": "2"}, "INT")):
        job = client.submit(["sh", "-c", script], image=image, **asked)
        next(client.logs(job.id, follow=True))

        client.cancel(job.id, grace_seconds=20)
        ended = client.wait(job.id)

        assert (ended.state, ended.exit_code) == ("cancelled", 7)
        assert ended.text == f"ready\n{expected}\n"
        assert ended.stop_signal == (f"SIG{expected}" if asked else None)


def test_a_stop_signal_that_there_is_not_is_told_at_its_pointer(
    real_service: RunningService,
) -> None:
    for bad in ("NO", "99", "0", "", "SIG"):
        body = {"image": "host", "command": ["true"], "stop_signal": bad}
        answer = patient_http.post(f"{real_service.url}/v1/jobs", json=body)

        assert answer.status_code == 422
        assert [each["pointer"] for each in answer.json()["errors"]] == ["/stop_signal"]


def test_an_image_that_says_nothing_needs_a_command(real_service: RunningService) -> None:
    answer = patient_http.post(
        f"{real_service.url}/v1/jobs", json={"image": "host", "args": ["true"]}
    )

    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": "/command", "detail": "is required: this image does not say what it runs"}
    ]


def test_an_image_that_is_not_here_and_is_not_to_be_pulled_is_not_found(
    real_service: RunningService,
) -> None:
    body = {"image": "ghcr.io/team/tools:1", "pull": "never"}
    answer = patient_http.post(f"{real_service.url}/v1/jobs", json=body)

    assert answer.status_code == 404
    assert answer.json()["code"] == "image_not_found"
