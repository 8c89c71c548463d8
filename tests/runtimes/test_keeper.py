"""A sandbox whose commands an OCI runtime starts, without the service around it."""

import asyncio
import errno
import os
import signal
from pathlib import Path

import psutil
import pytest
from sandbox_bench import Bench, a_bench, run_in
from waiting import TIME_FACTOR, wait_for

from sandboxd.errors import SandboxFailed
from sandboxd.isolation.init import Init
from sandboxd.isolation.oci.keeper import Keeper
from sandboxd.isolation.protocol import Collect
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import Command, File, OciRuntime, Then, Unusable


def failure(bench: Bench, runtime: OciRuntime, *argv: str) -> SandboxFailed:
    with pytest.raises(SandboxFailed) as failed:
        bench.run(*(argv or ("true",)), runtime=runtime)
    return failed.value


BY_THE_RUNTIME = {
    "enter_user_namespace",
    "limit_shared_quotas",
    "empty_bounding_set",
    "become_user",
    "give_up_privileges",
    "filter_system_calls",
}
FOR_EACH_COMMAND = {"forbid_more_namespaces"}
ONLY_FOR_IMAGES = {"load_tools"}
NO_WALLS = {"start_clocks", "show_machine"}
"""What commands see of the machine: with a runtime it is the host (docs/isolation.md)."""
ONLY_FOR_BLANKS = {"learn_shape"}


def test_no_wall_of_native_sandboxes_is_forgotten() -> None:
    """A wall that is added to init must be built by the keeper too, or by the runtime."""
    native = {step.__name__ for step in object.__new__(Init).steps()}
    ours = {step.__name__ for step in object.__new__(Keeper).steps()}

    left_out = BY_THE_RUNTIME | FOR_EACH_COMMAND | ONLY_FOR_IMAGES | NO_WALLS | ONLY_FOR_BLANKS
    assert native - ours == left_out


# What the runtime cannot do


@pytest.mark.parametrize(("path", "reason"), [("/usr/bin/true", "pid"), ("/usr/bin/false", "1")])
def test_a_program_that_is_no_runtime_is_a_failure_that_names_it(
    bench: Bench, path: str, reason: str
) -> None:
    failed = failure(bench, OciRuntime("odd", path))

    assert failed.step == "runtime odd"
    assert reason in failed.reason


def test_a_runtime_that_is_not_there_is_a_failure_of_the_sandbox(bench: Bench) -> None:
    assert failure(bench, OciRuntime("odd", "/nowhere/odd")).step == "mount_runtime_root"


def test_what_a_runtime_says_is_passed_on(bench: Bench, oci: OciRuntime) -> None:
    failed = failure(bench, oci._replace(args=("--no-such-flag",)))

    assert failed.step == f"runtime {oci.name}"


def test_without_subordinate_ids_there_is_no_oci_runtime(oci: OciRuntime) -> None:
    with a_bench("single") as single, pytest.raises(SandboxFailed):
        single.run("true", runtime=oci)


# Commands


def test_a_file_of_no_known_format_is_told_by_its_errno(bench: Bench, oci: OciRuntime) -> None:
    """That is known only when it is executed; a runtime tells of it in words, on the command's own error output."""

    async def attempt() -> object:
        async with bench.sandbox(runtime=oci) as made:
            content = os.memfd_create("content")
            os.write(content, b"\0no program")
            os.lseek(content, 0, os.SEEK_SET)
            await made.place([File("/work/x", 0o755, 11)], content)
            os.close(content)
            return await start(made, "/work/x")

    assert bench.do(attempt()) == Unusable("command", errno.ENOEXEC)


def test_a_script_whose_interpreter_is_not_there_is_not_found(
    bench: Bench, oci: OciRuntime
) -> None:
    async def attempt() -> object:
        async with bench.sandbox(runtime=oci) as made:
            await run_in(
                made,
                *("sh", "-c", "printf '#!/nowhere\n' > x; chmod 755 x"),
                then=Then.KEEP,
            )
            return await start(made, "/work/x")

    assert bench.do(attempt()) == Unusable("command", errno.ENOENT)


def test_without_a_path_the_usual_one_is_searched(bench: Bench, oci: OciRuntime) -> None:
    async def attempt() -> bytes:
        async with bench.sandbox(runtime=oci) as made:
            return (await run_in(made, "sh", "-c", "echo found", env={})).out

    assert bench.do(attempt()) == b"found\n"


def test_a_name_is_searched_past_what_cannot_be_executed(bench: Bench, oci: OciRuntime) -> None:
    """As execvp(3) does it, whatever the runtime would have taken."""

    async def attempt() -> bytes:
        async with bench.sandbox(runtime=oci) as made:
            await run_in(made, "sh", "-c", "mkdir a; echo no > a/echo", then=Then.KEEP)
            ran = await run_in(made, "echo", "yes", env={"PATH": "/work/a:/usr/bin"})
            return ran.out

    assert bench.do(attempt()) == b"yes\n"


