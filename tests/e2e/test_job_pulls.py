"""Jobs whose images have to come first: from a real registry, one pull for all who wait, and nobody else is held up."""

import time
from pathlib import Path

import patient_http
import pytest
from pulling_service import SLOTS, Pulling, a_pulling_service, hold, name_of
from registries import Proxy
from waiting import TIME_FACTOR, wait_for


def test_a_job_whose_image_is_missing_pulls_it_and_runs(pulling: Pulling) -> None:
    reference = pulling.push()

    job = pulling.client.run(image=reference)
    again = pulling.client.run(image=reference)

    assert job.state == "succeeded", job.error
    assert job.text == f"here {name_of(reference)}\n"
    assert job.command == ("cat", "/mark")
    assert pulling.reasons(job) == [
        *("submitted", "claimed", "image_pull_started", "image_pulled", "started", "exited")
    ]
    events = {str(event.reason): event for event in pulling.client.events(job.id)}
    assert {event.state for event in list(events.values())[1:4]} == {"starting"}
    assert events["image_pull_started"].message == reference
    assert (events["image_pulled"].message or "").startswith(f"{job.image_digest}: ")
    assert job.usage is not None
    assert job.usage.pull_seconds > 0
    assert job.usage.setup_seconds < job.usage.pull_seconds
    assert again.image_digest == job.image_digest
    assert again.usage is not None
    assert again.usage.pull_seconds == 0
    assert "image_pulled" not in pulling.reasons(again)
    assert pulling.proxy.count(f"{name_of(reference)}/manifests") == 1


def test_many_jobs_at_once_make_one_pull(pulling: Pulling) -> None:
    reference = pulling.push()
    gate = hold(pulling, reference)
    jobs = [pulling.client.submit(image=reference) for _ in range(12)]
    wait_for(lambda: pulling.capacity()["pulling"] >= SLOTS, "as many wait for it as can start")
    waiting = pulling.client.get(jobs[-1].id).waiting
    gate.set()

    ended = [pulling.client.wait(job.id) for job in jobs]

    assert waiting is not None
    assert waiting.for_ == "image"
    assert [job.state for job in ended] == ["succeeded"] * 12
    assert {job.text for job in ended} == {f"here {name_of(reference)}\n"}
    assert pulling.proxy.count(f"{name_of(reference)}/manifests") == 1
    blobs = [path for path in pulling.proxy.asked if f"{name_of(reference)}/blobs" in path]
    assert len(set(blobs)) == len(blobs) >= 2


def test_a_job_whose_image_is_here_is_not_delayed_by_pulls(pulling: Pulling) -> None:
    references = [pulling.push() for _ in range(3)]
    gates = [hold(pulling, reference) for reference in references]
    waiting = [pulling.client.submit(image=each) for each in references for _ in range(3)]
    wait_for(lambda: pulling.capacity()["pulling"] >= 3 * SLOTS, "all slots' jobs wait")

    ready = [pulling.client.run(["true"]) for _ in range(5)]
    capacity = pulling.capacity()
    for gate in gates:
        gate.set()
    ended = [pulling.client.wait(job.id) for job in waiting]

    assert [job.state for job in ready] == ["succeeded"] * 5
    assert (capacity["busy"], capacity["held"]) == (0, 0)
    assert [job.state for job in ended] == ["succeeded"] * 9


def test_a_job_can_be_cancelled_while_its_image_comes(pulling: Pulling) -> None:
    reference = pulling.push()
    gate = hold(pulling, reference)
    job = pulling.client.submit(image=reference)
    wait_for(lambda: pulling.proxy.count(f"{name_of(reference)}/blobs"), "it is being pulled")
    seen = pulling.client.get(job.id)

    pulling.client.cancel(job.id)
    ended = pulling.client.wait(job.id, 10 * TIME_FACTOR)
    gate.set()

    assert (seen.state, seen.reason) == ("starting", "image_pull_started")
    assert (ended.state, ended.reason) == ("cancelled", "cancelled_by_client")
    assert reference not in {image.name for image in pulling.client.images()}


