"""Messages between service, launcher and init: JSON arrays over SOCK_SEQPACKET, descriptors by SCM_RIGHTS.

Launcher and init take what comes from above as it is: the service is trusted. What the service hears from below may come from
a sandbox that has been broken into; `hearing` checks it. Only the standard library is used here, and little of it: every
page that the launcher has is copied into each sandbox.
"""

import array
import json
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from sandboxd.isolation.spec import (
    Command,
    Exit,
    File,
    Machine,
    NetworkMode,
    OciRuntime,
    SandboxSpec,
    TerminalSize,
    Then,
    Unusable,
    Used,
)

INLINE_BYTES = 64 * 2**10
"""A larger message travels in a memfd: a datagram has to fit the socket's buffer."""
MESSAGE_BYTES = 8 * 2**20
MOST_DESCRIPTORS = 8
# As plain numbers: each `&` of an enumeration makes a member of it, out of pages that would not be touched otherwise.
_MSG_TRUNC, _MSG_CTRUNC = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)


# service to launcher


class MapYourself(NamedTuple):
    """Answer to `Unshared`: the maps of U1 are written."""

    id_count: int
    """Subordinate ids mapped from 1 upwards; 0 with the single-id map."""


class Create(NamedTuple):
    """Clone a sandbox. With CLONE_INTO_CGROUP where a descriptor of a cgroup v2 directory comes along."""

    number: int
    spec: SandboxSpec
    """With `BLANK` it builds what all have alike, tells that it is `Begun`, and waits for `Shape`."""
    join_files: tuple[str, ...]
    """`tasks` files (cgroup v1) that init, single-threaded, writes itself into before anything else."""
    into_cgroup: bool
    show_cgroup: bool
    """Mount cgroup2 (read-only) at /sys/fs/cgroup inside."""


# launcher to service


class Unshared(NamedTuple):
    """The launcher is in U1 and waits for its maps."""


class LauncherReady(NamedTuple):
    """It can clone sandboxes now."""

    own_clocks: bool
    """Whether their commands are in a time namespace."""


class Created(NamedTuple):
    """Comes with two descriptors: the socket to init, and a pidfd of it.

    With egress three more: of its network namespace, and of two sockets in it, the resolver's and the firewall's.
    """

    number: int
    pid: int


class CreateFailed(NamedTuple):
    number: int
    step: str
    reason: str


# init to service


class Begun(NamedTuple):
    """A blank is ready for its shape."""


class Ready(NamedTuple):
    """All walls stand."""


class Failed(NamedTuple):
    """A wall or a request could not be done: step and reason."""

    step: str
    reason: str


class Loaded(NamedTuple):
    """A command's program is in memory and held before its first instruction, until `Go` (with an OCI runtime only)."""

    command: int


class NotLoaded(NamedTuple):
    """The OCI runtime failed: what it was to do, and what it says. The sandbox ends."""

    command: int
    step: str
    reason: str


class Started(NamedTuple):
    """A command runs."""

    command: int
    at: float
    """time.monotonic(), which is one clock for all processes of the host."""


class StartedInTerminal(NamedTuple):
    """As Started, of a command that was to have a terminal. Comes with one descriptor: its master."""

    command: int
    at: float


class NotStarted(NamedTuple):
    """A command cannot run. With `Then.END` the sandbox ends."""

    command: int
    why: Unusable


class Exited(NamedTuple):
    """A command is over, and what `Then` says of the sandbox is done."""

    command: int
    exit: Exit


class NotPlaced(NamedTuple):
    """A file cannot be made; those before it were."""

    number: int
    """Its place in the request, from 0 on."""
    errno: int


class Done(NamedTuple):
    """A request other than a command is finished."""

    entries: int
    size_bytes: int


# service to init


class Shape(NamedTuple):
    """To a blank, once: what it is to become. It answers as any other sandbox does when it stands."""

    spec: SandboxSpec


