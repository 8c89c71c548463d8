"""The driver for cgroup v1: one directory per controller and job, below the directories that `sandboxd setup` made.

Theory of operation. Every controller is a hierarchy of its own (or shares one: `cpu,cpuacct`), so a job is up to four
directories `<hierarchy>/sandboxd/<user>/<instance>/<job>`. The sandbox's init enters them by itself, as its first act.
When the command is known, `apply` sets the limits. Source: Documentation/admin-guide/cgroup-v1 of the kernel.

v1 delegation is no wall: it is never mounted in a sandbox.
"""

import math
import mmap
import os
import time
from contextlib import ExitStack, suppress

from sandboxd.errors import HostNotReady, SandboxFailed
from sandboxd.quotas.host import Controller, Host
from sandboxd.quotas.kernel_files import (
    Written,
    exists,
    make_directory,
    may_have_refused,
    open_directory,
    read_file,
    read_number,
    read_refused,
    read_table,
    remove_directory,
    write_file,
)
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.processes import clean_instance, kill_processes
from sandboxd.quotas.usage import CgroupNow, CgroupUsage, peak_since, split_cpu
from sandboxd.quotas.weights import cpu_shares

CPU_PERIOD_USEC = 100_000
"""Over which the CPU rate is enforced: the kernel's default, and its longest stall of a job that used up its share."""

_FREEZE_TRIES = 200
_FREEZE_PAUSE_SECONDS = 0.005
_FREEZE_ANEW = 20
"""After so many looks it is begun again."""

PIDS_PEAK_SINCE = (6, 1)
_NEAR_BYTES = 2**20
"""Without having come so near to its limit no process is killed for want of memory (try_charge_memcg() in mm/memcontrol.c)."""


class Driver1:
    """The instance's directories. Made at start, kept open for as long as the service runs."""

    def __init__(
        self,
        controllers: list[Controller],
        host: Host,
        instance: str,
        disks: tuple[str, ...] = (),
    ) -> None:
        """`controllers` are delegated ones of v1, `disks` those whose rate is to be limited. Raises SandboxFailed, HostNotReady."""
        self._closing = ExitStack()
        self._instance = instance
        self._delegated_fds: list[int] = []
        self.instance_fds: dict[str, int] = {}
        """Path of each instance directory to its descriptor: one per hierarchy."""
        self.fds: dict[str, int] = {}
        """Controller to the descriptor of its instance directory."""
        with ExitStack() as undo:
            undo.enter_context(self._closing)
            # The freezer's first: what a dead service left frozen cannot be killed before it is thawed.
            for controller in sorted(controllers, key=lambda each: each.name != "freezer"):
                self.fds[controller.name] = self._open_instance(controller)
            self.has_swap_limit = self._check_swap_limit(host)
            self.has_socket_limit = self._check_socket_limit()
            self.has_pids_peak = self._check_pids_peak(host)
            self.has_usual_period = self._check_period()
            self.disks = disks if self._has_rates() else ()
            undo.pop_all()

    def create(self, name: str) -> "Group1":
        """Make the directories of one job. Raises SandboxFailed."""
        made: list[int] = []
        try:
            for instance_fd in self.instance_fds.values():
                os.mkdir(name, dir_fd=instance_fd)
                made.append(instance_fd)
        except OSError as error:
            for instance_fd in made:
                os.rmdir(name, dir_fd=instance_fd)
            raise SandboxFailed("cgroup mkdir", f"{name}: {error.strerror}") from error
        return Group1(self, name)

    def close(self) -> None:
        """Remove what is left of this instance and let go of the directories."""
        for instance_fd in self.instance_fds.values():
            clean_instance(instance_fd)
        for delegated_fd in self._delegated_fds:
            with suppress(OSError):  # a process in state D holds it; the next start tries again
                os.rmdir(self._instance, dir_fd=delegated_fd)
        self._closing.close()

    def _open_instance(self, controller: Controller) -> int:
        if controller.directory is None:
            raise SandboxFailed(f"cgroup {controller.name}", "not delegated")
        delegated = os.path.realpath(controller.directory)  # `cpu` is often a link to `cpu,cpuacct`
        path = f"{delegated}/{self._instance}"
        if path not in self.instance_fds:
            delegated_fd = self._hold(open_directory(delegated))
            make_directory(self._instance, delegated_fd)
            instance_fd = self._hold(open_directory(self._instance, delegated_fd))
            clean_instance(instance_fd)
            if controller.name == "cpuset":
                self._fill_cpuset(delegated_fd, instance_fd)
            self._delegated_fds.append(delegated_fd)
            self.instance_fds[path] = instance_fd
        return self.instance_fds[path]

    def _fill_cpuset(self, delegated_fd: int, instance_fd: int) -> None:
        """Nobody may enter a set that is empty, as a new one is (cgroup-v1/cpusets.rst); those of jobs begin as copies of this one."""
        for name in ("cpuset.cpus", "cpuset.mems"):
            write_file(instance_fd, name, read_file(delegated_fd, name).strip())
        write_file(instance_fd, "cgroup.clone_children", "1")

    def _hold(self, fd: int) -> int:
        self._closing.callback(os.close, fd)
        return fd

    def _check_socket_limit(self) -> bool:
        """The memory of socket buffers is counted apart on v1, and only from when it has a limit (TCP and UDP)."""
        fd = self.fds.get("memory")
        return fd is not None and exists(fd, "memory.kmem.tcp.limit_in_bytes")

    def _check_swap_limit(self, host: Host) -> bool:
        fd = self.fds.get("memory")
        if fd is None or exists(fd, "memory.memsw.limit_in_bytes"):
            return fd is not None
        if host.swap_bytes:
            raise HostNotReady(
                "memory limits would not hold: there is swap, but cgroups do not count it; "
                "boot with swapaccount=1, or turn swap off (swapoff -a)"
            )
        return False

    def _check_period(self) -> bool:
        """Whether a new cgroup has our period already, as it has the kernel's default: one file less to write for each job."""
        fd = self.fds.get("cpu")
        return fd is not None and read_number(fd, "cpu.cfs_period_us") == CPU_PERIOD_USEC

    def _has_rates(self) -> bool:
        """The kernel may have been built without (CONFIG_BLK_DEV_THROTTLING)."""
        fd = self.fds.get("blkio")
        return fd is not None and exists(fd, "blkio.throttle.read_bps_device")

    def _check_pids_peak(self, host: Host) -> bool:
        fd = self.fds.get("pids")
        if fd is None or exists(fd, "pids.peak"):
            return fd is not None
        if host.kernel >= PIDS_PEAK_SINCE:
            raise SandboxFailed("cgroup pids.peak", f"missing on Linux {host.kernel_release}")
        return False


