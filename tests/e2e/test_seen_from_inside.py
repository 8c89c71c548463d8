"""What a job sees of the host and of others, and what it can do to them: as good as nothing."""

import hashlib
import json
import os
import socket
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_service import SECRET_OF_THE_SERVICE, RunningService

from sandboxd.client import Client

CANARY = "canary-on-the-host"


def ask(client: Client, code: str, **options: Any) -> Any:
    """Run Python code that prints JSON, and read that."""
    job = client.run(["python3", "-c", textwrap.dedent(code)], **options)
    assert job.state == "succeeded", (job.error, job.stderr.decode())
    return json.loads(job.stdout)


# Who it is


@pytest.mark.attack(11)
def test_it_is_an_ordinary_user_in_no_other_group(client: Client) -> None:
    """Attack 11."""
    assert client.run(["id"]).text == ("uid=1000(sandbox) gid=1000(sandbox) groups=1000(sandbox)\n")


@pytest.mark.parametrize("user", ["0", "0:0", "65534:65534", "1234:5678", "65535"])
def test_it_can_be_any_user_inside_and_is_a_subordinate_one_outside(
    client: Client, real_service: RunningService, user: str
) -> None:
    uid, _, gid = user.partition(":")
    job = client.submit(["sh", "-c", "id -u; id -g; id -G; exec sleep 600"], user=user)
    seen = b""
    for piece in client.logs(job.id, follow=True):
        seen += piece.data
        if seen.count(b"\n") == 3:
            break
    (process,) = real_service.processes_of_jobs()
    outside = process.uids().real
    client.cancel(job.id, grace_seconds=0)
    client.wait(job.id)

    assert seen.decode().split() == [uid, gid or uid, gid or uid]
    assert outside not in (0, os.getuid(), int(uid))
    assert outside >= 65536


@pytest.mark.attack(10)
def test_it_has_no_capability_no_way_to_get_one_and_a_filter(client: Client) -> None:
    """Attack 10."""
    code = """
        import json
        with open("/proc/self/status") as status:
            print(json.dumps(dict(line.split(":", 1) for line in status)))
    """
    for user in ("1000", "0"):
        status = ask(client, code, user=user)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert int(status["NoNewPrivs"]) == 1
        assert int(status["Seccomp"]) == 2
        assert status["Groups"].strip() == ""


def test_it_leads_a_session_of_its_own_with_default_signals_and_no_terminal(client: Client) -> None:
    code = """
        import json, os, signal
        ignored = [int(line.split()[1], 16) for line in open("/proc/self/status")
                   if line.startswith(("SigBlk", "SigIgn"))]
        try:
            os.open("/dev/tty", os.O_RDWR)
            terminal = True
        except OSError:
            terminal = False
        print(json.dumps([os.getsid(0) == os.getpid(), ignored, terminal, oct(os.umask(0))]))
    """
    leader, (blocked, ignored), terminal, umask = ask(client, code)

    assert leader
    assert blocked == 0
    # Python itself ignores SIGPIPE and SIGXFSZ, and posix_spawn(3) the two that glibc uses inside.
    assert ignored & ~(1 << 12 | 1 << 24 | 1 << 31 | 1 << 32) == 0
    assert not terminal
    assert umask == "0o22"


@pytest.mark.attack(37)
def test_its_environment_is_the_image_s_and_its_own_and_nothing_else(client: Client) -> None:
    """Attack 37."""
    job = client.run(["env", "-0"], env={"MINE": "a=b", "LANG": "C"})

    assert dict(pair.split("=", 1) for pair in job.text.rstrip("\0").split("\0")) == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/home/sandbox",
        "USER": "sandbox",
        "LANG": "C",
        "MINE": "a=b",
    }


INTERPRETER = """
import hashlib, os
tried = {}
for name, attempt in {
    "write": lambda: os.close(os.open("/proc/self/exe", os.O_WRONLY)),
    "truncate": lambda: os.truncate("/proc/self/exe", 0),
}.items():
    try:
        attempt()
        tried[name] = "done"
    except OSError as error:
        tried[name] = error.strerror
print(os.readlink("/proc/self/exe"), tried)
"""


