"""The walls as a command sees them, with subordinate ids and with a single id (ATTACKS 2, 10, 11, 16-19, 22-25, 53, 54)."""

import errno
import os
import socket
import uuid
from pathlib import Path
from typing import Any

import pytest
from sandbox_bench import Bench, a_bench, children_of, run_in, start_in

from sandboxd.isolation import machine, mounts, syscalls
from sandboxd.isolation.spec import NetworkMode
from sandboxd.quotas.cgroups import open_cgroups
from sandboxd.quotas.host import probe_host

MIB = 2**20

FACTS = """
import ctypes, json, os, resource, socket, stat
libc = ctypes.CDLL(None, use_errno=True)
def text(path):
    try: return open(path).read()
    except OSError as error: return error.errno
def attempt(work):
    try: work()
    except OSError as error: return error.errno
    return 0
print(json.dumps({
    "securebits": libc.prctl(27, 0, 0, 0, 0),
    "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
    "dumpable": libc.prctl(3, 0, 0, 0, 0),
    "session": os.getsid(0), "pid": os.getpid(), "parent": os.getppid(),
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "maps": [text("/proc/self/uid_map"), text("/proc/self/gid_map"), text("/proc/self/setgroups")],
    "limits": {name: resource.getrlimit(getattr(resource, name))
               for name in dir(resource) if name.startswith("RLIMIT_")},
    "oom": int(text("/proc/self/oom_score_adj")),
    "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in os.listdir("/proc/self/ns")},
    "hostname": socket.gethostname(),
    "links": sorted(name for _, name in socket.if_nameindex()),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "cgroup": text("/proc/self/cgroup"),
    "environment": dict(os.environ),
    "mounts": [line.split() for line in text("/proc/self/mountinfo").splitlines()],
    "terminal": attempt(lambda: os.open("/dev/tty", os.O_RDWR)),
    "dev": {name: [stat.S_IFMT(s.st_mode), stat.S_IMODE(s.st_mode), os.major(s.st_rdev), os.minor(s.st_rdev)]
            for name in os.listdir("/dev") for s in [os.lstat("/dev/" + name)]},
    "dev links": {name: os.readlink("/dev/" + name)
                  for name in os.listdir("/dev") if os.path.islink("/dev/" + name)},
    "init": {name: text("/proc/1/" + name)
             for name in ("cmdline", "environ", "maps", "stack", "syscall", "auxv", "mem", "io", "status")},
    "init fds": attempt(lambda: os.listdir("/proc/1/fd")),
    "init root": attempt(lambda: os.stat("/proc/1/root/")),
    "init exe": attempt(lambda: os.readlink("/proc/1/exe")),
    "init limits": attempt(lambda: os.open("/proc/1/oom_score_adj", os.O_WRONLY)),
}))
"""


@pytest.fixture(scope="module")
def facts(either: Bench) -> dict[str, Any]:
    found: dict[str, Any] = either.python(FACTS)
    return found | {"mode": either.mode}


def status_of(either: Bench) -> dict[str, str]:
    # cat, not Python, which changes dispositions of its own.
    lines = either.run("cat", "/proc/self/status").out.decode().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.attack(10, 24)
def test_no_capability_is_left_in_any_set(either: Bench) -> None:
    status = status_of(either)

    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert (status["Seccomp"], status["Seccomp_filters"]) == ("2", "1")


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.attack(10)
def test_root_inside_has_no_more_rights_than_anybody(uid: int, bench: Bench) -> None:
    ran = bench.run("sh", "-c", "id -u; grep CapEff /proc/self/status", uid=uid, gid=uid)

    assert ran.out.decode().split() == [str(uid), "CapEff:", "0" * 16]


def test_signals_are_neither_ignored_nor_blocked(either: Bench) -> None:
    status = status_of(either)

    # 32 and 33 are the C library's own: its posix_spawn leaves them ignored, and it sets them when it needs them.
    assert int(status["SigIgn"], 16) & ~(1 << 31 | 1 << 32) == 0
    for name in ("SigBlk", "SigCgt", "SigPnd", "ShdPnd"):
        assert int(status[name], 16) == 0, name
    assert status["Umask"] == "0022"


