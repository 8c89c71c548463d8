"""Where there are no subordinate ids: the same walls but one, and the record says so."""

from collections.abc import Iterator
from subprocess import CompletedProcess

import patient_http
import pytest
from running_service import RunningService, data_directory, running_service

from sandboxd.client import Client


@pytest.fixture(scope="module")
def single(prepared_host: None) -> Iterator[RunningService]:
    with running_service(isolation_id_map="single", isolation_parked_sandboxes=1) as service:
        yield service


@pytest.fixture
def single_client(single: RunningService) -> Iterator[Client]:
    with single.client() as connected:
        yield connected
        single.assert_nothing_left(connected)


def test_a_job_runs_and_its_record_says_how(single_client: Client) -> None:
    job = single_client.run(["sh", "-c", "id -u; grep -E 'CapEff|Seccomp:' /proc/self/status"])

    assert job.state == "succeeded", job.error
    assert job.text.split() == ["1000", "CapEff:", "0000000000000000", "Seccomp:", "2"]
    assert job.enforcement["walls"]["id_map"] == "single"
    assert single_client.system()["isolation"]["id_map"] == "single"


@pytest.mark.parametrize("user", ["0", "1000", "65534"])
def test_a_job_can_still_be_any_one_user(single_client: Client, user: str) -> None:
    script = "id -u; touch f && stat -c %u f; touch /usr/x"

    job = single_client.run(["sh", "-c", script], user=user)

    assert job.text.split() == [user, user]
    assert b"Read-only file system" in job.stderr or b"Permission denied" in job.stderr


def test_limits_hold_all_the_same(single_client: Client) -> None:
    hog = ["python3", "-c", "b'x' * 2**30"]

    assert single_client.run(hog, limits={"memory": "32Mi"}).state == "out_of_memory"
    assert single_client.run(["sleep", "600"], limits={"wall_seconds": 0.2}).state == "timed_out"


def test_a_job_cannot_signal_or_see_the_service_whose_id_it_has(
    single: RunningService, single_client: Client
) -> None:
    script = "kill -s KILL -1; cat /proc/1/environ; ls /proc"

    job = single_client.run(["bash", "-c", script])

    assert str(single.process.pid) not in job.text.split()
    assert single.process.poll() is None


def test_a_job_that_demands_more_is_refused(single: RunningService) -> None:
    request = {"image": "host", "command": ["true"], "require": {"id_map": "range"}}

    answer = patient_http.post(f"{single.url}/v1/jobs", json=request)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/require/id_map"]


# More than one tenant


@pytest.fixture
def unstarted(prepared_host: None) -> Iterator[RunningService]:
    """A service with keys that has not been started yet."""
    with data_directory() as data_dir:
        data_dir.mkdir(mode=0o700)
        service = RunningService(data_dir, flags=(), isolation_id_map="single")
        yield service
        if hasattr(service, "process") and service.process.poll() is None:
            service.kill()


def make_key(service: RunningService, tenant: str) -> "CompletedProcess[str]":
    return service.command("keys", "create", "k", "--tenant", tenant, "--scope", "admin")


def test_a_second_tenant_gets_no_key_from_the_command_line(unstarted: RunningService) -> None:
    first, more, second = (make_key(unstarted, tenant) for tenant in ("ann", "ann", "bob"))

    assert (first.returncode, more.returncode) == (0, 0)
    assert (second.returncode, second.stdout) == (1, "")
    assert 'tenant "ann" has keys already' in second.stderr
    assert "isolation.single_id_many_tenants" in second.stderr


def test_a_second_tenant_gets_no_key_from_the_service_until_the_first_has_none(
    unstarted: RunningService,
) -> None:
    key = make_key(unstarted, "ann").stdout.strip()
    unstarted.start()

    with unstarted.http(key) as http:
        refused = http.post("/v1/keys", json={"name": "k", "tenant": "bob"})
        same = http.post("/v1/keys", json={"name": "k", "tenant": "ann"})
        (mine,) = (each["id"] for each in http.get("/v1/keys").json()["data"][:1])
        http.delete(f"/v1/keys/{same.json()['id']}")
    unstarted.stop()
    unstarted.command("keys", "revoke", mine)

    assert (refused.status_code, refused.json()["code"]) == (409, "one_tenant_only")
    assert same.status_code == 201
    assert make_key(unstarted, "bob").returncode == 0


def test_a_service_with_keys_of_two_tenants_does_not_start_unless_that_is_accepted(
    prepared_host: None,
) -> None:
    with data_directory() as data_dir:
        data_dir.mkdir(mode=0o700)
        settings = {"isolation_id_map": "single"}
        accepting = RunningService(
            data_dir, flags=(), isolation_single_id_many_tenants="true", **settings
        )
        made = [make_key(accepting, tenant) for tenant in ("ann", "bob")]
        refusing = RunningService(data_dir, flags=(), **settings)

        refused = refusing.command("serve", "--listen", "127.0.0.1:0", "--metrics-listen", "")
        accepting.start()
        accepting.stop()

    assert [each.returncode for each in made] == [0, 0]
    assert refused.returncode == 1
    assert "keys of 2 tenants (ann, bob)" in refused.stderr
    assert "sandboxd setup" in refused.stderr
