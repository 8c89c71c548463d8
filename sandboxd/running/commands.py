"""One command in a sandbox that stands: its streams, its time, its end, and how it is stopped before."""

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from sandboxd.errors import SandboxFailed
from sandboxd.isolation.places import Taken
from sandboxd.isolation.sandbox import Process, Sandbox
from sandboxd.isolation.spec import Command, Exit, Machine, Then, Unusable, Used
from sandboxd.isolation.streams import Drain, Feed, PassThrough
from sandboxd.jobs import Reason, Stream
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.usage import CgroupNow
from sandboxd.running.verdict import Outcome

MEMORY_SECONDS = 0.05
"""Between two looks at it, where the kernel does not end the whole job."""
_STUCK_SECONDS = 30.0
"""A killed sandbox that is not gone by then is stuck in the kernel; the job does not wait for it any longer."""

Sink = Callable[[Stream, bytes], bool]
"""Takes output; False when no more is kept."""


class Counted(Protocol):
    """What counts for a command while it runs."""

    def cpu_seconds(self) -> float | None:
        """What it has used; None: not counted here."""

    def oom_kills(self) -> int:
        """How many processes of it the kernel killed for want of memory."""


C = TypeVar("C", bound=Counted)
T = TypeVar("T")


class PassedDescriptor(NamedTuple):
    """Standard input that comes from a descriptor of whoever asked."""

    descriptor: int


class Stop:
    """The handle by which a running job is stopped. Whoever stops it says why; the first reason counts."""

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self.message: str | None = None
        self.alone = False
        """The command is over and left no process behind: only init is still to go, which is ours."""
        self.signal: int = signal.SIGTERM
        """What asks the command to end."""
        self.at = math.inf
        """time.monotonic() of the first stop."""
        self._taken: Taken[Cgroup] | None = None
        self._process: Process | None = None
        self._waits: asyncio.Task[Any] | None = None
        """What the job waits for before it has a sandbox."""
        self._grace_seconds = 0.0
        self.over = False
        """The command has ended."""

    def __call__(
        self, reason: Reason, *, grace_seconds: float = 0.0, message: str | None = None
    ) -> None:
        """Its signal to the command, KILL to the sandbox after the grace; at once if there is none."""
        if self.reason is None:
            self.reason = reason
            self.message = message
            self.at = time.monotonic()
            self._grace_seconds = grace_seconds
            if self._taken is not None:
                self._carry_out(self._taken)
            elif self._waits is not None:
                self._waits.cancel()
        elif self._taken is not None and grace_seconds == 0:
            self._kill(self._taken)

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What comes of work that is done before there is a sandbox. None: the job was stopped first, and the work cancelled."""
        task = self._waits = asyncio.get_running_loop().create_task(work)
        if self.reason is not None:
            task.cancel()
        try:
            await asyncio.wait((task,))
            return None if task.cancelled() and self.reason is not None else task.result()
        finally:
            task.cancel()  # Without effect where it is done; else it is who waits for us that was stopped.
            self._waits = None

    async def gone(self) -> bool:
        """Wait until no process of the job is left. False: one is stuck in the kernel."""
        if self._taken is None or self.alone:
            return True
        try:
            async with asyncio.timeout(_STUCK_SECONDS):
                await self._taken.sandbox.dead()
        except TimeoutError:
            return False
        return True

    def attach(self, taken: Taken[Cgroup], process: Process | None) -> None:
        """The command runs, or is about to: a stop that was wished before is carried out now."""
        self._taken = taken
        self._process = process
        if self.reason is not None:
            self._carry_out(taken)

    def detach(self) -> None:
        """The sandbox is somebody else's from now on: whoever stops the job no longer stops it."""
        self._taken = self._process = None

    def _carry_out(self, taken: Taken[Cgroup]) -> None:
        loop = asyncio.get_running_loop()
        if self._grace_seconds > 0 and self._process is not None:
            self._process.signal(self.signal)
            loop.call_later(self._grace_seconds, self._kill, taken)
        else:
            self._kill(taken)
        loop.call_later(self._grace_seconds + _STUCK_SECONDS, self._give_up, taken)

    def _kill(self, taken: Taken[Cgroup]) -> None:
        taken.sandbox.kill()

    def _give_up(self, taken: Taken[Cgroup]) -> None:
        taken.sandbox.abandon()


class PartStop(Stop):
    """Stops one command of a job of several, and its sandbox with it. What stops the job stops the command, too."""

    def __init__(self, job: Stop) -> None:
        super().__init__()
        self._job = job

    def attach(self, taken: Taken[Cgroup], process: Process | None) -> None:
        """The command runs: a stop that was wished before is carried out now."""
        super().attach(taken, process)
        self._job.attach(taken, process)


