"""One command in a sandbox that goes on after it: its streams, its time, its end.

What it leaves running goes on, too. It is stopped by killing its process group; what it started in sessions of their own ends
with the sandbox.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from sandboxd.errors import SandboxdError
from sandboxd.isolation.places import Taken
from sandboxd.isolation.sandbox import Process
from sandboxd.isolation.spec import Command, TerminalSize, Then, Unusable
from sandboxd.isolation.streams import Drain, Feed
from sandboxd.jobs import Component, JobError, Reason, Result, State, Stream
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.quotas.limits import Limits
from sandboxd.running.commands import Stop, limited, note_stop
from sandboxd.running.counting import Counting, Meter
from sandboxd.running.verdict import Outcome, result_of
from sandboxd.sandboxes.terminals import Line
from sandboxd.store.logs import JobLog, StoredLog

HANG_UP_SECONDS = 2.0
"""Between SIGHUP and SIGKILL, for a command whose client is gone."""


class ExecSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for, checked and with every default filled in."""

    command: tuple[str, ...]
    env: dict[str, str] = {}
    workdir: str | None = None
    stdin: bytes = b""
    limits: Limits
    """Those of the sandbox, with the command's own `wall_seconds` and `output_bytes`."""
    terminal: TerminalSize | None = None


class ExecStop(Stop):
    """Stops the command and leaves the sandbox alone."""

    def _kill(self, taken: Taken[Cgroup]) -> None:
        if self._process is not None:
            self._process.kill()

    def _give_up(self, taken: Taken[Cgroup]) -> None:
        """What does not die is stuck in the kernel, or paused."""

    def note(self, reason: Reason, message: str) -> None:
        """Something else ends it."""
        if self.reason is None:
            self.reason, self.message, self.at = reason, message, time.monotonic()


