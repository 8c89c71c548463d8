"""Images over HTTP and by the Python client: pulled with progress, shown, removed."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx2
import patient_http
import pytest
from pulling_service import RUN, Pulling, hold, name_of
from waiting import TIME_FACTOR, wait_for

from sandboxd.client import (
    AsyncClient,
    ClientError,
    Conflict,
    Image,
    LayerProgress,
    NotFound,
    RequestRefused,
)

SECONDS = 60 * TIME_FACTOR


def post(pulling: Pulling, reference: str, accept: str = "*/*", **more: str) -> httpx2.Response:
    return patient_http.post(
        f"{pulling.service.url}/v1/images/pull",
        json={"image": reference, **more},
        headers={"Accept": accept},
        timeout=SECONDS,
    )


def test_a_pull_tells_its_progress_line_by_line_and_ends_with_the_image(pulling: Pulling) -> None:
    reference = pulling.push()

    answer = post(pulling, reference)
    lines: list[dict[str, Any]] = [json.loads(line) for line in answer.text.splitlines()]

    assert answer.headers["content-type"] == "application/x-ndjson"
    last = {line["layer"]["digest"]: line["layer"] for line in lines[:-1]}
    assert len(last) == 2
    assert all(layer["done_bytes"] == layer["size_bytes"] > 0 for layer in last.values())
    assert lines[-1]["image"]["name"] == reference
    assert list(lines[-1]) == ["image"]


def test_a_pull_tells_its_progress_in_events(pulling: Pulling) -> None:
    reference = pulling.push()

    answer = post(pulling, reference, "text/event-stream")
    names = [line for line in answer.text.splitlines() if line.startswith("event: ")]

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert set(names[:-1]) == {"event: layer"}
    assert names[-1] == "event: image"


def test_a_pull_without_progress_answers_with_the_image(pulling: Pulling) -> None:
    reference = pulling.push()

    answer = post(pulling, reference, "application/json")
    job = pulling.client.run(image=reference, pull="never")

    assert answer.status_code == 200
    assert answer.json()["digest"] == job.image_digest


def test_a_missing_image_is_asked_for_once(pulling: Pulling) -> None:
    reference = pulling.push()
    first = post(pulling, reference, "application/json", pull="missing")
    again = post(pulling, reference, pull="missing")

    assert first.status_code == 200
    assert [list(json.loads(line)) for line in again.text.splitlines()] == [["image"]]
    assert pulling.proxy.count(f"{name_of(reference)}/manifests") == 1


def test_a_pull_that_fails_ends_with_a_problem(pulling: Pulling) -> None:
    reference = f"{pulling.proxy.authority}/team/nothing:1"
    streamed = json.loads(post(pulling, reference).text.splitlines()[-1])
    whole = post(pulling, reference, "application/json")

    assert streamed["problem"]["status"] == whole.status_code == 404
    assert streamed["problem"]["code"] == whole.json()["code"] == "not_in_registry"


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({"image": "Team/Tools"}, "/image"),
        ({"image": "a/b", "pull": "never"}, "/pull"),
        ({"image": "a/b", "pull": "often"}, "/pull"),
        ({}, "/image"),
        ({"image": "a/b", "puul": "always"}, "/puul"),
    ],
)
def test_a_request_that_cannot_be_is_refused(
    pulling: Pulling, request_: dict[str, str], pointer: str
) -> None:
    answer = patient_http.post(f"{pulling.service.url}/v1/images/pull", json=request_)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


def test_a_client_that_hangs_up_ends_the_pull_that_nobody_else_waits_for(pulling: Pulling) -> None:
    reference = pulling.push()
    gate = hold(pulling, reference)
    path = f"{name_of(reference)}/blobs"
    with patient_http.stream(
        "POST",
        f"{pulling.service.url}/v1/images/pull",
        json={"image": reference},
        timeout=SECONDS,
    ):
        wait_for(lambda: pulling.proxy.count(path), "it is being pulled")
    address = f"http://127.0.0.1:{pulling.service.metrics_port}/metrics"
    figure = 'sandboxd_image_pull_duration_seconds_count{outcome="abandoned"}'

    wait_for(
        lambda: f"{figure} 0.0" not in patient_http.get(address).text, "it was given up", seconds=30
    )
    gate.set()
    again = post(pulling, reference, "application/json")

    assert again.status_code == 200


def test_pulls_and_jobs_at_once_are_one_pull(pulling: Pulling) -> None:
    reference = pulling.push()
    layer = pulling.layers(reference)[-1]
    gate = pulling.proxy.hold(layer)
    job = pulling.client.submit(image=reference)
    wait_for(lambda: pulling.proxy.count(layer), "it is being pulled")

    steps = pulling.client.pull(reference)
    first = next(iter(steps))
    gate.set()
    image = list(steps)[-1]
    ended = pulling.client.wait(job.id)

    assert isinstance(first, LayerProgress)
    assert isinstance(image, Image)
    assert ended.image_digest == image.digest
    assert pulling.proxy.count(f"{name_of(reference)}/manifests") == 1


@pytest.mark.parametrize("escaped", [True, False])
def test_an_image_is_shown_with_what_it_is_made_of(pulling: Pulling, escaped: bool) -> None:
    run = {**RUN, "User": "12:34", "WorkingDir": "/srv", "Labels": {"a": "b", "é": "ü"}}
    reference = pulling.push(run=run)
    pulled = list(pulling.client.pull(reference))[-1]
    name = quote(reference, safe="" if escaped else "/:")

    answer = patient_http.get(f"{pulling.service.url}/v1/images/{name}")
    told = answer.json()
    image = pulling.client.image(reference)

    assert isinstance(pulled, Image)
    assert (told["name"], told["digest"], told["source"]) == (reference, pulled.digest, "registry")
    assert told["config"] == {
        "entrypoint": ["cat"],
        "cmd": ["/mark"],
        "env": {"PATH": "/bin", "HOME": "/"},
        "user": "12:34",
        "workdir": "/srv",
        "stop_signal": "SIGTERM",
        "labels": {"a": "b", "é": "ü"},
    }
    assert [layer["digest"][:7] for layer in told["layers"]] == ["sha256:"] * 2
    assert told["tenants"] == []
    assert told["last_used_at"] >= told["created_at"][:10]
    assert image.config is not None
    assert image.config.entrypoint == ("cat",)
    assert image.config_digest == told["config_digest"]
    assert len(image.layers) == 2


def test_the_machine_s_own_image_is_shown(pulling: Pulling) -> None:
    image = pulling.client.image("host")

    assert image.source == "host"
    assert image.config is not None
    assert image.config.user == "1000:1000"


def test_an_image_is_removed_and_comes_again(pulling: Pulling) -> None:
    reference = pulling.push()
    list(pulling.client.pull(reference))
    pulling.client.remove_image(reference)

    with pytest.raises(NotFound):
        pulling.client.image(reference)
    with pytest.raises(NotFound):
        pulling.client.remove_image(reference)
    assert pulling.client.run(image=reference).state == "succeeded"


def test_what_is_in_use_is_not_removed(pulling: Pulling) -> None:
    reference = pulling.push(run={"Env": ["PATH=/bin"], "Cmd": ["sleep", "600"]})
    job = pulling.client.submit(image=reference)
    wait_for(lambda: pulling.client.get(job.id).state == "running", "it runs")

    with pytest.raises(Conflict):
        pulling.client.remove_image(reference)
    pulling.client.cancel(job.id, grace_seconds=0)
    pulling.client.wait(job.id)
    with pytest.raises(Conflict):
        pulling.client.remove_image("host")


def test_leftovers_are_removed_when_asked_for(pulling: Pulling) -> None:
    blob = pulling.service.data_dir / "images" / "oci" / "blobs" / "sha256" / ("0" * 64)
    blob.write_bytes(b"left")

    pruned = pulling.client.prune_images()

    assert (pruned.images, pruned.blobs, pruned.not_removed) == ((), 1, 0)
    assert pruned.freed_bytes >= 4
    assert not blob.exists()


def test_images_that_nobody_uses_are_removed_when_asked_for(pulling: Pulling) -> None:
    reference = pulling.push()
    list(pulling.client.pull(reference))
    young = pulling.client.prune_images(unused_seconds=3600)
    every = pulling.client.prune_images(all=True)
    refused = patient_http.post(
        f"{pulling.service.url}/v1/images/prune", json={"all": True, "unused_seconds": -1}
    )

    assert reference not in young.images
    assert reference in every.images
    assert every.trees >= 1
    assert refused.status_code == 422
    assert "host" in {image.name for image in pulling.client.images()}


@pytest.mark.parametrize("path", ["..%2Fjobs", "a%2F..%2F..%2Fjobs", "a%2F%2Fb", "a%5Cb"])
def test_no_name_leads_elsewhere(pulling: Pulling, path: str) -> None:
    answer = patient_http.get(
        httpx2.URL(f"{pulling.service.url}/v1/images/").copy_with(
            raw_path=f"/v1/images/{path}".encode()
        )
    )

    assert answer.status_code == 400
    assert answer.json()["code"] == "path_malformed"


def test_the_client_asks_for_no_name_that_is_none(pulling: Pulling) -> None:
    with pytest.raises(ClientError):
        pulling.client.image("../keys")


def test_the_client_for_asyncio_does_the_same(pulling: Pulling) -> None:
    reference = pulling.push()

    async def pull() -> tuple[list[Any], Any]:
        async with AsyncClient(pulling.service.url) as client:
            steps = [step async for step in client.pull(reference)]
            shown = await client.image(reference)
            await client.remove_image(reference)
            assert (await client.prune_images()).not_removed == 0
            with pytest.raises(RequestRefused):
                async for _ in client.pull("Team/Tools"):
                    pass
            with pytest.raises(NotFound):
                async for _ in client.pull(f"{pulling.proxy.authority}/team/nothing"):
                    pass
        return steps, shown

    steps, shown = asyncio.run(pull())

    assert isinstance(steps[0], LayerProgress)
    assert steps[-1].digest == shown.digest
