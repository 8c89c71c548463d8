"""Egress: how a sandbox reaches what it may, and nothing else.

    command ── tap in the sandbox's network namespace ── pasta ── sockets of the host
       │            └─ nftables in the same namespace (`firewall`)
       └── 127.0.0.1:53 in the same namespace ── the service (`resolver`) ── the host's resolvers

pasta(1) is a network stack in an ordinary process: for each connection of the sandbox it opens a socket on the host, as the service's
user. It is started when the command is known (what may be reached is a job's own), counts as the sandbox's in its cgroup,
and dies with the service (parent-death signal) or when the sandbox is done. The namespace belongs to U1, so the
service, which owns U1, may load rules into it by nsenter(1) and nft(8), programs of the host that see nothing of the
sandbox's files; the command, in U2, may neither change nor see them.

Both must stand before the command starts: a sandbox whose rules could not be loaded, or whose pasta did not come up, runs nothing.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sandboxd.errors import SandboxdError, SandboxFailed
from sandboxd.isolation import firewall
from sandboxd.isolation.destinations import Allowed, Bounds, Destination, own_addresses
from sandboxd.isolation.firewall import Traffic
from sandboxd.isolation.sandbox import Sandbox

if TYPE_CHECKING:
    from sandboxd.isolation.resolver import Pin

TOOLS = {"pasta": "passt", "nft": "nftables", "nsenter": "util-linux", "setpriv": "util-linux"}
"""Programs of the host, and the Debian packages that have them."""

_NS_GET_USERNS = 0xB701
"""ioctl_ns(2)"""
_START_SECONDS = 10.0
_MOST_REASON = 500
_MOST_SOCKETS = 1024
"""Of one pasta: connections that one sandbox can have through it, a little less."""
_MOST_EVENT = 2**16
_ADDRESSES = ("-a", "192.0.0.2", "-n", "255.255.255.248", "-g", "192.0.0.1")
"""RFC 7335: addresses for such a translator, never routed and nobody's network."""
_ADDRESSES6 = ("-a", "fd73:616e:6462::2", "-g", "fd73:616e:6462::1")
_QUIET = ("--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra", "-D", "none")
"""By default pasta takes its gateway's address for the host's loopback; the rest nobody asks it for."""
_NO_PORTS = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")
"""By default it forwards ports that anybody listens at, both ways."""


class Allowance(NamedTuple):
    """How much may go through, received and sent together."""

    most_bytes: int
    on_used_up: Callable[[], None]
    """Called when more was to go through. It is not called for traffic that stops before anybody heard of it."""


class Egress:
    """What gives sandboxes their way out, within the operator's bounds."""

    def __init__(self, bounds: Bounds) -> None:
        """Raises SandboxFailed where the host lacks a program."""
        from sandboxd.isolation import resolver  # noqa: F401 (dnspython takes its time: not at the first job)

        self.bounds = bounds
        self._tools = {name: find_tool(name) for name in (*TOOLS, "prlimit")}

    async def open(
        self,
        sandbox: Sandbox,
        destinations: Sequence[Destination],
        allowance: Allowance,
        adopt: Callable[[int], None],
    ) -> "Connection":
        """Connect a sandbox that has not run anything yet. `adopt` puts a process, by its pid, into the sandbox's cgroup.

        Raises SandboxFailed; then nothing is left of it.
        """
        try:
            allowed = Allowed(tuple(destinations), self.bounds, own_addresses())
            if not sandbox.alive:
                raise SandboxFailed("open network", "the sandbox ended")
            connection = Connection(self._tools, sandbox, allowed, allowance)
        except (OSError, ValueError) as error:
            raise SandboxFailed("open network", str(error)) from error
        try:
            async with asyncio.timeout(_START_SECONDS):
                await connection.start(adopt)
        except TimeoutError:
            await connection.abandon()
            raise SandboxFailed("start pasta", f"not up after {_START_SECONDS:.0f} s") from None
        except BaseException:
            await connection.abandon()
            raise
        return connection


