"""`sandboxd run --file --output`, with a service and without, and `sandboxd jobs artifacts`."""

import json
from pathlib import Path

import pytest
from command_line import Outcome, sandboxd
from running_service import RunningService

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]


@pytest.fixture(params=["embedded", "service"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The options that say where it runs."""
    if request.param == "embedded":
        return ["--data-dir", str(tmp_path / "data")]
    service: RunningService = request.getfixturevalue("real_service")
    return ["--url", service.url]


def run(where: list[str], *words: str) -> Outcome:
    return sandboxd("run", *where, *words)


def test_files_go_in_and_come_back(where: list[str], tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\ncat in/sub/a > out/copy; chmod 700 out/copy; echo done; exit 3\n")
    script.chmod(0o755)
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "a").write_bytes(b"\0\xff content")
    (tmp_path / "tree" / "b").write_text("b")
    back = tmp_path / "back"

    ended = run(
        where,
        *("--file", str(script)),
        *("--file", f"{tmp_path / 'tree'}:in"),
        *("--output", "out", "--output", "/tmp/*.log", "--output", "missing"),
        *("--output-dir", str(back)),
        *("--", "sh", "-c", "mkdir out; echo log > /tmp/x.log; ln -s copy out/link; ./run.sh"),
    )

    assert (ended.code, ended.output) == (3, "done\n")
    assert (back / "out" / "copy").read_bytes() == b"\0\xff content"
    assert (back / "out" / "copy").stat().st_mode & 0o100
    assert (back / "tmp" / "x.log").read_text() == "log\n"
    assert sorted(path.name for path in back.rglob("*")) == ["copy", "out", "tmp", "x.log"]
    assert "not kept: out/link (symlink)" in ended.errors
    assert "not kept: missing (not_found)" in ended.errors


def test_large_files_go_both_ways(where: list[str], tmp_path: Path) -> None:
    content = bytes(range(256)) * (40 * 2**20 // 256)
    (tmp_path / "big").write_bytes(content)

    ended = run(
        where,
        *("--file", str(tmp_path / "big"), "--output", "copy", "--output-dir", str(tmp_path)),
        *("--disk", "128Mi", "--memory", "512Mi", "--", "cp", "big", "copy"),
    )

    assert ended.code == 0, ended.errors
    assert (tmp_path / "copy").read_bytes() == content


def test_a_file_that_is_not_here_is_told(where: list[str], tmp_path: Path) -> None:
    ended = run(where, "--file", str(tmp_path / "none"), "--", "true")

    assert ended.code != 0
    assert "none is no file" in ended.errors


def test_artifacts_of_a_job_are_listed_and_printed(real_service: RunningService) -> None:
    url = ["--url", real_service.url]
    job = json.loads(
        sandboxd(
            "run",
            *url,
            "--json",
            "--output",
            "a",
            "--output-dir",
            "/nonexistent/x",
            "-d",
            "--",
            "sh",
            "-c",
            "printf 123 > a",
        ).output
    )
    with real_service.client() as client:
        client.wait(job["id"])

    listed = sandboxd("jobs", "artifacts", *url, job["id"])
    as_json = sandboxd("jobs", "artifacts", *url, "--json", job["id"])
    printed = sandboxd("jobs", "artifacts", *url, job["id"], "a")
    missing = sandboxd("jobs", "artifacts", *url, job["id"], "b")

    assert listed.output.splitlines()[0].split("\t") == ["path", "size", "mode", "sha256"]
    assert listed.output.splitlines()[1].startswith("a\t3\t0644\t")
    assert json.loads(as_json.output)[0]["path"] == "a"
    assert printed.output == "123"
    assert missing.code != 0
    assert "no such file" in missing.errors
