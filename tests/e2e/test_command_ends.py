"""How a command ends is told exactly, and in words."""

from typing import NamedTuple

import pytest

from sandboxd.client import Client, Job


class End(NamedTuple):
    state: str
    reason: str
    code: int | None
    signal: str | None
    sentence: str | None


def end_of(job: Job) -> End:
    assert job.exit is not None
    sentence = job.error.message if job.error else None
    return End(job.state, job.reason, job.exit.code, job.exit.signal, sentence)


@pytest.mark.parametrize("code", [1, 2, 126, 255])
def test_an_exit_code_other_than_0_is_a_failure_with_that_code(client: Client, code: int) -> None:
    job = client.run(["sh", "-c", f"exit {code}"])

    sentence = f"the command exited with status {code}"
    assert end_of(job) == End("failed", "exited", code, None, sentence)


def test_exit_code_0_is_success_and_needs_no_sentence(client: Client) -> None:
    assert end_of(client.run(["true"])) == End("succeeded", "exited", 0, None, None)


@pytest.mark.parametrize(
    ("signal", "number"), [("SEGV", 11), ("ABRT", 6), ("KILL", 9), ("TERM", 15), ("FPE", 8)]
)
def test_deaths_by_signals_are_told_apart(client: Client, signal: str, number: int) -> None:
    job = client.run(["sh", "-c", f"kill -s {signal} $$"])

    sentence = f"the command was ended by SIG{signal} (signal {number})"
    assert end_of(job) == End("failed", "signalled", None, f"SIG{signal}", sentence)
    assert job.exit is not None
    assert job.exit.stopped_by is None
    assert not job.exit.oom_killed


def test_a_real_time_signal_has_its_name_too(client: Client) -> None:
    assert end_of(client.run(["bash", "-c", "kill -s RTMIN+2 $$"])).signal == "SIGRTMIN+2"


@pytest.mark.parametrize(
    ("crash", "signal"),
    [("import ctypes; ctypes.string_at(0)", "SIGSEGV"), ("import os; os.abort()", "SIGABRT")],
)
def test_a_crash_by_itself_is_told_like_a_signal_that_was_sent(
    client: Client, crash: str, signal: str
) -> None:
    assert end_of(client.run(["python3", "-c", crash]))[:4] == ("failed", "signalled", None, signal)


def test_what_a_child_dies_of_is_not_what_the_command_ends_with(client: Client) -> None:
    job = client.run(["sh", "-c", "sh -c 'kill -s KILL $$'; echo child: $?"])

    assert job.state == "succeeded"
    assert job.text == "child: 137\n"


@pytest.mark.parametrize(
    ("command", "reason", "sentence"),
    [
        (["no-such-program"], "command_not_found", "exec no-such-program: ENOENT"),
        (["/no/such/program"], "command_not_found", "exec /no/such/program: ENOENT"),
        (["/etc/passwd/program"], "command_not_found", "exec /etc/passwd/program: ENOTDIR"),
        (["/etc/passwd"], "command_not_executable", "exec /etc/passwd: EACCES"),
        (["/usr"], "command_not_executable", "exec /usr: EACCES"),
        (["x" * 300], "command_not_executable", f"exec {'x' * 200}: ENAMETOOLONG"),
    ],
)
def test_a_command_that_cannot_be_started_is_a_failure_of_the_caller(
    client: Client, command: list[str], reason: str, sentence: str
) -> None:
    job = client.run(command)

    assert end_of(job) == End("failed", reason, None, None, sentence)
    assert job.error is not None
    assert job.error.component is None
    assert job.started_at is None


@pytest.mark.parametrize(
    ("workdir", "errno"),
    [
        ("/etc/passwd", "ENOTDIR"),
        ("/etc/passwd/below", "ENOTDIR"),
        ("/usr/new", "EROFS"),
        ("/etc/new", "EACCES"),
        ("/" + "d" * 300, "ENAMETOOLONG"),
    ],
)
@pytest.mark.attack(34)
def test_a_working_directory_that_cannot_be_used_is_a_failure_of_the_caller(
    client: Client, workdir: str, errno: str
) -> None:
    job = client.run(["true"], workdir=workdir)

    assert end_of(job)[:4] == ("failed", "workdir_unusable", None, None)
    assert job.error is not None
    assert job.error.message == f"chdir {workdir}: {errno}"


@pytest.mark.parametrize("number", range(3, 16))
@pytest.mark.attack(2)
def test_no_descriptor_of_ours_is_a_working_directory(client: Client, number: int) -> None:
    """Attack 2, CVE-2024-21626."""
    job = client.run(["cat", "/etc/passwd"], workdir=f"/proc/self/fd/{number}")

    assert job.reason == "workdir_unusable"
    assert job.stdout == b""


def test_the_root_of_process_1_is_the_root_of_the_job(client: Client) -> None:
    job = client.run(["sh", "-c", "pwd; ls; ls /"], workdir="/proc/1/root")

    place, *names = job.text.split()
    assert place == "/"
    assert names[: len(names) // 2] == names[len(names) // 2 :]


def test_a_working_directory_that_is_missing_is_made(client: Client) -> None:
    assert client.run(["pwd"], workdir="/tmp/a/b").text == "/tmp/a/b\n"


def test_arguments_and_variables_arrive_as_they_are(client: Client) -> None:
    words = ["", " ", "a b", "$HOME", "`id`", "new\nline", "-n", "ünïcödé", "\t", "'\"\\"]
    show = "import sys, os; print(repr((sys.argv[1:], os.environ['ODD'])))"

    job = client.run(["python3", "-c", show, *words], env={"ODD": "=a\nb= ü"})

    assert job.text == repr((words, "=a\nb= ü")) + "\n"


def test_the_longest_argument_is_passed_on(client: Client) -> None:
    longest = "x" * (128 * 2**10 - 1)

    job = client.run(["python3", "-c", "import sys; print(len(sys.argv[1]))", longest])

    assert job.text == f"{len(longest)}\n"


def test_a_command_is_found_by_the_path_that_the_job_sets(client: Client) -> None:
    found = client.run(["env"], env={"PATH": "/nowhere:/usr/bin"})
    missing = client.run(["env"], env={"PATH": "/nowhere"})

    assert found.state == "succeeded"
    assert missing.reason == "command_not_found"