@pytest.mark.attack(10, 29)
def test_being_root_means_nothing_and_cannot_be_made_to_again(facts: dict[str, Any]) -> None:
    noroot, no_setuid_fixup, keep_caps_locked = 0b11, 0b1100, 0b100000
    assert facts["securebits"] == noroot | no_setuid_fixup | keep_caps_locked
    assert facts["no_new_privs"] == 1


def test_the_command_leads_a_session_of_its_own_without_a_terminal(facts: dict[str, Any]) -> None:
    assert facts["session"] == facts["pid"]
    assert facts["parent"] == 1
    assert facts["terminal"] == errno.ENXIO


@pytest.mark.attack(1)
def test_the_service_s_uid_is_not_mapped(facts: dict[str, Any]) -> None:
    uid_map, gid_map, setgroups = facts["maps"]
    if facts["mode"] == "range":
        # 0… are U1's 1…; U1's 0, which is the service, is outside.
        assert uid_map.split() == gid_map.split() == ["0", "1", "65536"]
    else:
        assert uid_map.split() == gid_map.split() == ["1000", "0", "1"]
        assert setgroups == "deny\n"


def test_user_and_group_need_not_have_the_same_number(either: Bench) -> None:
    ids = either.run("sh", "-c", "id -u; id -g; stat -c '%u %g' /work", uid=7, gid=8).out

    assert ids == b"7\n8\n7 8\n"


@pytest.mark.attack(11)
def test_ids_are_the_wished_ones_and_groups_are_empty(facts: dict[str, Any]) -> None:
    uids, gids, groups = facts["ids"]

    assert uids == gids == [1000, 1000, 1000]
    if facts["mode"] == "range":
        assert groups == []
    else:
        # setgroups(2) is denied with a single id: the service's own groups stay, as far as they are mapped.
        assert len(groups) == len(os.getgroups())


def test_every_namespace_is_another_than_the_host_s(facts: dict[str, Any], either: Bench) -> None:
    ours = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}

    same = {name for name, inside in facts["namespaces"].items() if inside == ours[name]}
    named = either.launcher.walls(NetworkMode.NONE).namespaces
    assert same == (set() if "time" in named else {"time", "time_for_children"})
    assert {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} <= set(facts["namespaces"])


@pytest.mark.attack(22, 23)
def test_only_its_own_processes_and_its_own_loopback_are_there(facts: dict[str, Any]) -> None:
    assert facts["processes"] == [1, facts["pid"]]
    assert facts["links"] == ["lo"]
    assert facts["hostname"] == "sandbox"


@pytest.mark.attack(37)
def test_the_environment_is_what_was_given(facts: dict[str, Any]) -> None:
    given = {"PATH"} | {name for name in facts["environment"] if name in ("LC_CTYPE",)}
    assert set(facts["environment"]) == given


@pytest.mark.attack(18, 53, 54)
def test_resource_limits_are_lowered_hard_and_soft(facts: dict[str, Any]) -> None:
    limits = {name: tuple(value) for name, value in facts["limits"].items()}

    assert limits["RLIMIT_CORE"] == (1, 1)
    assert limits["RLIMIT_NOFILE"] == (1024, 1024)
    assert limits["RLIMIT_RTPRIO"] == (0, 0)
    for name, most in {
        "RLIMIT_MEMLOCK": 2**16,
        "RLIMIT_MSGQUEUE": 163_840,
        "RLIMIT_SIGPENDING": 1024,
    }.items():
        assert limits[name][0] == limits[name][1]
        assert 0 <= limits[name][0] <= most, name


@pytest.mark.attack(54)
def test_the_kernel_would_kill_the_command_first(facts: dict[str, Any]) -> None:
    assert facts["oom"] == 1000


@pytest.mark.attack(1, 3, 37)
def test_init_holds_no_secret_and_shows_nothing_of_itself(facts: dict[str, Any]) -> None:
    init = facts["init"]

    assert init["cmdline"].rstrip("\0") == "sandboxd: init"
    for name in ("environ", "maps", "stack", "syscall", "auxv", "mem", "io"):
        assert init[name] in (errno.EACCES, errno.EPERM), (name, init[name])
    for name in ("init fds", "init root", "init exe", "init limits"):
        assert facts[name] in (errno.EACCES, errno.EPERM), (name, facts[name])
    assert "CapEff:\t0000000000000000" in init["status"]
    assert "NoNewPrivs:\t1" in init["status"]