def test_commands_follow_one_another_in_one_sandbox(bench: Bench, oci: OciRuntime) -> None:
    """What one left running is killed or goes on, as for native sandboxes; its files stay."""

    async def several() -> list[bytes]:
        async with bench.sandbox(runtime=oci) as made:
            count = ("sh", "-c", "grep -lx sleep /proc/[0-9]*/comm | wc -l")
            leave = ("sh", "-c", "echo kept > file; sleep 600 > /dev/null 2>&1 < /dev/null &")
            first = await run_in(made, *leave, then=Then.KEEP)
            with_sleep = await run_in(made, *count, then=Then.CLEAR)
            without = await run_in(made, *count, then=Then.KEEP)
            last = await run_in(made, "cat", "file", then=Then.END)
            return [first.out, with_sleep.out, without.out, last.out]

    assert bench.do(several()) == [b"", b"1\n", b"0\n", b"kept\n"]


def test_files_are_placed_and_collected_as_the_user_and_from_inside(
    bench: Bench, oci: OciRuntime
) -> None:
    """The keeper has more rights than the command: it must not use them for a path that the command made."""

    async def attempt() -> list[int]:
        async with bench.sandbox(runtime=oci) as made:
            link = "ln -s /proc/1/root/usr out; ln -s /proc/1/root/state state; mkdir -m 0 closed"
            await run_in(made, "sh", "-c", link, then=Then.KEEP)
            found = []
            for path in ("/work/state/x", "/etc/hosts/x", "/usr/x"):
                null = os.open("/dev/null", os.O_RDONLY)
                answer = await made.place([File(path, 0o644, 0)], null)
                os.close(null)
                found.append(getattr(answer, "errno", 0))
            reading, writing = os.pipe()
            done = await made.collect(Collect("/work", ("out/*", "state/*"), 2**20, 100), writing)
            os.close(reading)
            os.close(writing)
            return [*found, done.entries]

    denied, in_the_way, read_only, entries = bench.do(attempt())
    assert denied in (errno.EACCES, errno.EEXIST)
    assert in_the_way == errno.ENOTDIR
    assert read_only == errno.EROFS
    assert entries == 0


# Ends


def test_killing_the_keeper_ends_everything(bench: Bench, oci: OciRuntime) -> None:
    async def attempt() -> list[psutil.Process]:
        async with bench.sandbox(runtime=oci) as made:
            process = await start(made, "sh", "-c", "setsid sleep 600 & sleep 600 & wait")
            assert not isinstance(process, Unusable)
            everything = psutil.Process(made.pid).children(recursive=True)
            made.kill()
            await made.dead()
            assert await process.exited() is None
            return everything

    everything = bench.do(attempt())
    assert everything
    _, alive = psutil.wait_procs(everything, timeout=15 * TIME_FACTOR)
    assert alive == []


def test_nothing_of_a_sandbox_is_mounted_where_others_are(bench: Bench, oci: OciRuntime) -> None:
    bench.run("true", runtime=oci)

    assert bench.launcher.process is not None
    mounted = Path(f"/proc/{bench.launcher.process.pid}/mountinfo").read_text()
    assert "/tree" not in mounted
    assert "/bundle" not in mounted
    assert str(bench.directory) not in Path("/proc/self/mountinfo").read_text()


def test_the_keeper_of_a_last_command_keeps_no_rights_but_to_signal(
    bench: Bench, oci: OciRuntime
) -> None:
    async def attempt() -> dict[str, str]:
        async with bench.sandbox(runtime=oci) as made:
            process = await start(made, "sleep", "600")
            assert not isinstance(process, Unusable)
            # It gives them up just after the command has started.
            filtered = lambda: status_of(made.pid)["Seccomp"] == "2"
            await asyncio.to_thread(wait_for, filtered, "it is filtered")
            status = status_of(made.pid)
            process.signal(signal.SIGTERM)
            ended = await process.exited()
            assert ended is not None
            assert ended.signal == signal.SIGTERM
            return status

    status = bench.do(attempt())
    kill = 1 << 5
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == kill
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_a_runtime_sees_nothing_of_the_host_but_its_programs(bench: Bench) -> None:
    """A program in its place that looks around: what it finds, it says in its log."""
    look = (
        "import os, json, sys; "
        "words = sys.argv[sys.argv.index('--log') + 1:]; "
        "seen = {'root': sorted(os.listdir('/')), 'env': sorted(os.environ), "
        "'fds': sorted(os.listdir('/proc/self/fd')), 'cgroup': os.access('/sys/fs/cgroup', os.W_OK)}; "
        "open(words[0], 'w').write(json.dumps({'msg': json.dumps(seen)})); sys.exit(1)"
    )

    failed = failure(bench, OciRuntime("odd", "/usr/bin/python3", ("-I", "-S", "-c", look)))

    assert "home" not in failed.reason
    assert "var" not in failed.reason
    assert '"etc"' not in failed.reason
    assert '"env": ["LC_CTYPE", "PATH"]' in failed.reason
    assert '"fds": ["0", "1", "2", "3"]' in failed.reason
    assert '"cgroup": false' in failed.reason


async def start(made: Sandbox, *argv: str) -> object:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    environment = {"PATH": "/usr/bin:/bin"}
    try:
        command = Command(argv=argv, env=environment, workdir="/work", rlimits={"nofile": 256})
        return await made.run(command, [null, null, null])
    finally:
        os.close(null)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