@pytest.mark.attack(1)
def test_the_program_of_init_is_a_sealed_copy_and_no_file_of_the_host(client: Client) -> None:
    """Attack 1: before the command is another program it is init's, which it can name."""
    command = ["/proc/self/exe", "-S", "-c", INTERPRETER]
    interpreter = Path(sys.executable).resolve()
    before = hashlib.sha256(interpreter.read_bytes()).digest(), interpreter.stat().st_mode

    job = client.run(command, env={"PYTHONHOME": sys.base_prefix})

    assert job.text.startswith("/memfd:sandboxd (deleted) "), (job.text, job.stderr)
    assert "done" not in job.text
    assert before == (hashlib.sha256(interpreter.read_bytes()).digest(), interpreter.stat().st_mode)


def test_the_callers_trace_is_in_its_environment(real_service: RunningService) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"traceparent": trace, "prefer": "wait=30"}
    with real_service.http() as http:
        request = {"image": "host", "command": ["printenv", "TRACEPARENT"]}
        job = http.post("/v1/jobs", json=request, headers=headers).json()

    assert job["stdout"] == f"{trace}\n"


@pytest.mark.attack(2)
def test_its_descriptors_are_its_three_streams_and_they_are_pipes(client: Client) -> None:
    """Attack 2."""
    for command in (["ls", "-l", "/proc/self/fd"], ["sh", "-c", "ls -l /proc/$$/fd; true"]):
        lines = client.run(command).text.splitlines()[1:]
        links = {line.split()[-3]: line.split()[-1] for line in lines}

        own = {name: target for name, target in links.items() if not target.startswith("/proc/")}
        assert sorted(own) == ["0", "1", "2"]
        assert all(target.startswith("pipe:[") for target in own.values())


# What it sees


@pytest.mark.attack(23)
def test_it_sees_only_its_own_processes(client: Client) -> None:
    """Attack 23."""
    others = [client.submit(["sleep", "600"]) for _ in range(2)]

    seen = client.run(["sh", "-c", "cd /proc; for p in [0-9]*; do echo $p $(cat $p/comm); done"])

    for other in others:
        client.cancel(other.id, grace_seconds=0)
        client.wait(other.id)
    first, second = seen.text.splitlines()
    assert first == "1 sandboxd"
    assert second == "2 sh"


@pytest.mark.attack(1, 23)
def test_process_1_tells_nothing_and_takes_nothing(client: Client) -> None:
    """Attacks 1 and 23."""
    code = """
        import errno, json, os, signal
        def attempt(action, *words):
            try:
                return repr(action(*words))
            except OSError as error:
                return errno.errorcode[error.errno]
        def read(path):
            with open(path, "rb") as file:
                return file.read(100)
        refused = {}
        for name in ("environ", "mem", "maps", "auxv", "stack", "syscall", "fd", "map_files", "exe",
                     "cwd", "root", "ns/net", "io", "pagemap", "personality"):
            path = f"/proc/1/{name}"
            reading = os.listdir if name in ("fd", "map_files") else read
            reading = os.readlink if name in ("exe", "cwd", "root", "ns/net") else reading
            refused[name] = attempt(reading, path)
        refused["write mem"] = attempt(os.open, "/proc/1/mem", os.O_RDWR)
        refused["write oom"] = attempt(os.open, "/proc/1/oom_score_adj", os.O_WRONLY)
        for number in signal.valid_signals():
            os.kill(1, number)
        print(json.dumps([refused, open("/proc/1/cmdline").read()]))
    """
    refused, title = ask(client, code, user="0")

    assert {name: word for name, word in refused.items() if word not in ("EACCES", "EPERM")} == {}
    assert title.rstrip("\0") == "sandboxd: init"


def test_its_host_is_called_sandbox_and_its_network_is_loopback(client: Client) -> None:
    code = """
        import json, os, socket
        print(json.dumps([
            socket.gethostname(),
            [name for _, name in socket.if_nameindex()],
            os.listdir("/sys/class/net"),
            open("/proc/net/route").read().count("\\n"),
            open("/etc/resolv.conf").read(),
        ]))
    """
    assert ask(client, code) == ["sandbox", ["lo"], ["lo"], 1, ""]


def test_no_mount_shows_where_on_the_host_it_comes_from(
    client: Client, real_service: RunningService
) -> None:
    mounts = client.run(["cat", "/proc/self/mountinfo"]).text
    points = [line.split()[4] for line in mounts.splitlines()]

    assert str(real_service.data_dir) not in mounts
    for path in ("/var", "/home", "/root", "/opt", "/work", "/etc", "/run"):
        assert not any(line.split()[3].startswith(path) for line in mounts.splitlines())
    inside = ("/usr", "/bin", "/sbin", "/lib", "/dev", "/proc", "/sys")
    others = {point for point in points if point != "/" and not point.startswith(inside)}
    assert others == {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}