@pytest.mark.attack(16)
def test_the_cgroup_namespace_begins_at_the_sandbox_s_own_cgroup(facts: dict[str, Any]) -> None:
    assert {line.split(":", 2)[2] for line in facts["cgroup"].splitlines()} == {"/"}


@pytest.mark.attack(16)
def test_a_joined_cgroup_is_the_root_of_the_namespace() -> None:
    """Joined after the clone: its path, and those above it, must not be seen for that."""
    opened = open_cgroups(probe_host(), instance=f"test-{uuid.uuid4().hex[:12]}")
    place = opened.create("walls")
    try:
        with a_bench() as bench:

            async def look() -> bytes:
                made = await bench.launcher.create(bench.spec(), join_files=place.join_files())
                return (await run_in(made, "cat", "/proc/self/cgroup")).out

            seen = bench.do(look()).decode()
    finally:
        opened.close()

    assert {line.split(":", 2)[2] for line in seen.splitlines()} == {"/"}


@pytest.mark.attack(4)
def test_devices_are_the_six_harmless_ones_and_links(facts: dict[str, Any]) -> None:
    character, everybody = 0o020000, 0o666
    found = {name: tuple(of) for name, of in facts["dev"].items() if of[0] == character}

    assert found == {name: (character, everybody, *of) for name, of in mounts.DEVICES.items()}
    assert set(facts["dev"]) == {*mounts.DEVICES, *mounts.DEVICE_LINKS, "pts", "shm", "mqueue"}
    assert facts["dev links"] == mounts.DEVICE_LINKS


@pytest.mark.attack(16, 29)
def test_every_mount_has_its_flags_and_none_hears_of_the_host_s(facts: dict[str, Any]) -> None:
    for line in facts["mounts"]:
        target, flags, optional = line[4], set(line[5].split(",")), line[6 : line.index("-")]
        assert optional == [], f"{target} is shared with or slave of another: {optional}"
        assert "nosuid" in flags, target
        device = target.startswith(("/dev", "/proc/", "/sys/"))
        assert "nodev" in flags or device, target
        if target not in ("/", "/proc", "/dev/shm", "/dev/mqueue", "/dev/pts"):
            assert "ro" in flags or target in {f"/dev/{name}" for name in mounts.DEVICES}, target
        if target.startswith(("/dev", "/proc", "/sys")):
            assert "noexec" in flags, target


@pytest.mark.attack(2)
def test_no_path_of_the_host_is_in_the_list_of_mounts(facts: dict[str, Any], either: Bench) -> None:
    text = " ".join(" ".join(line) for line in facts["mounts"])

    assert str(either.directory) not in text
    roots = {line[3] for line in facts["mounts"]}
    devices = {f"/{name}" for name in mounts.DEVICES}
    etc = {f"/upper/etc/{name}" for name in ("hosts", "hostname", "resolv.conf")}
    shown = {f"/{name}" for name in machine.FILES}
    assert roots <= {"/", "/usr", "/bus", "/fs", "/irq", "/sys"} | devices | etc | shown


MASKED = """
import glob, json, os, sys
found = {}
for path in sys.argv[1:]:
    for one in glob.glob(path):
        if os.path.isdir(one): found[one] = [os.listdir(one), None]
        else:
            try: content = open(one, "rb").read(100).decode("latin-1")
            except OSError as error: content = error.errno
            found[one] = [None, content]
print(json.dumps(found))
"""

# From the document that says what the walls are, not from the code.
MASKED_PATHS = """
/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/pressure /proc/sched_debug /proc/scsi
/proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware /sys/fs/selinux
/sys/devices/system/cpu/cpu*/thermal_throttle /proc/kmsg /proc/sysrq-trigger /proc/kpagecount /proc/kpageflags
/proc/kallsyms /proc/vmallocinfo /proc/slabinfo /proc/config.gz /sys/kernel/debug /sys/kernel/tracing
/sys/kernel/security /sys/fs/bpf /sys/kernel/vmcoreinfo /sys/fs/cgroup
""".split()  # noqa: SIM905


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.attack(19)
def test_masked_paths_are_empty(uid: int, either: Bench) -> None:
    found = either.run("python3", "-c", MASKED, *MASKED_PATHS, uid=uid, gid=uid).json()

    assert {"/proc/interrupts", "/proc/kallsyms", "/sys/firmware", "/sys/fs/cgroup"} <= set(found)
    assert {path: of for path, of in found.items() if of not in ([[], None], [None, ""])} == {}


