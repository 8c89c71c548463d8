"""Messages between service, launcher and init: msgpack over SOCK_SEQPACKET, descriptors by SCM_RIGHTS.

Each message is typed and bounded. What comes from init may come from a sandbox that has been broken into: it is decoded
strictly, never larger than `INLINE_BYTES`, and never followed by descriptors that were not expected.
"""

import array
import mmap
import os
import socket
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec

from sandboxd.isolation.spec import Command, SandboxSpec

INLINE_BYTES = 64 * 2**10
"""A larger message travels in a memfd: a datagram has to fit the socket's buffer."""
MESSAGE_BYTES = 8 * 2**20
MOST_DESCRIPTORS = 8


# Bounds of what init says: numbers that the record of a job can hold, words that a log can hold.
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Words = Annotated[str, msgspec.Meta(max_length=1000)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Message(msgspec.Struct, tag=True, array_like=True):
    """A message: its name and its fields as an array."""


# service to launcher


class MapYourself(Message):
    """Answer to `Unshared`: the maps of U1 are written."""

    id_count: int
    """Subordinate ids mapped from 1 upwards; 0 with the single-id map."""


class Create(Message):
    """Clone a sandbox. With CLONE_INTO_CGROUP where a descriptor of a cgroup v2 directory comes along."""

    number: int
    spec: SandboxSpec
    join_files: tuple[str, ...]
    """`tasks` files (cgroup v1) that init, single-threaded, writes itself into before anything else."""
    into_cgroup: bool
    show_cgroup: bool
    """Mount cgroup2 (read-only) at /sys/fs/cgroup inside."""


# launcher to service


class Unshared(Message):
    """The launcher is in U1 and waits for its maps."""


class LauncherReady(Message):
    pass


class Created(Message):
    """Comes with two descriptors: the socket to init, and a pidfd of it."""

    number: int
    pid: int


class CreateFailed(Message):
    number: int
    step: str
    reason: str


# init to service


class Ready(Message):
    """All walls stand."""


class Failed(Message):
    """A wall or a request could not be done: step and reason."""

    step: _Words
    reason: _Words


class Started(Message):
    """The command runs."""

    at: _Seconds
    """time.monotonic(), which is one clock for all processes of the host."""


class NotStarted(Message):
    """The command cannot be executed: the user's fault, as exec(3) tells it."""

    what: _Words
    """`command` or `workdir`."""
    errno: Annotated[int, msgspec.Meta(ge=0, le=4095)]


class Exited(Message):
    at: _Seconds
    code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None
    signal: Annotated[int, msgspec.Meta(ge=1, le=64)] | None
    cpu_user_seconds: _Seconds
    cpu_system_seconds: _Seconds
    max_rss_bytes: _Count


class Done(Message):
    """A request other than a command is finished."""

    entries: _Count
    size_bytes: _Count


# service to init


class Run(Message):
    """Comes with three descriptors: standard input, output and error."""

    command: Command


class Signal(Message):
    """To the command's process group."""

    number: int


class Unpack(Message):
    """Comes with one descriptor: a tar archive, unpacked at `/` (a sandbox with a writable root)."""

    most_bytes: int
    most_entries: int
    keep_owners: bool
    """False in single-id mode, where there is only one owner."""


class Empty(Message):
    """Remove everything below `/` (a sandbox with a writable root)."""


ToLauncher = MapYourself | Create
FromLauncher = Unshared | LauncherReady | Created | CreateFailed
ToInit = Run | Signal | Unpack | Empty
FromInit = Ready | Failed | Started | NotStarted | Exited | Done

_encoder = msgspec.msgpack.Encoder()
to_launcher: msgspec.msgpack.Decoder[ToLauncher] = msgspec.msgpack.Decoder(ToLauncher)
from_launcher: msgspec.msgpack.Decoder[FromLauncher] = msgspec.msgpack.Decoder(FromLauncher)
to_init: msgspec.msgpack.Decoder[ToInit] = msgspec.msgpack.Decoder(ToInit)
from_init: msgspec.msgpack.Decoder[FromInit] = msgspec.msgpack.Decoder(FromInit)

M = TypeVar("M")


class DescriptorsLost(msgspec.DecodeError):
    """The message came, but not all of its descriptors: this process has as many open as it may."""

    def __init__(self, message: object) -> None:
        super().__init__("no room for the descriptors that came")
        self.message = message


def send(channel: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message. The descriptors stay open here.

    Raises OSError; BlockingIOError if the peer does not read.
    """
    encoded = _encoder.encode(message)
    if len(encoded) <= INLINE_BYTES:
        socket.send_fds(channel, [b"i", encoded], list(descriptors))
        return
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.write(memory, encoded)
        socket.send_fds(channel, [b"m"], [memory, *descriptors])
    finally:
        os.close(memory)


def receive(channel: socket.socket, decoder: msgspec.msgpack.Decoder[M]) -> tuple[M, list[int]]:
    """Receive one message and its descriptors from a peer that is trusted as far as sizes go.

    Raises EOFError when the peer has closed, OSError, msgspec.DecodeError (DescriptorsLost).
    """
    packet, descriptors, flags = _receive_packet(channel)
    try:
        if not packet:
            raise EOFError
        if flags & socket.MSG_TRUNC:
            raise msgspec.DecodeError("message too long")
        if packet[:1] == b"m":
            if not descriptors or not 0 < os.fstat(descriptors[0]).st_size <= MESSAGE_BYTES:
                raise msgspec.DecodeError("no message in the descriptor that came")
            with (
                os.fdopen(descriptors.pop(0), "rb") as memory,
                mmap.mmap(memory.fileno(), 0, prot=mmap.PROT_READ) as encoded,
            ):
                message = decoder.decode(encoded)
            if flags & socket.MSG_CTRUNC:
                raise DescriptorsLost(message)
            return message, descriptors
        if packet[:1] != b"i":
            raise msgspec.DecodeError("neither in the message nor in a descriptor")
        message = decoder.decode(memoryview(packet)[1:])
        if flags & socket.MSG_CTRUNC:
            raise DescriptorsLost(message)
        return message, descriptors
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


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


def receive_from_init(channel: socket.socket) -> FromInit:
    """Receive one message from a sandbox: inline only, no descriptors.

    Raises EOFError, OSError, msgspec.DecodeError.
    """
    packet, _, flags, _ = channel.recvmsg(INLINE_BYTES + 1)
    if not packet:
        raise EOFError
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or packet[:1] != b"i":
        raise msgspec.DecodeError("not a message of init")
    return from_init.decode(memoryview(packet)[1:])
