"""What commands see of the machine: files over those of /proc and /sys that would show the whole host.

The kernel shows every process the CPUs and the memory of the host, whatever its cgroup may use (proc(5)). So each sandbox has a
tmpfs of its own with a few small files, bound read-only over the kernel's; init, which holds the tmpfs itself, writes them
when a command starts, and again when the service took a sample of what they used. Between two of these they stand still.

The CPUs keep the numbers that they have on the host: sched_getcpu(3) and rseq(2) tell those, and programs use them as indexes.
For the same reason `possible` and `present` stay what they are. What no file tells cannot be changed: sysinfo(2).
"""

import os
import time

from sandboxd.cpu_lists import format_cpu_list
from sandboxd.isolation import mounts
from sandboxd.isolation.spec import Machine, Used

FILES = {
    "cpuinfo": "proc/cpuinfo",
    "meminfo": "proc/meminfo",
    "stat": "proc/stat",
    "loadavg": "proc/loadavg",
    "online": "sys/devices/system/cpu/online",
}
"""Of the tmpfs: what is to be seen at which path of the sandbox."""

_MOST_BYTES = "4m"
"""Of the files of one sandbox; a CPU takes one and a half thousand."""
_OTHER_MEMORY = """\
Buffers:               0 kB
Cached:                0 kB
SwapCached:            0 kB
Active:                0 kB
Inactive:              0 kB
Active(anon):          0 kB
Inactive(anon):        0 kB
Active(file):          0 kB
Inactive(file):        0 kB
Unevictable:           0 kB
Mlocked:               0 kB
Dirty:                 0 kB
Writeback:             0 kB
AnonPages:             0 kB
Mapped:                0 kB
Shmem:                 0 kB
KReclaimable:          0 kB
Slab:                  0 kB
SReclaimable:          0 kB
SUnreclaim:            0 kB
"""
_NO_TIME = " 0 0 0 0 0 0\n"
_TICKS = 100
"""A second, as all figures in /proc/stat have it (USER_HZ)."""
_LOADS_SECONDS = (60, 300, 900)
_LEAST_SECONDS = 0.01
_E = 2.718281828459045  # `math` would be one more module in every sandbox


def read_cpus(path: str = "/proc/cpuinfo") -> dict[int, str]:
    """Number of each CPU of the host to its paragraph there."""
    cpus = {}
    with open(path, encoding="ascii", errors="replace") as file:
        for paragraph in file.read().split("\n\n"):
            name, _, number = paragraph.partition("\n")[0].partition(":")
            if name.strip() == "processor":
                cpus[int(number)] = paragraph.rstrip("\n") + "\n\n"
    return cpus


class Files:
    """Those of one sandbox, over its own /proc and /sys."""

    def __init__(self, templates: mounts.Templates, cpus: dict[int, str]) -> None:
        """Mount them, empty as yet, over what `mounts.make_own` made. `cpus`: as `read_cpus` found them. Raises OSError."""
        self._descriptions = cpus
        self._began, self._began_at = time.monotonic(), int(time.time())
        self._machine: Machine | None = None
        self._used, self._used_at = Used(0, 0.0), self._began
        self._loads = [0.0] * len(_LOADS_SECONDS)
        place = f"{templates.stage}/machine"
        size = f"size={_MOST_BYTES},nr_inodes={len(FILES) + 1},mode=0755"
        self._directory = mounts.attach_and_hold("tmpfs", size, place)
        for name, target in FILES.items():
            os.mknod(name, 0o644, dir_fd=self._directory)
            mounts.bind_read_only(f"{place}/{name}", templates.own(target))

    def give_to(self, owner: int) -> None:
        """Let this user write them. Raises OSError."""
        for name in FILES:
            os.chown(name, owner, owner, dir_fd=self._directory)

    def show(self, machine: Machine | None, used: Used | None) -> None:
        """Write what is to be said now, as far as it was not said before; None: nothing new. Raises OSError."""
        before = self._machine
        machine = machine or before
        if machine is None or not machine.cpus:
            return
        self._machine = machine
        if used is not None:
            self._count_load(used)
        cpus = machine.cpus
        if before is None or before.cpus != cpus:
            self._write("cpuinfo", "".join([self._descriptions.get(cpu, "") for cpu in cpus]))
            self._write("online", f"{format_cpu_list(cpus)}\n")
        if used is not None or machine != before:
            age_seconds = time.monotonic() - self._began
            self._write("meminfo", meminfo(machine, self._used.memory_bytes))
            self._write("stat", stat(cpus, self._began_at, age_seconds, self._used.cpu_seconds))
            self._write("loadavg", "{:.2f} {:.2f} {:.2f} 1/1 1\n".format(*self._loads))

    def _count_load(self, used: Used) -> None:
        """Averages that forget, as the kernel's do (kernel/sched/loadavg.c), of the CPUs that were in use."""
        now = time.monotonic()
        seconds = max(now - self._used_at, _LEAST_SECONDS)
        rate = max(0.0, used.cpu_seconds - self._used.cpu_seconds) / seconds
        for at, span in enumerate(_LOADS_SECONDS):
            kept = _E ** (-seconds / span)
            self._loads[at] = self._loads[at] * kept + rate * (1 - kept)
        self._used, self._used_at = used, now

    def _write(self, name: str, text: str) -> None:
        """In place: who reads just now may find some of the old behind the new, but never nothing."""
        content = text.encode()
        file = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            os.write(file, content)
            os.ftruncate(file, len(content))
        finally:
            os.close(file)


def meminfo(machine: Machine, used_bytes: int) -> str:
    """As /proc/meminfo, of a machine of which so much is used; its swap is said to be free."""
    size = f"{machine.memory_bytes // 1024:8d} kB\n"
    free = f"{max(0, machine.memory_bytes - used_bytes) // 1024:8d} kB\n"
    swap = f"{machine.swap_bytes // 1024:8d} kB\n"
    return (
        f"MemTotal:       {size}MemFree:        {free}MemAvailable:   {free}{_OTHER_MEMORY}"
        f"SwapTotal:      {swap}SwapFree:       {swap}"
    )


def stat(cpus: tuple[int, ...], began: int, age_seconds: float, used_seconds: float) -> str:
    """As /proc/stat, of a machine that began at a Unix time and is that old. All time that is not idle is said to be user time,
    and to be spread evenly.
    """
    used = round(used_seconds * _TICKS)
    idle = max(0, round(age_seconds * _TICKS) * len(cpus) - used)
    lines = [f"cpu  {used} 0 0 {idle}{_NO_TIME}"]
    for cpu in cpus:
        lines.append(f"cpu{cpu} {used // len(cpus)} 0 0 {idle // len(cpus)}{_NO_TIME}")
    counts = f"intr 0\nctxt 0\nbtime {began}\nprocesses 1\nprocs_running 1\nprocs_blocked 0\n"
    return "".join(lines) + counts
