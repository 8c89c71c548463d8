"""Jobs that take what is counted least: each is held, a neighbour's jobs go on beside it, and nothing is left of it."""

import json
import textwrap
from pathlib import Path

import pytest
from running_service import RunningService
from waiting import wait_for

from sandboxd.client import Client, Job

pytestmark = pytest.mark.usefixtures("neighbour")

MIB = 2**20
HEAD = "import ctypes, errno, json, os, resource, select, signal, socket, sys, time\n"
HEAD += "libc = ctypes.CDLL(None, use_errno=True)\n"


def run(client: Client, code: str, **limits: object) -> Job:
    """A Python program."""
    command = ["python3", "-c", HEAD + textwrap.dedent(code)]
    return client.run(command, limits={"wall_seconds": 30} | limits)


# Processes


@pytest.mark.attack(42)
def test_a_bomb_of_threads_and_vforks_in_sessions_of_their_own_is_held(client: Client) -> None:
    code = """
        import threading
        def bomb():
            while True:
                try:
                    os.posix_spawn("/bin/sh", ["sh", "-c", "sh & sh &"], {}, setsid=True)
                    threading.Thread(target=bomb).start()
                except (OSError, RuntimeError):
                    pass
        bomb()
    """
    job = run(client, code, pids=64, wall_seconds=3)

    assert (job.state, job.reason) == ("timed_out", "wall_seconds")
    assert job.usage is not None
    assert job.usage.pids_peak == 64


@pytest.mark.attack(50)
def test_a_parent_that_waits_in_vfork_for_ever_is_ended(client: Client) -> None:
    """It is in the kernel, and hears no signal but one that kills."""
    code = """
        print("before", flush=True)
        if libc.vfork() == 0:
            libc.pause()
    """
    job = run(client, code, wall_seconds=3)

    assert (job.state, job.text) == ("timed_out", "before\n")


@pytest.mark.attack(49, 50)
def test_a_crowd_that_is_stopped_deaf_and_in_sessions_of_its_own_ends_with_the_command(
    client: Client,
) -> None:
    code = """
        reading, ready = os.pipe()
        for number in range(20):
            if os.fork() == 0:
                os.setsid()
                for each in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                    signal.signal(each, signal.SIG_IGN)
                os.write(ready, b".")
                if number % 2:
                    os.kill(os.getpid(), signal.SIGSTOP)
                while True:
                    pass
        seen = b""
        while len(seen) < 20:
            seen += os.read(reading, 20)
        print("all there")
    """
    job = run(client, code, pids=32)

    assert (job.state, job.text) == ("succeeded", "all there\n")


# Memory

HOGS = {
    "pipes": """
        for _ in range(30):
            if os.fork() == 0:
                ends = [os.pipe() for _ in range(500)]
                for _, end in ends:
                    os.set_blocking(end, False)
                    try:
                        while True: os.write(end, b"x" * 4096)
                    except BlockingIOError: pass
                time.sleep(600)
        os.wait()
    """,
    "unix sockets": """
        pairs = []
        for _ in range(480):
            pairs.append(socket.socketpair())
            pairs[-1][0].setblocking(False)
            try:
                while True: pairs[-1][0].send(b"x" * 4096)
            except BlockingIOError: pass
        held = b"x" * 2**24
        time.sleep(600)
    """,
    "files of a process that has ended": """
        if os.fork() == 0:
            for number in range(20):
                open(f"/tmp/{number}", "wb").write(b"x" * 2**20)
            os._exit(0)
        os.wait()
        held = b"x" * 20 * 2**20
    """,
    "message queues": """
        while libc.mq_open(b"/%d" % os.getpid(), 0o102, 0o666, None) != -1 and os.fork() == 0: pass
        held = []
        while True: held.append(b"x" * 2**20)
    """,
}


@pytest.mark.attack(43)
@pytest.mark.parametrize("code", HOGS.values(), ids=HOGS)
def test_memory_that_no_process_has_is_the_job_s_all_the_same(client: Client, code: str) -> None:
    job = run(client, code, memory="32Mi", pids=64, wall_seconds=20)

    assert (job.state, job.reason) == ("out_of_memory", "memory"), job.error
    assert job.usage is not None
    assert job.usage.memory_peak_bytes is not None
    assert job.usage.memory_peak_bytes <= 33 * MIB


CACHES = {
    "files of the image": """
        for path, _, names in os.walk("/usr/lib"):
            for name in names[:40]:
                try:
                    with open(os.path.join(path, name), "rb") as file:
                        while file.read(2**20): pass
                except OSError: pass
            if time.monotonic() > start + 3: break
    """,
    "names that are not there": """
        while time.monotonic() < start + 2:
            for number in range(1000):
                os.access(f"/usr/{time.monotonic_ns()}-{number}", 0)
    """,
    "sparse files": """
        file = os.open("/tmp/sparse", os.O_CREAT | os.O_RDWR)
        os.ftruncate(file, 2**40)
        for place in range(0, 2**30, 2**20):
            assert os.pread(file, 2**16, place) == bytes(2**16)
    """,
}


