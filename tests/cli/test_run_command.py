"""`sandboxd run` on a service behaves like the command itself: streams, exit code, signals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from api_service import Service
from command_line import Outcome, environment, sandboxd

from sandboxd.client import Client


def run(service: Service, *words: str, stdin: bytes = b"") -> Outcome:
    return sandboxd("run", "--url", service.url, *words, stdin=stdin)


@contextmanager
def running(service: Service, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", "sandboxd", "run", "--url", service.url, *words],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        yield process


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def only_job(service: Service, label: str) -> str:
    with Client(service.url) as client:
        (job,) = client.list(labels={"test": label}).data
        return client.wait(job.id, timeout_seconds=30).state


def test_input_output_and_error_output_pass_through(service: Service) -> None:
    ended = run(service, "--", "sh", "-c", "cat; echo oops >&2", stdin=b"hello")

    assert ended == (0, "hello", "oops\n")


def test_binary_content_passes_unharmed(service: Service) -> None:
    content = bytes(range(256)) * 1000

    ended = subprocess.run(
        [sys.executable, "-m", "sandboxd", "run", "--url", service.url, "cat"],
        input=content,
        env=environment(),
        capture_output=True,
        check=True,
    )

    assert ended.stdout == content


@pytest.mark.parametrize(
    ("script", "exit_code"),
    [("exit 0", 0), ("exit 1", 1), ("exit 255", 255), ("kill -SEGV $$", 139), ("kill $$", 143)],
)
def test_the_exit_code_is_that_of_the_command(
    service: Service, script: str, exit_code: int
) -> None:
    assert run(service, "--", "sh", "-c", script).code == exit_code


def test_a_command_that_runs_out_of_time_ends_as_timeout_ends_it(service: Service) -> None:
    assert run(service, "--wall-seconds", "0.2", "--", "sleep", "60").code == 124


def test_options_of_the_command_are_not_taken_for_ours(service: Service) -> None:
    assert run(service, "echo", "--json", "-i").output == "--json -i\n"


def test_options_reach_the_job(service: Service) -> None:
    ended = run(
        service, "--json", "--memory", "64Mi", "--cpus", "500m", "--network-bytes", "1Mi", "--swap", "0", "--env", "A=b=c",
        "--label", "test=options", "--workdir", "/", "--", "sh", "-c", "echo $A; pwd",
    )  # fmt: skip

    job = json.loads(ended.output)
    assert job["stdout"] == "b=c\n/\n"
    assert (job["limits"]["memory"], job["limits"]["cpus"]) == (64 * 2**20, 0.5)
    assert (job["limits"]["network_bytes"], job["limits"]["swap"]) == (2**20, 0)
    assert job["labels"] == {"test": "options"}


def test_every_fault_of_a_request_is_told_with_exit_code_125(service: Service) -> None:
    ended = run(service, "--cpus", "1000", "--image", "No", "true")

    assert ended.code == 125
    assert "/limits/cpus" in ended.errors
    assert "/image" in ended.errors


def test_an_unknown_image_is_told_with_exit_code_125(service: Service) -> None:
    ended = run(service, "--image", "absent", "true")

    assert ended.code == 125
    assert "absent" in ended.errors


def test_detached_the_id_is_printed_and_the_job_goes_on(service: Service) -> None:
    job_id = run(service, "--detach", "--label", "test=detached", "true").output.strip()

    assert job_id.startswith("job_")
    assert only_job(service, "detached") == "succeeded"


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_cancels_the_job_and_waits_for_its_end(
    service: Service, number: signal.Signals, exit_code: int
) -> None:
    label = f"signal-{number}"
    with running(service, "--label", f"test={label}", "sh", "-c", "echo up; exec sleep 60") as job:
        assert read_line(job) == b"up\n"
        job.send_signal(number)
        assert job.wait(30) == exit_code
        errors = job.stderr.read() if job.stderr else b""

    assert only_job(service, label) == "cancelled"
    assert b"Traceback" not in errors


def test_a_signal_that_was_ignored_stays_ignored(service: Service, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo up; while [ ! -e {gate} ]; do sleep 0.01; done"
    ours = [sys.executable, "-m", "sandboxd", "run", "--url", service.url, "sh", "-c", script]
    with subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *ours],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as job:
        assert read_line(job) == b"up\n"
        job.send_signal(signal.SIGHUP)
        gate.touch()

        assert job.wait(30) == 0


def test_output_comes_while_the_job_runs(service: Service, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo first; while [ ! -e {gate} ]; do sleep 0.01; done; echo second"
    with running(service, "sh", "-c", script) as job:
        assert read_line(job) == b"first\n"
        gate.touch()
        assert read_line(job) == b"second\n"
        assert job.wait(30) == 0


def test_a_reader_that_has_seen_enough_cancels_the_job_quietly(service: Service) -> None:
    with running(service, "--label", "test=pipe", "sh", "-c", "yes") as job:
        assert read_line(job) == b"y\n"
        assert job.stdout is not None
        job.stdout.close()
        assert job.wait(30) == 141
        assert job.stderr is not None
        assert job.stderr.read() == b""

    assert only_job(service, "pipe") in ("cancelled", "output_limit")


def test_input_from_a_terminal_is_not_waited_for(service: Service) -> None:
    ours, theirs = os.openpty()
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "sandboxd", "run", "--url", service.url, "wc", "-c"],
            stdin=theirs,
            env=environment(),
            capture_output=True,
            timeout=30,
            check=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)

    assert ended.stdout == b"0\n"


def test_input_from_a_terminal_is_read_when_asked_for(service: Service) -> None:
    ours, theirs = os.openpty()
    try:
        os.write(ours, b"typed\n\x04")
        ended = subprocess.run(
            [sys.executable, "-m", "sandboxd", "run", "--url", service.url, "-i", "cat"],
            stdin=theirs,
            env=environment(),
            capture_output=True,
            timeout=30,
            check=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)

    assert ended.stdout == b"typed\n"


def test_the_service_may_come_from_the_environment(service: Service) -> None:
    assert sandboxd("run", "echo", "hello", SANDBOXD_URL=service.url).output == "hello\n"


@pytest.mark.as_root
def test_without_a_service_root_is_sent_to_another_user() -> None:
    ended = sandboxd("run", "true")

    assert ended.code == 125
    assert "runuser -u sandboxd -- sandboxd run true" in ended.errors
