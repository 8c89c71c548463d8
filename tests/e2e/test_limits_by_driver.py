"""Each limit just under and just over, by every way there is to it, on each driver: cgroups as this host has them, and none."""

import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import patient_http
import pytest
from running_service import RunningService, running_service
from waiting import TIME_FACTOR, wait_for

from sandboxd.client import Client, Job

FINE = ("succeeded", "exited")
NO_MEMORY = ("out_of_memory", "memory")
CPU = ("timed_out", "cpu_seconds")
WALL = ("timed_out", "wall_seconds")
REFUSED = ("failed", "exited")
"""A system call that takes memory which nothing would count. (What is in the scratch and in /dev/shm is bounded by their sizes,
what is in pipes by their number.)"""


class Case(NamedTuple):
    """A program, its limits, and how it ends."""

    code: str
    limits: dict[str, Any]
    end: tuple[str, str] = FINE
    text: str | None = None
    """What it prints, if that matters."""
    sampled_end: tuple[str, str] | None = None
    """How it ends without cgroups, if otherwise."""


BEGIN = """
import mmap, os, signal, sys, threading, time

def take(mib):
    block = bytearray(mib * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    return block

def child(work, detach=False):
    pid = os.fork()
    if pid == 0:
        if detach:
            os.setsid()
            try:
                if os.fork():
                    os._exit(0)
            except OSError as error:
                os._exit(error.errno)
        try:
            work()
        finally:
            os._exit(0)
    if detach and (code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])):
        raise OSError(code, os.strerror(code))
    return pid

def spin(seconds):
    while time.process_time() < seconds:
        pass

def fill(path, mib):
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(b"x" * 2**20)
            file.flush()

def tell(work):
    try:
        work()
        print("fine", flush=True)
    except (OSError, RuntimeError) as error:
        print(getattr(error, "strerror", None) or "refused", flush=True)
"""
M64 = {"memory": "64Mi"}
M32 = {"memory": "32Mi", "disk": "64Mi"}
P16 = {"pids": 16}
C1 = {"cpu_seconds": 0.6, "wall_seconds": 30 * TIME_FACTOR}

