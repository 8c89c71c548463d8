"""Quotas of tenants over HTTP: what they bound, what is told of them, and who may change them."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from running_service import RunningService, data_directory
from waiting import wait_for

NAMES = ("admin", "ada", "eve")
TRUE = {"image": "host", "command": ["true"]}
SLEEP = {"image": "host", "command": ["sleep", "600"]}
WAIT = {"Prefer": "wait=30"}


class Doors:
    """The service as each of its callers reaches it."""

    def __init__(self, service: RunningService, keys: dict[str, str]) -> None:
        self.service = service
        self.admin, self.ada, self.eve = (service.http(keys[name]) for name in NAMES)

    def allow(self, tenant: str, **quotas: Any) -> None:
        answer = self.admin.put(f"/v1/tenants/{tenant}", json=quotas)
        assert answer.status_code == 200, answer.text

    def new_key(self, **quotas: Any) -> httpx2.Client:
        """A door for another key of ada's, which has these quotas."""
        body = {"name": "own", "tenant": "ada", "quotas": quotas}
        answer = self.admin.post("/v1/keys", json=body)
        assert answer.status_code == 201, answer.text
        return self.service.http(answer.json()["key"])

    def close(self) -> None:
        for door in (self.admin, self.ada, self.eve):
            door.close()


@pytest.fixture
def doors(prepared_host: None) -> Iterator[Doors]:
    with data_directory() as data_dir:
        flags = ("--slots", "4")
        service = RunningService(data_dir, flags=flags, isolation_single_id_many_tenants="true")
        keys = {name: service.make_key(name) for name in ("ada", "eve")}
        keys["admin"] = service.make_key("admin", ["admin"])
        service.start()
        opened = Doors(service, keys)
        try:
            yield opened
            opened.close()
            service.stop()
        finally:
            if service.process.poll() is None:
                service.kill()


