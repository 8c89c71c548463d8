"""What a command tries on the kernel that it shares with others: their memory, processes, ports, keys and files."""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside import attack, named, program
from sandbox_bench import Bench, children_of, run_in

from sandboxd.isolation import syscalls
from sandboxd.isolation.spec import Then

# Files that sandboxes share with the host and with each other

WRITE_TO_SHARED = """
import fcntl, mmap, threading
path = "/shared/file"
file = os.open(path, os.O_RDONLY)
def dirty_pipe(): # CVE-2022-0847: buffers that may be merged with, then a page of the file in one of them
    read_end, write_end = os.pipe()
    size = fcntl.fcntl(write_end, 1032)
    os.write(write_end, b"x" * size)
    os.read(read_end, size)
    os.splice(file, write_end, 1, offset_src=0)
    os.write(write_end, b"dirty pipe")
def dirty_cow(): # CVE-2016-5195: write to one's own copy while another thread throws it away
    copy = mmap.mmap(file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
    address = int(next(line for line in open("/proc/self/maps") if path in line).split("-")[0], 16)
    memory = os.open("/proc/self/mem", os.O_RDWR)
    def forget():
        for _ in range(5000): copy.madvise(mmap.MADV_DONTNEED)
    thread = threading.Thread(target=forget)
    thread.start()
    for _ in range(5000): os.pwrite(memory, b"dirty cow!", address)
    thread.join()
tried = {
    "open": attempt(os.open, path, os.O_WRONLY), "append": attempt(os.open, path, os.O_WRONLY | os.O_APPEND),
    "by descriptor": attempt(os.open, f"/proc/self/fd/{file}", os.O_RDWR),
    "truncate": attempt(os.truncate, path, 0), "chmod": attempt(os.chmod, path, 0o777),
    "chmod by descriptor": attempt(os.fchmod, file, 0o777), "chown": attempt(os.chown, path, 0, 0),
    "times": attempt(os.utime, path, (0, 0)), "attribute": attempt(os.setxattr, path, "user.x", b"x"),
    "unlink": attempt(os.unlink, path), "rename": attempt(os.rename, path, "/work/x"),
    "link": attempt(os.link, path, "/work/x"),
    "map": attempt(mmap.mmap, file, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    "flags": attempt(fcntl.ioctl, file, 0x40086602, struct.pack("=q", 0x10)),
    "allocate": attempt(os.posix_fallocate, file, 0, 1),
    "lease": attempt(fcntl.fcntl, file, 1024, 1),
    "handle": call("name_to_handle_at", -100, path.encode(), (ctypes.c_char * 256)(128), (ctypes.c_int * 1)(), 0),
}
for work in (dirty_pipe, dirty_cow):
    for _ in range(20): attempt(work)
print(json.dumps([tried, open(path).read(20)]))
"""
CONTENT = b"of the host, and of everybody" * 200


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A file of the host that a sandbox is shown. Nothing of it may change."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    path.chmod(0o666)
    tmp_path.chmod(0o755)
    before = path.stat()
    yield path
    after = path.stat()
    assert path.read_bytes() == CONTENT
    for what in (
        "st_mode",
        "st_uid",
        "st_gid",
        "st_size",
        "st_mtime_ns",
        "st_ctime_ns",
        "st_nlink",
    ):
        assert getattr(before, what) == getattr(after, what), what
    assert os.listxattr(path) == []


@pytest.mark.attack(26)
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_file_that_is_shown_to_many_cannot_be_changed_by_one(
    uid: int, either: Bench, shared: Path
) -> None:
    binds = (*either.image.binds, (str(shared.parent), "/shared"))

    tried, seen = attack(either, WRITE_TO_SHARED, binds=binds, uid=uid, gid=uid)

    assert {what for what, answer in tried.items() if answer == 0} == set()
    assert seen == CONTENT[:20].decode()


# Processes

KILL_EVERYBODY = """
import signal
most = int(open("/proc/sys/kernel/pid_max").read())
me, parent = os.getpid(), os.getppid()
reached = [pid for pid in range(2, min(most, 2**17)) if pid != me and attempt(os.kill, pid, signal.SIGKILL) == 0]
victims = [int(word) for word in sys.argv[1:]]
found = {
    "signals": reached + [pid for pid in victims if pid not in (1, me) and attempt(os.kill, pid, signal.SIGKILL) == 0],
    "groups": [pid for pid in victims if pid not in (1, me) and attempt(os.killpg, pid, signal.SIGKILL) == 0],
    "descriptors": [pid for pid in victims if pid not in (1, me) and attempt(os.pidfd_open, pid) == 0],
    "priorities": [pid for pid in victims if pid not in (1, me) and attempt(os.setpriority, 0, pid, 19) == 0],
    "of all of the user": attempt(os.setpriority, 2, os.getuid(), 19),
    "shown": [pid for pid in victims if pid not in (1, me) and os.path.exists(f"/proc/{pid}")],
}
attempt(os.kill, -1, signal.SIGTERM) # everybody but init and itself
print(json.dumps(found))
"""
ALIVE = "import sys; sys.stdin.readline(); print('alive')"


