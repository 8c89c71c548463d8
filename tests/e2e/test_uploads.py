"""Files that are sent beside the job's JSON, in a form or as a tar archive: streamed, durable, and gone with the job's end."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running_service import RunningService, running_service
from waiting import wait_for

MIB = 2**20


@pytest.fixture
def http(real_service: RunningService) -> Iterator[httpx2.Client]:
    """Whose jobs and refusals leave nothing of what was uploaded."""
    with real_service.http() as connected:
        yield connected
    assert uploads_of(real_service) == []


def uploads_of(service: RunningService) -> list[Path]:
    directory = service.data_dir / "uploads"
    return sorted(directory.iterdir()) if directory.exists() else []


def job_of(script: str, **more: Any) -> dict[str, Any]:
    return {"image": "host", "command": ["sh", "-c", script], **more}


def send_form(
    http: httpx2.Client, job: Any, files: dict[str, bytes], **headers: str
) -> httpx2.Response:
    parts = {name: (name, content) for name, content in files.items()}
    job_part = (None, json.dumps(job), "application/json")
    return http.post(
        "/v1/jobs", files={"job": job_part, **parts}, headers={"prefer": "wait=60"} | headers
    )


def send_tar(http: httpx2.Client, job: Any, archive: bytes, **headers: str) -> httpx2.Response:
    fixed = {
        "content-type": "application/x-tar",
        "sandboxd-job": json.dumps(job),
        "prefer": "wait=60",
    }
    return http.post("/v1/jobs", content=archive, headers=fixed | headers)


def member(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(content)
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made, content


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:  # type: ignore[call-overload]
        for made, content in members:
            archive.addfile(made, io.BytesIO(content))
    return target.getvalue()


def test_a_form_brings_the_job_and_its_files(http: httpx2.Client) -> None:
    job = job_of(
        "cat inline src/a.txt; xxd -p 'b é'; stat -c '%a %n' src/a.txt",
        files=[{"path": "inline", "content": "inline\n"}],
        outputs=["src/*"],
    )

    answer = send_form(http, job, {"src/a.txt": b"from a form\n", "b é": b"\0\xff\r\n--x"})

    assert answer.status_code == 200, answer.text
    assert answer.json()["stdout"] == "inline\nfrom a form\n00ff0d0a2d2d78\n644 src/a.txt\n"
    assert answer.json()["files"] == [
        {"path": "inline", "mode": "0644", "size_bytes": 7},
        {"path": "src/a.txt", "mode": "0644", "size_bytes": 12},
        {"path": "b é", "mode": "0644", "size_bytes": 7},
    ]
    assert [each["path"] for each in answer.json()["artifacts"]] == ["src/a.txt"]


def test_an_archive_brings_files_with_modes_and_directories(http: httpx2.Client) -> None:
    archive = tar_of(
        member("./", type=tarfile.DIRTYPE, mode=0o755),
        member("./run.sh", b"#!/bin/sh\necho ran\n", mode=0o755),
        member("empty", type=tarfile.DIRTYPE, mode=0o711),
        member("d" * 200 + "/é", b"deep", mode=0o600),
        member("/tmp/abs", b"abs"),
    )

    job = job_of("./run.sh; stat -c %a empty; cat d*/é /tmp/abs")
    answer = send_tar(http, job, archive)

    assert answer.status_code == 200, answer.text
    assert answer.json()["stdout"] == "ran\n711\ndeepabs"


def test_an_archive_without_files_is_a_job_without_files(http: httpx2.Client) -> None:
    assert send_tar(http, job_of("ls"), tar_of()).json()["stdout"] == ""
    assert send_form(http, job_of("ls"), {}).json()["stdout"] == ""


@pytest.mark.attack(61, 62, 64)
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link is a symbolic link"),
        (member("hard", type=tarfile.LNKTYPE, linkname="good"), "hard is a hard link"),
        (member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "null is a device"),
        (member("disk", type=tarfile.BLKTYPE), "disk is a device"),
        (member("fifo", type=tarfile.FIFOTYPE), "fifo is a device or a FIFO"),
        (member("suid", b"x", mode=0o4755), "suid has a set-id bit"),
        (member("sgid", type=tarfile.DIRTYPE, mode=0o2755), "sgid has a set-id bit"),
        (member("sparse", b"x", type=tarfile.GNUTYPE_SPARSE), "sparse"),
        (member("odd", b"x", type=b"Z"), "odd is"),
    ],
)
def test_what_is_no_plain_file_is_refused_by_its_name(
    http: httpx2.Client, bad: tuple[tarfile.TarInfo, bytes], why: str
) -> None:
    answer = send_tar(http, job_of("ls"), tar_of(member("good", b"x"), bad))

    assert (answer.status_code, answer.json()["code"]) == (400, "archive_refused")
    assert why in answer.json()["detail"]


@pytest.mark.attack(61)
@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/proc/self/mem", "/dev/null", "/", "a" * 256]
)
@pytest.mark.parametrize("form", [True, False])
def test_a_name_that_may_not_be_is_told_at_its_pointer(
    http: httpx2.Client, name: str, form: bool
) -> None:
    if form:
        answer = send_form(http, job_of("ls"), {"good": b"x", name: b"x"})
    else:
        answer = send_tar(http, job_of("ls"), tar_of(member("good", b"x"), member(name, b"x")))

    assert answer.status_code == 422, answer.text
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == "/uploads/" + name.replace("/", "~1")


def test_a_file_of_the_upload_and_one_of_the_request_are_in_each_others_way(
    http: httpx2.Client,
) -> None:
    job = job_of("ls", files=[{"path": "a", "content": "x"}])

    answer = send_form(http, job, {"a": b"y", "a/b": b"z"})

    assert {fault["pointer"] for fault in answer.json()["errors"]} == {
        "/uploads/a",
        "/uploads/a~1b",
    }


@pytest.mark.attack(64, 65)
def test_archives_that_cannot_be_read_are_refused(http: httpx2.Client) -> None:
    whole = tar_of(member("a", b"x" * 5000), member("b", b"y"))
    huge_header = tarfile.TarInfo("h")
    huge_header.type, huge_header.size = tarfile.XHDTYPE, 3 * MIB
    sizes = tarfile.TarInfo("s").tobuf()
    cases = {
        "garbage": b"no archive" * 1000,
        "compressed": tar_of(member("a", b"x"), mode="w:gz"),
        "cut in a content": whole[:2000],
        "a header of megabytes": huge_header.tobuf() + bytes(4 * MIB),
        "a size beyond all": sizes[:124] + b"\x80" + b"\xff" * 11 + sizes[136:],
        "a name that is no text": tar_of(member("a", b"x")).replace(b"a\0", b"\xff\0", 1),
        "too many": tar_of(*(member(str(number)) for number in range(1001))),
        "headers without end": huge_chain(20_000),
        "a header that is one number": number_alone(MIB) + whole,
    }
    for case, archive in cases.items():
        answer = send_tar(http, job_of("ls"), archive)
        assert (answer.status_code, answer.json()["code"]) == (400, "archive_refused"), case


def huge_chain(count: int) -> bytes:
    """A header that says of the next that it says of the next …"""
    link = tarfile.TarInfo("x")
    link.type, link.size = tarfile.XHDTYPE, 0
    return link.tobuf() * count


def number_alone(size: int) -> bytes:
    """A header of PAX that keeps whoever reads it by regular expressions busy for minutes (CVE-2024-6232)."""
    link = tarfile.TarInfo("x")
    link.type, link.size = tarfile.XHDTYPE, size
    return link.tobuf() + b"1" * size


def test_forms_that_cannot_be_read_are_refused(http: httpx2.Client) -> None:
    def sent(body: bytes, content_type: str = "multipart/form-data; boundary=b") -> Any:
        return http.post("/v1/jobs", content=body, headers={"content-type": content_type})

    head = b'--b\r\nContent-Disposition: form-data; name="job"\r\n\r\n'
    good = head + json.dumps(job_of("true")).encode() + b"\r\n"
    cases = {
        "no boundary": sent(good + b"--b--\r\n", "multipart/form-data"),
        "no end": sent(good),
        "no job": sent(b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n'),
        "two jobs": sent(good + good + b"--b--\r\n"),
        "no name": sent(good + b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        "a header without end": sent(good + b"--b\r\n" + b"x" * 100_000),
        "an encoding": sent(
            good
            + b'--b\r\nContent-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: base64\r\n\r\neA==\r\n--b--\r\n'
        ),
        "nothing": sent(b""),
    }

    for case, answer in cases.items():
        assert (answer.status_code, answer.json()["code"]) == (400, "form_malformed"), case
    assert sent(head + b"{\r\n--b--\r\n").json()["code"] == "malformed"
    assert (
        send_form(http, {"image": "host"}, {"a": b"x"}).json()["errors"][0]["pointer"] == "/command"
    )
    answer = http.post("/v1/jobs", content=b"x", headers={"content-type": "application/x-tar"})
    assert answer.json()["code"] == "job_header_missing"
    assert sent(b"x", "text/plain").status_code == 415


def test_what_is_only_checked_leaves_nothing(http: httpx2.Client) -> None:
    parts = {"job": (None, json.dumps(job_of("true"))), "a": ("a", b"x")}

    answer = http.post("/v1/jobs?dry_run=true", files=parts)

    assert answer.json()["files"] == [{"path": "a", "mode": "0644", "size_bytes": 1}]


def test_the_same_form_sent_twice_is_one_job(http: httpx2.Client) -> None:
    def sent(content: bytes) -> httpx2.Response:
        return send_form(http, job_of("cat a"), {"a": content}, **{"idempotency-key": "upload-1"})

    first, second, other = sent(b"x"), sent(b"x"), sent(b"y")

    assert first.json()["stdout"] == "x"
    assert second.json()["id"] == first.json()["id"]
    assert second.headers["idempotency-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_a_job_whose_upload_is_gone_cannot_be_run_again(http: httpx2.Client) -> None:
    job = send_form(http, job_of("true"), {"a": b"x"}).json()

    answer = http.post(f"/v1/jobs/{job['id']}/retry")

    assert (answer.status_code, answer.json()["code"]) == (409, "upload_gone")


def test_three_hundred_megabytes_go_in_without_being_in_memory(
    http: httpx2.Client, real_service: RunningService
) -> None:
    block = bytes(range(256)) * (MIB // 256)
    archive_head, _ = member("big")
    archive_head.size = 300 * MIB

    def body() -> Iterator[bytes]:
        yield archive_head.tobuf()
        for _ in range(300):
            yield block
        yield bytes(1024)

    digest = hashlib.sha256(block * 300).hexdigest()
    job = job_of("sha256sum < big", limits={"disk": "512Mi", "memory": "1Gi"})
    before = peak_bytes(real_service)

    answer = send_tar(http, job, body())  # type: ignore[arg-type]

    assert answer.status_code == 200, answer.text
    assert answer.json()["stdout"].split()[0] == digest
    assert peak_bytes(real_service) - before < 40 * MIB


def peak_bytes(service: RunningService) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_more_than_may_be_uploaded_is_refused_while_it_is_read(prepared_host: None) -> None:
    with running_service(files_max_upload_bytes=MIB) as service, service.http() as http:
        declared = send_form(http, job_of("true"), {"a": bytes(2 * MIB)})
        endless = http.post(
            "/v1/jobs",
            content=(bytes(65536) for _ in iter(int, 1)),
            headers={"content-type": "application/x-tar", "sandboxd-job": "{}"},
        )

        assert [answer.status_code for answer in (declared, endless)] == [413, 413]
        assert uploads_of(service) == []


def test_an_upload_without_space_is_refused_for_now(prepared_host: None) -> None:
    with running_service(files_min_free_bytes=2**50) as service, service.http() as http:
        answer = send_form(http, job_of("true"), {"a": b"x"})

        assert (answer.status_code, answer.json()["code"]) == (503, "no_space")
        assert int(answer.headers["retry-after"]) > 0
        assert uploads_of(service) == []


def test_an_upload_outlasts_a_killed_service_until_its_job_has_ended(prepared_host: None) -> None:
    """kill -9 between the upload and the run, and again while it runs: each attempt has its files."""
    with running_service(flags=("--no-auth", "--slots", "1")) as service:
        with service.http() as http:
            http.post("/v1/jobs", json=job_of("sleep 60"))
            job = job_of("cat a; test -e /work/slow || sleep 60", retry={"max_attempts": 3})
            waiting = send_form(http, job, {"a": b"kept"}, prefer="").json()
            cancelled = send_form(http, job, {"a": b"gone"}, prefer="").json()
            assert waiting["state"] == "queued"
            http.post(f"/v1/jobs/{cancelled['id']}/cancel")
            assert [path.name for path in uploads_of(service)] == [waiting["id"]]
        for _ in range(2):
            service.kill()
            (service.data_dir / "uploads" / "job_00000000000000000000000000").write_text("orphan")
            service.start()
            with service.http() as http:
                wait_for(
                    lambda http=http: http.get(f"/v1/jobs/{waiting['id']}/logs").text == "kept",
                    "it runs with its file",
                )
            assert [path.name for path in uploads_of(service)] == [waiting["id"]]
        with service.http() as http:
            http.post(f"/v1/jobs/{waiting['id']}/cancel", json={"grace_seconds": 0})
            ended = http.get(f"/v1/jobs/{waiting['id']}?wait=30").json()
        assert ended["state"] == "cancelled"
        wait_for(lambda: uploads_of(service) == [], "the upload is gone")


def test_a_client_that_hangs_up_while_it_sends_leaves_nothing(
    real_service: RunningService,
) -> None:
    def body() -> Iterator[bytes]:
        yield bytes(2 * MIB)
        wait_for(lambda: uploads_of(real_service), "the upload has begun")
        raise ConnectionAbortedError

    with real_service.http() as http, pytest.raises(ConnectionAbortedError):
        send_tar(http, job_of("true"), body())  # type: ignore[arg-type]

    wait_for(lambda: uploads_of(real_service) == [], "it is gone")