WRITES = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(work):
    try: work()
    except OSError as error: return error.errno
    return 0
def make(path): os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
def append(path): put(path, b"0 0 1")
def put(path, content):
    file = os.open(path, os.O_WRONLY)
    try: os.write(file, content)
    finally: os.close(file)
found = {}
for path in ("/usr/x", "/dev/x", "/dev/pts/x", "/sys/x", "/proc/x", "/sys/fs/cgroup/x", "/proc/sys/x",
             "/usr/bin/x", "/proc/acpi/x"):
    found["make " + path] = attempt(lambda: make(path))
for path in ("/usr/bin/env", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory",
             "/proc/sys/net/ipv4/ip_forward", "/proc/sys/user/max_user_namespaces",
             "/proc/sys/kernel/hostname", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state",
             "/proc/irq/default_smp_affinity", "/proc/self/uid_map", "/proc/self/gid_map",
             "/proc/self/setgroups", "/proc/1/oom_score_adj", "/proc/1/comm"):
    if os.path.exists(path):
        found["write " + path] = attempt(lambda: append(path))
for path in ("/usr", "/dev", "/dev/null", "/sys", "/proc", "/proc/sys", "/usr/bin/env"):
    found["chmod " + path] = attempt(lambda: os.chmod(path, 0o777))
    found["rename " + path] = attempt(lambda: os.rename(path, path + "-moved"))