class Run(NamedTuple):
    """Comes with three descriptors, standard input, output and error; with none if it is to have a terminal."""

    number: int
    """Of the command, by which both sides call it from then on."""
    command: Command
    then: Then
    terminal: TerminalSize | None = None


class Signal(NamedTuple):
    """To the process group of a command."""

    command: int
    number: int


class Go(NamedTuple):
    """Answer to `Loaded`: the limits are set."""

    command: int


class Show(NamedTuple):
    """What the commands are to see of the machine, also those that run already. None: what they saw before."""

    machine: Machine | None
    used: Used | None


class Place(NamedTuple):
    """Comes with one descriptor: the contents of the files, one after the other in their order."""

    files: tuple[File, ...]


class Collect(NamedTuple):
    """Comes with one descriptor, to which what matches is written (see `files`)."""

    base: str
    """Absolute path; where relative patterns start."""
    patterns: tuple[str, ...]
    most_bytes: int
    most_entries: int


class Changes(NamedTuple):
    """Comes with one descriptor, to which the entries of the writable layer are written (see `scratch`)."""

    most_entries: int


class PackChanges(NamedTuple):
    """Comes with one descriptor, to which the writable layer is written as the tar archive of an image's layer (see `packing`)."""

    most_bytes: int
    """Of the archive."""
    stop: bool
    """Whether everything else in the sandbox is stopped meanwhile."""


class Look(NamedTuple):
    """Comes with one descriptor, to which what is in a directory is written (see `files`)."""

    path: str
    most_entries: int


class Remove(NamedTuple):
    """A file, or a directory that is empty."""

    path: str


class Read(NamedTuple):
    """Comes with a descriptor for each path, to which the beginning of that file is written; nothing if none can be read."""

    paths: tuple[str, ...]
    most_bytes: int
    """Of each."""


class Unpack(NamedTuple):
    """Comes with one descriptor: a tar archive, unpacked at `/` (a sandbox with a writable root)."""

    most_bytes: int
    most_entries: int
    id_count: int
    """Ids that a file can have as owner, from 0 on; 0 in single-id mode, where there is only one owner."""


class Layer(NamedTuple):
    """Comes with one descriptor: one layer of an image, applied at `/` to what the layers below it have made (see `layers`)."""

    most_bytes: int
    most_entries: int
    id_count: int
    """As of `Unpack`."""
    has_lower: bool
    """Whether there is anything below it."""
    diff_id: str
    """`sha256:…` of the archive, uncompressed."""


class Pack(NamedTuple):
    """Comes with one descriptor, to which all below `/` is written as the tar archive of a layer."""

    most_bytes: int
    """Of the archive."""


class Empty(NamedTuple):
    """Remove everything below `/` (a sandbox with a writable root)."""


ToLauncher = MapYourself | Create
FromLauncher = Unshared | LauncherReady | Created | CreateFailed
OnTree = Unpack | Layer | Pack | Empty
"""What a sandbox with a writable root is for."""
ToInit = (
    Shape
    | Run
    | Go
    | Signal
    | Show
    | Place
    | Collect
    | Changes
    | PackChanges
    | Look
    | Remove
    | Read
    | OnTree
)
FromInit = (
    Begun
    | Ready
    | Failed
    | Loaded
    | NotLoaded
    | Started
    | StartedInTerminal
    | NotStarted
    | Exited
    | NotPlaced
    | Done
)
Message = ToLauncher | FromLauncher | ToInit | FromInit

_FROM_ABOVE: dict[str, Callable[..., ToLauncher | ToInit]] = {
    kind.__name__: kind
    for kind in (
        MapYourself,
        Create,
        Shape,
        Run,
        Go,
        Signal,
        Show,
        Place,
        Collect,
        Changes,
        PackChanges,
        Look,
        Remove,
        Read,
        Unpack,
        Layer,
        Pack,
        Empty,
    )
}

