"""The bugs that container runtimes had: their program, their descriptors, and what an image puts in their way."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from archives import entry, link, packed
from host_tests import host_required
from hypothesis import example, given, settings
from hypothesis import strategies as some
from image_bench import ImageBench, an_image_bench
from inside import program
from sandbox_bench import Bench, run_in, start_in

from sandboxd.api.schemas import JobRequest
from sandboxd.api.validate import MAX_ID, _parse_user
from sandboxd.errors import Fault
from sandboxd.isolation.spec import Then, Unusable


@pytest.fixture
def images(bench: Bench, tmp_path: Path) -> Iterator[ImageBench]:
    with an_image_bench(bench, tmp_path) as made:
        yield made


# The program of the runtime

LOADED_BY_ITSELF = "int main(void) { return 0; }"


@pytest.fixture
def unchanged_interpreter() -> Iterator[None]:
    """What the service runs from is the same before and after, byte for byte."""
    path = Path(sys.executable).resolve()
    before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
    yield
    assert before == (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)


@pytest.mark.attack(1)
@pytest.mark.parametrize("loader", ["/proc/self/exe", "/proc/1/exe", "/proc/self/fd/3"])
def test_a_program_whose_loader_is_the_runtime_gets_nowhere(
    loader: str, images: ImageBench, tmp_path: Path, unchanged_interpreter: None
) -> None:
    """The kernel itself opens the loader, in the moment in which the process is still init's (CVE-2019-5736)."""
    if shutil.which("gcc") is None:
        host_required("no gcc")
    compiled = tmp_path / "trojan"
    words = ["gcc", "-x", "c", "-", f"-Wl,--dynamic-linker={loader}", "-o", str(compiled)]
    subprocess.run(words, input=LOADED_BY_ITSELF.encode(), check=True)
    images.load(packed(entry("trojan", compiled.read_bytes(), mode=0o755)))

    try:
        ran = images.run("/trojan")
    except AssertionError as error:
        if "Unusable" not in str(error):  # the kernel did not even start it
            raise
    else:
        assert ran.exit is not None
        assert ran.exit.code != 0
        assert ran.out == b""


WATCH_NEW_PROCESSES = """
import time
mine = {os.getpid(), 1}
root = os.stat("/")
seen, strange = set(), set()
def look(pid):
    place = f"/proc/{pid}"
    for name in ("exe", "cwd", *(f"fd/{number}" for number in range(10))):
        try: target = os.readlink(f"{place}/{name}")
        except OSError: continue
        seen.add(pid)
        if not target.startswith(("/usr/", "/lib", "/etc/ld.so", "/work", "/dev/null", "pipe:", "/proc/")): strange.add(f"{name} is {target}")
    for name in ("root", "cwd"):
        try: status = os.stat(f"{place}/{name}/")
        except OSError: continue
        if name == "root" and not os.path.samestat(status, root): strange.add("another root")
    for name in ("exe", "mem", "environ"):
        for flags in (os.O_WRONLY, os.O_RDONLY):
            try: file = os.open(f"{place}/{name}", flags)
            except OSError: continue
            if name == "exe" and flags == os.O_WRONLY: strange.add("its program can be written")
            if name == "environ" and b"PATH" not in os.read(file, 4096) + b"PATH": strange.add("environment")
            os.close(file)
while not os.path.exists("/work/over"):
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in mine: look(int(name))
with open("/work/found", "w") as file: json.dump([len(seen), sorted(strange)], file)
"""
STARTS = 200


@pytest.mark.attack(1, 2, 3)
@pytest.mark.parametrize("wall", ["bench", "unfiltered"])
def test_a_command_that_waits_for_the_next_one_catches_nothing_of_init_in_it(
    wall: str, request: pytest.FixtureRequest
) -> None:
    """Between init and the new program there is a moment in which the process is a copy of init (CVE-2016-9962)."""
    bench: Bench = request.getfixturevalue(wall)

    async def race() -> bytes:
        async with bench.sandbox() as made:
            null = os.open("/dev/null", os.O_RDWR)
            words = ("python3", "-c", program(WATCH_NEW_PROCESSES))
            watcher = await start_in(made, *words, descriptors=[null] * 3, then=Then.KEEP)
            os.close(null)
            assert not isinstance(watcher, Unusable)
            for _ in range(STARTS):
                await run_in(made, "/usr/bin/true", then=Then.KEEP)
            await run_in(made, "touch", "/work/over", then=Then.KEEP)
            await watcher.exited()
            return (await run_in(made, "cat", "/work/found")).out

    seen, strange = json.loads(bench.do(race()))
    assert strange == []
    assert seen > 0


# Descriptors as places

PLACES = [
    *(f"/proc/self/fd/{number}" for number in range(3, 41)),
    *(f"/proc/1/fd/{number}" for number in (3, 4, 5)),
    "/proc/self/fd/3/../../..",
    "/proc/thread-self/fd/3",
    "/proc/self/root/../../..",
    "/proc/self/cwd/../../..",
    "/proc/1/root",
    "/proc/1/cwd",
    "/../../../..",
    "/work/../../../../..",
]


