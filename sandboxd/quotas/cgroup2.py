"""The driver for cgroup v2: one directory per job in the subtree that was delegated to us.

Theory of operation. `Delegate=yes` (or whoever started us) made the subtree ours. A cgroup that gives controllers to its
children may hold no process itself, so everything in it, ourselves included, first moves into the leaf `supervisor`; then
the controllers are enabled level by level down to `<subtree>/<instance>/<job>`. A sandbox is cloned right into its
directory (CLONE_INTO_CGROUP), so it never runs outside its limits. Source: Documentation/admin-guide/cgroup-v2.rst.
"""

import os
from contextlib import ExitStack, suppress

from sandboxd.errors import HostNotReady, SandboxFailed
from sandboxd.quotas.host import SUPERVISOR, Host
from sandboxd.quotas.kernel_files import (
    Written,
    await_event,
    exists,
    make_directory,
    may_have_refused,
    open_directory,
    parse_table,
    read_file,
    read_number,
    read_refused,
    read_table,
    remove_directory,
    write_file,
)
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.processes import clean_instance, kill_processes, list_processes
from sandboxd.quotas.stalls import Stalls, is_counted, read_stalls
from sandboxd.quotas.usage import CgroupNow, CgroupUsage, peak_since
from sandboxd.quotas.weights import cpu_weight

CPU_PERIOD_USEC = 100_000
"""Over which the CPU rate is enforced: the kernel's default."""

OPTIONAL_FILES_SINCE = {
    "cgroup.kill": (5, 14),
    "memory.peak": (5, 19),
    "pids.peak": (6, 1),
}
"""Files that an older kernel does not have. On a newer one their absence is a failure."""

_MOVE_PASSES = 16
_FREEZE_SECONDS = 1.0
_EMPTY_SECONDS = 0.25
"""For the last process to be gone from a cgroup whose sandbox is dead."""


class Driver2:
    """The instance's directory in the delegated subtree."""

    def __init__(
        self,
        directory: str,
        controllers: frozenset[str],
        host: Host,
        instance: str,
        disks: tuple[str, ...] = (),
    ) -> None:
        """`directory` is the delegated subtree, `disks` those whose rate is to be limited. Raises SandboxFailed, HostNotReady."""
        self._closing = ExitStack()
        self._instance = instance
        self.controllers = controllers
        with ExitStack() as undo:
            undo.enter_context(self._closing)
            self._delegated_fd = self._hold(open_directory(directory))
            move_into_leaf(self._delegated_fd)
            enable_controllers(self._delegated_fd, controllers)
            make_directory(instance, self._delegated_fd)
            self.instance_fd = self._hold(open_directory(instance, self._delegated_fd))
            clean_instance(self.instance_fd)
            enable_controllers(self.instance_fd, controllers)
            self.offered = self._check_files(host)
            self.counts_stalls = is_counted(self.instance_fd)
            self.disks = disks if exists(self.instance_fd, "io.max") else ()
            undo.pop_all()

    def create(self, name: str) -> "Group2":
        """Make the directory of one job. Raises SandboxFailed."""
        try:
            os.mkdir(name, dir_fd=self.instance_fd)
        except OSError as error:
            raise SandboxFailed("cgroup mkdir", f"{name}: {error.strerror}") from error
        try:
            return Group2(self, name, open_directory(name, self.instance_fd))
        except SandboxFailed:
            os.rmdir(name, dir_fd=self.instance_fd)
            raise

    def close(self) -> None:
        """Remove what is left of this instance. We stay in the leaf: there is no way back to the subtree's top."""
        clean_instance(self.instance_fd)
        with suppress(OSError):  # a process in state D holds it; the next start tries again
            os.rmdir(self._instance, dir_fd=self._delegated_fd)
        self._closing.close()

    @property
    def has_swap_limit(self) -> bool:
        return "memory.swap.max" in self.offered

    def _hold(self, fd: int) -> int:
        self._closing.callback(os.close, fd)
        return fd

    def _check_files(self, host: Host) -> frozenset[str]:
        """Which of the files that a kernel may lack are there."""
        offered = set()
        for name, since in OPTIONAL_FILES_SINCE.items():
            controller = name.partition(".")[0]
            if controller != "cgroup" and controller not in self.controllers:
                continue
            if exists(self.instance_fd, name):
                offered.add(name)
            elif host.kernel >= since:
                raise SandboxFailed(f"cgroup {name}", f"missing on Linux {host.kernel_release}")
        if "memory" in self.controllers:
            if exists(self.instance_fd, "memory.swap.max"):
                offered.add("memory.swap.max")
            elif host.swap_bytes:
                raise HostNotReady(
                    "memory limits would not hold: there is swap, but cgroups do not count it; "
                    "boot with swapaccount=1, or turn swap off (swapoff -a)"
                )
        return frozenset(offered)


