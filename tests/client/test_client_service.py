"""Both clients against the real API: what the README promises of them."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from api_service import Service

from sandboxd.client import (
    AsyncClient,
    Client,
    Conflict,
    InvalidRequest,
    KeyRefused,
    NotFound,
    State,
    Stream,
    WaitTimedOut,
)

SLEEP = ["sleep", "60"]


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


def test_a_command_runs_and_its_output_comes_back(client: Client) -> None:
    job = client.run(["sh", "-c", "cat; echo oops >&2; exit 3"], stdin="hello")

    assert (job.state, job.exit_code) == (State.FAILED, 3)
    assert (job.stdout, job.text, job.stderr) == (b"hello", "hello", b"oops\n")
    assert job.usage is not None
    assert job.usage.wall_seconds > 0
    assert job.started_at is not None
    assert job.started_at.tzinfo is not None


def test_a_command_runs_for_asyncio_too(service: Service) -> None:
    async def run() -> tuple[str, list[bytes]]:
        async with AsyncClient(service.url) as client:
            job = await client.run(["echo", "hello"])
            return job.text, [piece.data async for piece in client.logs(job.id)]

    assert asyncio.run(run()) == ("hello\n", [b"hello\n"])


def test_binary_input_and_output_are_unharmed(client: Client) -> None:
    content = bytes(range(256))

    assert client.run(["cat"], stdin=content).stdout == content


def test_a_log_is_longer_than_what_comes_with_the_job(client: Client) -> None:
    job = client.run(["head", "-c", "300000", "/dev/zero"])

    assert job.streams[Stream.STDOUT].size_bytes == 300_000
    assert len(job.stdout) < 300_000
    assert client.read_log(job.id) == bytes(300_000)
    assert b"".join(piece.data for piece in client.logs(job.id)) == bytes(300_000)


def test_streams_can_be_read_apart(client: Client) -> None:
    job = client.run(["sh", "-c", "echo out; echo err >&2"])

    assert client.read_log(job.id, stream="stderr") == b"err\n"
    assert [piece.data for piece in client.logs(job.id, stream="stdout")] == [b"out\n"]


def test_a_log_is_followed_while_the_job_runs(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo first; while [ ! -e {gate} ]; do sleep 0.01; done; echo second"
    job = client.submit(["sh", "-c", script])
    pieces = client.logs(job.id, follow=True)

    first = next(pieces).data
    state_then = client.get(job.id).state
    gate.touch()

    assert first == b"first\n"
    assert state_then is State.RUNNING
    assert b"".join(piece.data for piece in pieces) == b"second\n"
    assert client.get(job.id).is_terminal


def test_a_log_can_be_read_from_the_middle(client: Client) -> None:
    job = client.run(["printf", "abcdef"])

    pieces = client.logs(job.id, follow=True, after_bytes=2)

    assert b"".join(piece.data for piece in pieces) == b"cdef"


def test_a_job_is_cancelled(client: Client) -> None:
    job = client.submit(SLEEP)

    client.cancel(job.id, reason="enough", grace_seconds=0)

    assert client.wait(job.id).state is State.CANCELLED


def test_waiting_has_a_patience(client: Client) -> None:
    job = client.submit(SLEEP)

    with pytest.raises(WaitTimedOut):
        client.wait(job.id, timeout_seconds=0.1)

    client.cancel(job.id)


def test_a_run_that_is_interrupted_cancels_its_job(service: Service) -> None:
    async def interrupt() -> str:
        async with AsyncClient(service.url) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.run(SLEEP, labels={"test": "interrupted"}), 3)
            (job,) = (await client.list(labels={"test": "interrupted"})).data
            return (await client.wait(job.id)).state

    assert asyncio.run(interrupt()) == State.CANCELLED


def test_jobs_are_listed_page_by_page(client: Client) -> None:
    ids = [client.run(["true"], labels={"test": "pages"}).id for _ in range(3)]

    first = client.list(labels={"test": "pages"}, limit=2)
    every = list(client.list_all(labels={"test": "pages"}, limit=2))

    assert first.has_more
    assert [job.id for job in first.data] == ids[:0:-1]
    assert [job.id for job in every] == ids[::-1]


def test_jobs_are_listed_by_state_and_time(client: Client) -> None:
    job = client.run(["false"], labels={"test": "filters"})
    hour = timedelta(hours=1)
    now = datetime.now(UTC)

    def found(**options: object) -> list[str]:
        page = client.list(labels={"test": "filters"}, **options)  # type: ignore[arg-type]
        return [found.id for found in page.data]

    assert found(states=["failed"]) == [job.id]
    assert found(states=["succeeded", State.RUNNING]) == []
    assert found(since=now - hour, until=now + hour) == [job.id]
    assert found(since=now + hour) == []


def test_events_tell_the_life_of_a_job(client: Client) -> None:
    job = client.run(["true"])

    states = [event.state for event in client.events(job.id)]

    assert states[0] is State.QUEUED
    assert states[-1] is State.SUCCEEDED


def test_a_record_is_deleted_only_after_the_end(client: Client) -> None:
    running = client.submit(SLEEP)
    ended = client.run(["true"])

    with pytest.raises(Conflict):
        client.delete(running.id)
    client.delete(ended.id)
    with pytest.raises(NotFound):
        client.get(ended.id)

    client.cancel(running.id)


def test_every_fault_of_a_request_is_in_the_error(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.submit([], limits={"cpus": -1}, image="No Such")

    pointers = {fault.pointer for fault in caught.value.faults}
    assert pointers == {"/command", "/limits/cpus", "/image"}
    assert caught.value.code == "invalid"
    assert caught.value.request_id


def test_the_service_tells_of_itself_and_its_images(client: Client) -> None:
    assert client.system()["version"]
    assert [image.name for image in client.images()] == ["host"]


def test_keys_open_the_service_and_are_made_and_revoked(tmp_path: Path) -> None:
    with Service(auth=True).running(tmp_path) as service:
        with Client(service.url) as nobody, pytest.raises(KeyRefused):
            nobody.submit(["true"])
        with Client(service.url, key=service.make_key()) as admin:
            made = admin.create_key("ci", scopes=["jobs:read", "jobs:write"], ttl_seconds=60)
            with Client(service.url, key=made.key) as client:
                assert client.run(["true"]).state is State.SUCCEEDED
                with pytest.raises(KeyRefused):
                    client.list_keys()
                admin.revoke_key(made.id)
                with pytest.raises(KeyRefused):
                    client.submit(["true"])
            assert made.id in [key.id for key in admin.list_keys() if key.revoked_at]
