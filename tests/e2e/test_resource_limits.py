"""Whatever a job takes more of than it may, it ends in the right state, says so in figures, and nobody else notices."""

import itertools
import textwrap
from pathlib import Path

import pytest
from waiting import TIME_FACTOR

from sandboxd.client import Client, InvalidRequest, Job
from sandboxd.quotas.host import probe_host

pytestmark = pytest.mark.usefixtures("neighbour")

MIB = 2**20


def python(code: str) -> list[str]:
    return ["python3", "-c", textwrap.dedent(code)]


def sentence(job: Job) -> str:
    assert job.error is not None
    return job.error.message


# Processes


@pytest.mark.attack(42)
def test_a_fork_bomb_is_held_to_its_processes_and_dies_at_the_wall_time(client: Client) -> None:
    """Attack 42."""
    bomb = "bomb() { bomb | bomb & }; bomb; while :; do bomb; done"

    seconds = max(3.0, TIME_FACTOR)  # Half a minute, and bash gives up forking.
    job = client.run(["bash", "-c", bomb], limits={"pids": 32, "wall_seconds": seconds})

    assert (job.state, job.reason) == ("timed_out", "wall_seconds")
    assert f"still running after {seconds:g} s of wall time" in sentence(job)
    assert job.usage is not None
    assert job.usage.pids_peak == 32


@pytest.mark.parametrize("wished", [1, 5])
def test_a_limit_of_n_processes_allows_n_and_not_one_more(client: Client, wished: int) -> None:
    code = """
        import os, time
        made = 1
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(600)
            except BlockingIOError:
                break
            made += 1
        print(made)
    """
    job = client.run(python(code), limits={"pids": wished})

    assert job.text == f"{wished}\n"
    assert job.usage is not None
    assert job.usage.pids_peak == wished
    assert [(denied.kind, denied.count) for denied in job.denied] == [("pids", 1)]


def test_a_failure_for_want_of_processes_says_so(client: Client) -> None:
    job = client.run(["bash", "-c", "for i in 1 2 3 4; do sleep 5 & done"], limits={"pids": 3})

    assert job.state == "failed"
    assert "; more than 3 processes were refused" in sentence(job)


def test_a_job_within_its_limits_was_refused_nothing(client: Client) -> None:
    assert client.run(["sh", "-c", "true & true & wait"], limits={"pids": 8}).denied == ()


def test_threads_count_as_processes(client: Client) -> None:
    code = """
        import threading
        over = threading.Event()
        made = 1
        try:
            while True:
                threading.Thread(target=over.wait).start()
                made += 1
        except RuntimeError:
            over.set()
        print(made)
    """
    assert client.run(python(code), limits={"pids": 7}).text == "7\n"


@pytest.mark.attack(50)
def test_a_farm_of_zombies_goes_with_the_job(client: Client) -> None:
    """Attack 50."""
    code = """
        import os
        for _ in range(50):
            if os.fork() == 0:
                os._exit(0)
        print("planted", flush=True)
        import time; time.sleep(600)
    """
    job = client.run(python(code), limits={"wall_seconds": 3 * TIME_FACTOR})

    assert job.state == "timed_out"
    assert job.text == "planted\n"


def test_orphans_that_end_are_reaped_while_the_job_runs(client: Client) -> None:
    """With one slot for a child the second hundred could not start, were the first not reaped by init."""
    script = "for i in $(seq 200); do (true &) ; done; echo done"

    job = client.run(["bash", "-c", script], limits={"pids": 16})

    assert (job.state, job.text) == ("succeeded", "done\n")


DAEMONS = {
    "background": "sleep 600 &",
    "nohup": "nohup sleep 600 >/dev/null 2>&1 &",
    "setsid": "setsid sleep 600 </dev/null >/dev/null 2>&1 &",
    "double fork": "(setsid sh -c '(trap \"\" HUP TERM INT; sleep 600) &' &);",
    "holds the output": "setsid sh -c 'sleep 600' &",
    "spins": "setsid sh -c 'while :; do :; done' &",
}


@pytest.mark.parametrize("daemon", DAEMONS.values(), ids=DAEMONS.keys())
@pytest.mark.attack(49)
def test_a_job_ends_with_its_command_whatever_it_left_in_the_background(
    client: Client, daemon: str
) -> None:
    """Attack 49. That nothing is left is what every test here checks at its end."""
    limits = {"wall_seconds": 20 * TIME_FACTOR}
    job = client.run(["bash", "-c", f"{daemon} echo started"], limits=limits)

    assert (job.state, job.text) == ("succeeded", "started\n")
    assert job.usage is not None
    assert job.usage.wall_seconds < 5 * TIME_FACTOR