@pytest.mark.attack(23)
@pytest.mark.parametrize("wall", ["bench", "unfiltered"])
def test_nobody_outside_can_be_signalled_by_any_number(
    wall: str, request: pytest.FixtureRequest
) -> None:
    """Every pid there can be, and those that the host knows the launcher, another sandbox and the service by."""
    bench: Bench = request.getfixturevalue(wall)

    async def beside() -> tuple[bytes, bytes]:
        async with bench.sandbox() as victim, bench.sandbox() as attacker:
            launcher = bench.launcher.process
            assert launcher is not None
            await run_in(victim, "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo", then=Then.KEEP)
            pids = {os.getpid(), os.getppid(), launcher.pid, *children_of(launcher.pid)}
            words = ["python3", "-c", program(KILL_EVERYBODY), *map(str, sorted(pids))]
            attacked = await run_in(attacker, *words)
            count = await run_in(victim, "sh", "-c", "pgrep -c -x sleep")
            return attacked.out, count.out

    out, count = bench.do(beside())

    answers = json.loads(out)
    if wall == "unfiltered":
        # It reaches init, which has its uid; only the filter knows that.
        answers.pop("of all of the user")
    else:
        assert named(answers.pop("of all of the user")) == "EPERM"
    assert {what: pids for what, pids in answers.items() if pids} == {}
    assert count == b"1\n"


# Ports and names

SCAN = """
import errno
reached = []
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    for port in range(1, 65536):
        with socket.socket(family) as client:
            refused = client.connect_ex((host, port)) == errno.ECONNREFUSED
            # A client that happens to have this very port meets itself.
            if not refused and client.getsockname() != client.getpeername(): reached.append([host, port])
for name in json.load(sys.stdin):
    for kind in (1, 2, 5):
        with socket.socket(socket.AF_UNIX, kind) as client:
            if client.connect_ex("\\0" + name) != errno.ECONNREFUSED: reached.append(name)
print(json.dumps(reached))
"""


@pytest.mark.attack(22)
def test_no_port_of_loopback_and_no_abstract_name_of_the_host_answers(bench: Bench) -> None:
    name = f"sandboxd-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as server, socket.create_server(("127.0.0.1", 0)):
        server.bind(f"\0{name}")
        server.listen()
        listed = Path("/proc/net/unix").read_text().splitlines()
        names = {line.split("@", 1)[1].rstrip("@") for line in listed if " @" in line}
        assert name in names
        ran = bench.run("python3", "-c", program(SCAN), stdin=json.dumps(sorted(names)).encode())

    assert ran.json() == []


# Kernel keys

FIND_KEY = """
found = {}
for place in (-1, -2, -3, -4, -5): # thread, process, session, user, user session
    found[f"search {place}"] = call("keyctl", 10, place, b"user", sys.argv[1].encode(), 0)
found["request"] = call("request_key", b"user", sys.argv[1].encode(), None, -3)
found["by number"] = call("keyctl", 11, int(sys.argv[2]), (ctypes.c_char * 100)(), 100)
print(json.dumps(found))
"""
ADD_KEY = {"x86_64": 248, "aarch64": 217}
KEYCTL = {"x86_64": 250, "aarch64": 219}
KEYCTL_UNLINK, USER_KEYRING = 9, -4


@pytest.mark.attack(21)
def test_a_key_of_the_service_s_user_is_not_found_even_without_the_filter(
    unfiltered: Bench,
) -> None:
    name = f"sandboxd-test-{uuid.uuid4().hex}"
    libc, machine = syscalls._libc, syscalls.MACHINE
    key = libc.syscall(ADD_KEY[machine], b"user", name.encode(), b"secret", 6, USER_KEYRING)
    assert key > 0
    try:
        found = attack(unfiltered, FIND_KEY, name, str(key))
    finally:
        libc.syscall(KEYCTL[machine], KEYCTL_UNLINK, key, USER_KEYRING)

    assert {what for what, answer in found.items() if answer == 0} == set()
