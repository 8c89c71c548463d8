"""The service's side of the launcher: starting it, asking it for sandboxes, starting another when it has died.

Runs in the service's event loop and waits for one descriptor: the launcher's socket.
"""

import asyncio
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import hearing, idmap, launcher, protocol, seccomp, syscalls
from sandboxd.isolation.oci import seccomp_profile
from sandboxd.isolation.sandbox import InitEnded, Sandbox
from sandboxd.isolation.spec import BLANK, NetworkMode, OciRuntime, SandboxSpec, Walls

_BUILD_SECONDS = 30.0
"""A sandbox that is not ready by then never will be: the host is stuck."""
_END_SECONDS = 5.0
_MFD_EXEC = 0x10
_SEAL_TRIES = 20
"""The kernel itself waits up to 150 ms each time."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_BARE = ("-I", "-S", "-B")
"""No environment, no site directories, no bytecode written: what it imports is in the path that it is given, and compiled where ours is."""
_BOOTSTRAP = (
    "import sys, json; *arguments, sys.pycache_prefix, sys.path[:] = json.loads(sys.argv[1]); "
    "from sandboxd.isolation.launcher import main; main(*arguments)"
)

M = TypeVar("M", bound=protocol.FromLauncher)


class Launcher:
    """Starts the launcher process and asks it for sandboxes. Starts another when it has died."""

    def __init__(
        self,
        *,
        stage: Path,
        ids: idmap.IdRange | None,
        show_cgroup: bool = False,
        counted: bool = True,
    ) -> None:
        """`stage` is an existing empty directory; `ids` None means the single-id map.

        `counted`: a cgroup limits the memory of what runs in sandboxes; if not, the filter refuses what nothing else counts.
        """
        self.stage = stage
        self.ids = ids
        self.show_cgroup = show_cgroup
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._counted = counted
        self._seccomp_digest = filter_digest(syscalls.MACHINE, counted=counted)
        self._own_clocks = False
        self._control: socket.socket | None = None
        self._sandboxes: weakref.WeakSet[Sandbox] = weakref.WeakSet()
        self._blanks: weakref.WeakSet[Sandbox] = weakref.WeakSet()
        """Those of the launcher that runs now."""
        self._creations: dict[int, asyncio.Future[tuple[int, list[int]]]] = {}
        self._number = 0
        self._starting = asyncio.Lock()

    @property
    def alive(self) -> bool:
        return self._control is not None

    def walls(self, network: NetworkMode, runtime: OciRuntime | None = None) -> Walls:
        """What stands around every sandbox of this launcher, with native commands or those of an OCI runtime."""
        if runtime is None:
            seccomp = self._seccomp_digest
        elif runtime.own_kernel:
            seccomp = "gvisor"  # No call of the command reaches the kernel that would filter it.
        else:
            seccomp = _profile_digest()
        times = ("time",) if self._own_clocks and runtime is None else ()
        return Walls(
            id_map=idmap.IdMapMode.RANGE if self.ids else idmap.IdMapMode.SINGLE,
            namespaces=(*launcher.NAMESPACE_NAMES, *times),
            seccomp_digest=seccomp,
            no_new_privileges=True,
            capabilities=(),
            network=network,
        )

    async def start(self) -> None:
        """Start the process and map its ids. Raises SandboxFailed."""
        loop = asyncio.get_running_loop()
        try:
            with contextlib.ExitStack() as failed:
                control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                failed.callback(control.close)
                control.setblocking(False)
                self.process = self._execute(theirs)
                failed.callback(_end, self.process)
                async with asyncio.timeout(_BUILD_SECONDS):
                    await self._expect(control, protocol.Unshared)
                    await loop.run_in_executor(None, idmap.map_launcher, self.process.pid, self.ids)
                    count = self.ids.size if self.ids else 0
                    protocol.send(control, protocol.MapYourself(id_count=count))
                    ready = await self._expect(control, protocol.LauncherReady)
                failed.pop_all()
        except TimeoutError:
            raise SandboxFailed(
                "start launcher", f"not ready after {_BUILD_SECONDS:.0f} s"
            ) from None
        except OSError as error:  # There are too few descriptors, say, or it ended meanwhile.
            raise SandboxFailed("start launcher", str(error)) from error
        self._own_clocks = ready.own_clocks
        self.starts += 1
        self._control = control
        loop.add_reader(control.fileno(), self._read_control)

    def _execute(self, control: socket.socket) -> "subprocess.Popen[bytes]":
        """The process, which is given this socket. Raises OSError, SandboxFailed."""
        with control, _sealed_copy(sys.executable) as interpreter:
            arguments = [control.fileno(), os.getpid(), str(self.stage), self._counted]
            arguments += [sys.pycache_prefix, sys.path]
            return subprocess.Popen(
                [sys.executable, *_BARE, "-c", _BOOTSTRAP, json.dumps(arguments)],
                executable=f"/proc/self/fd/{interpreter}",
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[control.fileno(), interpreter],
                start_new_session=True,
                cwd="/",
            )

    async def _expect(self, control: socket.socket, kind: type[M]) -> M:
        await _readable(control.fileno())
        try:
            message, _ = protocol.receive(control, hearing.from_launcher)
        except (EOFError, ConnectionError):
            raise SandboxFailed("start launcher", "it ended at once; its log says why") from None
        if not isinstance(message, kind):
            raise SandboxFailed("start launcher", f"unexpected answer {message!r}")
        return message

    def trees_in_use(self) -> set[str]:
        """The paths of all trees that a sandbox has been made of which still lives."""
        specs = [sandbox.spec for sandbox in list(self._sandboxes) if sandbox.alive]
        return {path for spec in specs for path in (spec.rootfs, *spec.below)}

    async def create(
        self,
        spec: SandboxSpec,
        *,
        join_files: tuple[str, ...] = (),
        cgroup_fd: int | None = None,
    ) -> Sandbox:
        """Clone a sandbox and wait until all its walls stand. Raises SandboxFailed."""
        control = await self._ensure_started()
        sandbox = await self._clone(control, spec, join_files, cgroup_fd)
        await self._see_built(sandbox, sandbox.ready(), control)
        return sandbox

    async def begin(
        self, *, join_files: tuple[str, ...] = (), cgroup_fd: int | None = None
    ) -> Sandbox:
        """Clone a blank and wait until all is built that does not depend on a shape. Raises SandboxFailed."""
        control = await self._ensure_started()
        blank = await self._clone(control, BLANK, join_files, cgroup_fd)
        await self._see_built(blank, blank.begun(), control)
        self._blanks.add(blank)
        return blank

    def can_finish(self, blank: Sandbox) -> bool:
        """Whether it still waits for its shape, and the launcher that made it can write its maps."""
        return blank in self._blanks and blank.alive

    async def finish(self, blank: Sandbox, spec: SandboxSpec) -> None:
        """Let a blank become a sandbox of a shape that fits it, and wait until all its walls stand. Raises SandboxFailed."""
        self._blanks.discard(blank)
        await self._see_built(blank, blank.take_shape(spec), self._control)

    async def _see_built(
        self, sandbox: Sandbox, built: Awaitable[None], control: socket.socket | None
    ) -> None:
        """Wait for `built`. If it fails or takes too long, or if this `control` is not the launcher's any more, the sandbox ends.

        Raises SandboxFailed.
        """
        try:
            async with asyncio.timeout(_BUILD_SECONDS):
                await built
            if self._control is not control:
                raise InitEnded("build", "the launcher ended, and init with it")
        except BaseException as error:
            sandbox.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BUILD_SECONDS):
                    await sandbox.dead()
            if isinstance(error, TimeoutError):
                raise SandboxFailed("build", f"not ready after {_BUILD_SECONDS:.0f} s") from None
            raise

    async def _clone(
        self,
        control: socket.socket,
        spec: SandboxSpec,
        join_files: tuple[str, ...],
        cgroup_fd: int | None,
    ) -> Sandbox:
        """Have the launcher clone an init, which then builds. Raises SandboxFailed."""
        self._number += 1
        number = self._number
        created = asyncio.get_running_loop().create_future()
        self._creations[number] = created
        request = protocol.Create(
            number=number,
            spec=spec,
            join_files=join_files,
            into_cgroup=cgroup_fd is not None,
            show_cgroup=self.show_cgroup,
        )
        try:
            protocol.send(control, request, [] if cgroup_fd is None else [cgroup_fd])
            async with asyncio.timeout(_BUILD_SECONDS):
                pid, descriptors = await created
        except TimeoutError:
            raise SandboxFailed("clone3", f"no answer after {_BUILD_SECONDS:.0f} s") from None
        except OSError as error:
            raise SandboxFailed("ask launcher", str(error)) from error
        except asyncio.CancelledError:
            # In the same turn in which the answer came: nobody else knows of these descriptors.
            if created.done() and not created.cancelled() and created.exception() is None:
                for descriptor in created.result()[1]:
                    os.close(descriptor)
            raise
        finally:
            self._creations.pop(number, None)
        channel_fd, pidfd, *network = descriptors
        sandbox = Sandbox(spec, pid, socket.socket(fileno=channel_fd), pidfd, network)
        self._sandboxes.add(sandbox)
        return sandbox

    async def _ensure_started(self) -> socket.socket:
        async with self._starting:
            if self._control is None:
                await self.start()
        if self._control is None:
            raise SandboxFailed("start launcher", "it ended at once")
        return self._control

    def _read_control(self) -> None:
        if self._control is None:
            return
        try:
            message, descriptors = protocol.receive(self._control, hearing.from_launcher)
        except BlockingIOError:
            return
        except protocol.DescriptorsLost as lost:
            # init sees the end of its socket. Those that run go on: they have theirs.
            if isinstance(lost.message, protocol.Created):
                self._failed(lost.message.number, SandboxFailed("receive sandbox", str(lost)))
            return
        except (EOFError, OSError, protocol.BadMessage) as error:
            self._lost(f"launcher ended ({type(error).__name__})")
            return
        match message:
            case protocol.Created():
                future = self._creations.pop(message.number, None)
                if future is None or future.cancelled():
                    for descriptor in descriptors:  # Nobody waits: init sees the end of its socket.
                        os.close(descriptor)
                else:
                    future.set_result((message.pid, descriptors))
            case protocol.CreateFailed():
                self._failed(message.number, SandboxFailed(message.step, message.reason))
            case _:
                self._lost(f"launcher sent {type(message).__name__}")

    def _failed(self, number: int, error: SandboxFailed) -> None:
        future = self._creations.pop(number, None)
        if future is not None and not future.cancelled():
            future.set_exception(error)

    def _lost(self, reason: str) -> None:
        """The process is gone, and with it every init (parent-death signal): their pidfds tell who waits for them.

        An init that was just changing its ids had no such signal for a moment: each is killed by name, too.
        """
        self._close_control()
        self._blanks.clear()
        for sandbox in list(self._sandboxes):
            sandbox.kill()
        if self.process is not None:
            _end(self.process)
        for future in self._creations.values():
            if not future.done():
                future.set_exception(SandboxFailed("clone3", reason))
        self._creations.clear()

    def _close_control(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    async def close(self) -> None:
        """End the launcher and every sandbox."""
        self._close_control()
        if self.process is not None:
            await asyncio.get_running_loop().run_in_executor(None, _end, self.process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill and reap. One that is stuck in the kernel ends when the kernel lets it go: nobody waits for that."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_SECONDS)


@contextlib.contextmanager
def _sealed_copy(program: str) -> Iterator[int]:
    """A descriptor of a copy of a program in memory that nobody can change any more (memfd_create(2)).

    A command can name the program that its parent runs: `/proc/self/exe`, before it is another's, also as the interpreter of
    a script or of an ELF file (CVE-2019-5736). What it then has in reach is this copy, not a file of the host, whose mode
    it could change where ids are shared. Raises SandboxFailed.
    """
    try:
        with open(program, "rb") as original:
            content = original.read()
        writing = _make_memory_file()
        try:
            with open(writing, "wb", closefd=False) as copy:
                copy.write(content)
            _seal(writing)
            # A file that is open for writing cannot be executed.
            reading = os.open(f"/proc/self/fd/{writing}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writing)
    except OSError as error:
        raise SandboxFailed("copy interpreter", str(error)) from error
    try:
        yield reading
    finally:
        os.close(reading)


def _seal(descriptor: int) -> None:
    """Forbid every change from now on.

    On a busy machine the kernel still holds pages that were just written, waits for a moment and gives up (EBUSY:
    memfd_wait_for_pins() in mm/memfd.c). Raises OSError.
    """
    for _ in range(_SEAL_TRIES):
        try:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return
    raise OSError(errno.EBUSY, "its pages are in use")


def _make_memory_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("sandboxd", flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("sandboxd", flags)  # Before Linux 6.3 all can be executed.


def filter_digest(machine: str, *, counted: bool = True) -> str:
    """`sha256:…` of the filter program for an architecture, for the record of each job."""
    program = seccomp.assemble(seccomp.build(machine, counted=counted))
    return f"sha256:{hashlib.sha256(program).hexdigest()}"


@functools.cache
def _profile_digest() -> str:
    return seccomp_profile.digest(syscalls.MACHINE)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def notice() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, notice)
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)