# Signals


@pytest.mark.attack(50)
def test_a_job_that_ignores_term_is_killed_after_the_grace(client: Client) -> None:
    """Attack 50."""
    script = "trap 'echo not me' TERM; echo ready; while :; do sleep 0.05; done"
    job = client.submit(["bash", "-c", script])
    logs = client.logs(job.id, follow=True)
    next(logs)

    client.cancel(job.id, grace_seconds=0.5, reason="enough of it")
    rest = b"".join(piece.data for piece in logs)
    ended = client.wait(job.id)

    assert b"not me" in rest
    assert (ended.state, ended.reason) == ("cancelled", "cancelled_by_client")
    assert ended.exit is not None
    assert ended.exit.signal == "SIGKILL"
    assert sentence(ended).startswith("enough of it; ")


def test_a_job_that_obeys_term_may_tidy_up(client: Client) -> None:
    script = "trap 'echo tidy; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    job = client.submit(["bash", "-c", script])
    next(client.logs(job.id, follow=True))

    client.cancel(job.id, grace_seconds=20)
    ended = client.wait(job.id)

    assert ended.state == "cancelled"
    assert ended.text == "ready\ntidy\n"
    assert ended.exit_code == 7
    assert ended.usage is not None
    assert ended.usage.wall_seconds < 15


@pytest.mark.attack(50)
def test_a_job_that_stops_all_its_processes_is_ended_all_the_same(client: Client) -> None:
    """Attack 50."""
    script = "sleep 600 & echo before; kill -s STOP $! $$; echo after"

    limits = {"wall_seconds": 3 * TIME_FACTOR}
    timed_out = client.run(["bash", "-c", script], limits=limits)
    stopped = client.submit(["bash", "-c", script])
    next(client.logs(stopped.id, follow=True))
    client.cancel(stopped.id, grace_seconds=0.2)

    assert (timed_out.state, timed_out.text) == ("timed_out", "before\n")
    assert client.wait(stopped.id).state == "cancelled"


@pytest.mark.attack(23)
def test_kill_minus_one_harms_only_the_job_itself(client: Client) -> None:
    """Attack 23."""
    job = client.run(["bash", "-c", "sleep 600 & kill -s KILL -1; echo still here"])

    assert job.state in ("succeeded", "failed")
    assert job.exit is not None
    assert job.exit.stopped_by is None


# Time


def test_a_job_over_its_wall_time_keeps_what_it_wrote(client: Client) -> None:
    script = "echo out; echo err >&2; sleep 600"
    seconds = 3 * TIME_FACTOR

    job = client.run(["sh", "-c", script], limits={"wall_seconds": seconds})

    assert (job.state, job.reason) == ("timed_out", "wall_seconds")
    assert (job.stdout, job.stderr) == (b"out\n", b"err\n")
    assert sentence(job).startswith(f"still running after {seconds:g} s of wall time; ")
    assert sentence(job).endswith("8 B of output")
    assert job.error is not None
    assert job.error.remediation == "ask for more limits.wall_seconds"
    assert job.exit is not None
    assert job.exit.timed_out
    assert job.usage is not None
    assert seconds <= job.usage.wall_seconds < 10 * seconds  # and not the 600


def test_a_silent_command_is_told_what_to_do(client: Client) -> None:
    job = client.run(["sleep", "60"], limits={"idle_seconds": 0.3})

    assert (job.state, job.reason) == ("timed_out", "idle_seconds")
    assert "wrote nothing for 0.3 s" in sentence(job)
    assert job.error is not None
    assert "limits.idle_seconds" in (job.error.remediation or "")


def test_cpu_time_counts_that_of_all_children(client: Client) -> None:
    script = "for i in 1 2 3; do sh -c 'while :; do :; done' & done; wait"

    limits = {"cpu_seconds": 0.5, "cpus": 2, "wall_seconds": 30}
    job = client.run(["bash", "-c", script], limits=limits)

    assert (job.state, job.reason) == ("timed_out", "cpu_seconds")
    assert "used up its 0.5 s of CPU time" in sentence(job)
    assert job.usage is not None
    assert job.usage.cpu_seconds is not None
    # A busy service looks late: of the endless time of three it is little all the same.
    assert 0.5 <= job.usage.cpu_seconds < 5 * TIME_FACTOR


def test_sleeping_costs_no_cpu_time(client: Client) -> None:
    job = client.run(["sleep", str(0.6 * TIME_FACTOR)], limits={"cpu_seconds": 0.3 * TIME_FACTOR})

    assert job.state == "succeeded"


