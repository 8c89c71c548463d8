"""How sandboxes end: with their command, their init, the launcher, the service; and how they fail to begin."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sandbox_bench import Bench, a_bench, children_of, run_in, start_in, without
from waiting import wait_for

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import idmap, launcher_client
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.sandbox import Process, Sandbox
from sandboxd.isolation.spec import NetworkMode, OciRuntime

DAEMONS = """
import os, signal, sys, time
for number in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for one in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(one, signal.SIG_IGN)
            if number == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
            while True:
                time.sleep(1000) if number != 1 else None
        os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""

HOLD_DESCRIPTORS_UNDER_WAY = """
import os, socket, sys
null, pairs, sent = os.open("/dev/null", os.O_RDWR), [], 0
try:
    while True:
        pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        pairs[-1][0].setblocking(False)
        try:
            while True:
                socket.send_fds(pairs[-1][0], [b"x"], [null] * 200)
                sent += 200
        except BlockingIOError:
            pass
except OSError:
    print("ready", sent, flush=True)
sys.stdin.read()
"""


OOM_SCORES = """
import json
def read(pid):
    with open(f"/proc/{pid}/oom_score_adj") as file:
        return int(file.read())
while read(1) == read("self"):
    pass
print(json.dumps([read(1), read("self")]))
"""


class Running:
    """A Python program in a sandbox, which has said that it is ready and waits for the end of its input."""

    def __init__(self, process: Process, feed: int, output: int) -> None:
        self.process = process
        self.feed = feed
        self.output = output

    @classmethod
    async def start(cls, sandbox: Sandbox, source: str) -> "Running":
        command_in, feed = os.pipe()
        output, command_out = os.pipe()
        try:
            argv = ("python3", "-c", source)
            process = await start_in(
                sandbox, *argv, descriptors=[command_in, command_out, command_out]
            )
        finally:
            os.close(command_in)
            os.close(command_out)
        said = await asyncio.to_thread(os.read, output, 1000)
        assert said.startswith(b"ready"), said
        assert isinstance(process, Process), process
        return cls(process, feed, output)

    def close(self) -> None:
        os.close(self.feed)
        os.close(self.output)


def launcher_pid(launcher: Launcher) -> int:
    assert launcher.process is not None
    return launcher.process.pid


@pytest.mark.attack(49, 50)
def test_daemons_are_gone_with_their_command(bench: Bench) -> None:
    """Double-forked, in sessions of their own, stopped, spinning, deaf to every signal (ATTACKS 49, 50)."""

    async def run() -> set[int]:
        async with bench.sandbox() as made:
            running = await Running.start(made, DAEMONS)
            alive = children_of(launcher_pid(bench.launcher))
            running.close()
            await running.process.exited()
            await made.dead()
            return alive

    alive = bench.do(run())

    assert len(alive) >= 7  # init, the command, its daemons
    assert children_of(launcher_pid(bench.launcher)) == set()


def test_killing_init_ends_every_process_and_tells_nothing_of_the_command(bench: Bench) -> None:
    async def run() -> Any:
        async with bench.sandbox() as made:
            running = await Running.start(made, DAEMONS)
            made.kill()
            ended = await running.process.exited()
            await made.dead()
            running.close()
            return ended

    assert bench.do(run()) is None
    assert children_of(launcher_pid(bench.launcher)) == set()


def test_a_sandbox_ends_when_the_service_closes_its_socket(bench: Bench) -> None:
    """Parked, and while a command runs."""

    async def run() -> None:
        parked = await bench.launcher.create(bench.spec())
        busy = await bench.launcher.create(bench.spec())
        running = await Running.start(busy, DAEMONS)
        for one in (parked, busy):
            one._loop.remove_reader(one._channel.fileno())
            one._channel.shutdown(2)
        await parked.dead()
        await busy.dead()
        running.close()

    bench.do(run())
    assert children_of(launcher_pid(bench.launcher)) == set()


@pytest.mark.attack(57)
def test_the_death_of_the_launcher_ends_every_sandbox_and_the_next_one_gets_a_new_launcher() -> (
    None
):
    async def run(bench: Bench) -> tuple[set[int], Any]:
        parked = await bench.launcher.create(bench.spec())
        busy = await bench.launcher.create(bench.spec())
        running = await Running.start(busy, DAEMONS)
        pids = children_of(launcher_pid(bench.launcher))
        os.kill(launcher_pid(bench.launcher), signal.SIGKILL)
        ended = await running.process.exited()
        await parked.dead()
        await busy.dead()
        running.close()
        async with bench.sandbox() as made:
            assert (await run_in(made, "echo", "again")).out == b"again\n"
        return pids, ended

    with a_bench() as bench:
        pids, ended = bench.do(run(bench))

        assert ended is None
        assert bench.launcher.starts == 2
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all are gone")


