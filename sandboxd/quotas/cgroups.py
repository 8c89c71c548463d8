"""The cgroups of this service: for each controller the driver of the hierarchy that it lives in.

Hybrid hosts have some controllers on v1 and others on v2; a job then has directories in both.
"""

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from sandboxd.cpu_lists import format_cpu_list
from sandboxd.errors import SandboxFailed
from sandboxd.quotas.affinity import Affinity, CpuShares, own_cpus
from sandboxd.quotas.cgroup1 import Driver1, Group1
from sandboxd.quotas.cgroup2 import Driver2, Group2
from sandboxd.quotas.host import CONTROLLERS, CgroupVersion, Controller, Host
from sandboxd.quotas.kernel_files import write_file
from sandboxd.quotas.leaves import Leaves
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.sampled import SampledGroup
from sandboxd.quotas.usage import CgroupNow, CgroupUsage
from sandboxd.quotas.weights import gives_way

_COUNTED = {"memory", "cpu", "cpuacct", "pids"}
_INIT = 1
"""init, which has the command's user id, is counted with it."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

_NO_CGROUP = {
    "wall_seconds": "timer",
    "idle_seconds": "timer",
    "disk": "tmpfs",
    "open_files": "rlimit",
    "output_bytes": "stream",
}
"""Limits that need no cgroup, and what enforces them."""


def open_cgroups(
    host: Host,
    *,
    instance: str,
    delegated: bool = True,
    disks: tuple[str, ...] = (),
    with_blkio: bool = False,
    with_cpuset: bool = False,
) -> "Cgroups":
    """Make this instance's own directories in what is delegated to us.

    What a dead instance of the same name left is killed and removed: the caller makes sure that it is dead (the store's
    lock). Without `delegated` none is made, whatever was delegated. `disks` are those whose rate a job may have limited; on v1
    that takes one more directory for every job (`with_blkio`), as do CPUs of a job's choice (`with_cpuset`). Raises SandboxFailed (a file that must be there is not), HostNotReady (memory limits would not hold).
    """
    _check_name(instance)
    ours = [each for each in host.controllers.values() if delegated and each.directory]
    unused = {"blkio": not with_blkio, "cpuset": not with_cpuset}
    ours = [each for each in ours if not unused.get(each.name)]
    first = [each for each in ours if each.version is CgroupVersion.V1]
    second = [each for each in ours if each.version is CgroupVersion.V2]
    with ExitStack() as undo:
        driver1 = Driver1(first, host, instance, disks) if first else None
        if driver1 is not None:
            undo.callback(driver1.close)
        driver2 = _open_driver2(second, host, instance, disks)
        undo.pop_all()
    versions = {each.name: each.version for each in ours}
    return Cgroups(driver1, driver2, versions)


class Cgroups:
    """All cgroups of this service. `close` when no job is left."""

    def __init__(
        self,
        driver1: Driver1 | None,
        driver2: Driver2 | None,
        versions: dict[str, CgroupVersion | None],
    ) -> None:
        self._shares = CpuShares()
        self._sampled = not _COUNTED <= versions.keys()
        """Whether something has to be sampled, because no cgroup counts or limits it."""
        self._driver1 = driver1
        self._driver2 = driver2
        self.enforcement = enforcement_of(versions)
        """Limit, in the API's words, to what enforces it."""
        self.counts_swap = (driver1 is not None and driver1.has_swap_limit) or (
            driver2 is not None and driver2.has_swap_limit
        )
        """Where not, there is no swap at all: else no driver would have been opened."""
        if self.counts_swap:
            self.enforcement["swap"] = self.enforcement["memory"]
        self.enforcement["io_bytes_per_second"] = _rates_by(driver1, driver2)
        self.enforcement["cpuset"] = versions.get("cpuset") or "none"

    @property
    def samples_memory(self) -> bool:
        """Whether no cgroup limits memory."""
        return self.enforcement["memory"] == "sampled"

    def likely_cpus(self, limits: Limits) -> tuple[int, ...]:
        """On which CPUs a job with these limits would run if it were the only one."""
        return own_cpus()[: math.ceil(limits.cpus)]

    def create(self, name: str) -> "Cgroup":
        """The cgroup of one job, without limits yet. Raises SandboxFailed."""
        _check_name(name)
        group1 = self._driver1.create(name) if self._driver1 else None
        try:
            group2 = self._driver2.create(name) if self._driver2 else None
        except SandboxFailed:
            if group1 is not None:
                group1.remove()
            raise
        sampled = SampledGroup() if self._sampled else None
        affinity = Affinity(self._shares, binding=self.enforcement["cpus"] == "affinity")
        return Cgroup(group1, group2, sampled, affinity, self.enforcement)

    def close(self) -> None:
        """Remove this instance's directories; processes that are still in them are killed."""
        if self._driver1 is not None:
            self._driver1.close()
        if self._driver2 is not None:
            self._driver2.close()