@pytest.mark.attack(16, 18)
def test_what_comes_from_the_host_cannot_be_written(client: Client) -> None:
    """Attacks 16 and 18."""
    code = """
        import json, os
        written = []
        for top in ("/usr", "/sys", "/proc/sys", "/bin", "/lib", "/dev", "/etc", "/root", "/"):
            for place, directories, files in os.walk(top):
                if place.count("/") > 3:
                    directories.clear()
                for path in [place, *(os.path.join(place, name) for name in files[:20])]:
                    if os.path.islink(path) or path.startswith(("/proc/", "/tmp", "/work", "/home")):
                        continue
                    if path.startswith(("/dev/", "/dev/shm", "/dev/mqueue")):
                        continue
                    if os.access(path, os.W_OK) and os.stat(path).st_rdev != os.makedev(1, 3):
                        written.append(path)
        print(json.dumps(written))
    """
    assert ask(client, code) == []


@pytest.mark.parametrize(
    "path",
    [
        "/proc/kcore",
        "/proc/keys",
        "/proc/kallsyms",
        "/proc/interrupts",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/config.gz",
        "/proc/kmsg",
        "/proc/sysrq-trigger",
        "/proc/acpi",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/fs/cgroup",
        "/sys/kernel/debug",
        "/sys/kernel/security",
        "/sys/kernel/tracing",
        "/sys/devices/virtual/powercap",
    ],
)
@pytest.mark.attack(19)
def test_what_tells_too_much_of_the_kernel_is_hidden(client: Client, path: str) -> None:
    """Attack 19."""
    script = f"if [ -d {path} ]; then ls -A {path}; elif [ -e {path} ]; then cat {path}; fi"
    for user in ("1000", "0"):
        job = client.run(["sh", "-c", script], user=user)

        assert job.stdout == b"" or path == "/sys/fs/cgroup"


def test_dev_has_only_what_every_program_needs(client: Client) -> None:
    names = " ".join(client.run(["ls", "/dev"]).text.split())

    assert names == "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"


# Canaries


@pytest.fixture
def canaries(real_service: RunningService) -> Iterator[list[str]]:
    """Files on the host that everybody there may read."""
    places = [str(real_service.data_dir), "/tmp", "/var/tmp", str(Path.home())]
    made = []
    for place in places:
        path = Path(place, f"canary-{uuid.uuid4().hex}")
        path.write_text(CANARY)
        path.chmod(0o666)
        made.append(str(path))
    yield made
    for path in made:
        assert Path(path).read_text() == CANARY
        Path(path).unlink()


def test_no_file_of_the_host_is_found_by_its_path(client: Client, canaries: list[str]) -> None:
    host_files = ["/etc/shadow", "/etc/machine-id", "/etc/subuid", "/var/lib/dpkg/status"]
    paths = [*canaries, *host_files]
    roots = ["", "/proc/1/root", "/proc/self/root", "/proc/self/cwd/../..", "/../../../.."]
    code = f"""
        import json, os
        found = []
        for root in {roots!r}:
            for path in {paths!r}:
                if os.path.lexists(root + path):
                    found.append(root + path)
        print(json.dumps(found))
    """
    for user in ("1000", "0"):
        assert ask(client, code, user=user) == []


def test_a_job_that_writes_where_the_host_has_files_writes_into_its_own_tree(
    client: Client, canaries: list[str]
) -> None:
    script = "".join(f"mkdir -p {Path(path).parent}; echo x >{path}; " for path in canaries)

    client.run(["sh", "-c", script], user="0")
    seen = client.run(["sh", "-c", f"cat {' '.join(canaries)}; ls -A /tmp /work"], user="0")

    assert seen.stdout == b"/tmp:\n\n/work:\n"  # a sandbox is never used again


@pytest.mark.attack(37)
def test_the_secrets_of_the_service_are_nowhere(client: Client) -> None:
    """Attack 37."""
    script = "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'"

    assert SECRET_OF_THE_SERVICE not in client.run(["sh", "-c", script], user="0").text


# Doors of the host