def test_a_launcher_that_is_not_ready_in_time_is_ended_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with a_bench() as bench:
        monkeypatch.setattr(launcher_client, "_BUILD_SECONDS", 0.0)
        with pytest.raises(SandboxFailed, match=r"start launcher.*not ready"):
            bench.do(bench.launcher.start())

        assert bench.launcher.process is not None
        assert bench.launcher.process.returncode == -signal.SIGKILL


def test_no_sandbox_outlives_the_launcher_even_without_the_kernel_s_signal() -> None:
    """A change of ids clears the parent-death signal: for a moment init has none."""

    async def run(bench: Bench) -> None:
        made = await bench.launcher.create(bench.spec())
        os.kill(launcher_pid(bench.launcher), signal.SIGKILL)
        await made.dead()

    with without("init.privileges.die_with_parent = lambda pid: None") as bench:
        bench.do(run(bench))


def test_a_maker_cancelled_in_the_turn_of_the_answer_leaves_no_descriptor_and_no_process(
    bench: Bench,
) -> None:
    async def cancel_with_the_answer() -> None:
        launcher, loop = bench.launcher, asyncio.get_running_loop()
        control = await launcher._ensure_started()
        loop.remove_reader(control.fileno())
        making = asyncio.ensure_future(launcher.create(bench.spec()))
        await launcher_client._readable(control.fileno())
        launcher._read_control()
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        loop.add_reader(control.fileno(), launcher._read_control)

    bench.run("true")
    descriptors = len(os.listdir("/proc/self/fd"))
    bench.do(cancel_with_the_answer())

    assert len(os.listdir("/proc/self/fd")) == descriptors
    wait_for(lambda: children_of(launcher_pid(bench.launcher)) == set(), "init is gone")


@pytest.mark.attack(40)
def test_a_service_without_room_for_descriptors_keeps_the_sandboxes_that_it_has(
    bench: Bench,
) -> None:
    """Many idle connections must not end everybody's commands (ATTACKS 40)."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def run() -> tuple[bytes, int]:
        async with bench.sandbox() as made:
            starts = bench.launcher.starts
            room = max(int(name) for name in os.listdir("/proc/self/fd")) + 2
            resource.setrlimit(resource.RLIMIT_NOFILE, (room, limits[1]))
            taken = []
            try:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                os.close(taken.pop())
            try:
                with pytest.raises(SandboxFailed, match="receive sandbox"):
                    await bench.launcher.create(bench.spec())
            finally:
                for descriptor in taken:
                    os.close(descriptor)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return (await run_in(made, "echo", "alive")).out, starts

    said, starts = bench.do(run())
    assert said == b"alive\n"
    assert bench.launcher.starts == starts


def test_a_launcher_that_ends_while_it_starts_is_a_failure_and_the_next_one_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is killed between its first message and the answer."""
    map_ids = idmap.map_launcher

    def map_too_late(pid: int, ids: idmap.IdRange | None) -> None:
        map_ids(pid, ids)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    with a_bench() as bench:
        with monkeypatch.context() as changed:
            changed.setattr(idmap, "map_launcher", map_too_late)
            with pytest.raises(SandboxFailed, match="start launcher"):
                bench.do(bench.launcher.start())

        async def run() -> bytes:
            async with bench.sandbox() as made:
                return (await run_in(made, "echo", "alive")).out

        assert bench.do(run()) == b"alive\n"


SERVICE = """
import asyncio, sys
sys.path[:0] = {path!r}
from sandbox_bench import a_bench, start_in
import os

async def main(bench):
    made = [await bench.launcher.create(bench.spec()) for _ in range(3)]
    null = os.open("/dev/null", os.O_RDWR)
    await start_in(made[0], "sleep", "1000", descriptors=[null] * 3)
    print(bench.launcher.process.pid, *(one.pid for one in made), flush=True)
    await asyncio.sleep(1000)

with a_bench() as bench:
    bench.do(main(bench))
"""