class Cgroup:
    """The cgroup of one job, in every hierarchy that matters, and samples of what is counted in none."""

    def __init__(
        self,
        group1: Group1 | None,
        group2: Group2 | None,
        sampled: SampledGroup | None,
        affinity: Affinity,
        enforcement: dict[str, str],
    ) -> None:
        self._group1 = group1
        self._group2 = group2
        self._sampled = sampled
        self._affinity = affinity
        self._enforcement = enforcement
        self._groups: Sequence[Group1 | Group2 | SampledGroup] = [
            group for group in (group1, group2, sampled) if group is not None
        ]
        self._init: int | None = None
        self._leaves: Leaves | None = None

    def watch(self, init_pid: int) -> None:
        """The sandbox's init, as the service sees it: what is sampled, or kept on some CPUs, is below it, and it enters the leaves
        of commands.
        """
        self._init = init_pid
        self._affinity.watch(init_pid)
        if self._sampled is not None:
            self._sampled.watch(init_pid)

    def leaves(self) -> Leaves | None:
        """Where each command can have a cgroup of its own; None unless v2 has everything that is limited or counted."""
        if self._leaves is None and self._group2 is not None and len(self._groups) == 1:
            self._leaves = Leaves(self._group2, self._init) if self._init is not None else None
        return self._leaves

    @property
    def samples_memory(self) -> bool:
        """Whether somebody has to ask again and again for `over_memory`."""
        return self._enforcement["memory"] == "sampled"

    def over_memory(self) -> bool:
        """Where memory is sampled: whether the job has more of it than it may."""
        return self._sampled is not None and self._sampled.over_memory()

    @property
    def kills_one_by_one(self) -> bool:
        """Whether the kernel kills one process where there is too little memory, and not the job (cgroup v1)."""
        return self._enforcement["memory"] == CgroupVersion.V1.value

    def most_cpus(self, limits: Limits) -> float:
        """How many CPUs the job can use at once: with affinity, whole ones."""
        by_affinity = self._enforcement["cpus"] == "affinity"
        return math.ceil(limits.cpus) if by_affinity else limits.cpus

    def rlimits(self, limits: Limits) -> dict[str, int]:
        """What the command itself has to be limited by, because no cgroup does it."""
        if self._enforcement["pids"] != "rlimit":
            return {}
        return {"nproc": limits.pids + _INIT}

    def use_cpus(self, limits: Limits) -> tuple[int, ...]:
        """Keep its processes on as many CPUs as they may have time of, and say on which."""
        return self._affinity.use(limits.cpus)

    def join_files(self) -> tuple[str, ...]:
        """Absolute paths of the v1 files into which the sandbox's init, single-threaded, writes `0` as its first act."""
        return self._group1.join_files() if self._group1 is not None else ()

    def directory_fd(self) -> int | None:
        """The v2 directory for clone3(CLONE_INTO_CGROUP); None without v2. It stays ours to close."""
        return self._group2.directory_fd() if self._group2 is not None else None

    def adopt(self, pid: int) -> None:
        """Move a single-threaded process of the service's into it: what works for the job counts as the job's.

        Raises SandboxFailed.
        """
        try:
            for path in self.join_files():
                Path(path).write_text(str(pid), encoding="ascii")
        except OSError as error:
            raise SandboxFailed("join cgroup", str(error)) from error
        if self._group2 is not None:
            write_file(self._group2.directory_fd(), "cgroup.procs", str(pid))

    def prepare(self, limits: Limits) -> None:
        """Set limits that are likely to be applied: then `apply` has less to do. Raises SandboxFailed."""
        for group in (self._group1, self._group2):
            if group is not None:
                group.prepare(limits)

    def apply(self, limits: Limits, *, started: int = 0) -> None:
        """Set the limits, now that the command is known, and count usage from here on. Raises SandboxFailed.

        `started`: processes of the job that are there already, of which none has done anything.

        Init is in the cgroup too: its memory and its processes at this moment are added to the limits, so that the job
        gets what it asked for, and taken off the figures.
        """
        for group in self._groups:
            group.apply(limits, started=started)

    def change(self, limits: Limits) -> None:
        """Set other limits, and go on counting. Raises SandboxFailed, on v1 also if it uses more memory than it may now."""
        for group in self._groups:
            group.change(limits)
        if self._leaves is not None:
            self._leaves.change()
        self.use_cpus(limits)

    def weigh(self, priority: int) -> None:
        """Set its share where CPUs are short; without a cgroup all have the same. Raises SandboxFailed."""
        for group in (self._group1, self._group2):
            if group is not None and gives_way(priority):
                group.weigh(priority)

    def pin(self, cpus: tuple[int, ...]) -> None:
        """Let none of its processes run elsewhere; before a command does. Raises SandboxFailed."""
        for group in (self._group1, self._group2):
            if group is not None:
                group.pin(format_cpu_list(cpus))
        self._affinity.pin(cpus)

    @property
    def can_freeze(self) -> bool:
        """Whether its processes can be stopped all at once: with the freezer of v1, or with v2."""
        return any(group.can_freeze for group in self._groups)

    def freeze(self) -> None:
        """Let none of its processes run. May take a second. Raises SandboxFailed."""
        self._freezer().freeze()

    def thaw(self) -> None:
        """Let them run again. Nothing that is frozen on v1 can be killed. Raises SandboxFailed."""
        self._freezer().thaw()

    def _freezer(self) -> Group1 | Group2:
        for group in (self._group1, self._group2):
            if group is not None and group.can_freeze:
                return group
        raise SandboxFailed("cgroup freezer", "there is none")

    def cpu_seconds(self) -> float | None:
        """CPU time of all processes of the job, also of those that ended; None: not counted here."""
        for group in self._groups:
            seconds = group.cpu_seconds()
            if seconds is not None:
                return seconds
        return None

    def restart_memory_peak(self) -> bool:
        """Count the peak of memory from here on; False: this host's kernel cannot. Raises SandboxFailed."""
        if self.samples_memory and self._sampled is not None:
            return self._sampled.restart_memory_peak()
        return self._group1 is not None and self._group1.restart_memory_peak()

    def oom_kills(self) -> int:
        """How many processes were killed because of the memory limit; 0 also where there is none."""
        return sum(group.oom_kills() or 0 for group in self._groups)

    def oom_kills_beside_init(self) -> int:
        """As far as they can be known to be the reason if init is dead: on v2 only those where init was."""
        return self._leaves.oom_kills_beside_init() if self._leaves else self.oom_kills()

    def read(self) -> CgroupUsage:
        """What the job has used so far."""
        usage = CgroupUsage()
        for group in self._groups:
            usage = usage.filled_from(group.read())
        return usage if self._leaves is None else self._leaves.correct(usage)

    def now(self) -> CgroupNow:
        """What the job has at this moment. Raises SandboxFailed."""
        now = CgroupNow()
        for group in self._groups:
            now = now.filled_from(group.now())
        return now

    def kill(self) -> None:
        """SIGKILL to whatever is in it: a second line behind the death of the sandbox's init."""
        for group in self._groups:
            group.kill()
        if self._leaves is not None:
            self._leaves.kill()

    def remove(self) -> bool:
        """Remove it; False: a process is still in it, try again when it has ended. Any number of calls is fine."""
        self._affinity.close()
        if self._leaves is not None and not self._leaves.remove():
            return False
        removed = [group.remove() for group in self._groups]  # all are tried, so no generator
        return all(removed)


def enforcement_of(versions: dict[str, CgroupVersion | None]) -> dict[str, str]:
    """What enforces each limit, by the versions of the delegated controllers."""

    def word(controller: str, otherwise: str) -> str:
        version = versions.get(controller)
        return version.value if version else otherwise

    return {
        "cpus": word("cpu", "affinity"),
        "memory": word("memory", "sampled"),
        "pids": word("pids", "rlimit"),
        "cpu_seconds": "sampled",
        **_NO_CGROUP,
    }


def _rates_by(driver1: Driver1 | None, driver2: Driver2 | None) -> str:
    """What limits the rate of disks."""
    if driver2 is not None and driver2.disks:
        return CgroupVersion.V2.value
    if driver1 is not None and driver1.disks:
        return CgroupVersion.V1.value
    return "none"


def _open_driver2(
    controllers: list[Controller], host: Host, instance: str, disks: tuple[str, ...]
) -> Driver2 | None:
    """The v2 driver, where v2 has any controller that a limit needs."""
    names = frozenset(controller.name for controller in controllers)
    if not names & set(CONTROLLERS):
        return None
    directory = controllers[0].directory
    if directory is None:
        return None
    return Driver2(directory, names, host, instance, disks)


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} cannot be the name of a cgroup")