def test_the_cpu_rate_is_held(client: Client) -> None:
    # Processor time of its own: among many others it might not come to its limit within any time.
    spin = "import time\nwhile time.process_time() < 0.4: pass"

    job = client.run(["python3", "-c", spin], limits={"cpus": 0.2})

    assert job.usage is not None
    assert job.usage.cpu_seconds is not None
    assert job.usage.cpu_throttled_seconds is not None
    assert job.usage.cpu_seconds / job.usage.wall_seconds < 0.4
    assert job.usage.cpu_throttled_seconds > 0


def test_a_priority_is_the_kernels_weight(client: Client) -> None:
    controller = probe_host().controllers["cpu"]
    name, light = (
        ("cpu.weight", "10\n") if controller.version == "cgroup2" else ("cpu.shares", "102\n")
    )
    assert controller.directory is not None

    job = client.submit(["sh", "-c", "echo ready; exec sleep 600"], priority=-50)
    said = [piece.data for piece in itertools.islice(client.logs(job.id, follow=True), 1)]
    weights = [file.read_text() for file in Path(controller.directory).glob(f"*/*/{name}")]
    client.cancel(job.id, grace_seconds=0)

    assert said == [b"ready\n"], client.get(job.id)
    assert light in weights


# Memory


def test_swap_that_is_not_to_be_had_is_refused(client: Client) -> None:
    """By default an operator allows none, whatever the host has."""
    with pytest.raises(InvalidRequest) as refused:
        client.run(["true"], limits={"swap": "64Mi"})

    assert [fault.pointer for fault in refused.value.faults] == ["/limits/swap"]
    assert "it has to be 0" in refused.value.faults[0].detail


HOGS = {
    "heap": "held = []\nwhile True: held.append(b'x' * 2**20)",
    "children": "import os, time\nfor _ in range(8):\n  if os.fork() == 0:\n    held = b'x' * 2**23\n    time.sleep(600)\nos.wait()",
    "/tmp": "import os\nwith open('/tmp/f', 'wb') as f:\n  while True: f.write(b'x' * 2**20)",
    "/dev/shm": "with open('/dev/shm/f', 'wb') as f:\n  while True: f.write(b'x' * 2**20)",
    "memfd": "import os\nfd = os.memfd_create('m')\nwhile True: os.write(fd, b'x' * 2**20)",
    "shared": "import mmap\nm = mmap.mmap(-1, 2**30)\nfor i in range(0, 2**30, 4096): m[i] = 1",
    "System V": "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\nat = libc.shmat(libc.shmget(0, 2**28, 0o1600), None, 0)\nctypes.memset(at, 1, 2**28)",
    "a file that is deleted": "import os\nf = open('/tmp/f', 'wb')\nos.unlink('/tmp/f')\nwhile True: f.write(b'x' * 2**20)",
}


@pytest.mark.parametrize("hog", HOGS.values(), ids=HOGS.keys())
@pytest.mark.attack(43)
def test_memory_is_counted_wherever_it_is_taken(client: Client, hog: str) -> None:
    """Attack 43."""
    limits = {"memory": "32Mi", "disk": "1Gi", "wall_seconds": 30}

    job = client.run(["python3", "-c", hog], limits=limits)

    assert (job.state, job.reason) == ("out_of_memory", "memory")
    assert job.exit is not None
    assert job.exit.oom_killed
    assert job.exit.stopped_by is None
    assert sentence(job).startswith("reached 33.")
    assert " of 33.6 MB of memory; the kernel killed " in sentence(job)
    assert job.usage is not None
    assert job.usage.memory_peak_bytes is not None
    assert 31 * MIB <= job.usage.memory_peak_bytes <= 33 * MIB


SOCKETS = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held = 0
receivers = []
for _ in range(200):
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
    receiver.bind(("127.0.0.1", 0))
    receivers.append(receiver)
    for _ in range(100):
        sender.sendto(bytes(16384), receiver.getsockname())
for receiver in receivers:
    receiver.setblocking(False)
    try:
        while True:
            held += len(receiver.recv(65536))
    except BlockingIOError:
        pass