found["node"] = attempt(lambda: os.mknod("/work/node", 0o020666, os.makedev(1, 3)))
found["whiteout"] = attempt(lambda: os.mknod("/work/node", 0o020666, os.makedev(0, 0)))
found["sysrq"] = attempt(lambda: put("/proc/sysrq-trigger", b"h"))
found["oom"] = attempt(lambda: put("/proc/self/oom_score_adj", b"-1"))
found["nice"] = attempt(lambda: os.nice(-1))
found["real time"] = attempt(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
found["chroot"] = attempt(lambda: os.chroot("/work"))
print(json.dumps(found))
"""


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.attack(16, 18, 54)
def test_nothing_outside_the_scratch_can_be_written(uid: int, either: Bench) -> None:
    found = either.run("python3", "-c", WRITES, uid=uid, gid=uid).json()
    # /proc/sysrq-trigger is the null device in there: what is written to it is gone.
    assert found.pop("sysrq") in (0, errno.EACCES, errno.EROFS, errno.ENOENT)

    refused = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EBUSY, errno.EXDEV}
    assert {what: number for what, number in found.items() if number not in refused} == {}


ETC_FILES = """
import json, os
def attempt(work):
    try: work()
    except OSError as error: return error.errno
    return 0
found = {}
for name in ("hosts", "hostname", "resolv.conf"):
    path = "/etc/" + name
    found[name] = [
        attempt(lambda: open(path, "a")),
        attempt(lambda: os.truncate(path, 0)),
        attempt(lambda: os.chmod(path, 0o666)),
        attempt(lambda: os.unlink(path)),
        attempt(lambda: os.replace("/work", path)),
        attempt(lambda: os.link(path, "/work/" + name)),
        open(path).read(),
    ]
print(json.dumps(found))
"""


@pytest.mark.attack(7)
def test_names_that_the_sandbox_resolves_cannot_be_changed_even_by_its_root(bench: Bench) -> None:
    found = bench.python(ETC_FILES, uid=0, gid=0, hostname="other")

    texts = {name: of.pop() for name, of in found.items()}
    assert texts["hosts"].startswith("127.0.0.1\tlocalhost other\n")
    assert texts["hostname"] == "other\n"
    assert texts["resolv.conf"] == ""
    refused = [errno.EROFS] * 3 + [errno.EBUSY, errno.ENOTDIR, errno.EXDEV]
    assert set(map(tuple, found.values())) == {tuple(refused)}


@pytest.mark.attack(44, 45)
def test_the_scratch_has_the_size_and_the_inodes_that_were_asked_for(bench: Bench) -> None:
    source = (
        "import json, os\n"
        "written = made = 0\n"
        "try:\n"
        "    for n in range(100000): os.close(os.open(f'/work/{n}', os.O_CREAT)); made += 1\n"
        "except OSError as error: full = error.errno\n"
        "for n in range(made): os.unlink(f'/work/{n}')\n"
        "file = os.open('/tmp/big', os.O_CREAT | os.O_WRONLY)\n"
        "try:\n"
        "    while True: written += os.write(file, b'x' * 65536)\n"
        "except OSError as error: full = [full, error.errno]\n"
        "print(json.dumps([made, written, full]))"
    )

    made, written, full = bench.python(source, scratch_bytes=16 * MIB, scratch_inodes=500)

    assert full == [errno.ENOSPC, errno.ENOSPC]
    assert 450 <= made < 500
    assert 15 * MIB <= written <= 16 * MIB


@pytest.mark.attack(43)
def test_shared_memory_has_a_limit_of_its_own(bench: Bench) -> None:
    source = (
        "import json, os\n"
        "file = os.open('/dev/shm/big', os.O_CREAT | os.O_WRONLY); written = 0\n"
        "try:\n"
        "    while True: written += os.write(file, b'x' * 2**20)\n"
        "except OSError as error: print(json.dumps([written, error.errno]))"
    )

    assert bench.python(source) == [mounts.SHM_BYTES, errno.ENOSPC]


@pytest.mark.attack(52)
def test_one_sandbox_cannot_take_all_terminals(bench: Bench) -> None:
    source = (
        "import json, os\nmade = []\n"
        "try:\n"
        "    while True: made.append(os.openpty())\n"
        "except OSError as error: print(json.dumps([len(made), error.errno]))"
    )

    assert bench.python(source) == [64, errno.ENOSPC]


@pytest.mark.attack(2)
def test_descriptors_are_the_three_streams(either: Bench) -> None:
    # The fourth is ls's own, of the directory.
    assert either.run("ls", "/proc/self/fd").out.split() == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "place", ["/proc/self/fd/3", "/proc/self/fd/6", "/proc/self/fd/0", "/proc/1/fd/5"]
)
@pytest.mark.attack(2)
def test_no_working_directory_leads_out_by_a_descriptor(place: str, bench: Bench) -> None:
    async def start() -> object:
        async with bench.sandbox() as made:
            null = os.open("/dev/null", os.O_RDWR)
            try:
                return await start_in(made, "true", descriptors=[null] * 3, workdir=place)
            finally:
                os.close(null)

    started = bench.do(start())
    assert getattr(started, "what", None) == "workdir", started


@pytest.mark.attack(22)
def test_sockets_of_the_host_cannot_be_reached(bench: Bench) -> None:
    """Loopback and abstract names (ATTACKS 22)."""
    name = f"sandboxd-test-{uuid.uuid4().hex}"
    with (
        socket.create_server(("127.0.0.1", 0)) as loopback,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind(f"\0{name}")
        abstract.listen()
        source = (
            "import json, socket\nfound = []\n"
            f"for family, address in ((2, ('127.0.0.1', {loopback.getsockname()[1]})), (1, '\\0{name}'),\n"
            "                        (2, ('169.254.169.254', 80)), (2, ('10.0.2.2', 80))):\n"
            "    with socket.socket(family) as client:\n"
            "        found.append(client.connect_ex(address))\n"
            "print(json.dumps(found))"
        )
        found = bench.python(source)

    unreachable = errno.ENETUNREACH
    assert found == [errno.ECONNREFUSED, errno.ECONNREFUSED, unreachable, unreachable]


KILLING = """
import ctypes, json, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(work):
    try: work()
    except OSError as error: return error.errno
    return 0
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
sent = {int(number): attempt(lambda: os.kill(1, number)) for number in signal.valid_signals()}
attempt(lambda: os.kill(-1, signal.SIGCONT))
found = {
    "ptrace": [libc.ptrace(16, 1, 0, 0), ctypes.get_errno()],
    "limits": [libc.syscall(302, 1, 7, 0, 0), ctypes.get_errno()],
    "pidfd": attempt(lambda: signal.pidfd_send_signal(os.pidfd_open(1), signal.SIGKILL)),
}
print(json.dumps(found))
"""


@pytest.mark.attack(23)
def test_init_can_be_neither_killed_nor_traced_nor_limited(either: Bench) -> None:
    """Signals to it are dropped by the kernel: it goes on, and reports the end."""
    ran = either.run("python3", "-c", KILLING)

    found = ran.json()
    assert found["ptrace"] == [-1, errno.EPERM]
    assert found["limits"] == [-1, errno.EPERM]
    assert ran.exit is not None
    assert ran.exit.code == 0


@pytest.mark.attack(21)
def test_kernel_keys_cannot_be_made_or_read(bench: Bench) -> None:
    source = (
        "import ctypes, json\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "calls = (248, b'user', b'n', b'x', 1, -3), (249, b'user', b'n', None, -3), (250, 0, -3, 0)\n"
        "print(json.dumps([[libc.syscall(*call), ctypes.get_errno()] for call in calls]))"
    )

    assert bench.python(source) == [[-1, errno.EPERM]] * 3


SESSION_KEYRING = (
    "import ctypes, json; libc = ctypes.CDLL(None); print(json.dumps(libc.syscall(250, 0, -3, 0)))"
)


@pytest.mark.attack(21)
def test_the_session_keyring_is_another_in_each_sandbox(unfiltered: Bench) -> None:
    inside = {unfiltered.python(SESSION_KEYRING) for _ in range(3)}
    ours = syscalls._libc.syscall(250, 0, -3, 0)

    assert len(inside) == 3
    assert ours not in inside


@pytest.mark.attack(22, 23, 53)
def test_two_sandboxes_share_no_memory_message_or_process(bench: Bench) -> None:
    """SysV memory, POSIX queue, shared memory file, abstract socket, hostname: gone or not there in the other."""
    make = (
        "import ctypes, json, os, socket, sys\nlibc = ctypes.CDLL(None)\n"
        "libc.shmget(4711, 4096, 0o1666); libc.mq_open(b'/queue', 0o102, 0o666, None)\n"
        "open('/dev/shm/file', 'w').close(); s = socket.socket(1); s.bind('\\0name'); s.listen()\n"
    )
    look = (
        "print(json.dumps([open('/proc/sysvipc/shm').read().count('\\n') - 1, os.listdir('/dev/mqueue'),\n"
        "                  os.listdir('/dev/shm'), open('/proc/net/unix').read().count('@name')]))"
    )
    assert bench.python(make + look) == [1, ["queue"], ["file"], 1]
    before = Path("/proc/sysvipc/shm").read_text()

    assert bench.python("import json, os\n" + look) == [0, [], [], 0]
    assert Path("/proc/sysvipc/shm").read_text() == before


NAMESPACES = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for name, flag in {"user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000,
                   "ipc": 0x8000000, "uts": 0x4000000, "cgroup": 0x2000000, "time": 0x80}.items():
    ctypes.set_errno(0)
    libc.unshare(flag)
    unshared = ctypes.get_errno()
    ctypes.set_errno(0)
    pid = libc.syscall(56, flag | 17, 0, 0, 0, 0) if name != "time" else -1
    if pid == 0: os._exit(0)
    cloned = ctypes.get_errno()
    arguments = (ctypes.c_uint64 * 8)(flag, 0, 0, 0, 17, 0, 0, 0)
    ctypes.set_errno(0)
    pid = libc.syscall(435, arguments, 64)
    if pid == 0: os._exit(0)
    found[name] = [unshared, cloned, ctypes.get_errno()]
    file = os.open("/proc/self/ns/user", os.O_RDONLY)
    ctypes.set_errno(0)
    libc.setns(file, 0)
    found["enter"] = ctypes.get_errno()
print(json.dumps(found))
"""


@pytest.mark.attack(17, 25)
def test_the_filter_refuses_every_new_namespace(either: Bench) -> None:
    found = either.python(NAMESPACES)

    assert found.pop("enter") == errno.EPERM
    assert found.pop("time") == [errno.EPERM, 0, errno.ENOSYS]
    assert set(map(tuple, found.values())) == {(errno.EPERM, errno.EPERM, errno.ENOSYS)}


@pytest.mark.attack(17, 25)
def test_without_the_filter_the_kernel_refuses_a_user_namespace_and_so_the_others(
    unfiltered: Bench,
) -> None:
    """user.max_user_namespaces of U2 is 0: ENOSPC; and the others need a capability."""
    found = unfiltered.python(NAMESPACES)

    assert found.pop("user") == [errno.ENOSPC] * 3
    assert found.pop("enter") in (errno.EPERM, errno.EINVAL)
    # CLONE_NEWTIME is no flag of clone; the bit is one of the exit signal's.
    found["time"][1] = errno.EPERM
    assert set(map(tuple, found.values())) == {(errno.EPERM, errno.EPERM, errno.EPERM)}


@pytest.mark.attack(25)
def test_the_host_s_own_limit_of_user_namespaces_is_untouched(bench: Bench) -> None:
    bench.run("true")

    assert int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 0
    inside = bench.run("cat", "/proc/sys/user/max_user_namespaces").out
    assert inside == b"0\n"


MOUNTS = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "mount tmpfs": (165, b"none", b"/work", b"tmpfs", 0, None),
    "mount cgroup": (165, b"none", b"/work", b"cgroup", 0, b"memory"),
    "remount": (165, None, b"/usr", None, 32 | 4096, None),
    "umount": (166, b"/proc/sys", 2), "umount masked": (166, b"/proc/kallsyms", 2),
    "pivot_root": (155, b"/work", b"/work"), "fsopen": (430, b"tmpfs", 0),
    "open_tree": (428, -100, b"/usr", 1), "setattr": (442, -100, b"/usr", 0, (ctypes.c_uint64 * 4)(0, 1), 32),
    "hostname": (170, b"x", 1), "handle": (304, -100, None, 0), "bpf": (321, 0, None, 0),
    "perf": (298, None, 0, 0, 0, 0), "swapon": (167, b"/work", 0), "reboot": (169, 0, 0, 0, 0),
    "chroot": (161, b"/work"), "module": (175, None, 0, b""),
}
found = {}
for name, call in calls.items():
    ctypes.set_errno(0)
    found[name] = [libc.syscall(*call), ctypes.get_errno()]
