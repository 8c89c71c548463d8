"""The same job with the native runtime and with OCI runtimes: the same result, logs, limits and states."""

import errno
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from running_service import RunningService
from runtime_jobs import Run, end_of, python
from waiting import wait_for

from sandboxd.client import Client, InvalidRequest, Job

pytestmark = pytest.mark.thorough

MIB = 2**20


@pytest.fixture
def run(oci_service: RunningService, oci_client: Client, runtime: str) -> Iterator[Run]:
    """Afterwards nothing may be left of what ran."""

    def run_with(*argv: str, **options: Any) -> Job:
        return oci_client.run(list(argv), runtime=runtime, **options)

    yield run_with
    oci_service.assert_nothing_left(oci_client)


# Ends


@pytest.mark.parametrize("code", [1, 126, 137, 255])
def test_an_exit_code_is_that_code(run: Run, code: int) -> None:
    """137 too, which is no signal here."""
    assert end_of(run("sh", "-c", f"exit {code}")) == ("failed", "exited", code, None)


def test_exit_code_0_is_success(run: Run) -> None:
    assert end_of(run("true")) == ("succeeded", "exited", 0, None)


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "KILL", "TERM", "PIPE"])
def test_a_signal_is_that_signal(run: Run, name: str) -> None:
    expected = ("failed", "signalled", None, f"SIG{name}")
    assert end_of(run("sh", "-c", f"kill -s {name} $$")) == expected


def test_an_abort_is_an_abort(run: Run) -> None:
    assert end_of(run(*python("import os; os.abort()"))) == ("failed", "signalled", None, "SIGABRT")