@pytest.mark.attack(43)
@pytest.mark.parametrize("code", CACHES.values(), ids=CACHES)
def test_what_the_kernel_remembers_for_a_job_stays_within_its_memory(
    client: Client, code: str
) -> None:
    """It can be forgotten again, so the job goes on."""
    code = "start = time.monotonic()\n" + textwrap.dedent(code) + 'print("done")'

    job = run(client, code, memory="32Mi")

    assert (job.state, job.text) == ("succeeded", "done\n"), job.error
    assert job.usage is not None
    assert job.usage.memory_peak_bytes is not None
    assert job.usage.memory_peak_bytes <= 33 * MIB


@pytest.mark.attack(59)
def test_neither_swap_nor_huge_pages_nor_a_burst_are_to_be_had(
    client: Client, real_service: RunningService
) -> None:
    """What the cgroups of a running job say, and what it gets of pages outside of them."""
    code = """
        MAP_HUGETLB = 0x40000
        libc.mmap.restype = ctypes.c_void_p
        got = libc.mmap(None, ctypes.c_size_t(2**21), 3, 0x22 | MAP_HUGETLB, -1, 0)
        print(got == ctypes.c_void_p(-1).value, libc.mlock(ctypes.create_string_buffer(2**20), 2**20))
        print("ready", flush=True)
        time.sleep(600)
    """
    job = client.submit(
        ["python3", "-c", HEAD + textwrap.dedent(code)], limits={"memory": "48Mi", "cpus": 0.5}
    )
    assert next(client.logs(job.id, follow=True)).data == b"True -1\nready\n"
    found = {
        path.name: path.read_text().strip()
        for group in real_service.job_cgroups()
        if any(_is_limited(group, name) for name in ("memory.limit_in_bytes", "memory.max"))
        for path in group.glob("*.*")
        if path.name in ("memory.memsw.limit_in_bytes", "memory.swap.max", "memory.limit_in_bytes")
    }
    client.cancel(job.id, grace_seconds=0)

    if "memory.swap.max" in found:
        assert found["memory.swap.max"] == "0"
    else:
        assert found["memory.memsw.limit_in_bytes"] == found["memory.limit_in_bytes"]


def _is_limited(group: Path, name: str) -> bool:
    """Whether this is the cgroup of a job with 48 MiB (and what init has on top)."""
    file = group / name
    return file.exists() and 48 * MIB <= int(file.read_text()) < 64 * MIB


# Disk


@pytest.mark.attack(44)
def test_holes_and_small_files_do_not_add_up_to_more_than_there_is(client: Client) -> None:
    code = """
        PUNCH_HOLE = 3
        file = os.open("/tmp/holes", os.O_CREAT | os.O_RDWR)
        most = 0
        for round in range(20):
            try:
                while True: os.write(file, b"x" * 2**16)
            except OSError as error:
                assert error.errno == errno.ENOSPC
            most = max(most, os.fstat(file).st_blocks * 512)
            half = ctypes.c_long(os.fstat(file).st_blocks * 256)
            assert libc.fallocate(file, PUNCH_HOLE, ctypes.c_long(0), half) == 0
        os.unlink("/tmp/holes"); os.close(file)
        written = made = 0
        try:
            while True:
                with open(f"/tmp/{made}", "wb", buffering=0) as small:
                    written += small.write(b"x")
                made += 1
        except OSError as error:
            assert error.errno == errno.ENOSPC
        print(json.dumps([most, made]))
    """
    job = run(client, code, disk="8Mi")

    assert job.state == "succeeded", job.stderr
    most, made = json.loads(job.text)
    assert 7 * MIB < most <= 8 * MIB
    assert made <= 2 * 1024 * 8


@pytest.mark.attack(45)
def test_names_without_files_are_counted_too(client: Client) -> None:
    """Hard links to one file take names only, and names take memory."""
    code = """
        open("/tmp/one", "w").close()
        made = 0
        try:
            while made < 100_000:
                os.link("/tmp/one", f"/tmp/link-{made}")
                made += 1
        except OSError as error:
            print(errno.errorcode[error.errno], made)
    """
    job = run(client, code, disk="4Mi")

    word, made = job.text.split()
    assert word == "ENOSPC"
    assert int(made) < 2000


@pytest.mark.attack(45)
@pytest.mark.parametrize("name", ["d", "d" * 255], ids=["one byte", "255 bytes"])
def test_a_path_of_5000_levels_that_nobody_may_enter_goes_with_the_job(
    client: Client, name: str
) -> None:
    code = f"""
        for level in range(5000):
            os.mkdir({name!r})
            os.chdir({name!r})
            os.chmod(".", 0o300)
        print("made")
    """
    job = run(client, code, disk="256Mi", memory="256Mi")

    assert (job.state, job.text) == ("succeeded", "made\n"), job.stderr


