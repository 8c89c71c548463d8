"""A cgroup for each command of a sandbox, below the job's own (cgroup v2).

Theory of operation. A command is born in the cgroup that init is in, and init, which has no more rights than the command, can
place nothing. So init moves, and the service moves it: a command starts while init is in the command's leaf, and then init
goes on to a leaf for the next one.

    job              the limits. init was cloned here: its memory stays charged here, and here its cgroup namespace has its root
    |- beside        whatever worked for the job before there were leaves (pasta)
    |- 1             a command that is over, but something that it started runs on
    |- 2             a command that runs
    `- 3             init, until the next command comes

* **When.** A write to `cgroup.procs` waits for an RCU grace period (8 ms) unless another came just before. So the next leaf is
  made and entered right after a start, while the command runs, and only a command that comes sooner waits. A job of one command
  has no leaves: its cgroup is the command's.
* **The first one.** Only a cgroup without processes can give controllers to its children. So init enters the first leaf before
  the controllers are enabled, and what else is there goes to `beside`.
* **Out of memory.** With `memory.oom.group` the kernel kills all of the cgroup of the process that it chose. The job's is 0 from
  the first leaf on, a leaf's is 1: a command dies whole, and init, its files and the other commands live. But init must not die
  along, so a leaf's is 0 for as long as init is in it. What the kernel kills in that moment is one process of the command, whose
  oom score is higher than init's; the service, which sets it to 1 when init has left, then looks whether that has happened, and
  kills the rest itself. (Between the kernel's choice and its count are microseconds. A command that loses one process of several
  in these goes on without it.)
* **Limits.** The job's bind all commands together. A leaf has them too, for programs that read the limits of the cgroup in
  /proc/self/cgroup (Java, Go), and nothing else: so its CPU quota is over the longest period that there is, in which the job's
  own has been used up long before, and the job's counter of throttling is the true one.
* **Figures** are the leaf's own since the command's start. init's part in them is starting the command, some tenths of a
  millisecond. It is one of the processes until it leaves; and who is moved is counted twice in the job for a moment, to which
  its peak of processes may be due. Memory is charged to whoever touched it first, and stays there: what a
  former command left in a file is no later one's, also when a later one reads it.

Everything that moves or removes may block, and is for a thread. Sources: Documentation/admin-guide/cgroup-v2.rst;
cgroup_procs_write_start() in kernel/cgroup/cgroup.c; mem_cgroup_get_oom_group() in mm/memcontrol.c; pids_can_fork() in
kernel/cgroup/pids.c.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from sandboxd.errors import SandboxFailed
from sandboxd.quotas.cgroup2 import (
    Group2,
    enable_controllers,
    kill_all,
    parse_cpu_stat,
    parse_io_stat,
)
from sandboxd.quotas.kernel_files import (
    Written,
    exists,
    make_directory,
    may_have_refused,
    read_file,
    read_number,
    read_refused,
    read_table,
    remove_directory,
    write_file,
)
from sandboxd.quotas.processes import list_processes
from sandboxd.quotas.stalls import Stalls, read_stalls
from sandboxd.quotas.usage import CgroupUsage, peak_since

_BESIDE = "beside"
_LONGEST_PERIOD_USEC = 1_000_000
_MOVE_PASSES = 16
_NEAR_ENOUGH_BYTES = 8 * 2**20
"""The next best figure, what wait4(2) says of the largest process, begins with what init has: some 15 MiB."""


class Leaves:
    """The leaves of one job's cgroup."""

    def __init__(self, group: Group2, init_pid: int) -> None:
        """Makes none yet. `group` has its limits, and init is in it."""
        self._group = group
        self._init_pid = init_pid
        self._leaves: list[Leaf] = []
        self._current: Leaf | None = None
        """Where init is."""
        self._made = 0
        self._counts_forks_here = False
        """Whether the job's own `pids.events` has what was refused to its leaves' processes: since Linux 6.10."""
        self._forks_refused = 0
        """In the leaves of commands that are over."""
        self._pids_peak_of_move = 0
        """The job's peak, if it is one too high because of a move."""
        self._closed = False
        self._working = threading.Lock()

    def advance(self) -> "Leaf":
        """Move init on to a new leaf, and leave the command that it started alone in its own. Raises SandboxFailed."""
        with self._working:
            if self._closed:
                raise SandboxFailed("cgroup leaf", "the sandbox has ended")
            self._remove_those_over()
            leaf = self._make()
            former = self._current
            if former is None:
                self._divide(leaf)
            else:
                self._move_init(former, leaf)
            self._current = leaf
            limits = self._read_limits()
            leaf.limit(limits)
            if former is not None:
                former.be_left(limits)
            return leaf

    def change(self) -> None:
        """The job's limits are others now. Raises SandboxFailed."""
        with self._working:
            limits = self._read_limits()
            for leaf in self._leaves:
                leaf.limit(limits)

    def correct(self, usage: CgroupUsage) -> CgroupUsage:
        """The job's own figures, as they are with leaves."""
        refused = usage.forks_refused
        if self._forks_refused and not self._counts_forks_here:
            refused = (refused or 0) + self._forks_refused
        pids = usage.pids_peak
        if pids is not None and pids + self._group.own_pids == self._pids_peak_of_move:
            pids -= 1
        return usage._replace(forks_refused=refused, pids_peak=pids)

    def oom_kills_beside_init(self) -> int:
        """How many processes the kernel killed for memory where init is: init itself, if that is dead. Raises SandboxFailed."""
        return self._current.oom_kills() if self._current else 0

    def kill(self) -> None:
        """SIGKILL to every process in a leaf: only a newer kernel's `cgroup.kill` in the job's own does it. Raises SandboxFailed."""
        if "cgroup.kill" not in self._group.offered:
            for leaf in list(self._leaves):
                leaf.kill()

    def remove(self) -> bool:
        """Remove all of them, for good; False: a process is still in one, try later. Raises SandboxFailed."""
        with self._working:
            self._closed = True
            fd = self._group.directory_fd()
            if fd < 0:
                return True
            for leaf in list(self._leaves):
                if remove_directory(leaf.name, fd):
                    self._leaves.remove(leaf)
            return remove_directory(_BESIDE, fd) and not self._leaves

    def _remove_those_over(self) -> None:
        """One in which something runs on is busy, and tried again each time."""
        for leaf in [leaf for leaf in self._leaves if leaf.over and leaf is not self._current]:
            if remove_directory(leaf.name, self._group.directory_fd()):
                self._leaves.remove(leaf)

    def _make(self) -> "Leaf":
        self._made += 1
        name = str(self._made)
        make_directory(name, self._group.directory_fd())
        leaf = Leaf(self._group, name, self._note_refused)
        self._leaves.append(leaf)
        return leaf

    def _note_refused(self, forks: int) -> None:
        self._forks_refused += forks

    def _divide(self, leaf: "Leaf") -> None:
        """Empty the job's cgroup, init into the first leaf, and give its controllers to the children."""
        fd = self._group.directory_fd()
        for _ in range(_MOVE_PASSES):
            pids = list_processes(fd, ".")
            if not pids:
                break
            for pid in pids:
                if pid != self._init_pid:
                    make_directory(_BESIDE, fd)
                self._move(pid, leaf.name if pid == self._init_pid else _BESIDE)
        enable_controllers(fd, self._group.controllers)
        self._counts_forks_here = exists(fd, "pids.events.local")
        write_file(fd, "memory.oom.group", "0")

    def _move_init(self, former: "Leaf", leaf: "Leaf") -> None:
        fd = self._group.directory_fd()
        if self._init_pid not in list_processes(fd, former.name):
            # Its number may be a stranger's by now.
            raise SandboxFailed("cgroup leaf", "the sandbox's init is not where it was")
        before = read_number(fd, "pids.peak") if "pids.peak" in self._group.offered else 0
        self._move(self._init_pid, leaf.name)
        if "pids.peak" in self._group.offered:
            peak, now = read_number(fd, "pids.peak"), read_number(fd, "pids.current")
            if before < peak == now + 1:
                self._pids_peak_of_move = peak

    def _move(self, pid: int, name: str) -> None:
        write_file(self._group.directory_fd(), f"{name}/cgroup.procs", str(pid))

    def _read_limits(self) -> "LeafLimits":
        fd = self._group.directory_fd()
        quota, period = read_file(fd, "cpu.max").split()
        if quota != "max":
            quota = str(int(quota) * _LONGEST_PERIOD_USEC // int(period))
        return LeafLimits(
            memory_max=read_file(fd, "memory.max").strip(),
            cpu_max=f"{quota} {_LONGEST_PERIOD_USEC}",
            pids_max=read_number(fd, "pids.max") - self._group.own_pids,
        )


class LeafLimits(NamedTuple):
    """What is written into a leaf's files."""

    memory_max: str
    cpu_max: str
    pids_max: int
    """Without init."""


class Leaf:
    """The cgroup of one command: `begin`, and the figures are its own."""

    only_its_own = True

    def __init__(self, group: Group2, name: str, note_refused: Callable[[int], None]) -> None:
        """`note_refused` gets how many forks of the command were refused, when it is over."""
        self._group = group
        self.name = name
        self.over = False
        """The command has ended, and its figures are read: the leaf can go when nothing is in it."""
        self._note_refused = note_refused
        self._most_pids = 0
        self._has_init = True
        self._pids_peak_with_init = 0
        self._written = Written()
        self._cpu_before: dict[str, int] = {}
        self._job_cpu_before: dict[str, int] = {}
        self._io_before = (0, 0)
        self._stalls_before = Stalls()
        self._memory_bytes_before = 0
        self._memory_peak_before = 0

    def begin(self) -> None:
        """The command is about to start: what is here until now (files that init made) is not its. Raises SandboxFailed."""
        self._cpu_before = self._table("cpu.stat")
        self._job_cpu_before = read_table(self._fd, "cpu.stat")
        self._memory_bytes_before = self._number("memory.current")
        if "memory.peak" in self._group.offered:
            self._memory_peak_before = self._number("memory.peak")
        if "io" in self._group.controllers:
            self._io_before = parse_io_stat(self._text("io.stat"))
        self._stalls_before = self._read_stalls()

    def cpu_seconds(self) -> float:
        """CPU time of the command and of all that it started. Raises SandboxFailed."""
        return (self._table("cpu.stat")["usage_usec"] - self._cpu_before["usage_usec"]) / 1e6

    def oom_kills(self) -> int:
        """How many processes of the command the kernel killed because of the memory limit. Raises SandboxFailed."""
        return self._table("memory.events")["oom_kill"]

    def end(self) -> CgroupUsage:
        """The command is over: what it used. Nothing is asked of the leaf from then on. Raises SandboxFailed."""
        offered = self._group.offered
        memory_peak = pids_peak = io_read = io_write = refused = None
        if "memory.peak" in offered:
            memory_peak = self._memory_peak()
        if "pids.peak" in offered:
            pids_peak = self._pids_peak()
        if may_have_refused(pids_peak, self._most_pids):
            refused = read_refused(self._fd, f"{self.name}/pids.events")
        if "io" in self._group.controllers:
            read_bytes, write_bytes = parse_io_stat(self._text("io.stat"))
            io_read = read_bytes - self._io_before[0]
            io_write = write_bytes - self._io_before[1]
        cpu = parse_cpu_stat(self._text("cpu.stat"), self._cpu_before)
        job_cpu = parse_cpu_stat(read_file(self._fd, "cpu.stat"), self._job_cpu_before)
        stalls = self._read_stalls().since(self._stalls_before)
        self._note_refused(refused or 0)
        self.over = True
        return cpu._replace(
            cpu_throttled_seconds=job_cpu.cpu_throttled_seconds,
            memory_peak_bytes=memory_peak,
            pids_peak=pids_peak,
            io_read_bytes=io_read,
            io_write_bytes=io_write,
            forks_refused=refused,
        ).with_stalls(stalls)

    def limit(self, limits: LeafLimits) -> None:
        """The job's limits, where the command may look for them. Raises SandboxFailed."""
        self._most_pids = limits.pids_max
        self._write("memory.max", limits.memory_max)
        self._write("cpu.max", limits.cpu_max)
        self._write("pids.max", str(limits.pids_max + self._has_init))

    def be_left(self, limits: LeafLimits) -> None:
        """init has gone on: who is here from now on dies together if the kernel has to kill one. Raises SandboxFailed."""
        if "pids.peak" in self._group.offered:
            self._pids_peak_with_init = self._number("pids.peak")
        self._has_init = False
        self.limit(limits)
        self._write("memory.oom.group", "1")
        if self.oom_kills():
            self.kill()

    def kill(self) -> None:
        """SIGKILL to every process in it, without waiting for their ends. Raises SandboxFailed."""
        kill_all(self._fd, self.name, self._group.offered)

    def _memory_peak(self) -> int | None:
        """None: it was less than what files had here that are gone, so how much is not known."""
        own, before = self._memory_bytes_before, self._memory_peak_before
        if before - own < _NEAR_ENOUGH_BYTES:
            before = 0  # It used so much at most: init's buffers, while it made files.
        return peak_since(before, self._number("memory.peak"), own)

    def _pids_peak(self) -> int:
        """Less init, if it was there at the peak.

        Who had its most processes in its first moments, and one more later than then, has that one too few here: the kernel
        cannot be told to forget a peak.
        """
        peak = self._number("pids.peak")
        return peak - (self._has_init or peak == self._pids_peak_with_init)

    def _read_stalls(self) -> Stalls:
        return read_stalls(self._fd, self.name) if self._group.counts_stalls else Stalls()

    @property
    def _fd(self) -> int:
        return self._group.directory_fd()

    def _write(self, file: str, value: str) -> None:
        self._written.write(self._fd, f"{self.name}/{file}", value)

    def _text(self, file: str) -> str:
        return read_file(self._fd, f"{self.name}/{file}")

    def _number(self, file: str) -> int:
        return read_number(self._fd, f"{self.name}/{file}")

    def _table(self, file: str) -> dict[str, int]:
        return read_table(self._fd, f"{self.name}/{file}")