def refusal(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_requests_are_counted_and_the_answer_says_how_many_are_left(doors: Doors) -> None:
    assert "ratelimit" not in doors.ada.get("/v1/jobs").headers
    doors.allow("ada", requests_per_minute=12, request_burst=3)
    answers = [doors.ada.get("/v1/jobs") for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=3;w=15'
    assert answers[0].headers["ratelimit"] == '"requests";r=2;t=5'
    assert refusal(answers[3]) == (429, "rate_limited")
    assert int(answers[3].headers["retry-after"]) in range(1, 6)
    assert doors.eve.get("/v1/jobs").status_code == 200
    wait_for(lambda: doors.ada.get("/v1/jobs").status_code == 200, "there is one again")


def test_more_jobs_than_may_run_at_once_wait_and_hold_nobody_up(doors: Doors) -> None:
    doors.allow("ada", max_concurrency=1, max_queued=2)
    first = doors.ada.post("/v1/jobs", json=SLEEP).json()["id"]
    waiting = [doors.ada.post("/v1/jobs", json=TRUE).json()["id"] for _ in range(2)]
    refused = doors.ada.post("/v1/jobs", json=TRUE)
    of_another = doors.eve.post("/v1/jobs", json=TRUE, headers=WAIT).json()
    seen = doors.ada.get(f"/v1/jobs/{waiting[0]}").json()["waiting"]
    sandbox = doors.ada.post("/v1/sandboxes", json={"image": "host"})
    doors.ada.post(f"/v1/jobs/{first}/cancel", json={"grace_seconds": 0})
    ended = [doors.ada.get(f"/v1/jobs/{job_id}?wait=30").json()["state"] for job_id in waiting]

    assert (seen["for"], seen["position"]) == ("tenant", 0)
    assert refusal(refused) == (429, "quota_exceeded")
    assert refusal(sandbox) == (429, "quota_exceeded")
    assert of_another["state"] == "succeeded"
    assert ended == ["succeeded"] * 2


def test_cpu_time_is_reserved_when_a_job_comes_and_counted_when_it_has_ended(doors: Doors) -> None:
    doors.allow("ada", cpu_seconds_per_hour=100)
    job = {**TRUE, "limits": {"cpu_seconds": 60}}
    running = doors.ada.post("/v1/jobs", json={**SLEEP, "limits": {"cpu_seconds": 60}}).json()["id"]
    refused = doors.ada.post("/v1/jobs", json=job, headers=WAIT)
    doors.ada.post(f"/v1/jobs/{running}/cancel", json={"grace_seconds": 0})
    doors.ada.get(f"/v1/jobs/{running}?wait=30")
    then = doors.ada.post("/v1/jobs", json=job, headers=WAIT)
    mine = doors.ada.get("/v1/quotas").json()
    hours = doors.ada.get("/v1/usage").json()["data"]

    assert refusal(refused) == (429, "quota_exceeded")
    assert (
        "cpu_seconds per hour: 60 of 100 of yours are used or reserved" in refused.json()["detail"]
    )
    assert int(refused.headers["retry-after"]) > 1
    assert then.json()["state"] == "succeeded"
    assert mine["quotas"]["cpu_seconds_per_hour"] == 100
    (hour,) = [each for each in mine["metered"] if each["quota"] == "cpu_seconds_per_hour"]
    assert 0 < hour["used"] < 5
    assert hour["most"] == 100
    assert sum(each["jobs"] for each in hours) == 2
    assert sum(each["cpu_seconds"] for each in hours) == pytest.approx(hour["used"])
    assert doors.eve.get("/v1/usage").json()["data"] == []


def test_what_a_tenant_may_not_use_is_refused(doors: Doors) -> None:
    doors.allow("ada", images=["python-*"])
    answers = [
        doors.ada.post("/v1/jobs", json=TRUE),
        doors.ada.post("/v1/jobs?dry_run=true", json=TRUE),
        doors.ada.post("/v1/sandboxes", json={"image": "host"}),
    ]
    doors.allow("ada", runtimes=["runsc"])
    answers.append(doors.ada.post("/v1/jobs", json=TRUE))

    assert [refusal(answer) for answer in answers] == [(403, "not_allowed")] * 4
    assert "/image: only python-* may be used" in answers[0].json()["detail"]
    assert doors.eve.post("/v1/jobs", json=TRUE, headers=WAIT).json()["state"] == "succeeded"


def test_quotas_are_the_operators_and_outlast_the_service(doors: Doors) -> None:
    doors.allow("ada", max_queued=7)
    denied = [
        doors.ada.put("/v1/tenants/ada", json={}),
        doors.ada.get("/v1/tenants/ada"),
        doors.ada.delete("/v1/tenants/ada"),
    ]
    wrong = doors.admin.put("/v1/tenants/ada", json={"max_queued": -1, "max_quued": 1})
    unnamed = doors.admin.put("/v1/tenants/Ada!", json={})
    doors.service.kill()
    doors.service.start()
    kept = doors.admin.get("/v1/tenants/ada").json()["quotas"]
    reset = doors.admin.delete("/v1/tenants/ada")
    after = doors.admin.get("/v1/tenants/ada").json()["quotas"]

    assert [refusal(answer) for answer in denied] == [(403, "scope_missing")] * 3
    assert {fault["pointer"] for fault in wrong.json()["errors"]} == {"/max_queued", "/max_quued"}
    assert unnamed.status_code == 404
    assert (kept["max_queued"], after["max_queued"]) == (7, 0)
    assert reset.status_code == 204


def whose(answer: httpx2.Response) -> tuple[int, str, str]:
    problem = answer.json()
    return answer.status_code, problem["policy"], problem["policy_of"]


def test_a_key_has_quotas_besides_its_tenants(doors: Doors) -> None:
    with doors.new_key(
        requests_per_minute=12, request_burst=4, images=["host"], network_modes=["none"]
    ) as own:
        doors.allow("ada", requests_per_minute=600, images=["host", "python-*"])
        seen = own.get("/v1/quotas")
        refused = own.post("/v1/jobs", json={**TRUE, "image": "python-3"})
        of_another = doors.ada.get("/v1/quotas").json()
        answers = [own.get("/v1/jobs") for _ in range(3)]
    listed = doors.admin.get("/v1/keys").json()["data"]

    assert seen.headers["ratelimit-policy"] == '"key_requests";q=4;w=20, "requests";q=600;w=60'
    assert seen.headers["ratelimit"].startswith('"key_requests";r=3;')
    assert seen.json()["key"]["quotas"]["images"] == ["host"]
    assert seen.json()["quotas"]["images"] == ["host", "python-*"]
    assert whose(refused) == (403, "images", "key")
    assert "This key may not use this" in refused.json()["detail"]
    assert of_another["key"] is None
    assert whose(answers[-1]) == (429, "requests", "key")
    assert [key["quotas"] and key["quotas"]["request_burst"] for key in listed][-1] == 4


def test_as_many_jobs_of_a_key_run_as_may_also_after_a_restart(doors: Doors) -> None:
    own = doors.new_key(max_concurrency=1, max_queued=2)
    doors.service.kill()
    doors.service.start()
    first = own.post("/v1/jobs", json=SLEEP).json()["id"]
    waiting = [own.post("/v1/jobs", json=TRUE).json()["id"] for _ in range(2)]
    refused = own.post("/v1/jobs", json=TRUE)
    sandbox = own.post("/v1/sandboxes", json={"image": "host"})
    seen = own.get(f"/v1/jobs/{waiting[0]}").json()["waiting"]
    of_another = doors.ada.post("/v1/jobs", json=TRUE, headers=WAIT).json()
    own.post(f"/v1/jobs/{first}/cancel", json={"grace_seconds": 0})
    ended = [own.get(f"/v1/jobs/{job_id}?wait=30").json()["state"] for job_id in waiting]
    own.close()

    assert whose(refused) == (429, "max_queued", "key")
    assert whose(sandbox) == (429, "max_concurrency", "key")
    assert seen["for"] == "key"
    assert of_another["state"] == "succeeded"
    assert ended == ["succeeded"] * 2


def test_a_keys_cpu_time_is_counted_beside_its_tenants(doors: Doors) -> None:
    with doors.new_key(cpu_seconds_per_hour=70) as own:
        job = {**TRUE, "limits": {"cpu_seconds": 60}}
        running = own.post("/v1/jobs", json={**SLEEP, "limits": {"cpu_seconds": 60}}).json()["id"]
        refused = own.post("/v1/jobs", json=job, headers=WAIT)
        own.post(f"/v1/jobs/{running}/cancel", json={"grace_seconds": 0})
        own.get(f"/v1/jobs/{running}?wait=30")
        then = own.post("/v1/jobs", json=job, headers=WAIT).json()
        mine = own.get("/v1/quotas").json()

    assert whose(refused) == (429, "cpu_seconds_per_hour", "key")
    assert then["state"] == "succeeded"
    (of_key,) = [m for m in mine["key"]["metered"] if m["quota"] == "cpu_seconds_per_hour"]
    (of_tenant,) = [m for m in mine["metered"] if m["quota"] == "cpu_seconds_per_hour"]
    assert 0 < of_key["used"] == pytest.approx(of_tenant["used"])
    assert (of_key["most"], of_tenant["most"]) == (70, None)


def test_wrong_quotas_of_a_key_are_refused(doors: Doors) -> None:
    body = {"name": "own", "quotas": {"max_queued": -1, "max_quued": 1}}
    answer = doors.admin.post("/v1/keys", json=body)
    pointers = {fault["pointer"] for fault in answer.json()["errors"]}
    assert pointers == {"/quotas/max_queued", "/quotas/max_quued"}


def test_a_tenants_ceilings_are_below_the_operators_and_hold_for_all_that_it_makes(
    doors: Doors,
) -> None:
    former = doors.ada.post("/v1/jobs", json={**TRUE, "limits": {"memory": "200Mi"}}, headers=WAIT)
    doors.allow("ada", ceilings={"memory": "128Mi", "cpus": "500m", "wall_seconds": 10})
    asked = {"limits": {"memory": "129Mi", "cpus": 1, "wall_seconds": 10}}
    refused = [
        doors.ada.post("/v1/jobs", json={**TRUE, **asked}),
        doors.ada.post("/v1/sandboxes", json={"image": "host", "limits": {"memory": "129Mi"}}),
        doors.ada.post(f"/v1/jobs/{former.json()['id']}/retry"),
    ]
    lowered = doors.ada.post("/v1/jobs", json=TRUE, headers=WAIT).json()
    told = doors.ada.get("/v1/quotas").json()["quotas"]["ceilings"]
    of_another = doors.eve.post("/v1/jobs", json={**TRUE, **asked}, headers=WAIT).json()

    faults = {fault["pointer"]: fault["detail"] for fault in refused[0].json()["errors"]}
    assert faults == {
        "/limits/memory": "129Mi is not from 4Mi to 128Mi, the most that your tenant may have",
        "/limits/cpus": "1.0 is not from 0.01 to 0.5, the most that your tenant may have",
    }
    assert [answer.status_code for answer in refused] == [422] * 3
    assert refused[1].json()["errors"][0]["pointer"] == "/limits/memory"
    assert [each["pointer"] for each in refused[2].json()["errors"]] == ["/limits/memory"]
    assert lowered["state"] == "succeeded"
    assert lowered["limits"]["memory"] == 2**27
    assert (lowered["limits"]["cpus"], lowered["limits"]["wall_seconds"]) == (0.5, 10)
    assert told == {"memory": 2**27, "cpus": 0.5, "wall_seconds": 10}
    assert of_another["state"] == "succeeded"


def test_a_tenants_ceiling_above_the_operators_is_refused(doors: Doors) -> None:
    ceilings = {"wall_seconds": 86_401, "pids": 0, "memory": "much", "gpus": 1}
    answer = doors.admin.put("/v1/tenants/ada", json={"ceilings": ceilings})

    assert answer.status_code == 422
    assert {fault["pointer"] for fault in answer.json()["errors"]} == {
        "/ceilings/wall_seconds",
        "/ceilings/pids",
        "/ceilings/memory",
        "/ceilings/gpus",
    }


def test_a_large_environment_counts_as_what_is_kept(doors: Doors) -> None:
    doors.allow("ada", storage_bytes=20_000)
    large = {**TRUE, "env": {"LARGE": "x" * 30_000}}
    refused = doors.ada.post("/v1/jobs", json=large)
    accepted = doors.ada.post("/v1/jobs", json=TRUE, headers=WAIT).json()
    used_bytes = doors.ada.get("/v1/quotas").json()["storage"]["used_bytes"]

    assert whose(refused) == (429, "storage_bytes", "tenant")
    assert accepted["state"] == "succeeded"
    assert 0 < used_bytes < 10_000


def test_what_is_kept_is_bounded_and_given_back_with_the_job(doors: Doors) -> None:
    doors.allow("ada", storage_bytes=100_000)
    script = "head -c 60000 /dev/zero | tr '\\0' x; head -c 30000 /dev/zero > a; head -c 30000 /dev/zero > b"
    job = {"image": "host", "command": ["sh", "-c", script], "outputs": ["a", "b"]}
    first = doors.ada.post("/v1/jobs", json=job, headers=WAIT).json()
    second = doors.ada.post("/v1/jobs", json=job, headers=WAIT).json()
    refused = doors.ada.post("/v1/jobs", json=TRUE)
    told = doors.ada.get("/v1/quotas").json()["storage"]
    used = doors.ada.get("/v1/usage").json()["storage_bytes"]
    files = doors.ada.get(f"/v1/jobs/{first['id']}/artifacts").json()["data"]
    content = doors.ada.get(f"/v1/jobs/{first['id']}/artifacts/a")
    directory = doors.service.data_dir / "artifacts"
    on_the_disk = [path.stat().st_size for path in directory.iterdir()]
    deleted = doors.ada.delete(f"/v1/jobs/{first['id']}")
    then = doors.ada.post("/v1/jobs", json=TRUE, headers=WAIT).json()
    left = doors.ada.get("/v1/quotas").json()["storage"]["used_bytes"]

    assert (first["state"], second["state"]) == ("succeeded", "succeeded")
    assert first["artifacts_passed_over"] == [{"path": "b", "reason": "storage_quota"}]
    assert [each["path"] for each in files] == ["a"]
    assert content.content == bytes(30_000)
    assert on_the_disk == [30_000]
    assert second["streams"]["stdout"]["truncated"]
    assert 0 < len(second["stdout"]) < 10_000
    assert second["stdout"] == "x" * second["streams"]["stdout"]["size_bytes"]
    assert [each["path"] for each in second["artifacts_passed_over"]] == ["a", "b"]
    assert (refused.status_code, refused.json()["policy"]) == (429, "storage_bytes")
    # What is said of what was dropped may be beyond it.
    assert 99_900 < told["used_bytes"] < 100_500
    assert told["most_bytes"] == 100_000
    assert used == told["used_bytes"]
    assert deleted.status_code == 204
    assert then["state"] == "succeeded"
    assert left < 20_000
