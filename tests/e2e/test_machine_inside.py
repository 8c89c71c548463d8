"""What programs in a job see of the machine: what they may use, and not what the host has."""

import json
import os
import shutil
import subprocess
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from running_service import RunningService
from sandbox_client import Box
from waiting import wait_for

from sandboxd.client import Client

MIB = 2**20

COUNT_CPUS = """
import json, os, re, subprocess
def text(path):
    with open(path) as file: return file.read()
def output(*words):
    return int(subprocess.run(words, capture_output=True, check=True).stdout)
numbers = re.findall(r"^cpu(\\d+) ", text("/proc/stat"), re.M)
print(json.dumps({
    "allowed": sorted(os.sched_getaffinity(0)),
    "in stat": list(map(int, numbers)),
    "in cpuinfo": list(map(int, re.findall(r"^processor\\s*: (\\d+)$", text("/proc/cpuinfo"), re.M))),
    "online": text("/sys/devices/system/cpu/online"),
    "cpu_count": os.cpu_count(),
    "nproc": output("nproc"),
    "getconf": output("getconf", "_NPROCESSORS_ONLN"),
    "possible": output("getconf", "_NPROCESSORS_CONF"),
}))
"""

LOOK = """
import json, os, time
def figures(path):
    with open(path) as file: lines = [line.split() for line in file]
    return {line[0]: line[1:] for line in lines}
def look():
    memory, stat = figures("/proc/meminfo"), figures("/proc/stat")
    with open("/proc/loadavg") as file: load = float(file.read().split()[0])
    return {
        "total": int(memory["MemTotal:"][0]) * 1024,
        "free": int(memory["MemAvailable:"][0]) * 1024,
        "busy": int(stat["cpu"][0]),
        "idle": int(stat["cpu"][3]),
        "load": load,
    }
"""


def python(client: Client, code: str, **limits: object) -> Any:
    job = client.run(["python3", "-c", code], limits=limits)
    assert job.state == "succeeded", (job.error, job.stderr.decode())
    return json.loads(job.text)


# CPUs


@pytest.mark.parametrize(("cpus", "count"), [(0.3, 1), (1, 1), (1.5, 2)])
def test_whoever_counts_cpus_counts_those_of_the_limit(
    client: Client, cpus: float, count: int
) -> None:
    seen = python(client, COUNT_CPUS, cpus=cpus)
    count = min(count, len(os.sched_getaffinity(0)))

    allowed = seen["allowed"]
    assert len(allowed) == count
    assert seen["in stat"] == seen["in cpuinfo"] == allowed
    assert seen["cpu_count"] == seen["nproc"] == seen["getconf"] == count
    first, last = allowed[0], allowed[-1]
    assert seen["online"] in {f"{first}\n", f"{first}-{last}\n", f"{first},{last}\n"}


def test_arrays_that_are_indexed_by_the_number_of_a_cpu_are_large_enough(client: Client) -> None:
    """Their size is that of the host: the numbers are the host's."""
    seen = python(client, COUNT_CPUS, cpus=0.5)
    own = subprocess.run(["getconf", "_NPROCESSORS_CONF"], capture_output=True, check=True)
    assert seen["possible"] == int(own.stdout)


def test_two_jobs_at_once_are_not_on_the_same_cpu(client: Client) -> None:
    wait = "import os, time; print(*os.sched_getaffinity(0), flush=True); time.sleep(600)"
    jobs = [client.submit(["python3", "-c", wait], limits={"cpus": 1}) for _ in range(2)]
    wait_for(
        lambda: all(client.get(job.id).stdout for job in jobs), "both have said where they are"
    )
    cpus = {client.cancel(job.id, grace_seconds=0).id: client.wait(job.id).text for job in jobs}
    assert len(set(cpus.values())) == min(2, len(os.sched_getaffinity(0)))


@pytest.mark.skipif(shutil.which("java") is None, reason="this host has no Java")
def test_the_virtual_machine_of_java_sees_them(client: Client) -> None:
    command = ["java", "-Xmx64m", "-Xlog:os+cpu=info", "-version"]
    job = client.run(command, limits={"cpus": 1, "memory": "512Mi"})
    assert job.state == "succeeded", (job.error, job.stderr.decode())
    assert "(initial active 1)" in job.text