# Descriptors


@pytest.mark.attack(52)
def test_descriptors_in_circles_of_sockets_are_collected_with_the_job(client: Client) -> None:
    """Each socket is under way in the other: nobody can close them, and the kernel has to find that out."""

    def open_files_of_the_host() -> int:
        return int(Path("/proc/sys/fs/file-nr").read_text().split()[0])

    code = """
        made = 0
        try:
            while True:
                one, other = socket.socketpair()
                socket.send_fds(one, [b"x"], [one.fileno(), other.fileno()])
                socket.send_fds(other, [b"x"], [one.fileno(), other.fileno()])
                one.close(); other.close()
                made += 1
        except OSError:
            print(made, flush=True)
        os.read(0, 1)
    """
    before = open_files_of_the_host()
    job = run(client, code, open_files=1024)
    wait_for(lambda: open_files_of_the_host() < before + 400, "the circles are gone")

    assert job.state == "succeeded"
    assert int(job.text) > 200


@pytest.mark.attack(52)
def test_chains_of_epoll_end_and_wake_nobody_else(client: Client) -> None:
    code = """
        reading, writing = os.pipe()
        level = [reading]
        depth = 0
        try:
            while True:
                above = [select.epoll() for _ in range(30)]
                for one in above:
                    for below in level:
                        one.register(below, select.EPOLLIN)
                level = above
                depth += 1
        except OSError as error:
            word = errno.errorcode[error.errno]
        for _ in range(100):
            os.write(writing, b"x")
            os.read(reading, 1)
        print(depth, word)
    """
    job = run(client, code, wall_seconds=20)

    assert job.state == "succeeded", (job.error, job.stderr)
    depth, word = job.text.split()
    assert int(depth) <= 5
    assert word in ("ELOOP", "EINVAL")


# Priority


@pytest.mark.attack(54)
def test_no_limit_is_raised_and_no_priority_gained(client: Client) -> None:
    code = """
        def word(action):
            try:
                action()
            except (OSError, ValueError) as error:
                return errno.errorcode[getattr(error, "errno", None) or errno.EPERM]
            return "done"
        def raised(name):
            kind = getattr(resource, name)
            soft, hard = resource.getrlimit(kind)
            more = resource.RLIM_INFINITY if hard != resource.RLIM_INFINITY else hard
            return word(lambda: resource.setrlimit(kind, (more, more)))
        refused = {name: raised(name) for name in (
            "RLIMIT_NOFILE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_SIGPENDING", "RLIMIT_CORE",
            "RLIMIT_RTPRIO")}
        for policy in (os.SCHED_FIFO, os.SCHED_RR):
            refused[str(policy)] = word(lambda: os.sched_setscheduler(0, policy, os.sched_param(1)))
        refused["nice"] = word(lambda: os.nice(-1))
        refused["others"] = word(lambda: os.setpriority(os.PRIO_PROCESS, 1, -1))
        number = 314 if os.uname().machine == "x86_64" else 274
        deadline = (ctypes.c_uint64 * 6)(48 | 6 << 32, 0, 0, 10**6, 10**7, 10**7)
        refused["deadline"] = "done" if libc.syscall(number, 0, deadline, 0) == 0 else "EPERM"
        refused["oom"] = word(
            lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000"))
        print(json.dumps(refused))
    """
    job = run(client, code)

    refused = json.loads(job.text)
    assert {name: word for name, word in refused.items() if word not in ("EPERM", "EACCES")} == {}


# cgroups and the network


@pytest.mark.attack(58)
def test_no_cgroup_is_made_inside_and_none_entered(client: Client) -> None:
    code = """
        made = entered = 0
        for path, _, names in os.walk("/sys/fs/cgroup"):
            for name in ("x", "x/y"):
                made += libc.mkdir(os.path.join(path, name).encode(), 0o700) == 0
            for name in names:
                if name in ("cgroup.procs", "tasks", "memory.max", "pids.max", "cgroup.subtree_control"):
                    try:
                        open(os.path.join(path, name), "w").write("0")
                        entered += 1
                    except OSError:
                        pass
        print(made, entered)
    """
    assert run(client, code).text == "0 0\n"


@pytest.mark.attack(60)
def test_a_flood_of_packets_and_connections_stays_in_the_job_s_own_network(client: Client) -> None:
    code = """
        server = socket.create_server(("127.0.0.1", 0), backlog=1)
        held = []
        for _ in range(900):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(server.getsockname())
            held.append(one)
        outside = set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for address in ("8.8.8.8", "10.0.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255"):
                for _ in range(200):
                    try:
                        sender.sendto(b"x" * 500, (address, 53))
                        outside.add(address)
                    except OSError:
                        pass
        print(len(held), sorted(outside))
    """
    job = run(client, code, open_files=1024)

    assert (job.state, job.text) == ("succeeded", "900 []\n"), job.stderr