@pytest.fixture
def doors(real_service: RunningService) -> Iterator[dict[str, str]]:
    """Sockets that listen on the host, among them the service's own."""
    abstract = f"canary-{uuid.uuid4().hex}"
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.create_server(("127.0.0.1", 0)) as ipv4,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as ipv6,
        socket.socket(socket.AF_UNIX) as by_name,
        socket.socket(socket.AF_UNIX) as by_path,
    ):
        by_name.bind(f"\0{abstract}")
        by_path.bind(f"{directory}/socket")
        for server in (by_name, by_path):
            server.listen()
        yield {
            "service": f"('127.0.0.1', {real_service.port})",
            "metrics": f"('127.0.0.1', {real_service.metrics_port})",
            "every address": f"('0.0.0.0', {real_service.port})",
            "ipv4": f"('127.0.0.1', {ipv4.getsockname()[1]})",
            "ipv6": f"('::1', {ipv6.getsockname()[1]})",
            "metadata": "('169.254.169.254', 80)",
            "internet": "('1.1.1.1', 53)",
            "abstract": repr(f"\0{abstract}"),
            "path": repr(f"{directory}/socket"),
        }


@pytest.mark.attack(22)
def test_no_door_of_the_host_can_be_reached(client: Client, doors: dict[str, str]) -> None:
    """Attack 22."""
    targets = "{" + ", ".join(f"{name!r}: {place}" for name, place in doors.items()) + "}"
    code = f"""
        import errno, json, socket
        answers = {{}}
        for name, place in {targets}.items():
            family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
            family = socket.AF_INET6 if place[0] == "::1" else family
            try:
                with socket.socket(family) as connection:
                    connection.settimeout(5)
                    connection.connect(place)
                answers[name] = "reached"
            except OSError as error:
                answers[name] = errno.errorcode.get(error.errno, str(error))
        print(json.dumps(answers))
    """
    assert ask(client, code) == {
        "service": "ECONNREFUSED",
        "metrics": "ECONNREFUSED",
        "every address": "ECONNREFUSED",
        "ipv4": "ECONNREFUSED",
        "ipv6": "ECONNREFUSED",
        "metadata": "ENETUNREACH",
        "internet": "ENETUNREACH",
        "abstract": "ECONNREFUSED",
        "path": "ENOENT",
    }


# Calls

CALLS = r"""
    import ctypes, errno, json, os, sys
    libc = ctypes.CDLL(None, use_errno=True)
    def call(function, *words):
        ctypes.set_errno(0)
        result = function(*words)
        return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
    def number(nr, *words):
        return call(libc.syscall, ctypes.c_long(nr), *[ctypes.c_long(w) for w in words])
    NEWUSER, NEWNS, NEWNET, NEWPID = 0x10000000, 0x20000, 0x40000000, 0x20000000
    attr = (ctypes.c_char * 256)()
    at = ctypes.addressof(attr)
    answers = {
        "ptrace attach": call(libc.ptrace, 16, os.getppid(), 0, 0),
        "ptrace traceme": call(libc.ptrace, 0, 0, 0, 0),
        "mount": call(libc.mount, b"none", b"/tmp", b"tmpfs", 0, None),
        "mount cgroup": call(libc.mount, b"none", b"/tmp", b"cgroup", 0, b"memory"),
        "bind": call(libc.mount, b"/usr", b"/tmp", None, 4096, None),
        "remount": call(libc.mount, b"none", b"/usr", None, 32 | 4096, None),
        "umount": call(libc.umount2, b"/proc", 2),
        "chroot": call(libc.chroot, b"/tmp"),
        "unshare user": call(libc.unshare, NEWUSER),
        "unshare mount": call(libc.unshare, NEWNS),
        "unshare net": call(libc.unshare, NEWNET),
        "unshare pid": call(libc.unshare, NEWPID),
        "setns": call(libc.setns, os.open("/proc/self/ns/net", os.O_RDONLY), 0),
        "sethostname": call(libc.sethostname, b"x", 1),
        "reboot": call(libc.reboot, 0),
        "swapon": call(libc.swapon, b"/tmp", 0),
        "acct": call(libc.acct, b"/tmp/a"),
        "setuid": call(libc.setuid, 65000),
        "setgroups": call(libc.setgroups, 0, None),
        "mknod device": call(libc.mknod, b"/tmp/d", 0o60666, 0x801),
        "AF_ALG": call(libc.socket, 38, 5, 0),
        "AF_PACKET": call(libc.socket, 17, 3, 0),
        "AF_VSOCK": call(libc.socket, 40, 1, 0),
        "raw": call(libc.socket, 2, 3, 1),
        "netlink audit": call(libc.socket, 16, 3, 9),
        "TIOCSTI": call(libc.ioctl, 0, ctypes.c_ulong(0x5412), at),
        "TIOCSTI high": call(libc.ioctl, 0, ctypes.c_ulong(0x1_0000_5412), at),
        "personality": call(libc.personality, ctypes.c_ulong(0x40000)),
        "rlimit of init": call(libc.prlimit, 1, 7, at, None),
        "nice": call(libc.nice, -5),
        "io_uring_setup": number(425, 1, at),
    }
    if os.uname().machine == "x86_64":
        answers |= {
            "keyctl": number(250, 0, -3, 1),
            "add_key": number(248, 0, 0, 0, 0, 0),
            "bpf": number(321, 0, at, 128),
            "perf_event_open": number(298, at, 0, -1, -1, 0),
            "userfaultfd": number(323, 0),
            "open_by_handle_at": number(304, -100, at, 0),
            "name_to_handle_at": number(303, -100, at, at, at, 0),
            "process_vm_readv": number(310, 1, at, 1, at, 1, 0),
            "process_vm_writev": number(311, 1, at, 1, at, 1, 0),
            "kexec_load": number(246, 0, 0, 0, 0),
            "init_module": number(175, 0, 0, 0),
            "pivot_root": number(155, at, at),
            "clone user": number(56, NEWUSER | 17, 0, 0, 0, 0),
            "clone net": number(56, NEWNET | 17, 0, 0, 0, 0),
            "clone3": number(435, at, 88),
            "fsopen": number(430, at, 0),
            "open_tree": number(428, -100, at, 1),
            "move_mount": number(429, -100, at, -100, at, 0),
            "pidfd_getfd": number(438, 0, 0, 0),
            "fanotify_init": number(300, 0, 0),
            "kcmp": number(312, 1, 1, 0, 0, 0),
            "memfd_secret": number(447, 0),
            "vmsplice": number(278, 1, at, 1, 0),
            "a call of the future": number(5000),
            "x32": number(0x40000000 | 39),
        }
    print(json.dumps(answers))
"""