def test_who_goes_away_leaves_the_pull_to_the_others(pulling: Pulling) -> None:
    reference = pulling.push()
    gate = hold(pulling, reference)
    first, second = (pulling.client.submit(image=reference) for _ in range(2))
    wait_for(lambda: pulling.capacity()["pulling"] == 2, "both wait")
    time.sleep(0.5)  # They count from a moment before they wait for the same.
    pulling.client.cancel(first.id)
    pulling.client.wait(first.id)
    gate.set()

    ended = pulling.client.wait(second.id)

    assert ended.state == "succeeded"
    assert pulling.proxy.count(f"{name_of(reference)}/manifests") == 1


def test_a_pull_that_takes_too_long_is_given_up(pulling: Pulling) -> None:
    reference = pulling.push()
    gate = hold(pulling, reference)

    job = pulling.client.run(image=reference, limits={"pull_seconds": 0.2})
    gate.set()

    assert (job.state, job.reason) == ("error", "image_failed")
    assert job.error is not None
    assert (job.error.component, job.error.code) == ("image", "image_pull_timeout")
    assert job.error.message == f"{reference} was not here after 0.2 s"


def test_a_job_may_not_wait_longer_than_the_operator_lets_it(pulling: Pulling) -> None:
    answer = patient_http.post(
        f"{pulling.service.url}/v1/jobs",
        json={"image": "a/b", "limits": {"pull_seconds": 601}},
    )

    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": "/limits/pull_seconds", "detail": "601.0 is not from 0 to 600.0"}
    ]


def test_what_the_registry_does_not_have_is_its_sentence(pulling: Pulling) -> None:
    reference = f"{pulling.proxy.authority}/team/nothing:1"

    job = pulling.client.run(image=reference)

    assert (job.state, job.reason) == ("error", "image_failed")
    assert job.error is not None
    assert (job.error.component, job.error.code) == ("image", "not_in_registry")
    assert job.error.message.startswith(f"{pulling.proxy.authority} has no team/nothing:1")
    assert pulling.reasons(job)[-2:] == ["image_pull_started", "image_failed"]


def test_a_registry_that_is_down_is_an_error_and_may_be_tried_again(pulling: Pulling) -> None:
    gone = Proxy(pulling.registry.authority)
    gone.close()

    job = pulling.client.run(image=f"{gone.authority}/team/tools:1", retry={"max_attempts": 2})

    assert (job.state, job.reason, job.attempt) == ("error", "image_failed", 2)
    assert job.error is not None
    assert job.error.code == "registry_failed"
    assert pulling.reasons(job).count("image_pull_started") == 2


def test_never_is_404_and_asks_nobody(pulling: Pulling) -> None:
    reference = pulling.push()
    body = {"image": reference, "pull": "never"}

    answer = patient_http.post(f"{pulling.service.url}/v1/jobs", json=body)
    pulling.client.run(image=reference)
    job = pulling.client.run(image=reference, pull="never")

    assert answer.status_code == 404
    assert answer.json()["code"] == "image_not_found"
    assert job.state == "succeeded"
    assert pulling.proxy.count(f"{name_of(reference)}/manifests") == 1


@pytest.mark.parametrize("pull", ["always", "missing", "never"])
def test_an_import_and_host_are_never_pulled(pulling: Pulling, pull: str) -> None:
    job = pulling.client.run(["true"], pull=pull)
    answer = patient_http.post(
        f"{pulling.service.url}/v1/jobs", json={"image": "unknown", "command": ["x"], "pull": pull}
    )

    assert job.state == "succeeded"
    assert answer.status_code == 404


def test_always_asks_each_time_and_fetches_what_changed(pulling: Pulling) -> None:
    reference = pulling.push("old")
    name = name_of(reference)
    old = pulling.client.run(image=reference, pull="always")
    blobs = pulling.proxy.count(f"{name}/blobs")
    same = pulling.client.run(image=reference, pull="always")
    blobs_again = pulling.proxy.count(f"{name}/blobs")
    pulling.push_as(name, "new")
    kept = pulling.client.run(image=reference)
    new = pulling.client.run(image=reference, pull="always")

    assert [job.text for job in (old, same, kept, new)] == [
        *(f"old {name}\n",) * 3,
        f"new {name}\n",
    ]
    assert old.image_digest == same.image_digest == kept.image_digest != new.image_digest
    assert blobs == blobs_again >= 2  # Its base may be here already.
    assert pulling.proxy.count(f"{name}/blobs") == blobs + 2
    assert pulling.proxy.count(f"{name}/manifests") == 3


