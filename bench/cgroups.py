"""What the cgroup of one job costs: create, apply, read, remove, with an init that joins it.

Run as the service's user on a prepared host: `python bench/cgroups.py [JOBS]`. Prints milliseconds of CPU and of time per job.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable

from sandboxd.quotas.cgroups import Cgroup, open_cgroups
from sandboxd.quotas.host import probe_host
from sandboxd.settings import DEFAULT_LIMITS


def main(jobs: int) -> None:
    """Measure and print."""
    cgroups = open_cgroups(probe_host(), instance="bench")
    print(f"enforcement: {cgroups.enforcement}")
    made: list[Cgroup] = []
    steps: dict[str, Callable[[int], object]] = {
        "create": lambda i: made.append(cgroups.create(f"job{i}")),
        "apply": lambda i: made[i].apply(DEFAULT_LIMITS),
        "read": lambda i: made[i].read(),
        "remove": lambda i: made[i].remove(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    cpu_before = time.process_time()
    for i in range(jobs):
        for name, step in steps.items():
            before = time.perf_counter()
            step(i)
            seconds[name].append(time.perf_counter() - before)
    cpu = (time.process_time() - cpu_before) / jobs
    for name, figures in seconds.items():
        print(f"{name:8} p50 {statistics.median(figures) * 1e3:.3f} ms")
    print(f"{'CPU':8} per job {cpu * 1e3:.3f} ms")
    print(f"{'join':8} p50 {statistics.median(join_times(cgroups.create('join'))) * 1e3:.3f} ms")
    cgroups.close()


def join_times(cgroup: Cgroup, times: int = 50) -> list[float]:
    """How long a new process takes to enter, as it measures it itself."""
    seconds = []
    for _ in range(times):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            before = time.perf_counter()
            for path in cgroup.join_files():
                with open(path, "w") as file:
                    file.write("0")
            os.write(write_end, str(time.perf_counter() - before).encode())
            os._exit(0)
        seconds.append(float(os.read(read_end, 64)))
        os.waitpid(pid, 0)
        os.close(read_end)
        os.close(write_end)
    return seconds


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
