"""One sandbox that lives until it is told to end: its commands, its timers, its pause, its end.

Nothing here looks again and again: the end is told by init's pidfd, times by timers.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sandboxd.background import Background
from sandboxd.errors import Conflict, NotFound, SandboxFailed
from sandboxd.ids import new_id
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation.places import Taken
from sandboxd.isolation.protocol import PackChanges
from sandboxd.isolation.spec import Command
from sandboxd.jobs import Reason, Usage
from sandboxd.metrics import Metrics
from sandboxd.quotas.cgroups import Cgroup
from sandboxd.quotas.limits import Limits
from sandboxd.running.commands import MEMORY_SECONDS, machine_of, show_use
from sandboxd.running.counting import Counting
from sandboxd.sandbox_values import SandboxReason, SandboxRecord, SandboxState
from sandboxd.sandboxes.execs import Exec, ExecSpec, Leftover, new_log
from sandboxd.store.logs import StoredLog, remove_log

_MOST_REMEMBERED = 64
"""Commands that are over whose output can still be read."""
_MOST_LEFTOVERS = 32
PACK_SECONDS = 300.0
_TELL_SECONDS = 1.0
_LOOKS_UNTIL_END = 10
"""With too much memory each time."""
_USAGE_FIELDS = frozenset(Usage.__struct_fields__)


class LiveSandbox:
    """One sandbox of this process."""

    def __init__(
        self,
        record: SandboxRecord,
        image: ResolvedImage,
        taken: Taken[Cgroup],
        metrics: Metrics,
        *,
        most_execs: int,
        log_directory: Path,
        inline_log_bytes: int,
    ) -> None:
        self.record = record
        self.taken = taken
        self.transferring = asyncio.Lock()
        """One file at a time: init does one thing after the other."""
        self.changing = asyncio.Lock()
        """Pause, resume and other limits."""
        self.resizing = asyncio.Lock()
        """While its room is changed with its limits."""
        self._image = image
        self._metrics = metrics
        self._most_execs = most_execs
        self._log_directory = log_directory
        self._inline_log_bytes = inline_log_bytes
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, Exec] = {}
        self._over: OrderedDict[str, Exec] = OrderedDict()
        self._background = Background()
        self._leftovers: deque[Leftover] = deque()
        self._uses = 0
        self._idle: asyncio.TimerHandle | None = None
        self._ttl: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._execs = 0
        self._end: tuple[SandboxReason, str | None] | None = None
        self._frozen = False
        self._counting = Counting(taken.place, alone=False)
        self._counting.prepare()
        self._arm_ttl()
        self._arm_idle()
        if taken.place.samples_memory:
            self._background.spawn(self._watch_memory())

    # Commands

    async def start_exec(self, spec: ExecSpec, *, connected: bool = False) -> Exec:
        """Begin a command; its output is kept, or with `connected` handed to who asks for its lines. Raises Conflict."""
        self.check_running()
        if len(self._running) >= self._most_execs:
            detail = f"{self._most_execs} commands run in this sandbox already"
            raise Conflict(detail, code="too_many_execs")
        exec_id = new_id("exe")
        log = new_log(self._log_directory, exec_id, spec, inline_bytes=self._inline_log_bytes)
        made = self._running[exec_id] = Exec(exec_id, spec, log)
        self._execs += 1
        self._background.spawn(self._run_exec(made, connected))
        if self._telling is None:
            self._telling = self._loop.call_later(_TELL_SECONDS, self._tell_use)
        return made

    def get_exec(self, exec_id: str) -> Exec:
        """A command that runs, or is one of the last that ran. Raises NotFound."""
        found = self._running.get(exec_id) or self._over.get(exec_id)
        if found is None:
            raise NotFound(f"there is no command {exec_id} in this sandbox, or it is too long ago")
        return found

    def list_execs(self) -> list[Exec]:
        """Those that ran last and those that run, oldest first."""
        return [*self._over.values(), *self._running.values()]

    async def _run_exec(self, made: Exec, connected: bool) -> None:
        command = self._command(made.spec)
        try:
            with self.in_use():
                if connected:
                    result = await made.run_connected(self.taken, self._counting, command)
                else:
                    result = await made.run(
                        self.taken, self._counting, command, self._keep_leftover
                    )
        finally:
            del self._running[made.id]
            # Also where something failed that never should: nobody waits for ever.
            made.started.set()
            made.ended.set()
        self._metrics.exec_finished(result)
        if not connected:
            self._over[made.id] = made
            if len(self._over) > _MOST_REMEMBERED:
                _forget(self._over.popitem(last=False)[1])

    def _tell_use(self) -> None:
        """Once a second, as long as commands run, they are told what all of them use."""
        self._telling = None
        if not self._running or not self.taken.sandbox.alive:
            return
        if not self._frozen:  # Else nobody would take the message.
            self._background.spawn(self._show_use())
        self._telling = self._loop.call_later(_TELL_SECONDS, self._tell_use)

    async def _show_use(self) -> None:
        with contextlib.suppress(SandboxFailed):
            show_use(self.taken.sandbox, await asyncio.to_thread(self.taken.place.now))

    def _command(self, spec: ExecSpec) -> Command:
        plan, image = self.record.plan, self._image
        terminal = {"TERM": "xterm-256color"} if spec.terminal else {}
        return Command(
            argv=spec.command,
            env={**image.env, **terminal, **plan.env, **spec.env},
            workdir=spec.workdir or plan.workdir or image.workdir,
            rlimits={"nofile": plan.limits.open_files},
        )

    def _keep_leftover(self, leftover: Leftover) -> None:
        self._leftovers = deque(each for each in self._leftovers if not each.at_end)
        self._leftovers.append(leftover)
        if len(self._leftovers) > _MOST_LEFTOVERS:
            self._leftovers.popleft().close()

    # Its changes

    async def pack(self, output: int, *, most_bytes: int, stop: bool) -> None:
        """Have what its commands changed written to a descriptor as a layer. One that takes too long ends with it.

        `stop`: its commands are stopped meanwhile. Raises Conflict, SandboxFailed.
        """
        with self.in_use():
            async with self.transferring:
                self.check_running()
                try:
                    async with asyncio.timeout(PACK_SECONDS):
                        await self.taken.sandbox.pack_changes(PackChanges(most_bytes, stop), output)
                except TimeoutError:
                    self.taken.sandbox.kill()
                    reason = f"it took more than {PACK_SECONDS:g} s"
                    raise SandboxFailed("read changes", reason) from None

    # Memory, where no cgroup limits it

    async def _watch_memory(self) -> None:
        """What runs when there is too much ends; if that does not help, all of it does."""
        too_much = 0
        while self.taken.sandbox.alive:
            over = await asyncio.to_thread(self.taken.place.over_memory)
            too_much = too_much + 1 if over else 0
            if over:  # Each time: others may have been started since the last look.
                for running in self._running.values():
                    running.stop(Reason.MEMORY)
            if too_much == _LOOKS_UNTIL_END:
                self.end(
                    SandboxReason.MEMORY, "out of memory: its processes had more than they may"
                )
            await asyncio.sleep(MEMORY_SECONDS)

    # Times

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within, the sandbox is not idle."""
        self._uses += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            yield
        finally:
            self._uses -= 1
            self._arm_idle()

    def _arm_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self._uses and self._end is None:
            seconds = self.record.plan.idle_seconds
            self._idle = self._loop.call_later(seconds, self.end, SandboxReason.IDLE_SECONDS)

    def _arm_ttl(self) -> None:
        if self._ttl is not None:
            self._ttl.cancel()
        left = max(0.0, self.record.created_at + self.record.plan.ttl_seconds - time.time())
        self._ttl = self._loop.call_later(left, self.end, SandboxReason.TTL_SECONDS)

    # What is changed

    def check_running(self) -> None:
        """Raises Conflict unless it runs."""
        if self._end is not None or not self.taken.sandbox.alive:
            raise Conflict("the sandbox has ended", code="sandbox_ended")
        if self._frozen:
            raise Conflict("the sandbox is paused: resume it first", code="sandbox_paused")

    async def pause(self, reason: SandboxReason = SandboxReason.PAUSED_BY_CLIENT) -> None:
        """Stop all its processes. Twice is harmless. Raises Conflict where this host cannot."""
        async with self.changing, self.transferring:  # init must not stop half-way.
            if self._frozen:
                return
            self.check_running()
            if not self.taken.place.can_freeze:
                detail = "this host cannot pause: no freezer is delegated (run `sandboxd setup`)"
                raise Conflict(detail, code="cannot_pause")
            # Before it is frozen: whoever kills it from now on has to thaw it.
            self.taken.sandbox.before_kill = self._thaw_to_die
            try:
                await asyncio.to_thread(self.taken.place.freeze)
            except SandboxFailed as error:
                raise Conflict(
                    f"the sandbox cannot be paused: {error}", code="cannot_pause"
                ) from error
            self._frozen = True
            self._note(SandboxState.PAUSED, reason)
            if self._end is not None:
                self.taken.sandbox.kill()

    async def resume(self) -> None:
        """Let its processes go on. Twice is harmless."""
        async with self.changing:
            if not self._frozen:
                self.check_running()
                return
            self.taken.place.thaw()
            self._frozen = False
            self.taken.sandbox.before_kill = None
            self._note(SandboxState.RUNNING, SandboxReason.RESUMED_BY_CLIENT)
            self._arm_idle()

    async def change(
        self, limits: Limits, *, idle_seconds: float | None, ttl_seconds: float | None
    ) -> None:
        """Other limits and times from now on. Raises Conflict if it uses more memory than it may then."""
        async with self.changing:
            self.check_alive()
            plan = self.record.plan
            if limits != plan.limits:
                await asyncio.to_thread(self._change_limits, limits, plan.limits)
                cpus = self.taken.place.use_cpus(limits)
                self.taken.sandbox.show(machine_of(cpus, limits))
            plan = msgspec.structs.replace(
                plan,
                limits=limits,
                idle_seconds=plan.idle_seconds if idle_seconds is None else idle_seconds,
                ttl_seconds=plan.ttl_seconds if ttl_seconds is None else ttl_seconds,
            )
            self.record = msgspec.structs.replace(self.record, plan=plan)
            self._arm_ttl()
            self._arm_idle()

    def check_alive(self) -> None:
        """Raises Conflict if it has ended."""
        if self._end is not None:
            raise Conflict("the sandbox has ended", code="sandbox_ended")

    def _change_limits(self, limits: Limits, former: Limits) -> None:
        try:
            self.taken.place.change(limits)
        except SandboxFailed as error:
            self.taken.place.change(former)
            raise Conflict(f"the limits cannot be set: {error}", code="limits_in_use") from error

    def _thaw_to_die(self) -> None:
        with contextlib.suppress(SandboxFailed):
            self.taken.place.thaw()

    # Its end

    def end(self, reason: SandboxReason, message: str | None = None) -> None:
        """Kill everything in it. The first reason counts."""
        if self._end is not None:
            return
        self._end = (reason, message)
        for running in self._running.values():
            running.stop.note(Reason.SANDBOX_ENDED, f"the sandbox ended: {reason}")
        self.taken.sandbox.kill()

    async def ended(self) -> SandboxRecord:
        """Wait for its end and tell of it. What it was made of is still to be removed."""
        await self.taken.sandbox.dead()
        for timer in (self._idle, self._ttl, self._telling):
            if timer is not None:
                timer.cancel()
        if self._end is None:
            self._end = self._cause()
        for task in self._background.tasks:
            await asyncio.wait([task])
        while self._leftovers:
            self._leftovers.pop().close()
        for over in self._over.values():
            _forget(over)
        reason, message = self._end
        self.record = msgspec.structs.replace(
            self.record,
            state=SandboxState.ENDED,
            reason=reason,
            message=message,
            ended_at=time.time(),
            usage=self._usage(),
            execs=self._execs,
        )
        return self.record

    def _cause(self) -> tuple[SandboxReason, str | None]:
        """Of an end that nobody here brought about."""
        with contextlib.suppress(SandboxFailed):
            if kills := self.taken.place.oom_kills_beside_init():
                message = f"out of memory: the kernel killed {kills} of its processes"
                return SandboxReason.MEMORY, message
        return SandboxReason.INIT_DIED, "its first process ended, and nobody here ended it"

    def usage(self) -> Usage | None:
        """What all its commands have used so far. None: it is gone."""
        return self._usage()

    def _usage(self) -> Usage | None:
        try:
            used = self.taken.place.read()
        except SandboxFailed:
            return None
        counted = {name: each for name, each in used._asdict().items() if name in _USAGE_FIELDS}
        return Usage(
            **counted,
            wall_seconds=max(0.0, time.time() - (self.record.started_at or time.time())),
            setup_seconds=(self.record.started_at or 0.0) - self.record.created_at,
            warm=self.taken.warm,
        )

    @property
    def execs(self) -> int:
        """Commands that were started in it."""
        return self._execs

    def _note(self, state: SandboxState, reason: SandboxReason) -> None:
        self.record = msgspec.structs.replace(self.record, state=state, reason=reason)


def _forget(over: Exec) -> None:
    """Its output need not be kept any longer."""
    if isinstance(over.log, StoredLog) and over.log.path is not None:
        remove_log(over.log.path)