def test_always_is_an_error_if_the_registry_is_down_although_the_image_is_here(
    pulling: Pulling,
) -> None:
    reference = pulling.push()
    pulling.client.run(image=reference)
    pulling.proxy.behind = "127.0.0.1:1"
    try:
        job = pulling.client.run(image=reference, pull="always")
        ready = pulling.client.run(image=reference)
    finally:
        pulling.proxy.behind = pulling.registry.authority

    assert (job.state, job.reason) == ("error", "image_failed")
    assert ready.state == "succeeded"


def test_a_dry_run_says_what_is_known(pulling: Pulling) -> None:
    reference = pulling.push()
    address = f"{pulling.service.url}/v1/jobs?dry_run=true"
    unknown = patient_http.post(address, json={"image": reference, "args": ["/x"]}).json()
    job = pulling.client.run(image=reference)
    known = patient_http.post(address, json={"image": reference, "args": ["/x"]}).json()
    always = patient_http.post(address, json={"image": reference, "pull": "always"}).json()

    assert (unknown["image_digest"], unknown["command"], unknown["args"]) == (None, [], ["/x"])
    assert (known["image_digest"], known["command"]) == (job.image_digest, ["cat", "/x"])
    assert always["image_digest"] is None


def test_an_image_that_says_nothing_is_found_out_when_it_is_here(pulling: Pulling) -> None:
    reference = pulling.push(run=None)

    job = pulling.client.run(image=reference)
    answer = patient_http.post(f"{pulling.service.url}/v1/jobs", json={"image": reference})

    assert (job.state, job.reason) == ("error", "image_failed")
    assert job.error is not None
    assert job.error.code == "no_command"
    assert answer.status_code == 422


def test_a_job_is_run_again_in_an_image_that_was_removed(pulling: Pulling) -> None:
    reference = pulling.push()
    job = pulling.client.run(image=reference, args=["/mark", "/mark"])
    retried = patient_http.post(f"{pulling.service.url}/v1/jobs/{job.id}/retry").json()

    again = pulling.client.wait(retried["id"])

    assert again.text == 2 * f"here {name_of(reference)}\n"
    assert again.command == ("cat", "/mark", "/mark")


def test_a_sandbox_pulls_its_image(pulling: Pulling) -> None:
    reference = pulling.push()
    refused = patient_http.post(
        f"{pulling.service.url}/v1/sandboxes", json={"image": reference, "pull": "never"}
    )

    with pulling.client.sandbox(image=reference, limits={"memory": "64Mi"}) as sandbox:
        done = sandbox.exec(["cat", "/mark"])

    assert refused.status_code == 404
    assert done.text == f"here {name_of(reference)}\n"


@pytest.mark.thorough
def test_a_service_that_is_stopped_during_pulls_ends_in_good_order(
    prepared_host: None, tmp_path: Path
) -> None:
    with a_pulling_service(tmp_path) as pulling:
        reference = pulling.push()
        gate = hold(pulling, reference)
        job = pulling.client.submit(image=reference)
        steps = iter(pulling.client.pull(pulling.push_as(f"{name_of(reference)}-2", "x")))
        next(steps)
        wait_for(lambda: pulling.capacity()["pulling"] == 1, "it waits")
        pulling.service.stop()
        gate.set()
        pulling.service.start()

        ended = pulling.client.wait(job.id)
        again = pulling.client.run(image=reference)

    assert (ended.state, ended.reason) == ("error", "shutdown")
    assert again.state == "succeeded"


@pytest.mark.thorough
def test_a_crash_during_a_pull_loses_no_job(prepared_host: None, tmp_path: Path) -> None:
    with a_pulling_service(tmp_path) as pulling:
        client, service = pulling.client, pulling.service
        reference = pulling.push()
        gate = hold(pulling, reference)
        lost = client.submit(image=reference)
        repeated = client.submit(image=reference, retry={"max_attempts": 2})
        waiting = client.submit(image=reference)
        wait_for(lambda: pulling.capacity()["pulling"] == 2, "two of them wait for it")
        service.kill()
        gate.set()
        service.start()

        ended = [client.wait(job.id) for job in (lost, repeated, waiting)]

    assert [(job.state, job.attempt) for job in ended] == [
        *(("error", 1), ("succeeded", 2), ("succeeded", 1))
    ]
    assert ended[0].reason == "service_lost"
    assert ended[0].error is not None
    assert "the command did not run" in ended[0].error.message
