"""What a job created, changed and deleted is told: nothing of it is of ours, and nothing outside its layer is seen."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_service import running_service

from sandboxd.client import Changes, Client


def test_a_job_that_writes_nothing_changes_nothing(client: Client) -> None:
    assert client.run(["true"], changes=True).changes == Changes()
    assert client.run(["true"]).changes is None


def test_what_is_made_is_told_also_when_the_command_fails_or_is_stopped(client: Client) -> None:
    script = "mkdir -p a/b; echo x > a/b/c; ln -s /etc/passwd link; mkfifo fifo; echo t > /tmp/t; echo g > gone; rm gone;"
    for end, state in (("true", "succeeded"), ("exit 3", "failed"), ("sleep 60", "timed_out")):
        job = client.run(["sh", "-c", script + end], changes=True, limits={"wall_seconds": 3.0})

        assert job.state == state
        assert job.changes == Changes(
            created=(
                "/tmp/t",
                "/work/a",
                "/work/a/b",
                "/work/a/b/c",
                "/work/fifo",
                "/work/link",
            )
        )


@pytest.fixture(scope="module")
def with_image(prepared_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service with an image whose files anybody inside may change."""
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    busybox = Path("/usr/bin/busybox").read_bytes()
    with tarfile.open(archive, "w") as tar:
        for name, content, mode in (
            ("bin/sh", busybox, 0o755),
            ("data/keep", b"1", 0o666),
            ("data/change", b"1", 0o666),
            ("data/remove", b"1", 0o666),
            ("data/tree/x", b"1", 0o666),
            ("data/tree/y", b"1", 0o666),
            ("data/replaced/z", b"1", 0o666),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
        for name in ("data", "data/tree", "data/replaced"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(member)
    with running_service() as service, service.client() as client:
        imported = service.command("images", "import", "small", str(archive))
        assert imported.returncode == 0, imported.stderr
        yield client


def test_what_is_of_the_image_is_modified_or_deleted(with_image: Client) -> None:
    script = (
        "cd /data; echo 2 > change; rm remove; rm -r replaced; mkdir replaced; echo n > replaced/new;"
        "rm tree/x; echo n > tree/n; read a < keep || true"
    )

    job = with_image.run(["/bin/sh", "-c", script], image="small", changes=True)

    assert job.state == "succeeded", (job.error, job.stderr)
    assert job.changes is not None
    assert sorted(job.changes.created) == ["/data/replaced/new", "/data/tree/n"]
    assert sorted(job.changes.modified) == ["/data/change", "/data/replaced"]
    assert sorted(job.changes.deleted) == ["/data/remove", "/data/tree/x"]
    assert not job.changes.truncated


def test_more_than_is_told_is_said(client: Client) -> None:
    job = client.run(
        ["python3", "-c", "for n in range(1500): open(f'{n:04}', 'w').close()"], changes=True
    )

    assert job.changes is not None
    assert len(job.changes.created) == 1000
    assert job.changes.truncated


def test_changes_and_outputs_are_had_together(client: Client) -> None:
    job = client.run(["sh", "-c", "echo x > out"], changes=True, outputs=["out"])

    assert job.changes == Changes(created=("/work/out",))
    assert [each.path for each in job.artifacts] == ["out"]
    assert client.get(job.id).changes == job.changes


@pytest.mark.attack(3, 31)
def test_names_and_depths_of_every_kind_are_told_and_lead_nowhere(client: Client) -> None:
    source = """if True:
        import os
        os.makedirs('/'.join(['d'] * 100))
        os.symlink('/', 'root'); os.symlink('..', 'up'); os.symlink('/proc/1/root', 'init')
        open(b'\\xff', 'w').close(); open('new\\nline', 'w').close()
        os.mkdir('closed', 0)
    """

    job = client.run(["python3", "-c", source], changes=True)

    assert job.state == "succeeded", job.stderr
    assert job.changes is not None
    assert {
        "/work/root",
        "/work/up",
        "/work/init",
        "/work/\\xff",
        "/work/new\nline",
        "/work/closed",
    } <= set(job.changes.created)
    assert all(path.startswith("/work/") for path in job.changes.created)
    assert job.changes.truncated  # too deep
    assert job.changes.modified == job.changes.deleted == ()


@pytest.mark.attack(2)
def test_no_descriptor_of_init_is_a_way_to_the_layer(client: Client) -> None:
    """CVE-2024-21626: init holds the layer open, and must not start a command in it."""
    jobs = [
        client.submit(["pwd"], workdir=f"/proc/self/fd/{number}{below}")
        for number in range(16)
        for below in ("", "/work")
    ]

    ends = [client.wait(job.id) for job in jobs]

    assert {(job.state, job.reason) for job in ends} == {("failed", "workdir_unusable")}
