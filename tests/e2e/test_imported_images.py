"""A root file system from a tar archive: imported on the command line, run by the service, and never a way out."""

import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_tests import host_required
from running_service import RunningService

from sandboxd.client import Client, NotFound

APPLETS = ("sh", "cat", "ls", "id", "echo", "true", "mount", "stat", "readlink", "touch", "rm")
CANARY = "canary-behind-a-link"

Make = Callable[..., str]


class Archive:
    """A tar archive of a small root file system: busybox and its names."""

    def __init__(self, path: Path) -> None:
        found = shutil.which("busybox")
        if found is None:
            host_required("this host has no busybox (busybox-static)")
        self.path = path
        self._tar = tarfile.open(path, "w")  # noqa: SIM115 (closed by `write`)
        self._tar.add(Path(found).resolve(), "bin/busybox")
        for applet in APPLETS:
            self.link(f"bin/{applet}", "busybox")

    def file(self, name: str, content: bytes = b"", mode: int = 0o644, uid: int = 0) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.uid, entry.gid = len(content), mode, uid, uid
        self._tar.addfile(entry, io.BytesIO(content))

    def link(self, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        self._tar.addfile(entry)

    def special(self, name: str, kind: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.devmajor, entry.devminor, entry.mode = kind, 1, 3, 0o666
        self._tar.addfile(entry)

    def write(self) -> Path:
        self._tar.close()
        return self.path


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(tmp_path / "rootfs.tar")
    yield made
    made.write()


@pytest.fixture
def make(real_service: RunningService) -> Make:
    """Import an archive and return its name."""

    def import_archive(archive: Archive, name: str | None = None) -> str:
        name = name or f"image-{uuid.uuid4().hex[:12]}"
        imported = real_service.command("images", "import", name, str(archive.write()))
        assert imported.returncode == 0, imported.stderr
        return name

    return import_archive


def test_a_job_runs_in_an_imported_image(client: Client, archive: Archive, make: Make) -> None:
    archive.file("etc/motd", b"welcome\n")
    archive.file("usr/data", b"of user 7\n", mode=0o640, uid=7)
    image = make(archive)

    job = client.run(
        ["sh", "-c", "cat /etc/motd; id -u; stat -c %u:%a /usr/data; ls /"], image=image
    )

    assert job.state == "succeeded", job.error
    names = ["bin", "dev", "etc", "proc", "sys", "tmp", "usr", "work"]
    assert job.text.split() == ["welcome", "0", "7:640", *names]
    assert job.image_digest is not None
    assert job.image_digest.startswith("sha256:")
    listed = {each.name: each for each in client.images()}
    assert listed[image].digest == job.image_digest
    assert listed[image].source == "import"
    assert listed["host"].source == "host"


def test_what_a_job_changes_in_an_image_is_gone_with_it(
    client: Client, archive: Archive, make: Make
) -> None:
    archive.file("etc/motd", b"welcome\n")
    image = make(archive)

    client.run(["sh", "-c", "echo changed >/etc/motd; rm /bin/ls; touch /new"], image=image)
    job = client.run(["sh", "-c", "cat /etc/motd; ls -d /new"], image=image)

    assert job.stdout == b"welcome\n"
    assert b"No such file" in job.stderr


def test_a_file_that_is_no_program_is_an_exec_format_error(
    client: Client, archive: Archive, make: Make
) -> None:
    archive.file("bin/garbage", b"\x7fELF but not really", mode=0o755)
    archive.file("bin/lost", b"#!/no/such/interpreter\n", mode=0o755)
    archive.file("bin/script", b'#!/bin/sh\necho ran "$@"\n', mode=0o755)
    image = make(archive)

    garbage = client.run(["garbage"], image=image)
    lost = client.run(["lost"], image=image)
    script = client.run(["script", "a b"], image=image)

    assert (garbage.state, garbage.reason) == ("failed", "command_not_executable")
    assert garbage.error is not None
    assert garbage.error.message == "exec garbage: ENOEXEC"
    assert (lost.state, lost.reason) == ("failed", "command_not_found")
    assert script.text == "ran a b\n"


@pytest.mark.parametrize("how", ["absolute", "climbing"])
@pytest.mark.attack(7, 9)
def test_links_where_mounts_go_lead_nowhere(
    client: Client, archive: Archive, make: Make, tmp_path: Path, how: str
) -> None:
    """Attacks 7 and 9."""
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    for name in ("hosts", "hostname", "resolv.conf", "canary"):
        (outside / name).write_text(CANARY)
        (outside / name).chmod(0o666)
    target = str(outside) if how == "absolute" else "../../../../../../../.." + str(outside)
    for name in ("proc", "sys", "dev", "etc", "tmp", "work", "home"):
        archive.link(name, target)
    image = make(archive)

    script = "cat /etc/canary /home/canary; echo x >/etc/hosts; touch /tmp/x /work/x; ls -d /proc/1"
    job = client.run(["sh", "-c", script], image=image)
    elsewhere = client.run(["sh", "-c", "echo x"], image=image, workdir="/home/below")

    assert job.stdout == b"/proc/1\n"
    assert CANARY not in job.text + job.stderr.decode()
    assert elsewhere.reason in ("workdir_unusable", "exited")
    assert sorted(path.name for path in outside.iterdir()) == [
        "canary",
        "hostname",
        "hosts",
        "resolv.conf",
    ]
    assert {path.read_text() for path in outside.iterdir()} == {CANARY}


@pytest.mark.attack(1)
def test_a_program_that_is_process_1_itself_gets_nowhere(
    client: Client, archive: Archive, make: Make
) -> None:
    """Attack 1."""
    archive.file("bin/again", b"#!/proc/self/exe\n", mode=0o755)
    archive.link("bin/one", "/proc/1/exe")
    image = make(archive)

    for command in (["again"], ["one"], ["/proc/1/exe"], ["/proc/self/exe", "-c", "0"]):
        job = client.run(command, image=image, limits={"wall_seconds": 5})

        assert job.state == "failed", (command, job.text)
        assert job.stdout == b""


TROJANS = ("xz", "gzip", "unpigz", "zstd", "tar", "ps", "getent", "newuidmap", "ldconfig", "bash")
LIBRARIES = ("libnss_files.so.2", "libnss_dns.so.2", "libseccomp.so.2", "libz.so.1")
TROJAN_LIBRARY = """
#include <fcntl.h>
__attribute__((constructor)) static void run(void) { open("%s", O_CREAT | O_WRONLY, 0666); }
"""


@pytest.mark.attack(32)
def test_nothing_that_an_image_brings_is_run_or_loaded_outside(
    client: Client, archive: Archive, make: Make, tmp_path: Path
) -> None:
    """Programs and libraries that the service, its tools or its libc might look for, each of which would leave a trace."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    compiled = tmp_path / "trojan.so"
    words = ["gcc", "-shared", "-fPIC", "-nostdlib", "-x", "c", "-", "-o", str(compiled), "-lc"]
    source = TROJAN_LIBRARY % (outside / "library")
    subprocess.run(words, input=source.encode(), check=True)
    for name in TROJANS:
        for place in ("bin", "usr/bin", "usr/local/sbin"):
            script = f"#!/bin/sh\ntouch {outside}/{name}\n".encode()
            archive.file(f"{place}/{name}", script, mode=0o755)
    for name in LIBRARIES:
        for place in ("lib", "usr/lib", f"usr/lib/{os.uname().machine}-linux-gnu"):
            archive.file(f"{place}/{name}", compiled.read_bytes(), mode=0o755)
    archive.file("etc/ld.so.preload", b"/lib/libz.so.1\n")
    archive.file("etc/nsswitch.conf", b"passwd: files\nhosts: files dns\n")
    packed = lzma.compress(archive.write().read_bytes())
    archive.path.write_bytes(packed)
    image = make(archive)

    job = client.run(["sh", "-c", "id -u; ls /bin/xz; echo kept >/work/file"], image=image)
    inside = client.run(["xz"], image=image)
    listed = client.images()

    assert job.text == "0\n/bin/xz\n"
    assert inside.state == "failed"  # it was run where it belongs, and found no way out
    assert image in {each.name for each in listed}
    assert list(outside.iterdir()) == []


@pytest.mark.attack(29, 64)
def test_devices_set_id_bits_and_pipes_of_an_archive_are_left_out(
    client: Client, archive: Archive, make: Make
) -> None:
    """Attacks 29 and 64."""
    archive.file("bin/set-id", b"#!/bin/sh\n", mode=0o6755)
    archive.special("bin/device", tarfile.CHRTYPE)
    archive.special("bin/disk", tarfile.BLKTYPE)
    archive.special("bin/pipe", tarfile.FIFOTYPE)
    archive.link("bin/hard", "bin/set-id", tarfile.LNKTYPE)
    image = make(archive)

    job = client.run(
        ["sh", "-c", "cd bin; stat -c %a set-id hard; ls device disk pipe"],
        image=image,
        workdir="/",
    )

    assert job.stdout == b"755\n755\n"
    assert job.stderr.count(b"No such file") == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda archive: archive.file("../../escaped", b"x"),
        lambda archive: archive.link("stolen", "../../../etc/passwd", tarfile.LNKTYPE),
        lambda archive: archive.file("bin/x", uid=2**31),
    ],
    ids=["a name that climbs", "a hard link that climbs", "an owner that there is not"],
)
@pytest.mark.attack(61, 62, 64)
def test_a_bad_archive_is_refused_and_leaves_nothing(
    real_service: RunningService, archive: Archive, spoil: Callable[[Archive], None]
) -> None:
    """Attacks 61, 62 and 64."""
    spoil(archive)

    imported = real_service.command("images", "import", "bad", str(archive.write()))

    assert imported.returncode != 0
    assert imported.stderr
    assert "Traceback" not in imported.stderr
    images = real_service.data_dir / "images"
    assert not (images / "names" / "bad.json").exists()
    assert list((images / "incoming").iterdir()) == []
    assert not list(real_service.data_dir.parent.rglob("escaped"))


def test_a_file_that_is_no_archive_is_refused(real_service: RunningService, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not an archive" * 1000)

    imported = real_service.command("images", "import", "bad", str(tmp_path / "file"))

    assert imported.returncode != 0
    assert "not a tar archive" in imported.stderr
    assert "Traceback" not in imported.stderr


def test_an_image_that_was_removed_is_unknown(
    client: Client, real_service: RunningService, archive: Archive, make: Make
) -> None:
    image = make(archive)
    assert image in {each.name for each in client.images()}

    removed = real_service.command("images", "remove", image)
    again = real_service.command("images", "remove", image)

    assert removed.returncode == 0, removed.stderr
    assert again.returncode != 0
    assert image not in {each.name for each in client.images()}
    with pytest.raises(NotFound) as refused:
        client.run(["true"], image=image)
    assert refused.value.code == "image_not_found"


def test_an_image_that_the_service_uses_is_not_removed(
    client: Client, real_service: RunningService, archive: Archive, make: Make
) -> None:
    image = make(archive)
    client.run(["true"], image=image)

    removed = real_service.command("images", "remove", image)

    assert removed.returncode != 0
    assert "in use" in removed.stderr
    assert client.run(["echo", "fine"], image=image).text == "fine\n"


def test_importing_again_replaces_the_image_for_new_jobs_only(
    client: Client, archive: Archive, make: Make, tmp_path: Path
) -> None:
    archive.file("version", b"1\n")
    image = make(archive)
    script = "cat /version; while ! [ -e /nothing ]; do :; done"
    running = client.submit(["sh", "-c", script], image=image, limits={"wall_seconds": 30})
    next(client.logs(running.id, follow=True))
    second = Archive(tmp_path / "second.tar")
    second.file("version", b"2\n")

    make(second, image)
    new = client.run(["cat", "/version"], image=image)
    client.cancel(running.id, grace_seconds=0)

    assert new.text == "2\n"
    assert client.wait(running.id).text == "1\n"


def test_the_tree_of_an_image_belongs_to_subordinate_ids(
    real_service: RunningService, archive: Archive, make: Make, client: Client
) -> None:
    if client.system()["isolation"]["id_map"] != "range":
        host_required("this host has no subordinate ids")
    archive.file("etc/motd", b"welcome\n")
    image = make(archive)
    digest = next(each.digest for each in client.images() if each.name == image)

    tree = real_service.data_dir / "images" / "trees" / digest.removeprefix("sha256:")
    found = (tree / "rootfs" / "etc" / "motd").lstat()

    assert found.st_uid >= 65_536
    assert stat.S_ISREG(found.st_mode)