@pytest.mark.attack(2, 34)
def test_no_working_directory_is_outside(bench: Bench, tmp_path: Path) -> None:
    """Either it cannot be used, or it is a place in the sandbox that has a name there (CVE-2024-21626)."""
    look = (
        f"pwd -P; stat -L -c %d:%i . /; ls -d ./{tmp_path} ../../../..{tmp_path} 2>/dev/null; true"
    )

    async def start(place: str) -> list[str] | None:
        async with bench.sandbox() as made:
            try:
                return (await run_in(made, "sh", "-c", look, workdir=place)).out.decode().split()
            except AssertionError as error:
                if "Unusable" not in str(error):
                    raise
                return None

    async def all_of_them() -> dict[str, list[str] | None]:
        return {place: await start(place) for place in PLACES}

    found = bench.do(all_of_them())

    inside = {place: lines for place, lines in found.items() if lines is not None}
    assert not [place for place in inside if "fd/" in place]
    assert {place: lines for place, lines in inside.items() if lines[0] != "/"} == {}
    assert {place: lines for place, lines in inside.items() if len(lines) != 3} == {}


# What an image puts in the way

KERNEL_FILES = ["/proc/sysrq-trigger", "/proc/kallsyms", "/proc/kcore", "/proc/keys"]


@pytest.mark.attack(4, 6, 7)
def test_devices_and_files_of_proc_in_an_image_are_not_those_of_the_sandbox(
    images: ImageBench,
) -> None:
    """CVE-2025-31133 and CVE-2025-52881: what is mounted comes from the host, and is mounted over what the image has."""
    canary = str(images.canary)
    devices = [link(f"dev/{name}", canary) for name in ("zero", "tty", "full", "ptmx", "console")]
    others = [
        link("dev/null", "/proc/sysrq-trigger"),
        link("dev/shm", canary),
        link("dev/pts", "/"),
    ]
    proc = [link("proc/self", canary), entry("proc/sys/kernel/core_pattern", b"|/trojan")]
    proc += [link("proc/1", "/"), entry("proc/self-attr", b"x"), link("sys/fs", "/proc")]
    images.load(packed(*devices, *others, *proc))
    source = """
kinds = {name: [os.major(s.st_rdev), os.minor(s.st_rdev)] for name in ("null", "zero", "full", "tty")
         for s in [os.lstat("/dev/" + name)]}
magic = {path: libc_magic(path) for path in ("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm")}
hidden = {path: open(path).read(100) for path in sys.argv[1:] if os.path.exists(path)}
print(json.dumps([kinds, magic, hidden, open("/proc/sys/kernel/core_pattern").read(), int(os.readlink("/proc/self")) == os.getpid()]))
"""
    magic = """
def libc_magic(path):
    room = (ctypes.c_long * 32)()
    assert libc.statfs(path.encode(), room) == 0
    return room[0]
"""
    words = ["/usr/bin/python3", "-c", program(magic + source), *KERNEL_FILES]
    kinds, magics, hidden, core_pattern, itself = images.run(*words).json()

    assert kinds == {"null": [1, 3], "zero": [1, 5], "full": [1, 7], "tty": [5, 0]}
    proc_magic, sysfs, tmpfs, devpts = 0x9FA0, 0x62656572, 0x01021994, 0x1CD1
    assert list(magics.values()) == [proc_magic, sysfs, tmpfs, devpts, tmpfs]
    assert set(hidden.values()) == {""}
    assert core_pattern == Path("/proc/sys/kernel/core_pattern").read_text()
    assert itself


@pytest.mark.attack(12, 13)
def test_accounts_of_an_image_are_read_by_nobody_but_its_programs(images: ImageBench) -> None:
    """A passwd that leads elsewhere, a group file of 100,000 lines, root with another number (CVE-2024-9676)."""
    groups = b"".join(b"g%d:x:%d:0,1,2\n" % (n, n) for n in range(100_000))
    passwd = entry("etc/real-passwd", b"root:x:4294967296:-1::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n")
    images.load(packed(passwd, link("etc/passwd", str(images.canary)), entry("etc/group", groups)))

    ran = images.run("/usr/bin/python3", "-c", "import os; print(os.getresuid(), os.getgroups())")

    assert ran.out == b"(0, 0, 0) []\n"


@pytest.mark.attack(12)
@settings(max_examples=500, deadline=None, database=None)
@given(user=some.text() | some.from_regex(r"\A[-+ 0-9a-fx:_.]{1,12}\Z"))
@example("-1")
@example("4294967296")
@example("0x0")
@example(" 0")
@example("0 ")
@example("0\n")
@example("1000:")
@example(":0")
@example("root:nogroup")
@example("+1")
@example("1_0")
@example("1e3")
@example("\N{ARABIC-INDIC DIGIT ONE}")
@example("\N{FULLWIDTH DIGIT ZERO}")
@example("65536")
@example("0" * 5000)
def test_a_user_is_two_plain_numbers_or_refused(user: str) -> None:
    """No sign, space, other digit or name, and nothing that wraps around."""
    faults: list[Fault] = []
    request = msgspec.convert({"image": "host", "command": ["true"], "user": user}, JobRequest)

    ids = _parse_user(request, faults)

    if ids is None:
        assert [fault.pointer for fault in faults] == ["/user"]
    else:
        assert user in (f"{ids[0]}:{ids[1]}", str(ids[0]))
        assert all(0 <= one <= MAX_ID for one in ids)