class StepStop(PartStop):
    """Leaves the sandbox alive: only the command's processes die, and what it left running when it is over."""

    def _kill(self, taken: Taken[Cgroup]) -> None:
        if self._process is not None:
            self._process.kill()

    def _give_up(self, taken: Taken[Cgroup]) -> None:
        """init has not said that it is over: the whole sandbox goes."""
        if not self.over:
            taken.sandbox.kill()
            taken.sandbox.abandon()


def machine_of(cpus: tuple[int, ...], limits: Limits) -> Machine:
    """What commands with these limits are to see."""
    return Machine(cpus=cpus, memory_bytes=limits.memory_bytes, swap_bytes=limits.swap_bytes)


def limited(command: Command, place: Cgroup, limits: Limits) -> Command:
    """The command with what it is to see of its limits, and what it has to be limited by itself, where no cgroup does it."""
    machine = machine_of(place.use_cpus(limits), limits)
    return command._replace(rlimits=command.rlimits | place.rlimits(limits), machine=machine)


def show_use(sandbox: Sandbox, now: CgroupNow) -> None:
    """Let the commands of a sandbox see what they have used."""
    sandbox.show(used=Used(now.memory_bytes or 0, now.cpu_seconds or 0.0))


async def run_command(
    taken: Taken[Cgroup],
    command: Command,
    outcome: Outcome,
    stop: Stop,
    streams: "Streams",
    *,
    then: Then,
    cpu_count: int,
    counting: AbstractAsyncContextManager[C],
    on_start: Callable[[float], None],
) -> C:
    """A command's own time, from its start until its output is complete. What became of it is in `outcome`.

    It starts within `counting`. Returns what that says its figures are. Raises SandboxFailed.
    """
    async with counting as counted:
        process = await taken.sandbox.run(
            limited(command, taken.place, outcome.limits),
            streams.theirs,
            then=then,
            # With an OCI runtime, when the command is the one process that is there besides ours.
            set_limits=lambda: taken.place.apply(outcome.limits, started=1),
        )
    streams.close_theirs()
    if isinstance(process, Unusable):
        outcome.unusable = process
        return counted
    outcome.command_started = outcome.last_output = process.started_at
    outcome.started_at = time.time() - (time.monotonic() - process.started_at)
    on_start(outcome.started_at)
    stop.attach(taken, process)
    with _time_limits(taken.place, counted, outcome, stop, cpu_count):
        outcome.exit = await process.exited()
    stop.over = True
    outcome.command_ended = outcome.exit.at if outcome.exit else time.monotonic()
    stop.alone = outcome.exit is not None and outcome.exit.alone and then is Then.END
    # With init, or when all is cleared, nobody is left who holds the other ends: both outputs end.
    await streams.ended()
    return counted


@contextlib.contextmanager
def _time_limits(
    cgroup: Cgroup, counted: Counted, outcome: Outcome, stop: Stop, cpu_count: int
) -> Iterator[None]:
    """Stop the job when its wall time or its CPU time is used up, or when it writes nothing for too long."""
    loop, limits = asyncio.get_running_loop(), outcome.limits
    begun = outcome.command_started or time.monotonic()  # Which we hear of a moment later.
    left = max(0.0, begun + limits.wall_seconds - time.monotonic())
    wall = loop.call_later(left, stop, Reason.WALL_SECONDS)
    watches = (
        _watch_cpu(cgroup, counted, limits, stop, cpu_count),
        _watch_output(outcome, stop),
        _watch_memory(cgroup, counted, stop),
    )
    try:
        yield
    finally:
        wall.cancel()
        for watch in watches:
            if watch is not None:
                watch.cancel()


def _watch_cpu(
    cgroup: Cgroup, counted: Counted, limits: Limits, stop: Stop, cpu_count: int
) -> "asyncio.Task[None] | None":
    """A task that ends the job when its CPU time is used up; None where it cannot be before the wall time is."""
    sampled = cgroup.samples_memory
    rate = min(cgroup.most_cpus(limits), cpu_count)
    if limits.cpu_seconds >= limits.wall_seconds * rate or counted.cpu_seconds() is None:
        return None

    async def watch() -> None:
        while True:
            look = counted.cpu_seconds
            used = await asyncio.to_thread(look) if sampled else look()
            left = limits.cpu_seconds - (used or 0.0)
            if left <= 0:
                stop(Reason.CPU_SECONDS)
                return
            # The earliest moment at which it can be used up: there is nothing to see before.
            await asyncio.sleep(max(left / rate, MEMORY_SECONDS if sampled else 0.005))

    return asyncio.get_running_loop().create_task(watch())


