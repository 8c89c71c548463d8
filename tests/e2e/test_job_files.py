"""Files into a job and out of it, over HTTP: what is placed, what is kept, and what tricks with paths come to."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running_service import RunningService

MIB = 2**20


@pytest.fixture
def http(real_service: RunningService) -> Iterator[httpx2.Client]:
    with real_service.http() as connected:
        yield connected


def run(http: httpx2.Client, *command: str, **more: Any) -> Any:
    """The job at its end."""
    body = {"image": "host", "command": command, **more}
    answer = http.post("/v1/jobs", json=body, headers={"prefer": "wait=30"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def shell(http: httpx2.Client, script: str, **more: Any) -> Any:
    return run(http, "sh", "-c", script, **more)


def python(http: httpx2.Client, source: str, **more: Any) -> Any:
    return run(http, "python3", "-c", source, **more)


def kept(job: Any) -> dict[str, int]:
    return {each["path"]: each["size_bytes"] for each in job["artifacts"]}


def passed_over(job: Any) -> dict[str, str]:
    return {each["path"]: each["reason"] for each in job.get("artifacts_passed_over", [])}


# In


def test_files_are_there_when_the_command_starts(http: httpx2.Client) -> None:
    job = shell(
        http,
        "stat -c '%n %a %F %u' src/main.c run.sh empty /tmp/deep/er/x; cat src/main.c; ./run.sh; xxd -p /tmp/deep/er/x",
        files=[
            {"path": "src/main.c", "content": "int main;\n"},
            {"path": "./run.sh", "content": "#!/bin/sh\necho ran\n", "mode": "0755"},
            {"path": "empty", "directory": True, "mode": 0o700},
            {"path": "/tmp/deep/er/x", "content": {"base64": "/wD+"}, "mode": 0o400},
        ],
        user="1234:1234",
    )

    assert job["stdout"].splitlines() == [
        "src/main.c 644 regular file 1234",
        "run.sh 755 regular file 1234",
        "empty 700 directory 1234",
        "/tmp/deep/er/x 400 regular file 1234",
        "int main;",
        "ran",
        "ff00fe",
    ]
    assert job["files"] == [
        {"path": "src/main.c", "mode": "0644", "size_bytes": 10},
        {"path": "./run.sh", "mode": "0755", "size_bytes": 19},
        {"path": "empty", "mode": "0700", "directory": True},
        {"path": "/tmp/deep/er/x", "mode": "0400", "size_bytes": 3},
    ]
    assert "artifacts" not in job


def test_files_are_below_the_working_directory_that_the_job_names(http: httpx2.Client) -> None:
    job = shell(
        http, "pwd; cat a", workdir="/tmp/some/where", files=[{"path": "a", "content": "x"}]
    )

    assert job["stdout"] == "/tmp/some/where\nx"


def test_a_thousand_files(http: httpx2.Client) -> None:
    files = [{"path": f"d{n % 10}/{n}.txt", "content": f"{n}\n"} for n in range(1000)]

    job = shell(http, "cat d*/*.txt | sort -n | uniq | wc -l", files=files, outputs=["d*"])

    assert job["stdout"] == "1000\n"
    # 10 directories and 990 files: the limit of what may match.
    assert len(kept(job)) == 990
    assert list(passed_over(job).values()) == ["too_many"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/usr/bin/evil", "Read-only file system"),
        ("/etc/passwd", "Permission denied"),
        ("/work", "Permission denied"),
        ("link/x", None),
    ],
)
def test_a_file_that_cannot_be_made_ends_the_job_before_its_command(
    http: httpx2.Client, path: str, why: str | None
) -> None:
    files = [{"path": "link", "content": "a file"}] if path == "link/x" else []
    body = {"image": "host", "command": ["echo", "ran"], "files": [*files, {"path": path}]}
    answer = http.post("/v1/jobs", json=body, headers={"prefer": "wait=30"})
    if why is None:
        assert answer.status_code == 422
        return

    job = answer.json()
    assert (job["state"], job["reason"]) == ("failed", "file_unusable")
    assert job["error"]["component"] is None
    assert job["error"]["message"] == f"the file {path} cannot be made: {why}"
    assert "started_at" not in job or job["started_at"] is None
    assert job["stdout"] == ""


def test_files_beyond_the_disk_limit_are_told_with_the_limit(http: httpx2.Client) -> None:
    job = run(
        http, "true", files=[{"path": "big", "content": "x" * 9 * MIB}], limits={"disk": "8Mi"}
    )

    assert (job["state"], job["reason"]) == ("failed", "file_unusable")
    assert job["error"]["message"] == (
        "the file /work/big cannot be made: No space left on device; limits.disk is 8.4 MB"
    )


def test_files_beyond_the_memory_limit_are_out_of_memory(http: httpx2.Client) -> None:
    limits = {"disk": "256Mi", "memory": "32Mi"}

    job = run(http, "true", files=[{"path": "big", "content": "x" * 90 * MIB}], limits=limits)

    assert job["state"] == "out_of_memory"


def test_a_hundred_megabytes_both_ways(http: httpx2.Client) -> None:
    content = bytes(range(256)) * (75 * MIB // 256)
    encoded = base64.b64encode(content).decode()

    job = run(
        http,
        "cp",
        "in",
        "out",
        files=[{"path": "in", "content": {"base64": encoded}}],
        outputs=["out"],
        limits={"disk": "256Mi", "memory": "512Mi"},
    )

    assert job["state"] == "succeeded", job["error"]
    assert job["artifacts"] == [
        {
            "path": "out",
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "mode": "0644",
        }
    ]


# Out


def test_what_matches_is_kept_with_size_mode_and_digest(http: httpx2.Client) -> None:
    job = shell(
        http,
        "mkdir -p out/sub /tmp/t; printf 123 > out/a; printf 4567 > out/sub/b; chmod 700 out/sub/b;"
        "printf x > skipped; printf y > /tmp/t/c; : > none",
        outputs=["out", "/tmp/t/*", "none", "missing"],
    )

    assert job["artifacts"] == [
        {"path": path, "size_bytes": len(text), "sha256": digest(text), "mode": mode}
        for path, text, mode in [
            ("out/a", "123", "0644"),
            ("out/sub/b", "4567", "0700"),
            ("/tmp/t/c", "y", "0644"),
            ("none", "", "0644"),
        ]
    ]
    assert passed_over(job) == {"missing": "not_found"}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_command_that_fails_leaves_its_files_too(http: httpx2.Client) -> None:
    job = shell(http, "echo partial > out; exit 3", outputs=["out"])

    assert (job["state"], job["exit"]["code"]) == ("failed", 3)
    assert kept(job) == {"out": 8}


@pytest.mark.parametrize(
    ("script", "limits", "state"),
    [
        ("sleep 60", {"wall_seconds": 0.5}, "timed_out"),
        (
            "trap '' TERM INT; (setsid sleep 60 &) ; while :; do :; done",
            {"wall_seconds": 0.5},
            "timed_out",
        ),
        ("while :; do :; done", {"cpu_seconds": 0.3}, "timed_out"),
        ("yes", {"output_bytes": 100_000}, "output_limit"),
    ],
)
def test_a_command_that_is_stopped_by_a_limit_leaves_its_files_too(
    http: httpx2.Client, script: str, limits: dict[str, float], state: str
) -> None:
    job = shell(http, f"echo partial > out; {script}", outputs=["out"], limits=limits)

    assert job["state"] == state
    assert kept(job) == {"out": 8}
    assert job["exit"]["signal"] == "SIGKILL"


def test_files_of_a_command_that_ran_out_of_memory_are_kept_if_init_lives(
    http: httpx2.Client,
) -> None:
    job = python(
        http,
        "open('out', 'w').write('partial'); x = b'x' * 2**29",
        outputs=["out"],
        limits={"memory": "48Mi"},
    )

    assert job["state"] == "out_of_memory"
    assert kept(job) == {"out": 7}


@pytest.mark.attack(9, 31, 33, 34)
def test_nothing_but_regular_files_is_kept_and_nothing_is_followed_or_waited_for(
    http: httpx2.Client, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    tmp_path.chmod(0o755)
    source = f"""if True:
        import os, socket
        os.mkdir('out'); os.chdir('out')
        for name, target in {{'etc': '/etc/passwd', 'up': '../../../..{canary}', 'abs': '{canary}',
                             'proc': '/proc/self/environ', 'loop': 'loop', 'dir': '/etc', 'to_proc': '/proc/self'}}.items():
            os.symlink(target, name)
        os.mkfifo('fifo')
        socket.socket(socket.AF_UNIX).bind('socket')
        try:
            os.mknod('device', 0o20666, os.makedev(1, 3))
        except PermissionError:
            pass
        with open('sparse', 'wb') as sparse:
            sparse.truncate(10**13)
        open('unreadable', 'w').close(); os.chmod('unreadable', 0)
        open(b'\\xff', 'w').close()
        open('good', 'w').write('good')
    """

    job = python(http, source, outputs=["out", "out/to_proc/*", "/proc/self/m*"])

    assert kept(job) == {"out/good": 4}
    told = passed_over(job)
    assert {path: why for path, why in told.items() if why != "proc"} == {
        "out/abs": "symlink",
        "out/dir": "symlink",
        "out/etc": "symlink",
        "out/fifo": "fifo",
        "out/loop": "symlink",
        "out/proc": "symlink",
        "out/socket": "socket",
        "out/sparse": "too_large",
        "out/to_proc": "symlink",
        "out/unreadable": "EACCES",
        "out/up": "symlink",
        "out/\\xff": "not_utf8",
    }
    assert told["out/to_proc/maps"] == told["/proc/self/mem"] == "proc"
    assert canary.read_text() == "alive"
