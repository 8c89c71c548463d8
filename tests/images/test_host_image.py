"""Image `host`: the machine's programs, and nothing else of the machine."""

import fnmatch
import os
from pathlib import Path

import pytest
from sandbox_bench import Bench

from sandboxd.images import host

SEEN = """
import json, os
def listed(path):
    try: return sorted(os.listdir(path))
    except OSError as error: return error.strerror
print(json.dumps({path: listed(path) for path in
    ("/", "/etc", "/home", "/root", "/work", "/tmp", "/usr", "/home/sandbox")}))
"""

DANGLING = """
import json, os
bad = []
for path, directories, files in os.walk("/etc"):
    for name in directories + files:
        whole = os.path.join(path, name)
        target = os.path.realpath(whole)
        if not target.startswith(("/etc/", "/usr/")):
            bad.append([whole, target])
print(json.dumps(bad))
"""


def test_only_usr_of_the_machine_is_visible(either: Bench) -> None:
    seen = either.python(SEEN)

    links = {"bin", "sbin", "lib", "lib32", "lib64", "libx32"}
    ours = {"dev", "etc", "home", "proc", "root", "sys", "tmp", "usr", "work"}
    assert ours <= set(seen["/"]) <= ours | links
    assert seen["/usr"] == sorted(os.listdir("/usr"))
    assert seen["/home"] == ["sandbox"]
    assert seen["/work"] == seen["/tmp"] == seen["/home/sandbox"] == []
    made = {"passwd", "group", "nsswitch.conf", "hosts", "hostname", "resolv.conf"}
    copied = [pattern.split("/")[0] for pattern in host._COPIED_FROM_ETC]
    for name in set(seen["/etc"]) - made:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in copied), name


def test_no_link_in_etc_leads_anywhere_but_to_etc_and_usr(bench: Bench) -> None:
    assert bench.python(DANGLING) == []


def test_accounts_are_those_of_the_image_and_not_of_the_machine(bench: Bench) -> None:
    machine = Path("/etc/passwd").read_text()
    ran = bench.run("cat", "/etc/passwd", "/etc/group")

    assert b"sandbox:x:1000" in ran.out
    assert ran.out.decode() != machine
    assert bench.run("id", "-un").out == b"sandbox\n"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_image_is_whole_whatever_the_umask_of_the_service(
    umask: int, bench: Bench, tmp_path: Path
) -> None:
    """The systemd unit has 0077: /etc/passwd and the linker's cache must be readable for jobs all the same."""
    before = os.umask(umask)
    try:
        image = host.build(tmp_path / "tree")
    finally:
        os.umask(before)

    ran = bench.run(
        "sh",
        "-c",
        "cat /etc/passwd /etc/ld.so.cache >/dev/null && id -un",
        rootfs=image.rootfs,
        binds=image.binds,
    )
    assert (ran.out, ran.err) == (b"sandbox\n", b"")
    host.remove(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_what_not_everybody_may_read_is_not_copied(tmp_path: Path) -> None:
    """A key of the service's own group beside the certificates; a FIFO; a link out of /etc."""
    source, target = tmp_path / "certs", tmp_path / "copy"
    source.mkdir()
    (source / "public.pem").write_text("certificate")
    (source / "key.pem").write_text("secret")
    (source / "key.pem").chmod(0o640)
    (source / "unreadable.pem").write_text("secret")
    (source / "unreadable.pem").chmod(0o000)
    (source / "private").mkdir(mode=0o750)
    (source / "private" / "key.pem").write_text("secret")
    (source / "outside-file").symlink_to(source / "public.pem")
    (source / "outside-key").symlink_to(source / "key.pem")
    (source / "outside-directory").symlink_to(tmp_path)
    (source / "loop").symlink_to("loop")
    (source / "to-usr").symlink_to("/usr/bin/env")
    os.mkfifo(source / "fifo")

    host.copy_public(source, target)

    assert sorted(path.name for path in target.iterdir()) == [
        "outside-file",
        "public.pem",
        "to-usr",
    ]
    assert (target / "outside-file").read_text() == "certificate"
    assert not (target / "outside-file").is_symlink()
    assert os.readlink(target / "to-usr") == "/usr/bin/env"


def test_the_digest_is_the_same_each_time(tmp_path: Path) -> None:
    assert host.build(tmp_path / "a").digest == host.build(tmp_path / "b").digest