class Group1:
    """The directories of one job."""

    def __init__(self, driver: Driver1, name: str) -> None:
        self._driver = driver
        self._name = name
        self._memory_fd = driver.fds.get("memory")
        self._cpu_fd = driver.fds.get("cpu")
        self._cpuacct_fd = driver.fds.get("cpuacct")
        self._pids_fd = driver.fds.get("pids")
        self._freezer_fd = driver.fds.get("freezer")
        self._blkio_fd = driver.fds.get("blkio")
        self._cpuset_fd = driver.fds.get("cpuset")
        self._io_bytes_per_second = 0
        self._limits = Written()
        self._least_quota_seconds = math.inf
        """Of CPU time in one period, the lowest that ever held."""
        self._kills_until_restart = 0
        """How many there had been when the peak of memory was last forgotten."""
        self._memory_limit = self._least_memory_limit = 0
        """The one that holds, and the lowest that held since then; 0: none yet."""
        self._memory_and_swap_limit = 0
        """0: none yet."""
        self._own_memory_bytes = 0
        self._own_pids = 0
        self._most_pids = 0
        self._pids_peak_before = 0

    def join_files(self) -> tuple[str, ...]:
        """Files into which a single-threaded process writes `0` to enter.

        `tasks`, not `cgroup.procs`: moving the calling thread alone needs no lock over all forks of the machine, whose
        taking waits for an RCU grace period (cgroup_procs_write_start() in kernel/cgroup/cgroup.c).
        """
        return tuple(f"{path}/{self._name}/tasks" for path in self._driver.instance_fds)

    def prepare(self, limits: Limits) -> None:
        """Set limits that are likely to be applied: then `apply` has less to do. Raises SandboxFailed."""
        self._measure_own()
        self.change(limits)

    def apply(self, limits: Limits, *, started: int = 0) -> None:
        """Set the limits, and count from here on. Raises SandboxFailed.

        What is in the cgroup now (the sandbox's init, parked) is ours: it is added to the limits and taken off the figures.
        `started` of the processes are not.
        """
        name = self._name
        self._measure_own(started)
        if started and self._pids_fd is not None and self._driver.has_pids_peak:
            self._pids_peak_before = read_number(self._pids_fd, f"{name}/pids.peak")
        self.change(limits)
        if self._memory_fd is not None:
            self._forget_peak(self._memory_fd)
        if self._cpuacct_fd is not None:
            write_file(self._cpuacct_fd, f"{name}/cpuacct.usage", "0")

    def _measure_own(self, started: int = 0) -> None:
        name = self._name
        if self._memory_fd is not None:
            self._own_memory_bytes = read_number(self._memory_fd, f"{name}/memory.usage_in_bytes")
        if self._pids_fd is not None:
            self._own_pids = read_number(self._pids_fd, f"{name}/pids.current") - started

    def change(self, limits: Limits) -> None:
        """Set other limits, and go on counting. Raises SandboxFailed, also if it uses more memory than it may now."""
        name = self._name
        if self._memory_fd is not None:
            size_bytes = limits.memory_bytes + self._own_memory_bytes
            self._change_memory(self._memory_fd, size_bytes, limits.swap_bytes)
        if self._pids_fd is not None:
            self._limits.write(self._pids_fd, f"{name}/pids.max", str(limits.pids + self._own_pids))
            self._most_pids = limits.pids
        if self._cpu_fd is not None:
            quota = round(limits.cpus * CPU_PERIOD_USEC)
            if not self._driver.has_usual_period:
                self._limits.write(self._cpu_fd, f"{name}/cpu.cfs_period_us", str(CPU_PERIOD_USEC))
            self._limits.write(self._cpu_fd, f"{name}/cpu.cfs_quota_us", str(quota))
            self._least_quota_seconds = min(self._least_quota_seconds, quota / 1e6)
        if self._blkio_fd is not None and limits.io_bytes_per_second != self._io_bytes_per_second:
            self._change_io(self._blkio_fd, limits.io_bytes_per_second)

    def _change_io(self, blkio_fd: int, bytes_per_second: int) -> None:
        for disk in self._driver.disks:
            for file in ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"):
                write_file(blkio_fd, f"{self._name}/{file}", f"{disk} {bytes_per_second}")
        self._io_bytes_per_second = bytes_per_second

    def weigh(self, priority: int) -> None:
        """Set its share where CPUs are short. Raises SandboxFailed."""
        if self._cpu_fd is not None:
            self._limits.write(self._cpu_fd, f"{self._name}/cpu.shares", str(cpu_shares(priority)))

    def pin(self, cpus: str) -> None:
        """Let no process of it run elsewhere. Raises SandboxFailed."""
        if self._cpuset_fd is not None:
            write_file(self._cpuset_fd, f"{self._name}/cpuset.cpus", cpus)

    def _change_memory(self, memory_fd: int, size_bytes: int, swap_bytes: int) -> None:
        limit = round_to_pages(size_bytes)
        with_swap = round_to_pages(size_bytes + swap_bytes)
        files = [("memory.limit_in_bytes", limit)]
        if self._driver.has_swap_limit:
            # Never below limit_in_bytes: it comes first when that rises above it, else (from none at first) second.
            rises = limit > self._memory_and_swap_limit > 0
            files.insert(0 if rises else 1, ("memory.memsw.limit_in_bytes", with_swap))
        if self._driver.has_socket_limit:
            files.append(("memory.kmem.tcp.limit_in_bytes", limit))
        for file, value in files:
            self._limits.write(memory_fd, f"{self._name}/{file}", str(value))
        self._memory_limit, self._memory_and_swap_limit = limit, with_swap
        self._least_memory_limit = min(self._least_memory_limit, limit)

    @property
    def can_freeze(self) -> bool:
        return self._freezer_fd is not None

    def freeze(self) -> None:
        """Let no process of it run. Raises SandboxFailed, also if one does not stop (it is stuck in the kernel)."""
        if self._freezer_fd is not None:
            write_file(self._freezer_fd, f"{self._name}/freezer.state", "FROZEN")
            self._await_frozen(self._freezer_fd)

    def thaw(self) -> None:
        """Let them run. Until then a process that is frozen does not die either. Raises SandboxFailed."""
        if self._freezer_fd is not None:
            write_file(self._freezer_fd, f"{self._name}/freezer.state", "THAWED")

    def _await_frozen(self, freezer_fd: int) -> None:
        """The kernel tells nobody when it is done; what runs or sleeps is stopped at once (freezer-subsystem.rst)."""
        state = f"{self._name}/freezer.state"
        for tried in range(_FREEZE_TRIES):
            if read_file(freezer_fd, state) == "FROZEN\n":
                return
            if tried % _FREEZE_ANEW == _FREEZE_ANEW - 1:
                # One that was just being made or was between two waits may be passed over: then it is to be tried anew.
                write_file(freezer_fd, state, "THAWED")
                write_file(freezer_fd, state, "FROZEN")
            time.sleep(_FREEZE_PAUSE_SECONDS)
        self.thaw()
        raise SandboxFailed("cgroup freezer.state", "a process does not stop")

    def cpu_seconds(self) -> float | None:
        """CPU time of all processes that were ever in it; None without cpuacct. Raises SandboxFailed."""
        if self._cpuacct_fd is None:
            return None
        return read_number(self._cpuacct_fd, f"{self._name}/cpuacct.usage") / 1e9

    def restart_memory_peak(self) -> bool:
        """Count the peak of memory from here on; False without the controller. Raises SandboxFailed."""
        if self._memory_fd is None:
            return False
        self._kills_until_restart = self.oom_kills() or 0
        self._forget_peak(self._memory_fd)
        return True

    def _forget_peak(self, memory_fd: int) -> None:
        write_file(memory_fd, f"{self._name}/memory.max_usage_in_bytes", "0")
        self._least_memory_limit = self._memory_limit

    def oom_kills(self) -> int | None:
        """How many processes the kernel killed because of the memory limit. Raises SandboxFailed."""
        if self._memory_fd is None:
            return None
        return read_table(self._memory_fd, f"{self._name}/memory.oom_control")["oom_kill"]

    def read(self) -> CgroupUsage:
        """All figures. Raises SandboxFailed."""
        name = self._name
        cpu = user = system = throttled = None
        memory_peak = pids_peak = oom_kills = None
        if self._cpuacct_fd is not None:
            cpu = read_number(self._cpuacct_fd, f"{name}/cpuacct.usage") / 1e9
            user, system = split_cpu(
                cpu,
                read_number(self._cpuacct_fd, f"{name}/cpuacct.usage_user"),
                read_number(self._cpuacct_fd, f"{name}/cpuacct.usage_sys"),
            )
        if self._cpu_fd is not None:
            throttled = self._throttled_seconds(cpu)
        if self._memory_fd is not None:
            peak = read_number(self._memory_fd, f"{name}/memory.max_usage_in_bytes")
            memory_peak = max(0, peak - self._own_memory_bytes)
            near = peak >= self._least_memory_limit - _NEAR_BYTES
            oom_kills = self.oom_kills() if near else self._kills_until_restart
        if self._pids_fd is not None and self._driver.has_pids_peak:
            peak = read_number(self._pids_fd, f"{name}/pids.peak")
            pids_peak = peak_since(self._pids_peak_before, peak, self._own_pids)
        refused = None
        if self._pids_fd is not None and may_have_refused(pids_peak, self._most_pids):
            refused = read_refused(self._pids_fd, f"{name}/pids.events")
        return CgroupUsage(
            cpu_seconds=cpu,
            cpu_user_seconds=user,
            cpu_system_seconds=system,
            cpu_throttled_seconds=throttled,
            memory_peak_bytes=memory_peak,
            pids_peak=pids_peak,
            forks_refused=refused,
            oom_kills=oom_kills,
        )

    def _throttled_seconds(self, cpu_seconds: float | None) -> float:
        """How long it had to wait because its share was used up: not at all where it never used what one period gives."""
        if cpu_seconds is not None and cpu_seconds < self._least_quota_seconds / 2:
            return 0.0
        cpu_fd = self._driver.fds["cpu"]
        return read_table(cpu_fd, f"{self._name}/cpu.stat")["throttled_time"] / 1e9

    def now(self) -> CgroupNow:
        """What the job has at this moment. Raises SandboxFailed."""
        memory = pids = None
        if self._memory_fd is not None:
            usage = read_number(self._memory_fd, f"{self._name}/memory.usage_in_bytes")
            memory = max(0, usage - self._own_memory_bytes)
        if self._pids_fd is not None:
            current = read_number(self._pids_fd, f"{self._name}/pids.current")
            pids = max(0, current - self._own_pids)
        return CgroupNow(self.cpu_seconds(), memory, pids)

    def kill(self) -> None:
        """SIGKILL to every process in it, without waiting for their ends. Raises SandboxFailed."""
        try:
            self.thaw()
            for instance_fd in self._driver.instance_fds.values():
                kill_processes(instance_fd, self._name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SandboxFailed("cgroup kill", str(error.strerror)) from error

    def remove(self) -> bool:
        """Remove the directories; False: a process is still in one, try later. Raises SandboxFailed."""
        removed = True
        for instance_fd in self._driver.instance_fds.values():
            removed &= remove_directory(self._name, instance_fd)
        return removed


def round_to_pages(size_bytes: int) -> int:
    """The next whole page: the kernel would round down, and the job get less than it asked for."""
    return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