CASES = {
    # Memory
    "heap, under": Case("take(40)", M64),
    "heap, over": Case("held = take(96); time.sleep(60)", M64, NO_MEMORY),
    "heap of a child, over": Case(
        "os.waitpid(child(lambda: (take(96), time.sleep(60))), 0)", M64, NO_MEMORY
    ),
    "heaps of several, each under": Case(
        "[child(lambda: (take(24), time.sleep(60))) for _ in range(4)]; time.sleep(60)",
        M64,
        NO_MEMORY,
    ),
    "heap of a detached process, over": Case(
        "child(lambda: (take(96), time.sleep(60)), detach=True); time.sleep(60)",
        M64 | {"wall_seconds": 5 * TIME_FACTOR},
        NO_MEMORY,
    ),
    "shared memory without a file, over": Case(
        "m = mmap.mmap(-1, 96 * 2**20); [m.write(b'x' * 2**20) for _ in range(96)]; time.sleep(60)",
        M64,
        NO_MEMORY,
    ),
    "scratch file, under": Case("fill('/work/f', 12)", M32),
    "scratch file, over": Case("fill('/work/f', 48)", M32, NO_MEMORY, sampled_end=FINE),
    "deleted scratch file, over": Case(
        "f = open('/work/f', 'wb'); os.unlink('/work/f'); [f.write(b'x' * 2**20) for _ in range(48)]",
        M32,
        NO_MEMORY,
        sampled_end=FINE,
    ),
    "/dev/shm, over": Case("fill('/dev/shm/f', 48)", M32, NO_MEMORY, sampled_end=FINE),
    "memfd, over": Case(
        "f = os.memfd_create('m'); [os.write(f, b'x' * 2**20) for _ in range(48)]",
        M32,
        NO_MEMORY,
        sampled_end=REFUSED,
    ),
    "pipes, over": Case(
        """
        for _ in range(480):
            _, w = os.pipe()
            os.set_blocking(w, False)
            try:
                while True:
                    os.write(w, b"x" * 4096)
            except BlockingIOError:
                pass
        """,
        {"memory": "16Mi"},
        NO_MEMORY,
        sampled_end=FINE,
    ),
    # Processes
    "forks, under": Case(
        "tell(lambda: [child(lambda: time.sleep(60)) for _ in range(12)])", P16, text="fine\n"
    ),
    "forks, over": Case(
        "tell(lambda: [child(lambda: time.sleep(60)) for _ in range(20)])",
        P16,
        text="Resource temporarily unavailable\n",
    ),
    "threads, under": Case(
        "tell(lambda: [threading.Thread(target=time.sleep, args=(60,), daemon=True).start() for _ in range(12)])",
        P16,
        text="fine\n",
    ),
    "threads, over": Case(
        "tell(lambda: [threading.Thread(target=time.sleep, args=(60,), daemon=True).start() for _ in range(20)])",
        P16,
        text="refused\n",
    ),
    "detached processes, over": Case(
        "tell(lambda: [child(lambda: time.sleep(60), detach=True) for _ in range(20)])",
        P16,
        text="Resource temporarily unavailable\n",
    ),
    # CPU time
    "CPU time, under": Case("spin(0.3)", {"cpu_seconds": 0.6 * TIME_FACTOR}),
    "CPU time, over": Case("spin(60)", C1, CPU),
    "CPU time of a child, over": Case("os.waitpid(child(lambda: spin(60)), 0)", C1, CPU),
    "CPU time of several, each under": Case(
        "[child(lambda: spin(0.25)) for _ in range(6)]; time.sleep(60)", C1, CPU
    ),
    "CPU time of a detached process, over": Case(
        "child(lambda: spin(60), detach=True); time.sleep(60)", C1, CPU
    ),
    "CPU time of many that are dead, over": Case(
        "while True: os.waitpid(child(lambda: spin(0.05)), 0)", C1, CPU
    ),
    "CPU time of threads, over": Case(
        "[threading.Thread(target=spin, args=(60,)).start() for _ in range(3)]", C1, CPU
    ),
    "CPU time of many that nobody waits for, over": Case(
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True: child(lambda: spin(0.2)); time.sleep(0.3)",
        C1,
        CPU,
    ),
    # Times
    "wall time, under": Case("time.sleep(0.1)", {"wall_seconds": 5 * TIME_FACTOR}),
    "wall time, over": Case("time.sleep(60)", {"wall_seconds": 0.4}, WALL),
    "wall time, stopped": Case("os.kill(os.getpid(), signal.SIGSTOP)", {"wall_seconds": 0.4}, WALL),
    "wall time, all signals ignored": Case(
        "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 15)]; time.sleep(60)",
        {"wall_seconds": 0.4},
        WALL,
    ),
    # In all it is longer than what is allowed at once.
    "silence, under": Case(
        f"for _ in range(12): print('x', flush=True); time.sleep({0.3 * TIME_FACTOR})",
        {"idle_seconds": 3 * TIME_FACTOR},
    ),
    "silence, over": Case(
        "print('x', flush=True); time.sleep(60)",
        {"idle_seconds": 0.4},
        ("timed_out", "idle_seconds"),
    ),
    # Disk
    "disk, under": Case("tell(lambda: fill('/work/f', 12))", {"disk": "16Mi"}, text="fine\n"),
    "disk, over": Case(
        "tell(lambda: fill('/work/f', 24))", {"disk": "16Mi"}, text="No space left on device\n"
    ),
    "disk, by a sparse file": Case(
        "tell(lambda: open('/work/f', 'wb').truncate(2**30))", {"disk": "16Mi"}, text="fine\n"
    ),
    "disk, by a deleted file": Case(
        """
        f = open('/work/f', 'wb', buffering=0)
        os.unlink('/work/f')
        [f.write(b'x' * 2**20) for _ in range(12)]
        tell(lambda: fill('/work/g', 12))
        """,
        {"disk": "16Mi"},
        text="No space left on device\n",
    ),
    "disk, by empty files": Case(
        "tell(lambda: [open(f'/work/{n}', 'w').close() for n in range(100_000)])",
        {"disk": "16Mi", "memory": "256Mi"},
        text="No space left on device\n",
    ),
    # The rest
    "open files, under": Case(
        "tell(lambda: [os.dup(0) for _ in range(40)])", {"open_files": 64}, text="fine\n"
    ),
    "open files, over": Case(
        "tell(lambda: [os.dup(0) for _ in range(80)])",
        {"open_files": 64},
        text="Too many open files\n",
    ),
    "output, under": Case("print('x' * 1000)", {"output_bytes": "4Ki"}),
    "output, over": Case(
        "print('x' * 10_000)", {"output_bytes": "4Ki"}, ("output_limit", "output_bytes")
    ),
    "output on both, over": Case(
        "print('x' * 3000, flush=True); print('x' * 3000, file=sys.stderr)",
        {"output_bytes": "4Ki"},
        ("output_limit", "output_bytes"),
    ),
}


@pytest.fixture(scope="module", params=["auto", "none"])
def driver(request: pytest.FixtureRequest, prepared_host: None) -> Iterator[RunningService]:
    flags = ("--no-auth", "--slots", "2")
    with running_service(flags=flags, isolation_cgroups=request.param) as service:
        yield service


@pytest.fixture(scope="module")
def client(driver: RunningService) -> Iterator[Client]:
    with driver.client() as connected:
        yield connected
        driver.assert_nothing_left(connected)


def samples(client: Client) -> bool:
    return client.system()["enforcement"]["memory"] == "sampled"


@pytest.mark.parametrize("name", CASES)
def test_a_limit_ends_a_job_or_does_not(client: Client, name: str) -> None:
    assert_ends_as_expected(client, CASES[name])


