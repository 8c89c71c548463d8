"""Sandboxes without the service around them: a launcher of the test's own, and commands run in what it makes."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from host_tests import host_required
from waiting import TIME_FACTOR

from sandboxd.images import host
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation import idmap, launcher_client
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.sandbox import Process, Sandbox
from sandboxd.isolation.spec import (
    Command,
    Exit,
    SandboxSpec,
    TerminalSize,
    Then,
    Unusable,
)
from sandboxd.isolation.streams import Drain, Feed

Result = TypeVar("Result")

DEADLINE_SECONDS = 100.0 * TIME_FACTOR
REHEARSED_SECONDS = 0.06 * TIME_FACTOR
"""A blank that has waited so long has gone through a command's start and end."""


class Ran(NamedTuple):
    """How a command ended and what it wrote."""

    exit: Exit | None
    out: bytes
    err: bytes

    def json(self) -> Any:
        assert self.exit is not None, "killed"
        assert self.exit.code == 0, self
        return json.loads(self.out)


class Bench:
    """One launcher with the host image, on an event loop of its own."""

    def __init__(self, mode: str, directory: Path, *, from_blanks: bool) -> None:
        self.mode = mode
        self.from_blanks = from_blanks
        self.ids = idmap.find_range() if mode == "range" else None
        if mode == "range" and self.ids is None:
            host_required("no subordinate ids (sandboxd setup)")
        self.directory = directory
        (directory / "stage").mkdir()
        self.image: ResolvedImage = host.build(directory / "host")
        self.launcher = Launcher(stage=directory / "stage", ids=self.ids)
        self.runner = asyncio.Runner()

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(asyncio.wait_for(work, DEADLINE_SECONDS))

    def close(self) -> None:
        self.do(self.launcher.close())
        self.runner.close()

    def spec(self, **changes: Any) -> SandboxSpec:
        plain = SandboxSpec(
            rootfs=self.image.rootfs,
            binds=self.image.binds,
            writable=self.image.writable,
            scratch_bytes=32 * 2**20,
            scratch_inodes=1024,
            uid=1000,
            gid=1000,
        )
        return plain._replace(**changes)

    @contextlib.asynccontextmanager
    async def sandbox(self, **changes: Any) -> AsyncIterator[Sandbox]:
        """A sandbox that stands, for the length of the block."""
        spec = self.spec(**changes)
        if self.from_blanks and spec.fits_blank:
            made = await self.launcher.begin()
            await asyncio.sleep(REHEARSED_SECONDS)
            await self.launcher.finish(made, spec)
        else:
            made = await self.launcher.create(spec)
        try:
            yield made
        finally:
            made.kill()
            await made.dead()

    def run(self, *argv: str, stdin: bytes = b"", **changes: Any) -> Ran:
        """Run one command in a sandbox of its own."""

        async def alone() -> Ran:
            async with self.sandbox(**changes) as made:
                return await run_in(made, *argv, stdin=stdin)

        return self.do(alone())

    def python(self, source: str, **changes: Any) -> Any:
        """What a Python program prints as JSON inside."""
        return self.run("python3", "-c", source, **changes).json()


async def start_in(
    made: Sandbox,
    *argv: str,
    descriptors: list[int],
    then: Then = Then.END,
    terminal: TerminalSize | None = None,
    **changes: Any,
) -> Process | Unusable:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    plain = Command(argv=argv, env={"PATH": path}, workdir="/work", rlimits={"nofile": 1024})
    return await made.run(plain._replace(**changes), descriptors, then=then, terminal=terminal)


async def run_in(
    made: Sandbox, *argv: str, stdin: bytes = b"", then: Then = Then.END, **changes: Any
) -> Ran:
    """Run a command of this sandbox to its end, by default the last one."""
    out, err = bytearray(), bytearray()
    command_in, feed_end = os.pipe()
    out_end, command_out = os.pipe()
    err_end, command_err = os.pipe()
    feed = Feed(feed_end, stdin)
    drains = Drain(out_end, out.extend), Drain(err_end, err.extend)
    theirs = [command_in, command_out, command_err]
    try:
        started = await start_in(made, *argv, descriptors=theirs, then=then, **changes)
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    try:
        assert not isinstance(started, Unusable), started
        ended = await started.exited()
        if then is Then.END:
            await made.dead()
        for drain in drains:
            await drain.ended()
    finally:
        for stream in (feed, *drains):
            stream.close()
    return Ran(ended, bytes(out), bytes(err))


@contextlib.contextmanager
def a_bench(mode: str = "range", *, from_blanks: bool = False) -> Iterator[Bench]:
    """`from_blanks`: each sandbox is begun without a shape, and then given one."""
    if os.geteuid() == 0:
        host_required("run as root: sandboxes are made by an ordinary user")
    with tempfile.TemporaryDirectory(prefix="sandboxd-test-") as directory:
        bench = Bench(mode, Path(directory), from_blanks=from_blanks)
        try:
            yield bench
        finally:
            bench.close()


@contextlib.contextmanager
def without(statements: str, *, from_blanks: bool = False) -> Iterator[Bench]:
    """A launcher in which `statements` have taken one wall away, so that the wall behind it is seen alone.

    They may use the modules `launcher`, `init` and `seccomp`.
    """
    with a_bench(from_blanks=from_blanks) as bench:
        with launchers_changed(statements):
            bench.do(bench.launcher.start())
        yield bench


@contextlib.contextmanager
def launchers_changed(statements: str) -> Iterator[None]:
    """Every launcher that is started in the block runs these statements first."""
    plain = launcher_client._BOOTSTRAP
    changed = f"from sandboxd.isolation import init, launcher, seccomp; {statements}; "
    launcher_client._BOOTSTRAP = plain.replace("from sandboxd", changed + "from sandboxd", 1)
    try:
        yield
    finally:
        launcher_client._BOOTSTRAP = plain


ALLOW_ALL_CALLS = "seccomp.build = lambda machine, **_: [seccomp.Instruction(6, 0, 0, 0x7FFF0000)]"


def children_of(pid: int) -> set[int]:
    """Every process below this one, as the host counts them."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path("/proc", name, "stat").read_text(errors="replace")
                parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {pid}