@pytest.mark.parametrize("user", ["1000", "0"])
@pytest.mark.attack(17, 20, 23, 24, 25, 26, 27, 28)
def test_calls_that_reach_further_are_refused(client: Client, user: str) -> None:
    """Attacks 17, 20, 23 to 28."""
    answers = ask(client, CALLS, user=user)

    fine = {name for name, answer in answers.items() if answer == "done"}
    assert fine <= {"setgroups"}, answers  # to drop groups that it does not have
    refusals = {"EPERM", "EACCES", "ENOSYS", "EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EINVAL"}
    assert {name: answer for name, answer in answers.items() if answer not in refusals} == {}
    unknown = {"clone3", "a call of the future", "x32"}
    assert {name for name in unknown & answers.keys() if answers[name] != "ENOSYS"} == set()
    by_filter = answers.keys() - unknown
    assert {name: answers[name] for name in by_filter if answers[name] == "EINVAL"} == {}


@pytest.mark.attack(25, 26)
def test_a_program_of_another_architecture_is_killed(client: Client) -> None:
    """Attacks 25 and 26: there the numbers of calls mean others, so that no filter could tell them."""
    source = r"""
        int main(void) {
            long result = 20; /* getpid of i386 */
            __asm__ volatile("int $0x80" : "+a"(result));
            return 0;
        }
    """
    if os.uname().machine != "x86_64":
        pytest.skip("x86_64 only")
    job = client.run(["sh", "-c", "gcc -x c - -o x && exec ./x"], stdin=source)

    assert (job.state, job.exit and job.exit.signal) == ("failed", "SIGSYS")


@pytest.mark.attack(29)
def test_a_set_user_id_copy_gains_nothing(client: Client) -> None:
    """Attack 29."""
    script = "cp /usr/bin/id mine; chmod 6755 mine; ./mine -u; ./mine -g"

    assert client.run(["sh", "-c", script]).text == "1000\n1000\n"


@pytest.mark.attack(18)
def test_a_crash_leaves_no_core(client: Client) -> None:
    """Attack 18."""
    script = "ulimit -c; sh -c 'kill -s SEGV $$'; ls"

    assert client.run(["sh", "-c", script]).text == "0\n"


@pytest.mark.attack(54)
def test_it_cannot_save_itself_from_the_memory_killer(client: Client) -> None:
    """Attack 54."""
    code = """
        import errno, json
        before = int(open("/proc/self/oom_score_adj").read())
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("-1000")
            answer = "done"
        except OSError as error:
            answer = errno.errorcode[error.errno]
        print(json.dumps([before, answer]))
    """
    assert ask(client, code, user="0") == [1000, "EACCES"]