@pytest.mark.parametrize("name", ["heap, under", "heap, over", "forks, under", "forks, over"])
def test_so_it_does_in_a_sandbox_that_was_begun_before_its_shape_was_known(
    driver: RunningService, client: Client, name: str
) -> None:
    wait_for(lambda: client.system()["capacity"]["blank"], "there is a blank")
    before = blanks_used(driver)
    new_shape = {"disk": f"{40 + list(CASES).index(name)}Mi"}
    case = CASES[name]

    assert_ends_as_expected(client, case._replace(limits=case.limits | new_shape))
    assert blanks_used(driver) == before + 1


def blanks_used(service: RunningService) -> int:
    text = patient_http.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
    (line,) = (each for each in text.splitlines() if each.startswith("sandboxd_warm_pool_blanks_t"))
    return int(float(line.split()[1]))


def assert_ends_as_expected(client: Client, case: Case) -> None:
    code = BEGIN + textwrap.dedent(case.code)
    expected = case.end
    if case.sampled_end is not None and samples(client):
        expected = case.sampled_end
    job = client.run(["python3", "-c", code], limits=case.limits)

    assert (job.state, job.reason) == expected, job.text + job.stderr.decode()
    if case.text is not None:
        assert job.text == case.text


def test_a_neighbour_of_a_job_at_its_limits_is_unharmed(client: Client) -> None:
    hog = client.submit(["python3", "-c", BEGIN + CASES["heap, over"].code], limits=M64)
    fork = client.run(["python3", "-c", BEGIN + CASES["forks, under"].code], limits=P16)
    assert (fork.state, fork.text) == ("succeeded", "fine\n")
    assert client.wait(hog.id).state == "out_of_memory"


def test_a_rate_of_one_cpu_is_no_more_than_that(client: Client) -> None:
    job = client.run(
        ["python3", "-c", BEGIN + "[child(lambda: spin(60)) for _ in range(3)]; time.sleep(60)"],
        limits={"cpus": 1, "wall_seconds": 2 * TIME_FACTOR},
    )
    assert job.state == "timed_out"
    assert_of_one_cpu(job)


def test_a_job_cannot_give_itself_more_cpus(client: Client) -> None:
    code = """
        try:
            os.sched_setaffinity(0, range(os.cpu_count()))
        except PermissionError:
            pass
        [child(lambda: spin(60)) for _ in range(3)]
        time.sleep(60)
    """
    job = client.run(
        ["python3", "-c", BEGIN + textwrap.dedent(code)],
        limits={"cpus": 1, "wall_seconds": 2 * TIME_FACTOR},
    )
    assert_of_one_cpu(job)


def assert_of_one_cpu(job: Job) -> None:
    """It took all that it could get, which was a CPU for as long as it ran: two of the three spinners' would be more by far."""
    assert job.usage is not None
    wall, used = job.usage.wall_seconds, job.usage.cpu_seconds
    assert used is not None
    assert 0.2 * wall < used <= 1.15 * wall + 0.2, (used, wall)


def test_what_enforces_each_limit_is_in_the_record(client: Client) -> None:
    words = client.run(["true"]).enforcement["limits"]
    if samples(client):
        assert (words["cpus"], words["memory"], words["pids"]) == ("affinity", "sampled", "rlimit")
    else:
        assert {words[name][:6] for name in ("cpus", "memory", "pids")} == {"cgroup"}


def run_in_a_sandbox(http: httpx2.Client, limits: dict[str, Any], *codes: str) -> dict[str, Any]:
    """How the last of some commands ended, one after the other in a sandbox of their own."""
    made = http.post("/v1/sandboxes", json={"image": "host", "limits": limits}).json()
    path = f"/v1/sandboxes/{made['id']}"
    for code in codes:
        command = ["python3", "-c", BEGIN + code]
        ended: dict[str, Any] = http.post(f"{path}/exec", json={"command": command}).json()
    http.delete(path)
    return ended


def test_a_sandbox_that_lives_has_the_same_limits(driver: RunningService) -> None:
    with driver.http() as http:
        forks = run_in_a_sandbox(http, P16, CASES["forks, over"].code)
        heap = run_in_a_sandbox(http, M64, CASES["heap, over"].code)

    assert forks["stdout"] == CASES["forks, over"].text
    assert heap["state"] == "out_of_memory"


@pytest.mark.parametrize("driver", ["none"], indirect=True)
def test_a_command_that_starts_beside_too_much_memory_is_out_of_memory(
    driver: RunningService,
) -> None:
    # The first command is stopped for it; what it detached goes on until the sandbox ends.
    beside = CASES["heap of a detached process, over"].code
    with driver.http() as http:
        ended = run_in_a_sandbox(http, M64, beside, "time.sleep(60)")

    assert (ended["state"], ended["reason"]) == NO_MEMORY
