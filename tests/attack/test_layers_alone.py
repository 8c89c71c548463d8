"""Each wall alone: the walls in front of it are taken away, in a launcher of the test's own, and the attack is still stopped.

Where all of them are gone the attack must succeed: it would, then, have shown that a wall does not stand.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import entry, packed
from image_bench import an_image_bench
from inside import attack, named, names
from sandbox_bench import ALLOW_ALL_CALLS, Bench, without

from sandboxd.isolation import machine

CAPABILITIES_KEPT = (
    "init.privileges.drop_capabilities = init.privileges.lock_securebits = lambda *_: None; "
    "init.privileges.drop_bounding_set = init.privileges.forbid_new_privileges = lambda: None"
)
NAMESPACES_UNLIMITED = "init._USER_NAMESPACE_SYSCTLS = {}"
# The command stays in U1, which owns the mounts and the network.
NO_SECOND_NAMESPACE = f"init.Init.enter_user_namespace = lambda self: None; {NAMESPACES_UNLIMITED}"

ROOT = {"uid": 0, "gid": 0}


@pytest.fixture(scope="module")
def owner() -> Iterator[Bench]:
    """Nothing stands: the command is root of the namespace that owns its mounts and its network."""
    with without(f"{NO_SECOND_NAMESPACE}; {CAPABILITIES_KEPT}; {ALLOW_ALL_CALLS}") as made:
        yield made


@pytest.fixture(scope="module")
def filtered_owner() -> Iterator[Bench]:
    """Only the filter stands."""
    with without(f"{NO_SECOND_NAMESPACE}; {CAPABILITIES_KEPT}") as made:
        yield made


@pytest.fixture(scope="module")
def incapable() -> Iterator[Bench]:
    """Only the loss of all capabilities stands."""
    with without(f"{NO_SECOND_NAMESPACE}; {ALLOW_ALL_CALLS}") as made:
        yield made


@pytest.fixture(scope="module")
def capable() -> Iterator[Bench]:
    """Only the second user namespace stands, which owns nothing."""
    with without(f"{CAPABILITIES_KEPT}; {ALLOW_ALL_CALLS}") as made:
        yield made


# What only root of the namespaces that U1 owns may do

PRIVILEGED = """
def raw(family, kind, protocol):
    return attempt(lambda: socket.socket(family, kind, protocol).close())
def new_firewall_table():
    # NFNL_MSG_BATCH_BEGIN, NFT_MSG_NEWTABLE "x", NFNL_MSG_BATCH_END: the way to CVE-2024-1086 and its like.
    batch = struct.pack("=IHHIIBBH", 20, 16, 1, 0, 0, 0, 0, 10 << 8)
    table = struct.pack("=IHHIIBBH", 28, 10 << 8, 0x405, 1, 0, 2, 0, 0) + struct.pack("=HH4s", 6, 1, b"x")
    end = struct.pack("=IHHIIBBH", 20, 17, 1, 2, 0, 0, 0, 10 << 8)
    with socket.socket(16, 3, 12) as netlink:
        netlink.settimeout(5)
        netlink.send(batch + table + end)
        number = -struct.unpack_from("=i", netlink.recv(4096), 16)[0]
        if number: raise OSError(number, "refused")
def take_loopback_down():
    import fcntl
    with socket.socket(2, 2) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 0))