class Group2:
    """The directory of one job."""

    def __init__(self, driver: Driver2, name: str, fd: int) -> None:
        self._driver = driver
        self._name = name
        self._fd = fd
        """-1 once removed."""
        self._limits = Written()
        self._own_memory_bytes = 0
        self._own_pids = 0
        self._most_pids = 0
        self._own_cpu: dict[str, int] = {}
        self._peaks_before: dict[str, int] = {}
        self._stalls_before = Stalls()
        self._io_bytes_per_second = 0

    def directory_fd(self) -> int:
        """For clone3(CLONE_INTO_CGROUP); ours to close."""
        return self._fd

    @property
    def controllers(self) -> frozenset[str]:
        return self._driver.controllers

    @property
    def offered(self) -> frozenset[str]:
        """Which of the files that a kernel may lack are there."""
        return self._driver.offered

    @property
    def counts_stalls(self) -> bool:
        """Whether the kernel counts for how long processes wait."""
        return self._driver.counts_stalls

    @property
    def own_pids(self) -> int:
        """Processes that are not the job's."""
        return self._own_pids

    def prepare(self, limits: Limits) -> None:
        """Set limits that are likely to be applied: then `apply` has less to do. Raises SandboxFailed."""
        self._measure_own()
        self.change(limits)

    def apply(self, limits: Limits, *, started: int = 0) -> None:
        """Set the limits, and count from here on. Raises SandboxFailed.

        What is in the cgroup now (the sandbox's init, parked) is ours: it is added to the limits and taken off the figures.
        `started` of the processes are not.
        """
        self._measure_own(started)
        self.change(limits)
        self._own_cpu = read_table(self._fd, "cpu.stat")
        self._stalls_before = self._read_stalls()
        self._peaks_before = {
            name: read_number(self._fd, name)
            for name in ("memory.peak", "pids.peak")
            if started and name in self._driver.offered
        }

    def _measure_own(self, started: int = 0) -> None:
        controllers = self._driver.controllers
        if "memory" in controllers:
            self._own_memory_bytes = read_number(self._fd, "memory.current")
        if "pids" in controllers:
            self._own_pids = read_number(self._fd, "pids.current") - started

    def change(self, limits: Limits) -> None:
        """Set other limits, and go on counting. Raises SandboxFailed."""
        controllers = self._driver.controllers
        if "memory" in controllers:
            self._limits.write(self._fd, "memory.oom.group", "1")
            most_bytes = limits.memory_bytes + self._own_memory_bytes
            self._limits.write(self._fd, "memory.max", str(most_bytes))
            if self._driver.has_swap_limit:
                self._limits.write(self._fd, "memory.swap.max", str(limits.swap_bytes))
        if "pids" in controllers:
            self._limits.write(self._fd, "pids.max", str(limits.pids + self._own_pids))
            self._most_pids = limits.pids
        if "cpu" in controllers:
            quota = round(limits.cpus * CPU_PERIOD_USEC)
            self._limits.write(self._fd, "cpu.max", f"{quota} {CPU_PERIOD_USEC}")
        if limits.io_bytes_per_second != self._io_bytes_per_second:
            self._change_io(limits.io_bytes_per_second)

    def _change_io(self, bytes_per_second: int) -> None:
        most = bytes_per_second or "max"
        for disk in self._driver.disks:
            write_file(self._fd, "io.max", f"{disk} rbps={most} wbps={most}")
        self._io_bytes_per_second = bytes_per_second

    def weigh(self, priority: int) -> None:
        """Set its share where CPUs are short. Raises SandboxFailed."""
        if "cpu" in self._driver.controllers:
            self._limits.write(self._fd, "cpu.weight", str(cpu_weight(priority)))

    def pin(self, cpus: str) -> None:
        """Let no process of it run elsewhere. Raises SandboxFailed."""
        if "cpuset" in self._driver.controllers:
            self._limits.write(self._fd, "cpuset.cpus", cpus)

    @property
    def can_freeze(self) -> bool:
        return exists(self._fd, "cgroup.freeze")

    def freeze(self) -> None:
        """Let no process of it run. Raises SandboxFailed, also if one does not stop (it is stuck in the kernel)."""
        write_file(self._fd, "cgroup.freeze", "1")
        if await_event(self._fd, "cgroup.events", "frozen", 1, patience_seconds=_FREEZE_SECONDS):
            return
        self.thaw()
        raise SandboxFailed("cgroup cgroup.freeze", "a process does not stop")

    def thaw(self) -> None:
        """Let them run. Raises SandboxFailed."""
        if self._fd >= 0:
            write_file(self._fd, "cgroup.freeze", "0")

    def cpu_seconds(self) -> float:
        """CPU time of all processes that were ever in it. Raises SandboxFailed."""
        stat = read_table(self._fd, "cpu.stat")
        return (stat["usage_usec"] - self._own_cpu.get("usage_usec", 0)) / 1e6

    def oom_kills(self) -> int | None:
        """How many processes the kernel killed because of the memory limit. Raises SandboxFailed.

        With `memory.oom.group` all of the cgroup die at once, init too, so it is more than one where more than one ran;
        the one that the kernel chose first is usually counted once more, as one of the group (mm/oom_kill.c).
        """
        if "memory" not in self._driver.controllers:
            return None
        return read_table(self._fd, "memory.events")["oom_kill"]

    def read(self) -> CgroupUsage:
        """All figures. Raises SandboxFailed."""
        controllers, offered = self._driver.controllers, self._driver.offered
        memory_peak = pids_peak = io_read = io_write = None
        if "memory.peak" in offered:
            memory_peak = self._peak_since("memory.peak", self._own_memory_bytes)
        if "pids.peak" in offered:
            pids_peak = self._peak_since("pids.peak", self._own_pids)
        refused = None
        if "pids" in controllers and may_have_refused(pids_peak, self._most_pids):
            refused = read_refused(self._fd, "pids.events")
        if "io" in controllers:
            io_read, io_write = parse_io_stat(read_file(self._fd, "io.stat"))
        cpu = parse_cpu_stat(read_file(self._fd, "cpu.stat"), self._own_cpu)
        stalls = self._read_stalls().since(self._stalls_before)
        return cpu._replace(
            memory_peak_bytes=memory_peak,
            pids_peak=pids_peak,
            io_read_bytes=io_read,
            io_write_bytes=io_write,
            forks_refused=refused,
            oom_kills=self.oom_kills(),
        ).with_stalls(stalls)

    def now(self) -> CgroupNow:
        """What the job has at this moment. Raises SandboxFailed."""
        controllers = self._driver.controllers
        memory = pids = io_read = io_write = None
        if "memory" in controllers:
            memory = max(0, read_number(self._fd, "memory.current") - self._own_memory_bytes)
        if "pids" in controllers:
            pids = max(0, read_number(self._fd, "pids.current") - self._own_pids)
        if "io" in controllers:
            io_read, io_write = parse_io_stat(read_file(self._fd, "io.stat"))
        stalls = self._read_stalls().since(self._stalls_before)
        return CgroupNow(self.cpu_seconds(), memory, pids, io_read, io_write, stalls)

    def _read_stalls(self) -> Stalls:
        return read_stalls(self._fd) if self._driver.counts_stalls else Stalls()

    def _peak_since(self, name: str, own: int) -> int | None:
        return peak_since(self._peaks_before.get(name, 0), read_number(self._fd, name), own)

    def kill(self) -> None:
        """SIGKILL to every process in it, without waiting for their ends. Raises SandboxFailed."""
        if self._fd < 0:
            return
        kill_all(self._driver.instance_fd, self._name, self._driver.offered)

    def remove(self) -> bool:
        """Remove the directory, a moment after it is asked if need be; False: a process is still in it, try later.

        Raises SandboxFailed.
        """
        if self._fd >= 0:
            if not self._remove_directory():
                return False
            os.close(self._fd)
            self._fd = -1
        return True

    def _remove_directory(self) -> bool:
        remaining = self._name, self._driver.instance_fd
        return remove_directory(*remaining) or (
            await_event(self._fd, "cgroup.events", "populated", 0, patience_seconds=_EMPTY_SECONDS)
            and remove_directory(*remaining)
        )


