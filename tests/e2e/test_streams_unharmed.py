"""What goes through a job's three streams arrives byte for byte, and never blocks the job or the service."""

import hashlib
import os

import pytest
from running_service import RunningService

from sandboxd.client import Client

MIB = 2**20
ALL_BYTES = bytes(range(256))


def test_64_mib_go_through_stdin_to_stdout_unharmed(client: Client) -> None:
    sent = os.urandom(64 * MIB)

    job = client.run(["cat"], stdin=sent, limits={"output_bytes": "64Mi"})

    assert job.state == "succeeded", job.error
    assert job.streams["stdout"].size_bytes == len(sent)
    assert not job.streams["stdout"].truncated
    received = client.read_log(job.id, stream="stdout")
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


def test_output_that_is_not_text_makes_the_round_trip(client: Client) -> None:
    job = client.run(["cat"], stdin=ALL_BYTES * 100)

    assert job.state == "succeeded", job.error
    assert job.stdout == ALL_BYTES * 100
    assert client.read_log(job.id) == ALL_BYTES * 100


def test_output_that_is_not_text_is_base64_in_json_and_text_is_text(
    real_service: RunningService,
) -> None:
    script = r"printf 'caf\303\251'; printf '\377\000' >&2"
    request = {"image": "host", "command": ["sh", "-c", script]}
    with real_service.http() as http:
        job = http.post("/v1/jobs", json=request, headers={"prefer": "wait=30"}).json()

    assert job["stdout"] == "café"
    assert job["stderr"] == {"base64": "/wA="}


def test_10_000_lines_on_both_streams_are_in_order_in_each(client: Client) -> None:
    script = "for i in $(seq 10000); do echo out $i; echo err $i >&2; done"

    job = client.run(["bash", "-c", script])

    assert job.state == "succeeded", job.error
    numbers = range(1, 10_001)
    out = client.read_log(job.id, stream="stdout").decode().splitlines()
    err = client.read_log(job.id, stream="stderr").decode().splitlines()
    assert out == [f"out {number}" for number in numbers]
    assert err == [f"err {number}" for number in numbers]
    assert len(client.read_log(job.id).splitlines()) == 20_000


def test_the_merged_log_keeps_what_came_first_first(client: Client) -> None:
    script = "echo 1; sleep 1; echo 2 >&2; sleep 1; echo 3"

    assert client.read_log(client.run(["sh", "-c", script]).id) == b"1\n2\n3\n"


def test_an_empty_input_ends_at_once(client: Client) -> None:
    assert client.run(["wc", "-c"]).text == "0\n"


def test_a_job_need_not_read_its_input(client: Client) -> None:
    large = b"x" * (16 * MIB)

    never = client.run(["true"], stdin=large)
    some = client.run(["head", "-c", "3"], stdin=large)
    closed = client.run(["sh", "-c", "exec <&-; sleep 0.1; echo done"], stdin=large)

    assert (never.state, some.stdout, closed.text) == ("succeeded", b"xxx", "done\n")


@pytest.mark.attack(48)
def test_a_job_that_does_not_read_its_input_costs_the_service_no_memory_but_the_input(
    client: Client, real_service: RunningService
) -> None:
    """Attack 48."""
    script = "import time; print('ready', flush=True); time.sleep(600)"
    job = client.submit(["python3", "-c", script], stdin=b"x" * (16 * MIB))
    next(client.logs(job.id, follow=True))

    others = [client.run(["true"]) for _ in range(3)]
    client.cancel(job.id, grace_seconds=0)

    assert client.wait(job.id).state == "cancelled"
    assert {other.state for other in others} == {"succeeded"}


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_job_may_close_its_output_and_go_on(client: Client, stream: str) -> None:
    number = {"stdout": 1, "stderr": 2}[stream]
    other = 3 - number

    job = client.run(["sh", "-c", f"exec {number}>&-; sleep 0.05; echo still here >&{other}"])

    assert job.state == "succeeded"
    assert job.stdout + job.stderr == b"still here\n"


@pytest.mark.attack(46)
def test_escapes_nul_and_broken_utf_8_in_output_stay_as_they_are(client: Client) -> None:
    """Attack 46."""
    odd = b"\x1b[2J\x1b]0;title\x07\0\xff\xfe\xc3(\xed\xa0\x80\r\n\x85"

    job = client.run(["cat"], stdin=odd)

    assert job.state == "succeeded", job.error
    assert job.stdout == odd
    assert b"".join(piece.data for piece in client.logs(job.id)) == odd


@pytest.mark.attack(46)
def test_a_line_without_end_is_kept_up_to_the_limit(client: Client, neighbour: None) -> None:
    """Attack 46."""
    script = "tr '\\0' x </dev/zero"

    job = client.run(["sh", "-c", script], limits={"output_bytes": "1Mi"})

    assert (job.state, job.reason) == ("output_limit", "output_bytes")
    assert job.streams["stdout"].truncated
    assert client.read_log(job.id) == b"x" * MIB


@pytest.mark.parametrize("redirect", ["", ">&2"])
@pytest.mark.attack(46)
def test_a_flood_of_output_ends_the_job_and_keeps_the_first_part(
    client: Client, neighbour: None, redirect: str
) -> None:
    """Attack 46."""
    job = client.run(["sh", "-c", f"yes {redirect}"], limits={"output_bytes": "4Mi"})

    assert job.state == "output_limit"
    assert client.read_log(job.id) == b"y\n" * (2 * MIB)
    assert job.error is not None
    assert job.error.message == "wrote more than 4.2 MB of output; the first 4.2 MB are kept"
    assert job.exit is not None
    assert job.exit.stopped_by == "output_bytes"


def test_output_of_exactly_the_limit_is_no_flood(client: Client) -> None:
    job = client.run(["head", "-c", "65536", "/dev/zero"], limits={"output_bytes": 65536})

    assert job.state == "succeeded"
    assert not job.streams["stdout"].truncated
