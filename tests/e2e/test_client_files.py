"""The Python client puts files into jobs and gets them back, of any size."""

import asyncio
import hashlib
from pathlib import Path

import pytest
from running_service import RunningService

from sandboxd.client import Artifact, AsyncClient, Client, NotFound

MIB = 2**20


def test_text_bytes_and_files_go_in_and_are_downloaded(client: Client, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\ncat text bytes > both\n")
    script.chmod(0o755)

    job = client.run(
        ["./run"],
        files={"text": "é", "bytes": b"\xff\0", "run": script},
        outputs=["both", "nothing"],
    )
    client.download(job.id, "both", tmp_path / "both")

    assert (tmp_path / "both").read_bytes() == "é".encode() + b"\xff\0"
    assert client.artifacts(job.id) == list(job.artifacts)
    assert job.artifacts == (
        Artifact(
            path="both",
            size_bytes=4,
            sha256=hashlib.sha256("é".encode() + b"\xff\0").hexdigest(),
            mode="0644",
        ),
    )
    assert [each.reason for each in job.artifacts_passed_over] == ["not_found"]


def test_what_is_too_large_for_json_goes_in_a_form_with_its_mode(
    client: Client, real_service: RunningService, tmp_path: Path
) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"0123456789abcdef" * (20 * MIB // 16))
    big.chmod(0o751)
    command = ["sh", "-c", "stat -c '%a %s' in/big; cat small; mv in/big out"]
    limits = {"disk": "64Mi", "memory": "512Mi"}
    files = {"in/big": big, "small": "small"}

    job = client.run(command, files=files, outputs=["out"], limits=limits)
    assert job.text == f"751 {20 * MIB}\nsmall"

    async def again() -> None:
        async with AsyncClient(real_service.url) as other:
            job = await other.run(command, files=files, outputs=["out"], limits=limits)
            assert [each.path for each in await other.artifacts(job.id)] == ["out"]
            await other.download(job.id, "out", tmp_path / "back")
            with pytest.raises(NotFound):
                await other.download(job.id, "none", tmp_path / "none")

    asyncio.run(again())
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    assert not (tmp_path / "none").exists()


def test_a_download_that_fails_leaves_nothing(client: Client, tmp_path: Path) -> None:
    job = client.run(["true"])

    with pytest.raises(NotFound):
        client.download(job.id, "none", tmp_path / "none")

    assert list(tmp_path.iterdir()) == []