print(json.dumps(found))
"""


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.attack(6, 17, 27, 28)
def test_without_the_filter_no_mount_can_be_made_or_taken_away(uid: int, unfiltered: Bench) -> None:
    found = unfiltered.run("python3", "-c", MOUNTS, uid=uid, gid=uid).json()

    refused = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EFAULT, errno.ENOSYS)
    assert {name: of for name, of in found.items() if of[0] != -1 or of[1] not in refused} == {}


@pytest.mark.attack(3, 23)
def test_without_the_filter_init_still_shows_nothing(unfiltered: Bench) -> None:
    source = (
        "import ctypes, json, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "data = ctypes.create_string_buffer(8); vector = (ctypes.c_uint64 * 2)(ctypes.addressof(data), 8)\n"
        "pidfd = os.pidfd_open(1)\n"
        "calls = (101, 16, 1, 0, 0), (310, 1, vector, 1, vector, 1, 0), (438, pidfd, 3, 0), (312, 1, 2, 0, 0, 0)\n"
        "wide = [[ctypes.c_long(one) if isinstance(one, int) else one for one in call] for call in calls]\n"
        "print(json.dumps([[libc.syscall(*call), ctypes.get_errno()] for call in wide]))"
    )

    assert unfiltered.python(source) == [[-1, errno.EPERM]] * 4


@pytest.mark.attack(37)
def test_the_launcher_has_no_environment_and_no_child_when_nothing_runs(bench: Bench) -> None:
    bench.run("true")
    assert bench.launcher.process is not None
    pid = bench.launcher.process.pid

    with open(f"/proc/{pid}/cmdline", "rb") as title:
        assert title.read().rstrip(b"\0") == b"sandboxd: launcher"
    assert children_of(pid) == set()