_encode = json.JSONEncoder(separators=(",", ":")).encode

M = TypeVar("M")


class BadMessage(Exception):
    """What came is no message, or not one of those that may come from there."""


class DescriptorsLost(BadMessage):
    """The message came, but not all of its descriptors: this process has as many open as it may."""

    def __init__(self, message: object) -> None:
        super().__init__("no room for the descriptors that came")
        self.message = message


def send(channel: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message. The descriptors stay open here.

    Raises OSError; BlockingIOError if the peer does not read.
    """
    encoded = _encode((type(message).__name__, *message)).encode()
    if len(encoded) <= INLINE_BYTES:
        if descriptors:
            socket.send_fds(channel, [b"i", encoded], list(descriptors))
        else:
            channel.send(b"i" + encoded)
        return
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.write(memory, encoded)
        socket.send_fds(channel, [b"m"], [memory, *descriptors])
    finally:
        os.close(memory)


def receive(channel: socket.socket, decode: Callable[[bytes], M]) -> tuple[M, list[int]]:
    """Receive one message and its descriptors from a peer that is trusted as far as sizes go.

    Raises EOFError when the peer has closed, OSError, BadMessage (DescriptorsLost).
    """
    packet, descriptors, flags = _receive_packet(channel)
    try:
        if not packet:
            raise EOFError
        if flags & _MSG_TRUNC:
            raise BadMessage("message too long")
        if packet[:1] == b"m":
            message = decode(_read_memory(descriptors))
        elif packet[:1] == b"i":
            message = decode(packet[1:])
        else:
            raise BadMessage("neither in the message nor in a descriptor")
        if flags & _MSG_CTRUNC:
            raise DescriptorsLost(message)
        return message, descriptors
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def from_above(encoded: bytes) -> Any:
    """A message of the service, for launcher and init (ToLauncher or ToInit)."""
    name, *fields = json.loads(encoded.decode())
    message = _FROM_ABOVE[name](*map(_tuples, fields))
    if isinstance(message, Create | Shape):
        spec = SandboxSpec(*message.spec)
        runtime = OciRuntime(*spec.runtime) if spec.runtime else None
        spec = spec._replace(network=NetworkMode(spec.network), runtime=runtime)
        return message._replace(spec=spec)
    if isinstance(message, Run):
        size = TerminalSize(*message.terminal) if message.terminal else None
        command = Command(*message.command)
        if command.machine is not None:
            command = command._replace(machine=Machine(*command.machine))
        return Run(message.number, command, Then(message.then), size)
    if isinstance(message, Show):
        return Show(
            Machine(*message.machine) if message.machine else None,
            Used(*message.used) if message.used else None,
        )
    if isinstance(message, Place):
        return Place(tuple([File(*file) for file in message.files]))
    return message


def _tuples(value: Any) -> Any:
    """Lists, all the way down, as the tuples that were sent."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _read_memory(descriptors: list[int]) -> bytes:
    """The content of the first descriptor, which is taken off the list and closed."""
    if not descriptors or not 0 < os.fstat(descriptors[0]).st_size <= MESSAGE_BYTES:
        raise BadMessage("no message in the descriptor that came")
    with (
        os.fdopen(descriptors.pop(0), "rb") as memory,
        mmap.mmap(memory.fileno(), 0, prot=mmap.PROT_READ) as encoded,
    ):
        return encoded[:]


def _receive_packet(channel: socket.socket) -> tuple[bytes, list[int], int]:
    """recvmsg(2) with SCM_RIGHTS. (`socket.recv_fds` loses the flag that closes the descriptors on exec.)"""
    packet, ancillary, flags, _ = channel.recvmsg(
        INLINE_BYTES + 1,
        socket.CMSG_SPACE(4 * MOST_DESCRIPTORS),
        socket.MSG_CMSG_CLOEXEC,
    )
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return packet, descriptors.tolist(), flags