UNUSABLE = {
    "not there": ({"command": ["no-such-program"]}, "command_not_found", "ENOENT"),
    "path not there": ({"command": ["/work/none"]}, "command_not_found", "ENOENT"),
    "not executable": ({"command": ["/etc/passwd"]}, "command_not_executable", "EACCES"),
    "a directory": ({"command": ["/usr"]}, "command_not_executable", "EACCES"),
    "below a file": ({"command": ["/etc/passwd/x"]}, "command_not_found", "ENOTDIR"),
    "workdir is a file": (
        {"command": ["true"], "workdir": "/etc/passwd"},
        "workdir_unusable",
        "ENOTDIR",
    ),
    "workdir not ours": (
        {"command": ["true"], "workdir": "/usr/new"},
        "workdir_unusable",
        "EROFS",
    ),
    "workdir is a descriptor": (
        {"command": ["true"], "workdir": "/proc/self/fd/99"},
        "workdir_unusable",
        "ENOENT",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_started_is_told_by_its_errno(run: Run, case: str) -> None:
    options, reason, number = UNUSABLE[case]

    job = run(*options["command"], **{k: v for k, v in options.items() if k != "command"})

    assert (job.state, job.reason, job.stdout, job.stderr) == ("failed", reason, b"", b"")
    assert job.error is not None
    assert job.error.message.endswith(f": {number}")


# Streams


def test_eight_mebibytes_pass_through_unharmed(run: Run) -> None:
    sent = bytes(range(256)) * (8 * MIB // 256)

    job = run(
        *python("""
            import hashlib, sys
            seen = hashlib.sha256()
            while piece := sys.stdin.buffer.read(65536):
                seen.update(piece)
                sys.stdout.buffer.write(piece)
            sys.stderr.write(seen.hexdigest())
        """),
        stdin=sent,
    )

    assert job.streams["stdout"].size_bytes == len(sent)
    assert job.stdout == sent[: len(job.stdout)]
    assert job.stderr.decode() == hashlib.sha256(sent).hexdigest()


def test_bytes_that_are_no_text_come_back_as_they_are(run: Run) -> None:
    job = run("sh", "-c", r"printf '\000\377\200out'; printf '\376err' >&2")

    assert (job.stdout, job.stderr) == (b"\0\xff\x80out", b"\xfeerr")


def test_input_that_nobody_reads_hinders_nobody(run: Run) -> None:
    assert end_of(run("true", stdin=b"x" * MIB)) == ("succeeded", "exited", 0, None)


# What the command sees

FACTS = """
    import json, os, socket, resource
    def status(name):
        return next(l.split()[1] for l in open("/proc/self/status") if l.startswith(name))
    def attempt(work):
        try: work()
        except OSError as error: return error.errno
        return 0
    print(json.dumps({
        "argv": open("/proc/self/cmdline").read().split("\\0")[:2],
        "env": dict(os.environ), "cwd": os.getcwd(), "umask": os.umask(0o22),
        "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
        "maps": open("/proc/self/uid_map").read().split(),
        "capabilities": [status("Cap" + kind) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")],
        "no_new_privs": status("NoNewPrivs"), "seccomp": status("Seccomp"),
        "filters": status("Seccomp_filters"), "tracer": status("TracerPid"),
        "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
        "processes": sorted(int(n) for n in os.listdir("/proc") if n.isdigit()) == [1, os.getpid()],
        "parent": os.getppid(),
        "links": [name for _, name in socket.if_nameindex()],
        "hostname": socket.gethostname(),
        "descriptors": sorted(os.listdir("/proc/self/fd"))[:4],
        "streams": [os.readlink(f"/proc/self/fd/{n}").partition(":")[0] for n in range(3)],
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource)
                   if name.startswith("RLIMIT_")},
        "oom": open("/proc/self/oom_score_adj").read(),
        "blocked": status("SigBlk"),
        "root": sorted(os.listdir("/")), "dev": sorted(os.listdir("/dev")),
        "etc": sorted(os.listdir("/etc")),
        "files": {p: attempt(lambda: open(p, "rb").read(1)) for p in
                  ("/proc/kcore", "/proc/keys", "/proc/1/environ", "/proc/1/mem", "/sys/firmware/x")},
        "masked": [os.path.getsize("/proc/" + n) for n in ("kallsyms", "keys", "timer_list")
                   if os.path.exists("/proc/" + n)],
        "writes": {p: attempt(lambda: open(p, "w")) for p in
                   ("/usr/x", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/x", "/dev/x",
                    "/etc/hosts", "/proc/1/oom_score_adj")},
        "mknod": attempt(lambda: os.mknod("/work/null", 0o20666, os.makedev(1, 3))),
        "kill": attempt(lambda: os.kill(1, 9)),
        "init's priority": [
            attempt(lambda: os.setpriority(os.PRIO_PROCESS, 1, 19)),
            attempt(lambda: os.sched_setaffinity(1, os.sched_getaffinity(0))),
            attempt(lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))),
            attempt(lambda: os.sched_setparam(1, os.sched_param(0))),
        ],
        "null": attempt(lambda: open("/dev/null", "w").write("x")),
        "cgroups": sorted(os.listdir("/sys/fs/cgroup")),
        "namespaces below": open("/proc/sys/user/max_user_namespaces").read(),
        "scratch": os.statvfs("/work").f_blocks * os.statvfs("/work").f_frsize,
    }))
"""


def facts(job: Job) -> dict[str, Any]:
    assert job.exit_code == 0, job.stderr
    found: dict[str, Any] = json.loads(job.text)
    return found


@pytest.fixture(scope="module")
def native_facts(oci_client: Client) -> dict[str, Any]:
    return facts(oci_client.run(list(python(FACTS)), env={"A": "b c"}, limits={"disk": "8Mi"}))


def test_a_command_sees_the_same_of_itself_and_its_world(
    run: Run, runtime: str, native_facts: dict[str, Any]
) -> None:
    found = facts(run(*python(FACTS), env={"A": "b c"}, limits={"disk": "8Mi"}))

    # Only this differs: PID 1 of an OCI sandbox is of another user, so it does not even have to protect itself.
    assert found.pop("kill") == (0 if runtime == "native" else errno.EPERM)
    assert found == {key: value for key, value in native_facts.items() if key != "kill"}
    assert found["capabilities"] == ["0" * 16] * 5
    assert (found["no_new_privs"], found["seccomp"], found["links"]) == ("1", "2", ["lo"])
    assert found["processes"]
    assert found["init's priority"] == [errno.EPERM] * 4


def test_the_environment_is_from_scratch(run: Run) -> None:
    job = run("env", env={"ONLY": "this"})

    names = {line.partition("=")[0] for line in job.text.splitlines()}
    assert names == {"PATH", "HOME", "USER", "LANG", "ONLY"}


def test_no_variable_is_taken_for_the_runtimes_own(run: Run) -> None:
    asked = {
        "_LIBCONTAINER_INITPIPE": "3",
        "_LIBCONTAINER_FIFOFD": "4",
        "_LIBCONTAINER_STATEDIR": "/work",
        "GODEBUG": "x",
        "GOTRACEBACK": "crash",
        "LISTEN_FDS": "3",
        "LD_PRELOAD": "",
        "XDG_RUNTIME_DIR": "/work",
        "TWO LINES": "a\nb=c",
        "empty": "",
        "ü": "ß 😀",
    }

    job = run(*python("import json, os; print(json.dumps(dict(os.environ)))"), env=asked)

    found = json.loads(job.text)
    assert {name: found.get(name) for name in asked} == asked


def test_a_megabyte_of_arguments_and_variables_arrives(run: Run) -> None:
    words = ["\x01é" * 20_000] * 12
    count = "import os, sys; print(len(sys.argv) - 1, sum(map(len, sys.argv[1:])), len(os.environ['V']))"

    job = run(*python(count), *words, env={"V": "\x7f" * 100_000})

    assert job.text == f"{len(words)} {40_000 * len(words)} 100000\n"


@pytest.mark.parametrize("user", ["0", "1000:1000", "65533:7"])
def test_a_job_is_the_user_that_it_asks_for(run: Run, user: str) -> None:
    uid, _, gid = user.partition(":")

    job = run(
        "sh", "-c", "echo $(id -u):$(id -g); touch /tmp/mine && stat -c %u /tmp/mine", user=user
    )

    assert job.text == f"{uid}:{gid or uid}\n{uid}\n"


def test_a_working_directory_is_made_for_the_user(run: Run) -> None:
    job = run("sh", "-c", "pwd; stat -c %u .; echo > x", workdir="/work/new/place")

    assert (job.exit_code, job.text) == (0, "/work/new/place\n1000\n")


def test_a_program_is_looked_for_in_the_path_of_the_job(run: Run) -> None:
    """An empty PATH too: there is a usual one."""
    prepare = "mkdir bin; printf '#!/bin/sh\necho $0' > bin/tool; chmod 755 bin/tool; exec tool"

    job = run("sh", "-c", prepare, env={"PATH": "/nowhere:/work/bin:/usr/bin:/bin"})

    assert job.text == "/work/bin/tool\n"


# Limits


def test_wall_time_ends_a_job(run: Run) -> None:
    job = run("sleep", "60", limits={"wall_seconds": 0.3})

    assert end_of(job) == ("timed_out", "wall_seconds", None, "SIGKILL")
    assert job.usage is not None
    assert 0.3 <= job.usage.wall_seconds < 20


def test_silence_ends_a_job_and_output_holds_it_off(run: Run) -> None:
    speak = "for i in 1 2 3 4 5 6; do sleep 0.6; echo $i >&2; done"
    job = run("sh", "-c", f"{speak}; exec sleep 60", limits={"idle_seconds": 3, "wall_seconds": 60})

    assert end_of(job) == ("timed_out", "idle_seconds", None, "SIGKILL")
    assert job.stderr == b"1\n2\n3\n4\n5\n6\n"
    assert job.usage is not None
    assert 6.6 <= job.usage.wall_seconds < 20


def test_cpu_time_ends_a_job(run: Run) -> None:
    job = run("sh", "-c", "while :; do :; done", limits={"cpu_seconds": 0.3, "wall_seconds": 30})

    assert end_of(job)[:2] == ("timed_out", "cpu_seconds")
    assert job.usage is not None
    assert job.usage.cpu_seconds is not None
    assert 0.3 <= job.usage.cpu_seconds < 10


def test_memory_is_limited_and_the_end_is_named(run: Run) -> None:
    job = run(*python("x = bytearray(200 << 20)"), limits={"memory": "64Mi"})

    assert (job.state, job.reason) == ("out_of_memory", "memory")
    assert job.exit is not None
    assert job.exit.oom_killed


def test_a_job_may_have_less_memory_than_its_runtime_needs(run: Run) -> None:
    job = run("sh", "-c", "echo small", limits={"memory": "4Mi"})

    assert (job.state, job.text) == ("succeeded", "small\n")
    assert job.usage is not None
    assert job.usage.memory_peak_bytes is not None
    assert job.usage.memory_peak_bytes < 4 * MIB


@pytest.mark.parametrize("wished", [1, 5, 40])
def test_a_limit_of_n_processes_allows_n_and_not_one_more(run: Run, wished: int) -> None:
    """Though a runtime needs a dozen."""
    code = """
        import os, signal
        made = 1
        while True:
            try:
                if os.fork() == 0:
                    signal.pause()
            except BlockingIOError:
                break
            made += 1
        print(made)
    """

    assert run(*python(code), limits={"pids": wished}).text == f"{wished}\n"


def test_only_the_job_is_counted(run: Run) -> None:
    """Neither the time of the runtime nor its memory: by the least of some, which a busy machine does not lengthen."""
    job = min((run("true") for _ in range(3)), key=lambda each: each.usage.cpu_seconds)

    assert job.usage is not None
    assert job.usage.cpu_seconds is not None
    assert job.usage.memory_peak_bytes is not None
    assert job.usage.cpu_seconds < 0.02
    assert job.usage.memory_peak_bytes < 4 * MIB
    assert job.usage.pids_peak in (1, None)


def test_output_is_cut_at_its_limit(run: Run) -> None:
    job = run("sh", "-c", "while :; do echo 0123456789; done", limits={"output_bytes": "64Ki"})

    assert (job.state, job.reason) == ("output_limit", "output_bytes")
    assert job.streams["stdout"].size_bytes == 64 * 1024


def test_the_disk_is_as_large_as_asked_for(run: Run) -> None:
    fill = "head -c 16M /dev/zero > /work/a; stat -c %s /work/a; head -c 1 /dev/zero > /tmp/b"

    job = run("sh", "-c", fill, limits={"disk": "8Mi"})

    assert job.exit_code != 0
    assert b"No space left on device" in job.stderr
    assert 7 * MIB < int(job.text) <= 8 * MIB


def test_open_files_are_limited(run: Run) -> None:
    assert run("sh", "-c", "ulimit -n; ulimit -Hn", limits={"open_files": 64}).text == "64\n64\n"


# Lives


def test_what_a_job_leaves_behind_dies_with_it(run: Run) -> None:
    """And the answer does not wait for it."""
    job = run("sh", "-c", "setsid sleep 600 & setsid sh -c 'sleep 600 & sleep 600' & echo done")

    assert (job.state, job.text) == ("succeeded", "done\n")
    assert job.usage is not None
    assert job.usage.wall_seconds < 10


def test_cancelling_sends_term_first_and_the_command_may_say_goodbye(
    oci_client: Client, oci_service: RunningService, runtime: str
) -> None:
    trap = "trap 'echo goodbye; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    job = oci_client.submit(["sh", "-c", trap], runtime=runtime)
    wait_for(lambda: b"ready" in oci_client.get(job.id).stdout, "it runs")

    oci_client.cancel(job.id, grace_seconds=20)

    ended = oci_client.wait(job.id)
    assert end_of(ended) == ("cancelled", "cancelled_by_client", 7, None)
    assert ended.text == "ready\ngoodbye\n"
    oci_service.assert_nothing_left(oci_client)


def test_a_command_that_ignores_term_is_killed_after_the_grace(
    oci_client: Client, oci_service: RunningService, runtime: str
) -> None:
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    job = oci_client.submit(["sh", "-c", stubborn], runtime=runtime)
    wait_for(lambda: b"ready" in oci_client.get(job.id).stdout, "it runs")

    oci_client.cancel(job.id, grace_seconds=0.1)

    assert end_of(oci_client.wait(job.id)) == (
        "cancelled",
        "cancelled_by_client",
        None,
        "SIGKILL",
    )
    oci_service.assert_nothing_left(oci_client)


def test_many_at_once_do_not_meet(
    oci_client: Client, oci_service: RunningService, runtime: str
) -> None:
    words = ["sh", "-c", "cat; hostname > mine; ls; exit 3"]
    jobs = [oci_client.submit(words, stdin=f"{n}\n", runtime=runtime) for n in range(24)]

    ended = [oci_client.wait(job.id) for job in jobs]

    assert [(job.exit_code, job.text) for job in ended] == [(3, f"{n}\nmine\n") for n in range(24)]
    oci_service.assert_nothing_left(oci_client)


# The record


def test_the_record_names_the_runtime_and_what_stood(run: Run, runtime: str) -> None:
    job = run("true")

    assert job.runtime == runtime
    walls = job.enforcement["walls"]
    assert walls["runtime"] == runtime
    assert (walls["no_new_privileges"], walls["capabilities"]) == (True, [])
    namespaces = {"user", "mount", "pid", "net", "ipc", "uts", "cgroup"}
    assert set(walls["namespaces"]) - {"time"} == namespaces
    assert job.enforcement["limits"]["memory"].startswith("cgroup")


def test_a_runtime_that_is_not_configured_is_refused_with_those_that_are(
    oci_client: Client,
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        oci_client.run(["true"], runtime="kata")

    (fault,) = refused.value.faults
    assert fault.pointer == "/runtime"
    assert fault.detail == "there is no such runtime here; there are: native, crun, runc, runsc"


def test_the_system_lists_the_runtimes(oci_client: Client) -> None:
    assert oci_client.system()["isolation"]["runtimes"] == ["native", "crun", "runc", "runsc"]


def test_what_a_runtime_cannot_do_is_refused(oci_client: Client) -> None:
    found = []
    for asked in (
        {"steps": [{"command": ["true"]}]},
        {"command": ["true"], "files": {"a": "x"}},
        {"command": ["true"], "outputs": ["a"]},
        {"command": ["true"], "changes": True},
    ):
        with pytest.raises(InvalidRequest) as refused:
            oci_client.submit(**asked, runtime="runc")
        found += [fault.pointer for fault in refused.value.faults]

    assert found == ["/steps", "/files", "/outputs", "/changes"]
