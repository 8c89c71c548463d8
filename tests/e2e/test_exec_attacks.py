"""Attacks on what enters a sandbox that lives: commands that are started, files that come and go."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from running_service import RunningService
from sandbox_client import Box

LOOK = """
import json, os, sys
own, root = os.getpid(), os.stat("/")
pids, leaks, opened = set(), set(), 0
while not os.path.exists("/tmp/stop"):
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        pids.add(name)
        here = f"/proc/{name}"
        try:
            for fd in os.listdir(f"{here}/fd"):
                target = os.readlink(f"{here}/fd/{fd}")
                opened += 1
                if target.startswith(("socket:", "anon_inode:", "/memfd", "net:", "mnt:", "user:")):
                    leaks.add(f"{name} fd {fd} {target}")
                elif target.startswith("/proc/"):
                    pass  # the other one that looks
                elif target.startswith("/") and not os.path.lexists(target.removesuffix(" (deleted)")):
                    leaks.add(f"{name} fd {fd} {target}")
        except OSError:
            pass
        for link in ("root", "cwd"):
            try:
                status = os.stat(f"{here}/{link}")
                if link == "root" and (status.st_dev, status.st_ino) != (root.st_dev, root.st_ino):
                    leaks.add(f"{name} {link}")
            except OSError:
                pass
        for secret in ("environ", "mem", "maps"):
            try:
                with open(f"{here}/{secret}", "rb") as file:
                    content = file.read(4096) if secret != "mem" else b""
                    if b"canary-in-the-environment" in content or b"sandboxd" in content:
                        leaks.add(f"{name} {secret}")
            except OSError:
                pass
print(json.dumps({"pids": len(pids), "opened": opened, "leaks": sorted(leaks)}))
"""


@pytest.fixture
def box(real_service: RunningService, client: object) -> Iterator[Box]:
    with real_service.http() as http, Box(http, limits={"pids": 128, "cpus": 2}) as made:
        yield made


@pytest.mark.attack(3)
def test_nothing_of_init_is_seen_in_a_command_that_is_being_started(box: Box) -> None:
    """200 commands are started while others look into every new process."""
    looking = [box.begin("python3", "-c", LOOK) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(lambda _: box.run("true")["state"], range(200)))
    box.run("touch", "/tmp/stop")
    seen = [json.loads(box.end_of(each)["stdout"]) for each in looking]

    assert started == ["succeeded"] * 200
    assert max(each["pids"] for each in seen) > 20
    assert max(each["opened"] for each in seen) > 0
    assert [each["leaks"] for each in seen] == [[], []]


@pytest.mark.attack(2)
@pytest.mark.parametrize(
    "workdir",
    [
        *(f"/proc/self/fd/{number}" for number in (0, 3, 4, 5, 6, 7, 8, 20)),
        "/proc/1/cwd",
        "/proc/1/root",
        "/proc/self/root/proc/1/fd/3",
        "/work/link",
    ],
)
def test_no_working_directory_leads_out(workdir: str, box: Box) -> None:
    box.shell("ln -s /proc/self/fd/7 /work/link")
    ran = box.run(
        "sh",
        "-c",
        "readlink /proc/self/cwd; ls /proc/self/fd; cat ../../../etc/hostname",
        workdir=workdir,
    )

    if ran["reason"] == "workdir_unusable":
        return
    place, *descriptors, name = ran["stdout"].split()
    assert place.startswith("/")
    assert "unreachable" not in place
    assert descriptors == ["0", "1", "2", "3"]  # ls has the directory open
    assert name == "sandbox"


@pytest.mark.attack(32)
def test_files_come_and_go_without_starting_or_loading_anything_of_the_sandbox(
    real_service: RunningService, client: object
) -> None:
    """Trojan tools and libraries are first in every path; the pid of the next command tells whether anything was started."""
    env = {
        "PATH": "/work/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": "/work/bin",
        "PYTHONPATH": "/work/bin",
    }
    with real_service.http() as http, Box(http, env=env) as box:
        trojan = "#!/bin/sh\\ntouch /tmp/canary"
        for tool in ("tar", "gzip", "unpigz", "xz", "ps", "ls", "stat", "cp", "mkdir", "rm"):
            path = f"{box.path}/files/work/bin/{tool}"
            assert (
                http.put(path, content=trojan.encode(), params={"mode": "0755"}).status_code == 200
            )
        for module in ("json.py", "os.py", "stat.py", "libnss_files.so.2", "libc.so.6"):
            http.put(f"{box.path}/files/work/bin/{module}", content=b"open('/tmp/canary', 'w')")
        own_pid = ("/bin/sh", "-c", "echo $$")
        before = int(box.run(*own_pid, env={"LD_LIBRARY_PATH": ""})["stdout"])

        for number in range(20):
            path = f"{box.path}/files/work/a.tar.xz.{number}"
            assert http.put(path, content=b"\x1f\x8b\xfd7zXZ").status_code == 200
            assert http.get(path).status_code == 200
            assert http.get(f"{box.path}/files", params={"path": "/work/bin"}).status_code == 200
            assert http.delete(path).status_code == 204
        assert box.view()["state"] == "running"

        assert int(box.run(*own_pid, env={"LD_LIBRARY_PATH": ""})["stdout"]) == before + 1
        listed = http.get(f"{box.path}/files", params={"path": "/tmp"}).json()["data"]
        assert "canary" not in [entry["name"] for entry in listed]