class Exec:
    """One command, from the request for it on."""

    def __init__(self, exec_id: str, spec: ExecSpec, log: JobLog) -> None:
        self.id = exec_id
        self.spec = spec
        self.log: JobLog | StoredLog = log
        """What it wrote. Nothing is kept of one that somebody is connected to."""
        self.created_at = time.time()
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.result: Result | None = None
        self.stop = ExecStop()
        self.lines: dict[Stream, Line] = {}
        """Output, where somebody is connected: of a terminal it is all in one."""
        self.input: Line | None = None
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self._process: Process | None = None
        self._to_be_sent: dict[signal.Signals, None] = {}
        """Signals that came before the command is known to run, in their order."""

    @property
    def state(self) -> State:
        if self.result is not None:
            return self.result.state
        return State.STARTING if self.started_at is None else State.RUNNING

    @property
    def reason(self) -> Reason:
        if self.result is not None:
            return self.result.reason
        return Reason.SUBMITTED if self.started_at is None else Reason.STARTED

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group: as soon as the command runs, if we have not heard of that."""
        if self._process is None:
            self._to_be_sent[number] = None
        elif self.result is None:
            self._process.signal(number)

    async def run(
        self,
        taken: Taken[Cgroup],
        counting: Counting,
        command: Command,
        leave: "Callable[[Leftover], None]",
    ) -> Result:
        """Run it to its end. `leave` gets its pipes if something else still has them then."""
        streams = _Kept(self, leave)
        return await self._run(taken, counting, command, streams.theirs, streams)

    async def run_connected(
        self, taken: Taken[Cgroup], counting: Counting, command: Command
    ) -> Result:
        """Run it with its streams in `lines` and `input`, which are there once it has `started`."""
        if self.spec.terminal is not None:
            return await self._run(taken, counting, command, [], None)
        command_in, ours_in = os.pipe()
        ours_out, command_out = os.pipe()
        ours_err, command_err = os.pipe()
        self.input = Line(ours_in, in_threads=False)
        self.lines = {
            Stream.STDOUT: Line(ours_out, in_threads=False),
            Stream.STDERR: Line(ours_err, in_threads=False),
        }
        theirs = [command_in, command_out, command_err]
        return await self._run(taken, counting, command, theirs, None)

    async def _run(
        self,
        taken: Taken[Cgroup],
        counting: Counting,
        command: Command,
        theirs: list[int],
        streams: "_Kept | None",
    ) -> Result:
        outcome = Outcome(
            limits=self.spec.limits,
            command=self.spec.command,
            workdir=self.spec.workdir,
            claimed_at=time.monotonic(),
        )
        try:
            meter = await self._run_command(taken, counting, command, outcome, theirs)
            killed = outcome.exit is None or outcome.exit.signal == signal.SIGKILL
            if killed or meter.only_its_own:
                outcome.oom_kills = meter.oom_kills()
            outcome.usage = meter.end()
        except (SandboxdError, OSError) as error:
            if self.stop.reason is None:  # Else that is why.
                outcome.failure = _failure(error)
        finally:
            _close_all(theirs)
        if streams is not None:
            streams.end(outcome)
        note_stop(outcome, self.stop)
        self.ended_at = time.time()
        self.result = result_of(outcome)
        # It is remembered for a while, and its input may be large.
        self.spec = msgspec.structs.replace(self.spec, stdin=b"", env={})
        self.started.set()
        self.ended.set()
        return self.result

    async def _run_command(
        self,
        taken: Taken[Cgroup],
        counting: Counting,
        command: Command,
        outcome: Outcome,
        theirs: list[int],
    ) -> Meter:
        terminal = self.spec.terminal
        command = limited(command, taken.place, self.spec.limits)
        async with counting.start() as meter:
            started = await taken.sandbox.run(command, theirs, then=Then.KEEP, terminal=terminal)
        _close_all(theirs)
        if isinstance(started, Unusable):
            outcome.unusable = started
            return meter
        if started.terminal is not None:
            self.input = Line(started.terminal, in_threads=True)
            self.lines = {Stream.STDOUT: self.input}
        self._process = started
        outcome.command_started = started.started_at
        self.started_at = outcome.started_at = time.time() - (time.monotonic() - started.started_at)
        self.started.set()
        self.stop.attach(taken, started)
        for number in self._to_be_sent:
            started.signal(number)
        seconds = self.spec.limits.wall_seconds
        timer = asyncio.get_running_loop().call_later(seconds, self.stop, Reason.WALL_SECONDS)
        try:
            outcome.exit = await started.exited()
        finally:
            timer.cancel()
        self.stop.over = True
        outcome.command_ended = outcome.exit.at if outcome.exit else time.monotonic()
        return meter

    async def hang_up(self) -> None:
        """Its client is gone: a terminal hangs up by being closed; what does not leave by then is killed."""
        self.close_lines()
        if self.result is None:
            self.stop.note(Reason.CLIENT_GONE, "the client hung up")
            self.signal(signal.SIGHUP)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANG_UP_SECONDS):
                    await self.ended.wait()
            self.signal(signal.SIGKILL)

    def close_lines(self) -> None:
        """Nobody is connected any more."""
        for line in {self.input, *self.lines.values()} - {None}:
            if line is not None:
                line.close()


class Leftover:
    """The pipes of a command that is over, which something that it started still has: read, so that this can go on.

    What comes is thrown away, up to what the command might have written: nobody is kept busy for ever.
    """

    def __init__(self, drains: tuple[Drain, Drain], left_bytes: int) -> None:
        self._drains = drains
        self._left_bytes = left_bytes

    def receive(self, piece: bytes) -> None:
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            self.close()

    @property
    def at_end(self) -> bool:
        return all(drain.at_end for drain in self._drains)

    def close(self) -> None:
        for drain in self._drains:
            drain.close()


class _Kept:
    """The three pipes of a command whose output is kept in its log."""

    def __init__(self, execution: Exec, leave: Callable[[Leftover], None]) -> None:
        self._exec = execution
        self._leave = leave
        self._leftover: Leftover | None = None
        self._kept_bytes = 0
        command_in, feed_end = os.pipe()
        out_end, command_out = os.pipe()
        err_end, command_err = os.pipe()
        self.theirs = [command_in, command_out, command_err]
        self._feed = Feed(feed_end, execution.spec.stdin)
        self._drains = (
            Drain(out_end, lambda piece: self._receive(Stream.STDOUT, piece)),
            Drain(err_end, lambda piece: self._receive(Stream.STDERR, piece)),
        )

    def _receive(self, stream: Stream, piece: bytes) -> None:
        if self._leftover is not None:
            self._leftover.receive(piece)
            return
        log, stop = self._exec.log, self._exec.stop
        if isinstance(log, StoredLog):
            return
        try:
            self._kept_bytes += len(piece)
            if not log.append(stream, piece, time.time()):
                self._kept_bytes = self._exec.spec.limits.output_bytes
                stop(Reason.OUTPUT_BYTES)
        except OSError as error:
            stop(Reason.LOG_FAILED, message=f"its output could not be kept: {error}")

    def end(self, outcome: Outcome) -> None:
        """The command is over: what it wrote is in the pipes by now, and this is all of it."""
        self._feed.close()
        for drain in self._drains:
            drain.take_rest()
        outcome.output_bytes = self._kept_bytes
        log = self._exec.log
        self._exec.log = log.close() if isinstance(log, JobLog) else log
        if all(drain.at_end for drain in self._drains):
            return
        self._leftover = Leftover(self._drains, self._exec.spec.limits.output_bytes)
        self._leave(self._leftover)


def new_log(directory: Path, exec_id: str, spec: ExecSpec, *, inline_bytes: int) -> JobLog:
    """Where the output of a command goes."""
    limit_bytes = spec.limits.output_bytes
    return JobLog(directory, exec_id, limit_bytes=limit_bytes, inline_bytes=inline_bytes)


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _failure(error: Exception) -> JobError:
    return JobError(
        component=Component.ISOLATION,
        code="sandbox_failed",
        message=f"the sandbox broke, or has ended: {error}",
    )