@pytest.mark.attack(57)
def test_the_death_of_the_service_ends_the_launcher_and_every_sandbox(tmp_path: Path) -> None:
    """SIGKILL: nobody has time to say goodbye (ATTACKS 57)."""
    path = [str(Path(__file__).parent.parent), *sys.path]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE.format(path=path)], stdout=subprocess.PIPE, env=environment
    )
    with service:
        assert service.stdout is not None
        pids = [int(word) for word in service.stdout.readline().split()]
        below = children_of(service.pid)
        service.kill()
    assert len(pids) == 4
    assert set(pids) < below

    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), "all are gone")


def test_a_sandbox_whose_maker_gave_up_waiting_ends_itself(bench: Bench) -> None:
    async def give_up() -> None:
        for _ in range(10):
            making = asyncio.ensure_future(bench.launcher.create(bench.spec()))
            await asyncio.sleep(0)
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making
        async with bench.sandbox():
            pass

    descriptors = len(os.listdir("/proc/self/fd"))
    bench.do(give_up())

    wait_for(lambda: children_of(launcher_pid(bench.launcher)) == set(), "all are gone")
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    ("change", "step", "reason"),
    [
        ({"rootfs": "/does/not/exist"}, "mount_file_system", "No such file"),
        ({"rootfs": "/etc/passwd"}, "mount_file_system", "Not a directory"),
        ({"binds": (("/does/not/exist", "/usr"),)}, "mount_file_system", "No such file"),
        ({"scratch_inodes": -1}, "mount_file_system", "tmpfs"),
        ({"scratch_inodes": 4}, "mount_file_system", "No space left"),
        ({"hostname": "h" * 65}, "set_hostname", "Invalid argument"),
        ({"uid": 70_000}, "mount_file_system", "Invalid argument"),
        ({"gid": 70_000}, "mount_file_system", "Invalid argument"),
        ({"uid": 70_000, "writable": ()}, "mount_file_system", "Invalid argument"),
    ],
)
def test_a_step_that_fails_names_itself_and_leaves_nothing(
    change: dict[str, Any], step: str, reason: str, bench: Bench
) -> None:
    bench.run("true")
    host_mounts = Path("/proc/self/mountinfo").read_text()
    launcher_mounts = Path(f"/proc/{launcher_pid(bench.launcher)}/mountinfo").read_text()
    descriptors = len(os.listdir("/proc/self/fd"))

    with pytest.raises(SandboxFailed) as raised:
        bench.run("true", **change)

    assert (raised.value.step, reason in raised.value.reason) == (step, True), raised.value
    assert children_of(launcher_pid(bench.launcher)) == set()
    assert Path("/proc/self/mountinfo").read_text() == host_mounts
    again = Path(f"/proc/{launcher_pid(bench.launcher)}/mountinfo").read_text()
    assert again == launcher_mounts
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("path", ["/does/not/exist/cgroup.procs", "/proc/version", "/etc"])
def test_a_cgroup_that_cannot_be_joined_is_a_failed_step(path: str, bench: Bench) -> None:
    with pytest.raises(SandboxFailed, match="join_cgroups"):
        bench.do(bench.launcher.create(bench.spec(), join_files=(path,)))

    assert children_of(launcher_pid(bench.launcher)) == set()


def test_a_descriptor_that_is_no_cgroup_is_refused_by_the_clone(bench: Bench) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(SandboxFailed, match="clone3"):
            bench.do(bench.launcher.create(bench.spec(), cgroup_fd=null))
    finally:
        os.close(null)

    assert bench.run("echo", "alive").out == b"alive\n"


STEPS = [
    "leave_launcher",
    "mount_own",
    "bring_up_network",
    "mount_file_system",
    "change_root",
    "forbid_more_namespaces",
    "empty_bounding_set",
    "give_up_privileges",
    "filter_system_calls",
]


