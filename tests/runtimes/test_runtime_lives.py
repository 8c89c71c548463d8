"""What is left of a job with an OCI runtime when the service dies, and what `sandboxd doctor` says of runtimes."""

import json
from pathlib import Path

import pytest
from running_service import running_service
from waiting import wait_for

from sandboxd.isolation.features import Status
from sandboxd.isolation.runtime_features import probe_runtime
from sandboxd.isolation.spec import OciRuntime

pytestmark = pytest.mark.thorough


def test_a_service_that_is_killed_takes_runtime_and_command_along(
    prepared_host: None, oci: OciRuntime
) -> None:
    with running_service(flags=("--no-auth",), runtimes_it_path=oci.path) as service:
        with service.client() as client:
            words = ["sh", "-c", "setsid sleep 600 & echo ready; sleep 600"]
            job = client.submit(words, runtime="it")
            wait_for(lambda: b"ready" in client.get(job.id).stdout, "it runs")

            service.kill()  # It waits until all that was below it is gone.

        service.start()
        with service.client() as client:
            ended = client.wait(job.id)
            assert (ended.state, ended.reason) == ("error", "service_lost")
            assert client.run(["echo", "again"], runtime="it").text == "again\n"
            service.assert_nothing_left(client)
        assert "/tree" not in Path("/proc/self/mountinfo").read_text()


def test_a_service_that_is_stopped_in_the_middle_of_a_start_leaves_nothing(
    prepared_host: None, oci: OciRuntime
) -> None:
    """`running_service` sees to it that nothing is left."""
    with (
        running_service(flags=("--no-auth",), runtimes_it_path=oci.path) as service,
        service.client() as client,
    ):
        jobs = [client.submit(["sleep", "600"], runtime="it") for _ in range(3)]
        wait_for(lambda: client.get(jobs[0].id).state != "queued", "one is on its way")


def test_the_doctor_tries_a_runtime(oci: OciRuntime) -> None:
    feature = probe_runtime(oci, id_map="auto", show_cgroup=False)

    assert (feature.name, feature.status) == (f"runtime {oci.name}", Status.OK), feature
    assert feature.detail.startswith(f"{oci.name} version 1")
    assert "ran a command in" in feature.detail


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nowhere/runc", "is not there"),
        ("/usr/bin/true", "does not work"),
        ("/usr/bin/sleep", "does not"),
    ],
)
def test_the_doctor_warns_of_a_runtime_that_does_not_work(path: str, words: str) -> None:
    feature = probe_runtime(OciRuntime("odd", path), id_map="auto", show_cgroup=False)

    assert feature.status is Status.WARNING
    assert words in feature.detail
    assert feature.remedy


def test_the_doctor_says_that_a_runtime_needs_subordinate_ids(oci: OciRuntime) -> None:
    feature = probe_runtime(oci, id_map="single", show_cgroup=False)

    assert feature.status is Status.WARNING
    assert "subordinate ids" in feature.detail


def test_the_table_has_a_row_for_each_runtime(prepared_host: None, oci: OciRuntime) -> None:
    with running_service(flags=("--no-auth",), runtimes_my_own_path=oci.path) as service:
        doctor = service.command("doctor", "--json")

        rows = {row["name"]: row["status"] for row in json.loads(doctor.stdout)["features"]}
        assert rows["runtime my-own"] == "ok"
        shown = service.command("config", "show")
        assert "runtimes.my-own.path" in shown.stdout


def test_every_attack_is_stopped_where_a_runtime_starts_it(
    prepared_host: None, oci: OciRuntime
) -> None:
    """The walls are the same, so the attempts of `sandboxd attack` must fail in the same way."""
    with running_service(flags=("--no-auth",), runtimes_it_path=oci.path) as service:
        ended = service.command("attack", "--url", service.url, "--runtime", "it", "--json")

    report = json.loads(ended.stdout)
    outcomes = {each["name"]: each["outcome"] for each in report["attempts"]}
    assert {name: how for name, how in outcomes.items() if how != "stopped"} == {}
    assert len(outcomes) > 50
    assert ended.returncode == 0


def test_the_command_line_runs_a_job_with_a_runtime(prepared_host: None, oci: OciRuntime) -> None:
    """Without a service, too."""
    with running_service(flags=("--no-auth",), runtimes_it_path=oci.path) as service:
        ran = service.command("run", "--runtime", "it", "--", "sh", "-c", "echo hello; exit 3")
        refused = service.command("run", "--runtime", "other", "true")

    assert (ran.returncode, ran.stdout) == (3, "hello\n")
    assert refused.returncode == 125
    assert "/runtime: there is no such runtime here; there are: native, it" in refused.stderr
