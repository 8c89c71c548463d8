"""Files of a sandbox that lives: in and out over HTTP, and what a sandbox tries meanwhile."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running_service import RunningService, running_service
from sandbox_client import Box

BYTES = bytes(range(256)) * 4096


@pytest.fixture
def box(real_service: RunningService, client: object) -> Iterator[Box]:
    with real_service.http() as http, Box(http) as made:
        yield made


def put(box: Box, path: str, content: bytes, **query: str) -> httpx2.Response:
    return box.http.put(f"{box.path}/files/{path}", content=content, params=query)


def get(box: Box, path: str) -> httpx2.Response:
    return box.http.get(f"{box.path}/files/{path}")


def test_what_is_written_is_read_again_byte_by_byte(box: Box) -> None:
    written = put(box, "work/a/b/data bin", BYTES, mode="0750")

    assert written.json() == {"path": "/work/a/b/data bin", "size_bytes": len(BYTES)}
    read = get(box, "work/a/b/data bin")
    assert (read.status_code, read.content) == (200, BYTES)
    assert read.headers["sandboxd-file-mode"] == "0750"
    assert box.shell("stat -c '%a %U %s' '/work/a/b/data bin'").split()[::2] == [
        "750",
        str(len(BYTES)),
    ]


@pytest.mark.parametrize("name", ["*", "[a]", "?", ".hidden", "ü", "a;b", "-rf"])
def test_a_name_is_only_a_name(name: str, box: Box) -> None:
    put(box, "work/other", b"other")
    path = f"work/{httpx2.URL('http://x/' + name).raw_path.decode()[1:]}".replace("?", "%3F")

    assert put(box, path, b"mine").status_code == 200
    assert get(box, path).content == b"mine"
    assert get(box, "work/other").content == b"other"


def test_a_directory_is_listed_with_what_is_not_a_file_told_of_as_such(box: Box) -> None:
    box.shell(
        "mkdir d; cd d; echo abc > file; mkdir sub; ln -s /etc/passwd link; mkfifo fifo; chmod 700 sub"
    )
    listed = box.http.get(f"{box.path}/files", params={"path": "/work/d"}).json()

    assert [(each["name"], each["kind"]) for each in listed["data"]] == [
        ("fifo", "fifo"),
        ("file", "file"),
        ("link", "symlink"),
        ("sub", "directory"),
    ]
    assert listed["data"][1]["size_bytes"] == 4
    assert listed["data"][3]["mode"] == "0700"
    assert listed["truncated"] is False


def test_only_files_are_read_and_the_rest_is_refused_at_once(box: Box) -> None:
    box.shell("mkfifo fifo; ln -s /etc/passwd link; mkdir dir; truncate -s 1T /work/huge")

    for name in ("fifo", "link", "dir", "huge"):
        answer = get(box, f"work/{name}")
        assert (answer.status_code, answer.json()["code"]) == (409, "no_file"), name
    assert get(box, "work/nothing").json()["code"] == "file_not_found"
    assert get(box, "proc/self/environ").status_code in (404, 409)
    assert get(box, "proc/self/mem").status_code in (404, 409)


def test_a_file_is_removed_and_a_directory_only_when_it_is_empty(box: Box) -> None:
    box.shell("mkdir d; echo > d/f; ln -s d l")

    assert box.http.delete(f"{box.path}/files/work/d").status_code == 409
    for name in ("l", "d/f", "d"):
        assert box.http.delete(f"{box.path}/files/work/{name}").status_code == 204
    assert box.shell("ls") == ""


def test_what_the_command_may_not_write_is_not_written(box: Box) -> None:
    for path in ("etc/hosts", "proc/version", "usr/bin/evil", "sys/kernel/x", "dev/x"):
        assert put(box, path, b"x").status_code in (404, 409), path


def test_a_file_that_is_too_large_is_refused_and_one_that_fits_is_not(prepared_host: None) -> None:
    with (
        running_service(sandboxes_most_file_bytes=1000) as service,
        service.http() as http,
        Box(http) as box,
    ):
        assert put(box, "work/a", b"x" * 1000).status_code == 200
        assert put(box, "work/a", b"x" * 1001).status_code == 413
        assert get(box, "work/a").content == b"x" * 1000
        box.shell("echo more >> a")
        assert get(box, "work/a").json()["code"] == "no_file"


def test_the_free_space_that_is_kept_for_the_record_is_not_filled(prepared_host: None) -> None:
    with (
        running_service(files_min_free_bytes=2**50) as service,
        service.http() as http,
        Box(http) as box,
    ):
        refused = put(box, "work/a", b"x")
        box.shell("head -c 10000000 /dev/zero > b")
        kept_in = get(box, "work/b")
        box.shell("true")  # It lives.

    for answer in (refused, kept_in):
        assert (answer.status_code, answer.json()["code"]) == (503, "no_space")


def test_no_room_in_the_sandbox_is_the_caller_s_to_know(real_service: RunningService) -> None:
    with real_service.http() as http, Box(http, limits={"disk": "1Mi"}) as box:
        refused = put(box, "work/a", b"x" * 2**21)

        assert (refused.status_code, refused.json()["code"]) == (409, "file_unusable")
        assert box.shell("echo there") == "there\n"


@pytest.mark.attack(31)
def test_links_that_come_and_go_lead_nowhere_but_into_the_sandbox(box: Box) -> None:
    """200 writes and reads through a path whose parts are swapped for links to paths of the host all the while."""
    canary = Path("/var/tmp") / f"sandboxd-canary-{os.getpid()}"
    canary.mkdir()
    (canary / "file").write_bytes(b"canary")
    flip = (
        f"mkdir -p {canary} real; echo mine > {canary}/file; while :; do "
        f"mkdir -p t; mv -T t t.dir 2>/dev/null; ln -sfn {canary} t; rm -f t; ln -sfn /proc/1/root{canary} t; rm -f t; done"
    )
    flipping = box.begin("sh", "-c", flip)
    try:
        with ThreadPoolExecutor(4) as pool:
            writes = [pool.submit(put, box, "work/t/file", b"written") for _ in range(200)]
            reads = [pool.submit(get, box, "work/t/file") for _ in range(200)]
        answers = {future.result().status_code for future in writes + reads}
        contents = {f.result().content for f in reads if f.result().status_code == 200}

        assert answers <= {200, 404, 409}
        assert 200 in answers
        assert contents <= {b"written", b"mine\n", b""}
        assert (canary / "file").read_bytes() == b"canary"
        assert [path.name for path in canary.iterdir()] == ["file"]
    finally:
        box.http.delete(f"{box.path}/execs/{flipping['id']}")
        (canary / "file").unlink()
        canary.rmdir()


@pytest.mark.attack(31)
def test_a_link_inside_the_sandbox_still_leads_where_it_leads(box: Box) -> None:
    box.shell("mkdir -p /work/real; ln -s /work/real /work/link")

    assert put(box, "work/link/file", b"x").status_code == 200
    assert get(box, "work/real/file").content == b"x"


def names(box: Box, path: str) -> Any:
    listed = box.http.get(f"{box.path}/files", params={"path": path}).json()
    return [each["name"] for each in listed["data"]]


def test_the_service_s_spool_keeps_nothing(box: Box, real_service: RunningService) -> None:
    put(box, "work/a", BYTES)
    get(box, "work/a")

    assert names(box, "/work") == ["a"]
    assert list((real_service.data_dir / "run" / "spool").iterdir()) == []
