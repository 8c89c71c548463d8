"""Files into a job and out of it, over HTTP: what is placed, what is kept, and what tricks with paths come to."""

import base64
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_service import exchange
from running_service import RunningService, data_directory, running_service
from waiting import wait_for

from sandboxd.ids import new_id

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
        ("sleep 60", {"wall_seconds": 3}, "timed_out"),
        (
            "trap '' TERM INT; (setsid sleep 60 &) ; while :; do :; done",
            {"wall_seconds": 3},
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


# Getting them


@pytest.fixture(scope="module")
def left(real_service: RunningService) -> Any:
    """A job that left files of all kinds of names."""
    with real_service.http() as http:
        return python(
            http,
            "import os; os.makedirs('out/deep'); os.makedirs('/tmp/abs')\n"
            "open('out/a b.txt', 'w').write('0123456789')\n"
            "open('out/deep/é\"\\n;x', 'w').write('odd')\n"
            "open('out/empty', 'w')\n"
            "open('/tmp/abs/x', 'wb').write(bytes(range(256)) * 10_000)\n",
            outputs=["out", "/tmp/abs/*"],
        )


def at(job: Any, path: str) -> str:
    return f"{job['links']['artifacts']}/{path}"


def test_the_list_is_that_of_the_job(http: httpx2.Client, left: Any) -> None:
    listed = http.get(left["links"]["artifacts"]).json()

    assert listed == {"data": left["artifacts"]}
    assert [each["path"] for each in left["artifacts"]] == [
        "out/a b.txt",
        'out/deep/é"\n;x',
        "out/empty",
        "/tmp/abs/x",
    ]
    assert http.get(f"/v1/jobs/{left['id']}").json()["artifacts"] == left["artifacts"]
    page = http.get("/v1/jobs", params={"limit": 1}).json()["data"]
    assert "artifacts" not in page[0]
    assert "files" not in page[0]


def test_a_file_is_downloaded_as_it_was(http: httpx2.Client, left: Any) -> None:
    answer = http.get(at(left, "tmp/abs/x"))

    assert answer.content == bytes(range(256)) * 10_000
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == 'attachment; filename="x"'
    assert http.get(at(left, "out/empty")).content == b""


@pytest.mark.parametrize(
    ("asked", "status", "content", "range_told"),
    [
        ("bytes=2-5", 206, b"2345", "bytes 2-5/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-1000", 206, b"56789", "bytes 5-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_a_part_of_a_file(
    http: httpx2.Client,
    left: Any,
    asked: str,
    status: int,
    content: bytes | None,
    range_told: str | None,
) -> None:
    answer = http.get(at(left, "out/a b.txt"), headers={"range": asked})

    assert answer.status_code == status
    assert answer.headers.get("content-range") == range_told
    if content is not None:
        assert answer.content == content
        assert answer.headers["content-length"] == str(len(content))


def test_a_part_only_of_the_file_that_is_meant(http: httpx2.Client, left: Any) -> None:
    url, part = at(left, "out/a b.txt"), {"range": "bytes=0-0"}
    etag = http.head(url).headers["etag"]

    assert http.get(url, headers=part | {"if-range": etag}).status_code == 206
    assert http.get(url, headers=part | {"if-range": '"other"'}).status_code == 200
    assert http.get(url, headers={"if-none-match": etag}).status_code == 304
    assert http.get(url, headers={"if-none-match": '"other"'}).status_code == 200


def test_head_tells_the_size_and_sends_nothing(http: httpx2.Client, left: Any) -> None:
    for path in ("tmp/abs/x", "out/empty"):
        whole, head = http.get(at(left, path)), http.head(at(left, path))

        assert head.content == b""
        assert dict(head.headers) | {"x-request-id": "", "date": ""} == dict(whole.headers) | {
            "x-request-id": "",
            "date": "",
        }


def test_all_files_come_as_one_archive(http: httpx2.Client, left: Any) -> None:
    answer = http.get(left["links"]["artifacts"], headers={"accept": "application/x-tar"})

    assert answer.headers["content-length"] == str(len(answer.content))
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        members = archive.getmembers()
        found = {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    assert {name: len(content) for name, content in found.items()} == {
        path.lstrip("/"): size for path, size in kept(left).items()
    }
    assert found['out/deep/é"\n;x'] == b"odd"
    assert {member.mode for member in members} == {0o644}


@pytest.mark.parametrize("path", ["nothing", "out", "out/deep", "/", "out/a%20b.txt/"])
def test_what_the_job_did_not_leave_is_not_there(http: httpx2.Client, left: Any, path: str) -> None:
    assert http.get(at(left, path)).status_code in (400, 404)


@pytest.mark.attack(33, 35)
@pytest.mark.parametrize("path", ["../../../../etc/passwd", "..%2f..%2fx", "%2e%2e/x", "out//a"])
def test_a_path_that_climbs_is_refused(real_service: RunningService, left: Any, path: str) -> None:
    target = f"/v1/jobs/{left['id']}/artifacts/{path}"
    answer = exchange(
        real_service.port, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )

    assert answer.startswith(b"HTTP/1.1 400 ")


def test_deleting_a_job_deletes_its_files(
    http: httpx2.Client, real_service: RunningService
) -> None:
    job = shell(http, "echo x > out", outputs=["out"])
    content = real_service.data_dir / "artifacts" / job["id"]
    assert content.read_bytes() == b"x\n"
    assert content.stat().st_mode & 0o777 == 0o600

    assert http.delete(f"/v1/jobs/{job['id']}").status_code == 204

    assert not content.exists()
    assert http.get(job["links"]["artifacts"]).status_code == 404


def test_files_go_with_the_record_when_its_time_is_over(
    http: httpx2.Client, real_service: RunningService
) -> None:
    job = shell(http, "echo x > out", outputs=["out"], ttl_seconds=0.1)
    content = real_service.data_dir / "artifacts" / job["id"]

    wait_for(lambda: not content.exists(), "the files are gone")


def test_a_job_that_is_run_again_has_its_files_again(http: httpx2.Client) -> None:
    first = shell(http, "cat a > out", files=[{"path": "a", "content": "x"}], outputs=["out"])

    answer = http.post(f"/v1/jobs/{first['id']}/retry", headers={"prefer": "wait=30"}).json()

    assert answer["state"] == "succeeded"
    assert answer["files"] == first["files"]
    assert http.get(at(answer, "out")).content == b"x"


def test_files_of_a_job_that_waits_outlast_the_service(prepared_host: None) -> None:
    with running_service(flags=("--no-auth", "--slots", "1")) as service:
        with service.http() as http:
            body = {"image": "host", "command": ["sleep", "60"]}
            first = http.post("/v1/jobs", json=body).json()
            body = {
                "image": "host",
                "command": ["cat", "a"],
                "files": [{"path": "a", "content": "kept"}],
            }
            second = http.post("/v1/jobs", json=body).json()
            assert second["state"] == "queued"
        service.kill()
        service.start()
        with service.http() as http:
            assert http.get(f"/v1/jobs/{first['id']}?wait=30").json()["state"] == "error"
            assert http.get(f"/v1/jobs/{second['id']}?wait=30").json()["stdout"] == "kept"


def test_what_a_killed_service_left_of_files_is_swept_up(prepared_host: None) -> None:
    with running_service() as service:
        with service.http() as http:
            kept_job = shell(http, "echo x > out", outputs=["out"])
        service.kill()
        directory = service.data_dir / "artifacts"
        orphan = directory / new_id("job")
        orphan.write_bytes(b"of an attempt that never ended")
        other = directory / "README"
        other.write_text("not ours")
        service.start()
        with service.http() as http:
            assert http.get(at(kept_job, "out")).content == b"x\n"
        assert not orphan.exists()
        assert other.exists()


def test_a_disk_without_space_ends_the_job_as_the_storages_fault(prepared_host: None) -> None:
    with running_service(files_min_free_bytes=2**50) as service:
        with service.http() as http:
            job = shell(http, "echo x > out; echo told", outputs=["out"])
            again = shell(http, "echo well")

        assert (job["state"], job["reason"]) == ("error", "files_failed")
        assert job["error"]["component"] == "storage"
        assert (
            "kept for the record" in job["error"]["message"] or "space" in job["error"]["message"]
        )
        assert job["stdout"] == "told\n"
        assert job["artifacts"] == []
        assert list((service.data_dir / "artifacts").iterdir()) == []
        assert again["stdout"] == "well\n"


def test_more_than_a_job_may_leave_is_passed_over(prepared_host: None) -> None:
    with running_service(files_max_artifact_bytes=1000, files_max_artifacts=3) as service:
        with service.http() as http:
            job = shell(
                http,
                "head -c 600 /dev/zero > a; head -c 600 /dev/zero > b; echo c > c; echo d > d",
                outputs=["*"],
            )

        assert kept(job) == {"a": 600, "c": 2}
        assert passed_over(job) == {"b": "too_large", "d": "too_many"}


def test_a_file_that_never_ends_is_cut_at_the_time_limit(prepared_host: None) -> None:
    """What init reads never ends where another process of the sandbox writes on; here a slow disk stands for it."""
    with running_service(files_transfer_seconds=0.01) as service:
        with service.http() as http:
            limits = {"disk": "256Mi", "memory": "512Mi"}
            script = "head -c 200000000 /dev/zero > out"
            job = shell(http, script, outputs=["out"], limits=limits)

        assert job["state"] == "succeeded"
        assert kept(job) == {}
        assert passed_over(job) == {"": "time_limit"}


@pytest.mark.attack(37)
def test_no_tenant_sees_the_files_of_another(prepared_host: None) -> None:
    with data_directory() as data_dir:
        data_dir.mkdir(mode=0o700)
        service = RunningService(data_dir, flags=())
        made = [
            service.command("keys", "create", "k", "--tenant", tenant) for tenant in ("ada", "bob")
        ]
        ada, bob = (each.stdout.strip() for each in made)
        service.start()
        try:
            look_at_files_of_another(service, ada, bob)
            service.stop()
        finally:
            if service.process.poll() is None:
                service.kill()


def look_at_files_of_another(service: RunningService, ada: str, bob: str) -> None:
    with service.http(ada) as http:
        job = shell(http, "echo secret > out", outputs=["out"])
        assert http.get(at(job, "out")).content == b"secret\n"
    with service.http(bob) as http:
        assert http.get(at(job, "out")).status_code == 404
        for accept in ("application/json", "application/x-tar"):
            listed = http.get(job["links"]["artifacts"], headers={"accept": accept})
            assert listed.status_code == 404
        assert http.post(f"/v1/jobs/{job['id']}/retry").status_code == 404
    with service.http() as http:
        assert http.get(at(job, "out")).status_code == 401
