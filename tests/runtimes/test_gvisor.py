"""Jobs with gVisor's runsc: a kernel of their own, and the same ends, output and limits."""

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from running_service import RunningService
from runtime_jobs import Run, end_of, python
from waiting import TIME_FACTOR

from sandboxd.client import Client, Job

GVISOR = "runsc"
MIB = 2**20

# Debian's runsc of 2022 does not know what its ls, stat and the like ask for (statx): so these tests do without them.


@pytest.fixture
def run(oci_service: RunningService, oci_client: Client) -> Iterator[Run]:
    """Afterwards nothing may be left of what ran."""

    def run_with(*argv: str, **options: Any) -> Job:
        return oci_client.run(list(argv), runtime=GVISOR, **options)

    yield run_with
    oci_service.assert_nothing_left(oci_client)


def test_the_command_has_a_kernel_of_its_own(run: Run) -> None:
    job = run(*python("import os; print(os.uname().release); print(os.uname().nodename)"))
    assert job.text == "4.4.0\nsandbox\n"
    assert job.enforcement["walls"]["seccomp"] == "gvisor"
    assert job.enforcement["walls"]["runtime"] == GVISOR
    assert "Starting gVisor" in run("dmesg").text


@pytest.mark.parametrize("code", [0, 1, 126, 128, 255])
def test_an_exit_code_is_that_code(run: Run, code: int) -> None:
    state = "failed" if code else "succeeded"
    assert end_of(run("sh", "-c", f"exit {code}")) == (state, "exited", code, None)


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "KILL", "TERM"])
def test_a_signal_is_that_signal(run: Run, name: str) -> None:
    expected = ("failed", "signalled", None, f"SIG{name}")
    assert end_of(run("sh", "-c", f"kill -s {name} $$")) == expected


def test_what_cannot_be_started_is_told(run: Run) -> None:
    job = run("no-such-program")
    assert (job.state, job.reason, job.text) == ("failed", "command_not_found", "")
    assert run("/etc/passwd").reason == "command_not_executable"


def test_both_outputs_and_the_input_pass_through_unharmed(run: Run) -> None:
    sent = bytes(range(256)) * (MIB // 256)
    job = run(
        *python("""
            import hashlib, sys
            seen = sys.stdin.buffer.read()
            sys.stdout.buffer.write(seen[:32768])
            sys.stderr.write(hashlib.sha256(seen).hexdigest())
        """),
        stdin=sent,
    )
    assert (job.state, job.stdout) == ("succeeded", sent[:32768])
    assert job.stderr.decode() == hashlib.sha256(sent).hexdigest()


def test_it_is_the_user_of_the_image_without_any_right_and_sees_only_its_own(run: Run) -> None:
    job = run(
        *python("""
            import os, socket
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            print(os.getuid(), status["CapEff"].strip(), status["CapBnd"].strip())
            print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[0])
            print([name for _, name in socket.if_nameindex()])
            print(os.environ["HOME"], os.getcwd())
        """)
    )
    assert job.text.splitlines() == [
        f"1000 {0:016x} {0:016x}",
        "1",
        "['lo']",
        "/home/sandbox /work",
    ], job.stderr


def test_nothing_outside_is_reached(run: Run) -> None:
    job = run(
        *python("""
            import socket
            for address in (("192.0.2.1", 80), ("169.254.169.254", 80)):
                try:
                    socket.create_connection(address, timeout=5)
                    print("reached")
                except OSError as error:
                    print(error.strerror)
        """)
    )
    assert job.text.splitlines() == ["No route to host"] * 2


def test_wall_time_ends_it(run: Run) -> None:
    begun = time.monotonic()
    job = run("sleep", "600", limits={"wall_seconds": 0.5})
    assert (job.state, job.reason) == ("timed_out", "wall_seconds")
    assert time.monotonic() - begun < 60 * TIME_FACTOR


def test_too_much_memory_is_out_of_memory(run: Run) -> None:
    take = "x = bytearray({} * 2**20); x[::4096] = b'1' * len(x[::4096]); print('took')"
    less = run("python3", "-c", take.format(64), limits={"memory": "128Mi"})
    more = run("python3", "-c", take.format(400), limits={"memory": "128Mi"})
    assert (less.state, less.text) == ("succeeded", "took\n")
    assert (more.state, more.text) == ("out_of_memory", "")


def test_the_scratch_is_bounded(run: Run) -> None:
    job = run(
        *python("""
            try:
                with open("/work/big", "wb") as file:
                    for _ in range(64):
                        file.write(b"x" * 2**20)
                        file.flush()
            except OSError as error:
                print(error.strerror)
        """),
        limits={"disk": "16Mi"},
    )
    assert job.text == "No space left on device\n"


def test_output_is_bounded(run: Run) -> None:
    job = run("yes", limits={"output_bytes": "64Ki"})
    assert (job.state, len(job.stdout)) == ("output_limit", 64 * 2**10)


def test_it_can_be_told_to_end(run: Run, oci_client: Client) -> None:
    code = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    job = oci_client.submit(["sh", "-c", code], runtime=GVISOR)
    next(oci_client.logs(job.id, follow=True))
    oci_client.cancel(job.id, grace_seconds=30)
    ended = oci_client.wait(job.id)
    assert (ended.state, ended.text) == ("cancelled", "ready\ntold\n")


def test_what_it_cannot_do_is_refused(oci_service: RunningService) -> None:
    job = {"image": "host", "command": ["true"], "runtime": GVISOR, "outputs": ["*"]}
    with oci_service.http() as http:
        answer = http.post("/v1/jobs", json=job)
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/outputs"]