def kill_all(parent_fd: int, name: str, offered: frozenset[str]) -> None:
    """SIGKILL to every process of a cgroup, without waiting for their ends. Raises SandboxFailed.

    `offered`: which of the files that a kernel may lack are there.
    """
    if "cgroup.kill" in offered:
        write_file(parent_fd, f"{name}/cgroup.kill", "1")
        return
    try:
        kill_processes(parent_fd, name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SandboxFailed("cgroup kill", str(error.strerror)) from error


def move_into_leaf(directory_fd: int) -> None:
    """Move every process of a cgroup into its leaf `supervisor`. Raises SandboxFailed.

    Repeated until none is left, because one that forks while we move leaves a child behind.
    """
    make_directory(SUPERVISOR, directory_fd)
    for _ in range(_MOVE_PASSES):
        pids = list_processes(directory_fd, ".")
        if not pids:
            return
        for pid in pids:
            try:
                write_file(directory_fd, f"{SUPERVISOR}/cgroup.procs", str(pid))
            except SandboxFailed as error:
                if not isinstance(error.__cause__, ProcessLookupError):
                    raise
    raise SandboxFailed("cgroup supervisor", "processes keep appearing in the delegated cgroup")


def enable_controllers(directory_fd: int, controllers: frozenset[str]) -> None:
    """Give controllers to the children of a cgroup. Raises SandboxFailed.

    `cpuacct` stands for `cpu.stat`, which needs no controller.
    """
    words = [f"+{name}" for name in sorted(controllers - {"cpuacct"})]
    if words:
        write_file(directory_fd, "cgroup.subtree_control", " ".join(words))


def parse_cpu_stat(text: str, before: dict[str, int]) -> CgroupUsage:
    """The CPU figures of `cpu.stat`, less what it said before. Throttling is counted only with the cpu controller."""
    stat = parse_table(text)

    def seconds(key: str) -> float:
        return (stat[key] - before.get(key, 0)) / 1e6

    return CgroupUsage(
        cpu_seconds=seconds("usage_usec"),
        cpu_user_seconds=seconds("user_usec"),
        cpu_system_seconds=seconds("system_usec"),
        cpu_throttled_seconds=seconds("throttled_usec") if "throttled_usec" in stat else None,
    )


def parse_io_stat(text: str) -> tuple[int, int]:
    """Bytes read and written, over all devices of `io.stat` (`8:0 rbytes=1 wbytes=2 …`)."""
    read_bytes = write_bytes = 0
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, _, value = word.partition("=")
            if key == "rbytes":
                read_bytes += int(value)
            elif key == "wbytes":
                write_bytes += int(value)
    return read_bytes, write_bytes