found = {
    "mount tmpfs": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "mount proc": call("mount", b"none", b"/tmp", b"proc", 0, None),
    "mount cgroup": call("mount", b"none", b"/tmp", b"cgroup", 0, b"memory"),
    "bind": call("mount", b"/usr", b"/tmp", None, 4096, None),
    "make /usr writable": call("mount", None, b"/usr", None, 32 | 4096, None),
    "uncover /proc/kallsyms": call("umount2", b"/proc/kallsyms", 2),
    "uncover /proc/sys": call("umount2", b"/proc/sys", 2),
    "pivot_root": call("pivot_root", b"/work", b"/work"),
    "clone a mount": call("open_tree", -100, b"/usr", 1),
    "new file system": call("fsopen", b"tmpfs", 0),
    "change a mount": call("mount_setattr", -100, b"/usr", 0, (ctypes.c_uint64 * 4)(0, 1, 0, 0), 32),
    "sethostname": call("sethostname", b"x", 1),
    "join own network again": call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0),
    "a disk": attempt(os.mknod, "/work/disk", 0o060666, os.makedev(8, 0)),
    "memory of the kernel": attempt(os.mknod, "/work/mem", 0o020666, os.makedev(1, 1)),
    "raw socket": raw(2, 3, 1), "raw socket of IPv6": raw(10, 3, 58), "packet socket": raw(17, 3, 3),
    "firewall": attempt(new_firewall_table),
    "loopback down": attempt(take_loopback_down),
    "trace init": call("ptrace", 16, 1, 0, 0),
    "descriptor of init": call("pidfd_getfd", os.pidfd_open(1), 3, 0),
    "open by handle": call("open_by_handle_at", os.open("/usr", os.O_RDONLY), struct.pack("=IiQ", 8, 1, 2), 0),
    "module": call("init_module", None, 0, b""), "kexec": call("kexec_load", 0, 0, None, 0),
    "swap": call("swapon", b"/work", 0),
    "reboot": call("reboot", 0xfee1dead, 672274793, 0, None), "accounting": call("acct", b"/work/acct"),
    "console": call("syslog", 8, None, 1),
    "raise open files": call("prlimit64", 0, 7, (ctypes.c_uint64 * 2)(2**20, 2**20), None),
    "real time": attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
    "spare from the memory killer": attempt(os.write, os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000"),
    "bpf": call("bpf", 5, (ctypes.c_uint64 * 16)(), 128),
    "perf": call("perf_event_open", (ctypes.c_uint64 * 16)(1, 0), -1, 0, -1, 0),
    "fanotify": call("fanotify_init", 4, 0),
}
print(json.dumps([int(status()["CapEff"], 16), found]))
"""
OF_THE_OWNER = {
    "mount tmpfs",
    "mount proc",
    "bind",
    "make /usr writable",
    "uncover /proc/kallsyms",
    "uncover /proc/sys",
    "clone a mount",
    "new file system",
    "change a mount",
    "sethostname",
    "join own network again",
    "raw socket",
    "raw socket of IPv6",
    "packet socket",
    "loopback down",
}
"""What succeeds where nothing stands. The others need more of the kernel, or rights on the host itself."""
NOT_OF_THE_FILTER = {
    "raw socket",
    "raw socket of IPv6",
    "loopback down",
    "spare from the memory killer",
}
"""It tells families of sockets, not their kinds, no requests about interfaces, and no files."""
REFUSED = {"EPERM", "EACCES", "ENOSYS"}
"""ENOSYS: this kernel does not have the call at all."""


def tried(bench: Bench) -> tuple[int, dict[str, str]]:
    """The capabilities of the command, which is root, and how it fared."""
    capabilities, found = attack(bench, PRIVILEGED, **ROOT)
    return capabilities, names(found)


def test_where_nothing_stands_these_attacks_succeed(owner: Bench) -> None:
    capabilities, found = tried(owner)

    assert capabilities
    assert {what for what in OF_THE_OWNER if found[what] != "done"} == set()


@pytest.mark.attack(4, 6, 17, 24, 25, 26, 27, 28)
def test_the_filter_alone_stops_them(filtered_owner: Bench) -> None:
    capabilities, found = tried(filtered_owner)

    assert capabilities
    let_through = {
        what for what, answer in found.items() if answer not in ("EPERM", "EAFNOSUPPORT")
    }
    assert let_through <= NOT_OF_THE_FILTER


@pytest.mark.attack(4, 6, 10, 17, 24, 27, 28, 54)
def test_the_loss_of_all_capabilities_alone_stops_them(incapable: Bench) -> None:
    capabilities, found = tried(incapable)

    assert capabilities == 0
    assert {what: answer for what, answer in found.items() if answer not in REFUSED} == {}


@pytest.mark.attack(4, 6, 10, 17, 24, 27, 28, 54)
def test_every_capability_is_worth_nothing_in_the_second_user_namespace(capable: Bench) -> None:
    capabilities, found = tried(capable)

    assert capabilities
    assert {what: answer for what, answer in found.items() if answer not in REFUSED} == {}


# User namespaces of one's own

NESTED = """
NEWUSER, NEWNS = 0x10000000, 0x00020000
entered = call("unshare", NEWUSER | NEWNS)
if entered:
    print(json.dumps([entered, "", {}]))
    sys.exit()