print(held)
"""


@pytest.mark.attack(43)
def test_what_sockets_hold_is_limited_too(client: Client) -> None:
    """Attack 43: buffers of sockets that nobody reads. On v1 they are counted apart and dropped at the limit."""
    job = client.run(["python3", "-c", SOCKETS], limits={"memory": "32Mi", "wall_seconds": 30})

    assert job.state in ("succeeded", "out_of_memory"), job.error
    if job.state == "succeeded":
        assert 0 < int(job.text) <= 34 * MIB


def test_a_job_gets_the_memory_that_it_asked_for(client: Client) -> None:
    job = client.run(["python3", "-c", "b'x' * (40 * 2**20)"], limits={"memory": "64Mi"})

    assert job.state == "succeeded"
    assert job.usage is not None
    assert job.usage.memory_peak_bytes is not None
    assert 40 * MIB <= job.usage.memory_peak_bytes <= 64 * MIB


def test_a_child_that_is_killed_for_memory_is_told_whether_or_not_the_command_goes_on(
    client: Client,
) -> None:
    """On v2 all processes of the job end at once; on v1 one does, and the others when the service has seen it."""
    script = "echo began; python3 -c 'b\"x\" * 2**30'; echo went on"

    job = client.run(["sh", "-c", script], limits={"memory": "32Mi"})

    assert job.state == "out_of_memory"
    texts = {"cgroup1": {"began\n", "began\nwent on\n"}, "cgroup2": {"began\n"}}
    assert job.text in texts[job.enforcement["limits"]["memory"]]


# Disk


@pytest.mark.parametrize("place", ["/work", "/tmp", "/home/sandbox"])
@pytest.mark.attack(44)
def test_a_disk_filler_gets_no_space_left_on_device(client: Client, place: str) -> None:
    """Attack 44."""
    script = f"dd if=/dev/zero of={place}/f bs=64k 2>&1 | head -1; stat -c %s {place}/f"

    job = client.run(["sh", "-c", script], limits={"disk": "8Mi"})

    error, size = job.text.splitlines()
    assert "No space left on device" in error
    assert 7 * MIB < int(size) <= 8 * MIB


@pytest.mark.attack(44)
def test_space_that_is_reserved_or_deleted_but_open_counts_too(client: Client) -> None:
    """Attack 44."""
    code = """
        import errno, os
        def refused(action, *words):
            try:
                action(*words)
            except OSError as error:
                return errno.errorcode[error.errno]
        fd = os.open("/tmp/f", os.O_CREAT | os.O_RDWR)
        print(refused(os.posix_fallocate, fd, 0, 2**24))
        os.ftruncate(fd, 2**40)
        print(os.fstat(fd).st_blocks < 2**12)
        os.ftruncate(fd, 0)
        os.write(fd, b"x" * 2**22)
        os.unlink("/tmp/f")
        other = os.open("/tmp/g", os.O_CREAT | os.O_RDWR)
        print(os.write(other, b"x" * 2**23) < 2**22)
    """
    assert client.run(python(code), limits={"disk": "8Mi"}).text == "ENOSPC\nTrue\nTrue\n"


@pytest.mark.attack(45)
def test_inodes_are_limited_too(client: Client) -> None:
    """Attack 45."""
    code = """
        import errno
        made = 0
        try:
            while True:
                open(f"/work/{made}", "w").close()
                made += 1
        except OSError as error:
            print(errno.errorcode[error.errno], 900 < made < 1100)
    """
    assert client.run(python(code), limits={"disk": "4Mi"}).text == "ENOSPC True\n"


@pytest.mark.attack(45)
def test_a_tree_that_is_hard_to_remove_goes_with_the_job(client: Client) -> None:
    """Attack 45: deep, long names, modes of 0."""
    code = """
        import os
        for _ in range(500):
            os.mkdir("d" * 255)
            os.chdir("d" * 255)
        open("x" * 255, "w").close()
        os.chmod("x" * 255, 0)
        os.chmod(".", 0)
        print("made")
    """
    assert client.run(python(code)).text == "made\n"


# Descriptors


@pytest.mark.attack(52)
def test_open_files_are_limited_to_what_was_asked(client: Client) -> None:
    """Attack 52."""
    code = """
        import errno, os, resource
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError as error:
            print(errno.errorcode[error.errno], held[-1] + 1)
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        except ValueError:
            print("not raised")
    """
    job = client.run(python(code), limits={"open_files": 40})

    assert job.text == "EMFILE 40\n(40, 40)\nnot raised\n"


@pytest.mark.attack(53)
def test_nothing_of_shared_memory_or_queues_is_left_on_the_host(client: Client) -> None:
    """Attack 53."""
    before = Path("/proc/sysvipc/shm").read_text()
    code = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.shmget(4711, 2**20, 0o1666) >= 0, libc.msgget(4711, 0o1666) >= 0)
        print(libc.semget(4711, 4, 0o1666) >= 0)
    """
    job = client.run(python(code))

    assert job.text == "True True\nTrue\n"
    assert Path("/proc/sysvipc/shm").read_text() == before
