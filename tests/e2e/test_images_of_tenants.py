"""Whose images: what a registry showed to a tenant's own credentials, what tenants and operators allow, who may do what."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pulling_service import RUN, SLOTS, image_of
from registries import HTPASSWD, PASSWORD, USERNAME, Proxy, Registry, a_proxy, a_registry
from running_service import RunningService, data_directory
from waiting import wait_for

WORK = ("jobs:read", "jobs:write")
SCOPES: dict[str, Sequence[str]] = {
    "admin": ["admin"],
    "ada": WORK,
    "bob": WORK,
    "eve": WORK,
    "zoe": WORK,
    "reader": ["jobs:read"],
}
WAIT = {"Prefer": "wait=60"}


class Houses:
    """A service of several tenants, some of whom have credentials at a registry that asks for them."""

    def __init__(
        self, service: RunningService, keys: dict[str, str], registry: Registry, proxy: Proxy
    ) -> None:
        self.service, self.registry, self.proxy = service, registry, proxy
        self.doors = {name: service.http(key) for name, key in keys.items()}

    def push(self, name: str) -> str:
        self.registry.push(image_of(name, "private", RUN), name)
        return f"{self.proxy.authority}/{name}:1"

    def run(self, who: str, reference: str, **more: Any) -> httpx2.Response:
        body = {"image": reference, **more}
        return self.doors[who].post("/v1/jobs", json=body, headers=WAIT)

    def sees(self, who: str) -> set[str]:
        return {image["name"] for image in self.doors[who].get("/v1/images").json()["data"]}


@pytest.fixture(scope="module")
def houses(prepared_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Houses]:
    directory = tmp_path_factory.mktemp("registry")
    with (
        a_registry(directory, HTPASSWD) as registry,
        a_proxy(registry) as proxy,
        data_directory() as data_dir,
    ):
        config = _settings(directory, proxy.authority)
        flags = ("--slots", str(SLOTS), "--config", str(config))
        service = RunningService(data_dir, flags=flags, isolation_single_id_many_tenants="true")
        keys = {name: service.make_key(name, scopes) for name, scopes in SCOPES.items()}
        service.start()
        made = Houses(service, keys, registry, proxy)
        try:
            yield made
            for door in made.doors.values():
                door.close()
            service.stop()
            service.remove_images()
        finally:
            if service.process.poll() is None:
                service.kill()


def _settings(directory: Path, authority: str) -> Path:
    (directory / "right").write_text(PASSWORD)
    (directory / "wrong").write_text("wrong")
    lines = [
        "[images]",
        f'registries = ["{authority}/team/*", "127.0.0.1:1/*"]',
        f'[registries."{authority}"]',
        "insecure = true",
    ]
    for tenant, word in (("ada", "right"), ("zoe", "right"), ("bob", "wrong")):
        lines += [
            f'[registries."{authority}".tenants.{tenant}]',
            f'username = "{USERNAME}"',
            f'password_file = "{directory / word}"',
        ]
    config = directory / "config.toml"
    config.write_text("\n".join(lines))
    return config


def test_what_a_registry_showed_to_one_tenant_is_not_there_for_another(houses: Houses) -> None:
    reference = houses.push("team/private")
    of_ada = houses.run("ada", reference).json()
    of_eve = houses.run("eve", reference).json()
    of_bob = houses.run("bob", reference).json()
    never = houses.run("eve", reference, pull="never")
    shown = houses.doors["eve"].get(f"/v1/images/{reference}")
    dry = houses.doors["eve"].post("/v1/jobs?dry_run=true", json={"image": reference}).json()
    of_admin = houses.doors["admin"].get(f"/v1/images/{reference}").json()

    assert of_ada["state"] == "succeeded", of_ada
    for refused in (of_eve, of_bob):
        assert (refused["state"], refused["reason"]) == ("error", "image_failed")
        assert refused["error"]["code"] == "registry_denied"
    assert never.status_code == 404
    assert shown.status_code == 404
    assert dry["image_digest"] is None
    assert reference in houses.sees("ada") & houses.sees("admin")
    assert reference not in houses.sees("eve") | houses.sees("bob")
    assert of_admin["tenants"] == ["ada"]
    assert "tenants" not in houses.doors["ada"].get(f"/v1/images/{reference}").json()


def test_who_shows_the_registry_credentials_of_their_own_may_use_it_too(houses: Houses) -> None:
    reference = houses.push("team/shared")
    houses.run("ada", reference)
    blobs = houses.proxy.count("team/shared/blobs")

    of_zoe = houses.run("zoe", reference).json()
    of_ada = houses.run("ada", reference, pull="never").json()

    assert of_zoe["state"] == "succeeded", of_zoe
    assert of_ada["state"] == "succeeded"
    assert houses.proxy.count("team/shared/blobs") == 2 * blobs  # Each has to be shown all of it.
    shown = houses.doors["admin"].get(f"/v1/images/{reference}").json()
    assert shown["tenants"] == ["ada", "zoe"]


def test_pulls_of_two_tenants_with_credentials_are_two(houses: Houses) -> None:
    reference = houses.push("team/apart")
    gate = houses.proxy.hold("team/apart/manifests")
    jobs = {
        who: houses.doors[who].post("/v1/jobs", json={"image": reference}).json()["id"]
        for who in ("ada", "zoe", "eve")
    }
    gate.set()

    ended = {
        who: houses.doors[who].get(f"/v1/jobs/{job_id}?wait=60").json()["state"]
        for who, job_id in jobs.items()
    }

    assert ended == {"ada": "succeeded", "zoe": "succeeded", "eve": "error"}


def test_who_waits_for_an_image_keeps_no_other_tenant_from_the_same(houses: Houses) -> None:
    """It is here for one; as many jobs of the other as there are slots ask the registry for it, which does not answer."""
    reference = houses.push("team/crowded")
    houses.run("ada", reference)
    gate = houses.proxy.hold("team/crowded/manifests")
    body = {"image": reference, "pull": "always"}
    jobs = [houses.doors["zoe"].post("/v1/jobs", json=body).json()["id"] for _ in range(4)]
    door = houses.doors["admin"]
    wait_for(
        lambda: door.get("/v1/system").json()["capacity"]["pulling"] >= SLOTS,
        "all slots' jobs wait",
    )

    of_ada = houses.run("ada", reference).json()
    gate.set()

    assert of_ada["state"] == "succeeded", of_ada
    for job_id in jobs:
        ended = houses.doors["zoe"].get(f"/v1/jobs/{job_id}?wait=60").json()
        assert ended["state"] == "succeeded"


def test_the_operator_closes_registries(houses: Houses) -> None:
    closed = f"{houses.proxy.authority}/other/tools:1"
    bodies = {
        "/v1/jobs": {"image": closed},
        "/v1/sandboxes": {"image": closed},
        "/v1/images/pull": {"image": closed},
    }
    answers = {path: houses.doors["ada"].post(path, json=body) for path, body in bodies.items()}

    for answer in answers.values():
        assert answer.status_code == 403
        problem = answer.json()
        assert (problem["policy"], problem["policy_of"]) == ("images.registries", "service")
        assert f"{houses.proxy.authority}/other/tools may not be used here" in problem["detail"]
    assert houses.proxy.count("other/tools") == 0


def test_a_tenant_s_own_list_is_about_whole_references(houses: Houses) -> None:
    allowed = f"{houses.proxy.authority}/team/*"
    put = houses.doors["admin"].put("/v1/tenants/bob", json={"images": [allowed, "host"]})
    refused = houses.run("bob", "127.0.0.1:1/team/tools")
    pull = houses.doors["bob"].post("/v1/images/pull", json={"image": "127.0.0.1:1/team/tools"})
    accepted = houses.doors["bob"].post(
        "/v1/jobs?dry_run=true", json={"image": f"{houses.proxy.authority}/team/x"}
    )

    assert put.status_code == 200
    for answer in (refused, pull):
        assert answer.status_code == 403
        assert (answer.json()["policy"], answer.json()["policy_of"]) == ("images", "tenant")
    assert accepted.json()["image"] == f"{houses.proxy.authority}/team/x:latest"


def test_who_may_submit_may_pull_and_only_an_admin_removes(houses: Houses) -> None:
    reference = houses.push("team/scopes")
    body = {"image": reference}
    ada, reader = houses.doors["ada"], houses.doors["reader"]

    assert ada.post("/v1/images/pull", json=body).status_code == 200
    assert reader.post("/v1/images/pull", json=body).status_code == 403
    assert reader.get("/v1/images").status_code == 200
    assert ada.delete(f"/v1/images/{reference}").status_code == 403
    assert ada.post("/v1/images/prune").status_code == 403
    assert houses.doors["admin"].delete(f"/v1/images/{reference}").status_code == 204