# Uncover what init hid, make writable what it made read-only, see what is below, get a fresh /proc, /sys or a device.
found = {
    "uncover a file of /proc": call("umount2", b"/proc/kallsyms", 2),
    "uncover a directory of /proc": call("umount2", b"/proc/sys", 2),
    "uncover /sys": call("umount2", b"/sys", 2),
    "take the root away": call("umount2", b"/", 2),
    "make /usr writable": call("mount", None, b"/usr", None, 32 | 4096, None),
    "make /proc/sys writable": call("mount", None, b"/proc/sys", None, 32 | 4096, None),
    "allow devices in the root": call("mount", None, b"/", None, 32 | 4096, None),
    "a fresh /proc": call("mount", b"none", b"/tmp", b"proc", 0, None),
    "a fresh /sys": call("mount", b"none", b"/tmp", b"sysfs", 0, None),
    "below a mount, by a copy that is not recursive": call("mount", b"/proc", b"/tmp", None, 4096, None),
    "a disk": attempt(os.mknod, "/work/disk", 0o060666, os.makedev(8, 0)),
    "hostname": call("sethostname", b"x", 1),
    "raw socket": attempt(lambda: socket.socket(2, 3, 1)),
    "network of the sandbox": call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0),
}
control = call("mount", b"none", b"/work", b"tmpfs", 0, None)
print(json.dumps([entered, control, found]))
"""


@pytest.mark.attack(25)
def test_the_filter_alone_stops_a_user_namespace() -> None:
    with without(NAMESPACES_UNLIMITED) as bench:
        limit = bench.run("cat", "/proc/sys/user/max_user_namespaces").out
        entered, _, _ = attack(bench, NESTED)

    assert int(limit) > 0
    assert named(entered) == "EPERM"


@pytest.mark.attack(25)
def test_the_kernel_s_limit_alone_stops_a_user_namespace(unfiltered: Bench) -> None:
    entered, _, _ = attack(unfiltered, NESTED)

    assert named(entered) == "ENOSPC"


@pytest.mark.attack(4, 19, 25)
def test_root_of_a_user_namespace_of_its_own_uncovers_nothing() -> None:
    """Filter and limit are both gone: it gets one, with a mount namespace, and every capability there."""
    with without(f"{NAMESPACES_UNLIMITED}; {ALLOW_ALL_CALLS}") as bench:
        entered, control, found = attack(bench, NESTED)

    assert (entered, control) == (0, 0)
    assert {what: named(answer) for what, answer in found.items() if not answer} == {}


# Set-id programs

IDENTITY = "import json, os; print(json.dumps([os.getresuid(), os.getresgid()]))"
BITS_KEPT = (
    "from sandboxd.isolation import unpack; "
    "unpack.Unpacker.set_owner_and_mode = lambda self, fd, of: (unpack.os.chown(fd, *self.owner_of(of)), "
    "unpack.os.fchmod(fd, of.mode))"
)
NO_NEW_PRIVILEGES_OFF = (
    "init.privileges.forbid_new_privileges = lambda: None; "
    # The kernel takes a filter only from who has no_new_privs or a capability.
    "init.Init.filter_system_calls = lambda self: None"
)
NOSUID_OFF = "init.mounts._NOSUID = init.mounts.syscalls.MS_NOSUID = 0"


def effective_ids_by_a_set_id_program(statements: str, directory: Path) -> list[list[int]]:
    """An image with a copy of a program that is root's, set-user-id and set-group-id; run by uid 1000."""
    python = Path("/usr/bin/python3").resolve().read_bytes()
    archive = packed(entry("python", python, mode=0o6755), entry("other", b"x"))
    with without(statements) as bench, an_image_bench(bench, directory) as images:
        images.load(archive)
        ids: list[list[int]] = images.run("/python", "-I", "-c", IDENTITY, uid=1000).json()
    return ids