@pytest.mark.parametrize("from_blanks", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_no_wall_is_passed_over_when_it_cannot_be_built(step: str, from_blanks: bool) -> None:
    """Each step fails as the kernel would let it fail: the command never runs."""
    refuse = f"def {step}(self): raise PermissionError(1, 'refused')"
    statements = f"exec({refuse!r}); init.Init.{step} = {step}"
    with without(statements, from_blanks=from_blanks) as bench:
        with pytest.raises(SandboxFailed, match=f"{step}: PermissionError"):
            bench.run("true")
        assert children_of(launcher_pid(bench.launcher)) == set()


@pytest.mark.parametrize(
    "change",
    [
        {"network": NetworkMode.EGRESS},
        {"writable_root": True},
        {"runtime": OciRuntime("runc", "/usr/sbin/runc")},
        {"rootfs": ""},
    ],
)
def test_a_blank_becomes_nothing_for_which_the_launcher_had_more_to_do(
    change: dict[str, Any], bench: Bench
) -> None:
    async def become() -> None:
        blank = await bench.launcher.begin()
        with pytest.raises(SandboxFailed, match="learn_shape: ValueError: a blank cannot"):
            await bench.launcher.finish(blank, bench.spec(**change))
        assert not blank.alive

    assert not bench.spec(**change).fits_blank
    bench.do(become())


def test_maps_that_cannot_be_written_end_the_sandbox() -> None:
    statements = (
        'exec(\'def refuse(*a, **k): raise launcher.SandboxFailed("uid_map", "refused")\');'
        " launcher.sandbox_ids.map_sandbox = refuse"
    )
    with without(statements) as bench, pytest.raises(SandboxFailed):
        bench.run("true")


def test_a_launcher_that_cannot_start_says_so() -> None:
    with a_bench() as bench:
        bench.launcher.stage = Path("/does/not/exist")
        with pytest.raises(SandboxFailed, match="start launcher"):
            bench.run("true")
        assert not bench.launcher.alive


@pytest.mark.attack(52)
def test_descriptors_that_a_command_keeps_under_way_do_not_end_the_launcher() -> None:
    """With a single id they are counted together with the launcher's own (ATTACKS 52)."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))

    async def run(bench: Bench) -> None:
        async with bench.sandbox() as made:
            running = await Running.start(made, HOLD_DESCRIPTORS_UNDER_WAY)
            async with bench.sandbox():
                pass
            running.close()

    try:
        with a_bench("single") as bench:
            bench.do(run(bench))
            assert bench.launcher.starts == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_init_keeps_the_score_for_the_memory_killer_that_the_service_was_given() -> None:
    """A user's systemd gives 200, and without privileges there is no way down from there."""
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("300")
    try:
        with a_bench() as bench:
            scores = bench.python(OOM_SCORES)
    finally:
        own.write_text(before)

    assert scores == [300, 1000]


def test_signals_reach_the_command_s_process_group(bench: Bench) -> None:
    async def run() -> Any:
        async with bench.sandbox() as made:
            source = "import sys; print('ready', flush=True); sys.stdin.read()"
            running = await Running.start(made, source)
            running.process.signal(signal.SIGTERM)
            ended = await running.process.exited()
            running.close()
            return ended

    ended = bench.do(run())
    assert (ended.code, ended.signal) == (None, signal.SIGTERM)


@pytest.mark.parametrize(
    ("argv", "code", "number"),
    [
        (("true",), 0, None),
        (("sh", "-c", "exit 255"), 255, None),
        (("sh", "-c", "kill -SEGV $$"), None, signal.SIGSEGV),
        (("sh", "-c", "kill -KILL $$"), None, signal.SIGKILL),
        (("python3", "-c", "import os; os.abort()"), None, signal.SIGABRT),
    ],
)
def test_the_end_is_told_as_it_was(
    argv: tuple[str, ...], code: int | None, number: int | None, either: Bench
) -> None:
    ended = either.run(*argv).exit

    assert ended is not None
    assert (ended.code, ended.signal) == (code, number)
    assert ended.max_rss_bytes > 0


def test_a_command_that_cannot_be_executed_is_the_caller_s_mistake(bench: Bench) -> None:
    async def start(*argv: str, **changes: Any) -> Any:
        null = os.open("/dev/null", os.O_RDWR)
        try:
            async with bench.sandbox() as made:
                return await start_in(made, *argv, descriptors=[null] * 3, **changes)
        finally:
            os.close(null)

    assert bench.do(start("no-such-program")) == ("command", 2)
    assert bench.do(start("/usr")) == ("command", 13)
    assert bench.do(start("/etc/passwd")) == ("command", 13)
    assert bench.do(start("true", workdir="/proc/self/nowhere")) == ("workdir", 2)
    assert bench.do(start("true", workdir="/etc/passwd")) == ("workdir", 20)
    assert bench.do(start("true", workdir="/usr/made")) == ("workdir", 30)
    assert bench.do(start("true", *["x" * 100_000] * 40)) == ("command", 7)
    assert bench.do(start("")) == ("command", 13)