class Connection:
    """One sandbox's way out: its firewall, its pasta, its resolver."""

    def __init__(
        self, tools: dict[str, str], sandbox: Sandbox, allowed: Allowed, allowance: Allowance
    ) -> None:
        from sandboxd.isolation.resolver import Resolver  # dnspython is large: only who has egress

        self.allowed = allowed
        self._allowance = allowance
        self._tools = tools
        with contextlib.ExitStack() as undo:
            namespace, resolver, events = sandbox.network
            self._network = fcntl.fcntl(namespace, fcntl.F_DUPFD_CLOEXEC, 3)
            undo.callback(os.close, self._network)
            self._owner = fcntl.ioctl(self._network, _NS_GET_USERNS)
            undo.callback(os.close, self._owner)
            os.set_inheritable(self._owner, False)
            self._events = undo.enter_context(socket.socket(fileno=os.dup(events)))
            self._asked = socket.socket(fileno=os.dup(resolver))
            self._closing = undo.pop_all()
        self._closing.callback(self._asked.close)
        self._resolver = Resolver(allowed, self._pin)
        self._pasta: asyncio.subprocess.Process | None = None

    async def start(self, adopt: Callable[[int], None]) -> None:
        """Load the rules and start pasta. Raises SandboxFailed."""
        await self._load(firewall.rules(self.allowed, self._allowance.most_bytes))
        self._hear_of_quota()
        await self._start_pasta(adopt)
        await self._resolver.start(self._asked)

    async def close(self) -> Traffic:
        """End it, whether or not the sandbox still runs, and tell what went through. Raises SandboxFailed."""
        try:
            listing = await self._nft("--json", "list", "table", *firewall.TABLE.split())
            counted = firewall.traffic(listing)
        except ValueError as error:
            raise SandboxFailed("read counters", str(error)) from error
        finally:
            await self.abandon()
        return counted._replace(refused=(*self._resolver.refused, *counted.refused))

    async def abandon(self) -> None:
        """End it without a look at the counters."""
        self._resolver.close()
        if self._pasta is not None and self._pasta.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._pasta.kill()
            await self._pasta.wait()
        self._closing.close()

    def _hear_of_quota(self) -> None:
        """Tell when the kernel says that the quota is used up: what is more is dropped by then, and for good."""
        self._events.setblocking(False)
        self._heard()  # What it has told so far is that the rules were loaded.
        loop = asyncio.get_running_loop()

        def hear() -> None:
            if any(map(firewall.tells_of_quota, self._heard())):
                self._allowance.on_used_up()

        loop.add_reader(self._events, hear)
        self._closing.callback(loop.remove_reader, self._events)

    def _heard(self) -> list[bytes]:
        """What the kernel tells of the rules. Should it have been too much at once, the end of the job sees what was stopped."""
        heard = []
        with contextlib.suppress(OSError):
            while True:
                heard.append(self._events.recv(_MOST_EVENT))
        return heard

    async def _pin(self, pins: "Sequence[Pin]") -> None:
        try:
            await self._load(firewall.pin(pins))
        except SandboxdError as error:
            raise OSError(str(error)) from error

    async def _load(self, script: str) -> None:
        """Carry out a script, whole or not at all. Raises SandboxFailed."""
        memory = os.memfd_create("rules", os.MFD_CLOEXEC)
        try:
            os.write(memory, script.encode())
            os.lseek(memory, 0, os.SEEK_SET)
            await self._nft("--file", "-", script=memory)
        finally:
            os.close(memory)

    async def _nft(self, *words: str, script: int = asyncio.subprocess.DEVNULL) -> str:
        """What nft(8) prints, run in the sandbox's network namespace. Raises SandboxFailed."""
        try:
            nft = await asyncio.create_subprocess_exec(
                self._tools["nsenter"],
                f"--user=/proc/self/fd/{self._owner}",
                f"--net=/proc/self/fd/{self._network}",
                "--preserve-credentials",
                self._tools["nft"],
                *words,
                env={},
                cwd="/",
                stdin=script,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=[self._owner, self._network],
            )
            out, err = await nft.communicate()
        except OSError as error:
            raise SandboxFailed("start nft", str(error)) from error
        if nft.returncode != 0:
            reason = err.decode(errors="replace")[:_MOST_REASON].strip()
            raise SandboxFailed("nft", reason or f"exit status {nft.returncode}")
        return out.decode()

    async def _start_pasta(self, adopt: Callable[[int], None]) -> None:
        """Returns when the sandbox's interface is up: pasta then writes its pid where `-P` says."""
        ready_end, pasta_end = os.pipe()
        try:
            self._pasta = pasta = await asyncio.create_subprocess_exec(
                *self._pasta_command(pasta_end),
                env={},
                cwd="/",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=[self._owner, self._network, pasta_end],
            )
        except OSError as error:
            os.close(ready_end)
            raise SandboxFailed("start pasta", str(error)) from error
        finally:
            os.close(pasta_end)
        if not await _read_end(ready_end):
            told = await pasta.stderr.read(_MOST_REASON) if pasta.stderr else b""
            reason = told.decode(errors="replace").strip()
            raise SandboxFailed("start pasta", reason or "it ended")
        adopt(pasta.pid)

    def _pasta_command(self, ready: int) -> list[str]:
        return [
            *(self._tools["setpriv"], "--pdeathsig", "KILL"),
            *(self._tools["prlimit"], f"--nofile={_MOST_SOCKETS}", "--core=0"),
            *(self._tools["pasta"], "--foreground", "--quiet", "--config-net", "-I", "egress0"),
            *_QUIET,
            *_NO_PORTS,
            *_ADDRESSES,
            *_ADDRESSES6,
            *("--pid", f"/proc/self/fd/{ready}"),
            *("--userns", f"/proc/self/fd/{self._owner}"),
            *("--netns", f"/proc/self/fd/{self._network}"),
        ]


async def _read_end(descriptor: int) -> bytes:
    """The first bytes from a pipe, none at its end. The descriptor is closed."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    try:
        return await reader.read(64)
    finally:
        transport.close()


def find_tool(name: str) -> str:
    """The path of a program of the host. Raises SandboxFailed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise SandboxFailed(
            "find tools", f"{name} not found: apt-get install {TOOLS.get(name, name)}"
        )
    return path