@pytest.mark.attack(29)
@pytest.mark.parametrize(
    "gone", [[], [NO_NEW_PRIVILEGES_OFF], [NOSUID_OFF]], ids=["both", "nosuid alone", "nnp alone"]
)
def test_a_set_id_program_that_came_along_gains_nothing(gone: list[str], tmp_path: Path) -> None:
    ids = effective_ids_by_a_set_id_program("; ".join([BITS_KEPT, *gone]), tmp_path)

    assert ids == [[1000] * 3, [1000] * 3]


def test_where_nothing_stands_a_set_id_program_gains_its_owner_s_id(tmp_path: Path) -> None:
    gone = f"{BITS_KEPT}; {NO_NEW_PRIVILEGES_OFF}; {NOSUID_OFF}"

    assert effective_ids_by_a_set_id_program(gone, tmp_path) == [[1000, 0, 0], [1000, 0, 0]]


# Descriptors and init

DESCRIPTORS = """
here = os.open("/proc/self/fd", os.O_RDONLY)
print(json.dumps({name: os.readlink("/proc/self/fd/" + name) for name in os.listdir(here) if int(name) != here and
                  os.path.lexists("/proc/self/fd/" + name)}))
"""


@pytest.mark.attack(2)
@pytest.mark.parametrize(
    "left", ["flags == 0", "flags != 0"], ids=["closed by init", "closed by the exec"]
)
def test_no_descriptor_comes_through_although_one_of_two_closings_is_gone(left: str) -> None:
    statements = (
        "close_range = init.syscalls.close_range; init.syscalls.close_range = "
        f"lambda *numbers, flags=0: close_range(*numbers, flags=flags) if {left} else None"
    )
    with without(statements) as bench:
        assert set(attack(bench, DESCRIPTORS)) == {"0", "1", "2"}


@pytest.mark.attack(1, 3, 23)
def test_init_shows_nothing_even_if_it_had_forgotten_to_forbid_dumps() -> None:
    """The change of ids alone makes it so."""
    source = "print(json.dumps([attempt(open, '/proc/1/' + name) for name in ('mem', 'environ', 'maps')]))"
    with without(f"init.privileges.forbid_dumps = lambda: None; {ALLOW_ALL_CALLS}") as bench:
        found = attack(bench, source)

    assert {named(answer) for answer in found} <= {"EACCES", "EPERM"}


# Hidden and read-only paths

WRITE_EVERYWHERE = """
written = []
for top in ("/proc", "/sys"):
    for place, directories, files in os.walk(top):
        if place == "/proc":
            directories[:] = [name for name in directories if name not in ("self", "thread-self", str(os.getpid()))]
        for name in files:
            path = os.path.join(place, name)
            try: file = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            except OSError: continue
            refused = attempt(os.write, file, b"1") in (1, 13)
            if not refused and os.fstat(file).st_rdev != os.makedev(1, 3): written.append(path)
            os.close(file)
print(json.dumps(written))
"""


@pytest.mark.attack(6, 14, 16, 18)
@pytest.mark.parametrize("uid", [0, 1000])
def test_no_file_of_proc_and_sys_can_be_written(uid: int, bench: Bench) -> None:
    """Every single one, but for the hidden ones, which are /dev/null."""
    assert attack(bench, WRITE_EVERYWHERE, uid=uid, gid=uid) == []


@pytest.mark.attack(14, 16, 18)
def test_files_of_proc_and_sys_refuse_even_where_none_is_hidden_or_read_only() -> None:
    """They are owned by ids that the command has not."""
    uncovered = (
        "init.mounts.READ_ONLY_IN_PROC = init.mounts.MASKED_IN_PROC = init.mounts.MASKED_IN_SYS = []; "
        "init.mounts._RO = 0"
    )
    with without(f"{uncovered}; {ALLOW_ALL_CALLS}") as bench:
        written = attack(bench, WRITE_EVERYWHERE, **ROOT)

    # Everybody may leave a trigger there, so they are hidden.
    others = {path for path in written if not path.startswith("/proc/pressure/")}
    # What a sandbox sees of the machine is in files of its own: who writes to them deceives itself.
    assert others == {f"/{path}" for path in machine.FILES.values()}