def _watch_memory(
    cgroup: Cgroup, counted: Counted, stop: Stop
) -> "asyncio.Task[None] | _KillWatch | None":
    """What ends the job when it has, or wanted, more memory than it may; None where the kernel ends all of it."""
    if cgroup.kills_one_by_one:
        return _KillWatch(counted, stop)
    if not cgroup.samples_memory:
        return None

    async def watch() -> None:
        while True:
            began = time.monotonic()
            if await asyncio.to_thread(cgroup.over_memory):
                stop(Reason.MEMORY)
                return
            # A job of many processes takes longer to look at: it gets no more than a tenth of a processor.
            await asyncio.sleep(max(MEMORY_SECONDS, 9 * (time.monotonic() - began)))

    return asyncio.get_running_loop().create_task(watch())


class _KillWatch:
    """Ends what is left of a job of which the kernel killed a process. A timer: a short job has no more of it than that."""

    def __init__(self, counted: Counted, stop: Stop) -> None:
        self._counted = counted
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(MEMORY_SECONDS, self._look)

    def cancel(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        try:
            if self._counted.oom_kills():
                self._stop(Reason.MEMORY)
                return
        except SandboxFailed:
            return  # The cgroup is gone, and the job with it.
        self._timer = self._loop.call_later(MEMORY_SECONDS, self._look)


def _watch_output(outcome: Outcome, stop: Stop) -> "asyncio.Task[None] | None":
    """A task that ends the job when it writes nothing for too long; None where its wall time ends it before."""
    most_seconds = outcome.limits.idle_seconds
    if most_seconds >= outcome.limits.wall_seconds:
        return None

    async def watch() -> None:
        while True:
            left = outcome.last_output + most_seconds - time.monotonic()
            if left <= 0:
                stop(Reason.IDLE_SECONDS)
                return
            await asyncio.sleep(left)  # The earliest moment at which it can be so.

    return asyncio.get_running_loop().create_task(watch())


class Streams:
    """The three pipes of a command: the service's ends at work, the command's ends to hand over."""

    def __init__(self, feed: Feed | PassThrough, out: Drain, err: Drain, theirs: list[int]) -> None:
        self._ours = (feed, out, err)
        self._out, self._err = out, err
        self.theirs = theirs
        """Descriptors for the command's input, output and error output."""

    async def ended(self) -> None:
        """Wait for the end of both outputs. Raises SandboxFailed if it does not come."""
        try:
            async with asyncio.timeout(_STUCK_SECONDS):
                await self._out.ended()
                await self._err.ended()
        except TimeoutError:
            raise SandboxFailed("end", "a process is stuck in the kernel") from None

    def close_theirs(self) -> None:
        """The command has them now: only its ends keep the pipes open."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """Close what is still open."""
        self.close_theirs()
        for stream in self._ours:
            stream.close()


@contextlib.contextmanager
def open_streams(
    stdin: bytes | PassedDescriptor, outcome: Outcome, stop: Stop, sink: Sink
) -> Iterator[Streams]:
    """Pipes for one command: input is fed, output goes to `sink`, and too much of it stops the job."""

    def receive(stream: Stream, piece: bytes) -> None:
        outcome.output_bytes += len(piece)
        outcome.last_output = time.monotonic()
        if not sink(stream, piece):
            outcome.output_bytes = outcome.limits.output_bytes
            stop(Reason.OUTPUT_BYTES)

    command_in, feed_end = os.pipe()
    out_end, command_out = os.pipe()
    err_end, command_err = os.pipe()
    streams = Streams(
        PassThrough(stdin.descriptor, feed_end)
        if isinstance(stdin, PassedDescriptor)
        else Feed(feed_end, stdin),
        Drain(out_end, lambda piece: receive(Stream.STDOUT, piece)),
        Drain(err_end, lambda piece: receive(Stream.STDERR, piece)),
        [command_in, command_out, command_err],
    )
    with contextlib.closing(streams):
        yield streams


def note_stop(outcome: Outcome, *stops: Stop) -> None:
    """Write into the outcome who stopped the command, if anybody did in time; the first of `stops` counts."""
    for stop in stops:
        if stop.reason is not None and not _came_too_late(stop, outcome.exit):
            outcome.stopped_by, outcome.stop_message = stop.reason, stop.message
            return


def _came_too_late(stop: Stop, ended: Exit | None) -> bool:
    """Whether the command had ended by itself when it was stopped. (It may be over a limit all the same.)"""
    if stop.reason in (Reason.OUTPUT_BYTES, Reason.NETWORK_BYTES):
        return False
    return ended is not None and ended.at <= stop.at