# Memory, time and load


def test_memory_is_that_of_the_limit(client: Client) -> None:
    seen = python(client, f"{LOOK}\nprint(json.dumps(look()))", memory="128Mi")
    assert seen["total"] == 128 * MIB
    assert 96 * MIB < seen["free"] <= 128 * MIB


def test_what_is_used_is_seen_while_it_is(client: Client) -> None:
    code = f"""{LOOK}
before = look()
held = b"x" * (64 << 20)
while look()["free"] > before["free"] - (64 << 20) or look()["load"] == 0:
    pass
print(json.dumps([before, look()]))
"""
    before, after = python(client, code, memory="256Mi", cpus=0.5, wall_seconds=60)

    assert after["total"] == before["total"] == 256 * MIB
    assert 256 * MIB - 128 * MIB < after["free"] <= 256 * MIB - 64 * MIB
    assert after["busy"] > before["busy"]
    assert after["idle"] >= before["idle"]
    assert 0 < after["load"] < 2


def test_the_clocks_began_with_the_sandbox(client: Client) -> None:
    code = """
import json, os, time
with open("/proc/uptime") as file: uptime = float(file.read().split()[0])
with open("/proc/stat") as file: boot = [line for line in file if line.startswith("btime")][0]
with open("/proc/1/stat") as file: started = int(file.read().rpartition(")")[2].split()[19])
print(json.dumps([uptime, time.monotonic(), int(boot.split()[1]), started / os.sysconf("SC_CLK_TCK")]))
"""
    job = client.run(["python3", "-c", code])
    uptime, monotonic, boot, init_started = json.loads(job.text)
    age = float(Path("/proc/uptime").read_text().split()[0])

    assert abs(boot - time.time()) < 600
    if "time" in job.enforcement["walls"]["namespaces"]:
        assert 1 <= uptime <= monotonic + 1 < 600
        assert 0 <= init_started < 2
    else:
        assert abs(uptime - age) < 60


# In a sandbox


def test_other_limits_are_seen_at_once_also_by_what_runs(
    real_service: RunningService, client: Client
) -> None:
    cpus = len(os.sched_getaffinity(0))
    wait = textwrap.dedent("""
        import os, threading, time
        def memory():
            with open("/proc/meminfo") as file: return int(file.readline().split()[1]) // 1024
        def wait():
            while memory() != 96 or len(os.sched_getaffinity(0)) != int(os.environ["CPUS"]):
                time.sleep(0.01)
        threads = [threading.Thread(target=wait) for _ in range(3)]
        for each in threads: each.start()
        wait()
        for each in threads: each.join()
        print(os.cpu_count())
    """)
    with real_service.http() as http, Box(http, limits={"cpus": 1, "memory": "128Mi"}) as box:
        assert box.shell("nproc; head -1 /proc/meminfo | tr -dc 0-9") == f"1\n{128 * 1024}"
        began = box.begin("python3", "-c", wait, env={"CPUS": str(cpus)})
        changed = http.patch(box.path, json={"limits": {"cpus": cpus, "memory": "96Mi"}})
        assert changed.status_code == 200, changed.text

        ended = box.end_of(began)
        assert (ended["state"], ended["stdout"]) == ("succeeded", f"{cpus}\n")
        assert box.shell("nproc") == f"{cpus}\n"


# The files themselves


def test_nobody_inside_can_change_or_remove_them(client: Client) -> None:
    code = """
import ctypes, json, os
libc, failed = ctypes.CDLL(None, use_errno=True), []
paths = ["/proc/" + name for name in ("cpuinfo", "meminfo", "stat", "loadavg")]
paths.append("/sys/devices/system/cpu/online")
for path in paths:
    for attempt in (
        lambda: open(path, "r+"), lambda: os.truncate(path, 0), lambda: os.chmod(path, 0o777),
        lambda: os.unlink(path), lambda: os.utime(path), lambda: os.setxattr(path, "user.a", b""),
    ):
        try: attempt()
        except OSError: failed.append(path)
    if libc.umount2(path.encode(), 2) != 0: failed.append(path)
print(json.dumps([failed.count(path) for path in paths]))
"""
    assert python(client, code) == [7] * 5
