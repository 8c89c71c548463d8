"""`sandboxd run` without a service: a real sandbox in this process, as transparent as a shell."""

import hashlib
import json
import os
import pwd
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from command_line import Outcome, environment, sandboxd

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]

BUSYBOX = Path("/usr/bin/busybox")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def run(data: str, *words: str, stdin: bytes = b"") -> Outcome:
    return sandboxd("run", "--data-dir", data, *words, stdin=stdin)


def start(data: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "sandboxd", "run", "--data-dir", data, *words],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_input_output_and_error_output_pass_through(data: str) -> None:
    ended = run(data, "--", "sh", "-c", "cat; echo oops >&2; exit 7", stdin=b"hello")

    assert ended == (7, "hello", "oops\n")


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (["--", "sh", "-c", "kill -SEGV $$"], 139, "SIGSEGV"),
        (["--wall-seconds", "0.3", "sleep", "60"], 124, "0.3 s of wall time"),
        (["no-such-program"], 127, "no-such-program"),
        (["/etc/passwd"], 126, "/etc/passwd"),
        (["--output-bytes", "10", "yes"], 137, "10 B of output"),
    ],
    ids=["signal", "timeout", "not found", "not executable", "output limit"],
)
def test_an_end_that_would_puzzle_is_told_in_one_sentence(
    data: str, words: list[str], exit_code: int, sentence: str
) -> None:
    ended = run(data, *words)

    assert ended.code == exit_code
    assert ended.errors.startswith("sandboxd: ")
    assert ended.errors.count("\n") == 1
    assert sentence in ended.errors


def test_every_fault_is_told_with_exit_code_125(data: str) -> None:
    ended = run(data, "--cpus", "100000", "--image", "No", "true")

    assert ended.code == 125
    assert "/limits/cpus: " in ended.errors
    assert "/image: " in ended.errors


def test_an_unknown_image_is_told_with_exit_code_125(data: str) -> None:
    ended = run(data, "--image", "absent", "true")

    assert ended.code == 125
    assert "absent" in ended.errors


def test_64_mib_pass_unharmed(data: str) -> None:
    content = os.urandom(2**20) * 64

    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "sandboxd",
            "run",
            "--data-dir",
            data,
            "--output-bytes",
            "65Mi",
            "cat",
        ],
        input=content,
        env=environment(),
        capture_output=True,
        check=True,
    )

    assert hashlib.sha256(ended.stdout).digest() == hashlib.sha256(content).digest()


def test_the_record_is_that_of_the_api(data: str) -> None:
    ended = run(data, "--json", "--", "sh", "-c", "echo out; printf '\\377' >&2; exit 3")

    record = json.loads(ended.output)
    assert ended.code == 3
    assert (record["state"], record["exit"]["code"]) == ("failed", 3)
    assert (record["stdout"], record["stderr"]) == ("out\n", {"base64": "/w=="})
    assert record["usage"]["wall_seconds"] > 0


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_and_then_us(
    data: str, number: signal.Signals, exit_code: int
) -> None:
    with start(data, "sh", "-c", "echo up; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)

        assert process.wait(30) == exit_code
        assert process.stdout.read() == b""


def test_a_reader_that_has_seen_enough_ends_it_quietly(data: str) -> None:
    with start(data, "yes") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()

        assert process.wait(30) == 141
        assert process.stderr.read() == b""


@pytest.mark.skipif(not BUSYBOX.exists(), reason="needs busybox-static")
def test_an_image_is_imported_listed_used_and_removed(data: str, tmp_path: Path) -> None:
    archive = tmp_path / "rootfs.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)

    imported = sandboxd("images", "import", "box", str(archive), "--data-dir", data)
    listed = sandboxd("images", "list", "--data-dir", data)
    used = run(data, "--image", "box", "--", "/bin/sh", "-c", "echo from $0")
    removed = sandboxd("images", "remove", "box", "--data-dir", data)
    gone = run(data, "--image", "box", "/bin/sh")

    assert imported.output.startswith(f"imported box into {data}: ")
    assert [line.split("\t")[0] for line in listed.output.splitlines()] == ["name", "host", "box"]
    assert used == (0, "from /bin/sh\n", "")
    assert removed.output == "removed box\n"
    assert gone.code == 125
    assert 'no image "box" here' in gone.errors
    assert "sandboxd images import" in gone.errors


def test_an_archive_that_is_none_is_refused(data: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no tar")

    ended = sandboxd("images", "import", "box", str(tmp_path / "text"), "--data-dir", data)

    assert ended.code == 1
    assert ended.errors.startswith("sandboxd: ")
    assert "bug" not in ended.errors


def test_an_archive_that_cannot_be_read_names_who_cannot(data: str, tmp_path: Path) -> None:
    closed = tmp_path / "closed.tar"
    closed.touch(mode=0)

    for path in (closed, tmp_path / "nothing.tar"):
        ended = sandboxd("images", "import", "box", str(path), "--data-dir", data)
        user = pwd.getpwuid(os.geteuid()).pw_name
        assert f"{path} does not exist, or user {user} may not read it" in ended.errors


def test_a_bad_image_name_is_explained_once(data: str, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    archive.touch()

    ended = sandboxd("images", "import", "B B", str(archive), "--data-dir", data)

    assert ended.errors.count("lower-case letters") == 1
