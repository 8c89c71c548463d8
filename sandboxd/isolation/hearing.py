"""What the service hears from launcher and init, checked: types, bounds and nothing else.

What comes from init may come from a sandbox that has been broken into. It is decoded strictly, never larger than
`INLINE_BYTES`, and comes without descriptors, but for one answer, if it was asked for: `StartedInTerminal` with one, which is
the master of a terminal or closed. The bounds are those of what a job's record can hold.
"""

import array
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from sandboxd.isolation import syscalls
from sandboxd.isolation.protocol import (
    INLINE_BYTES,
    BadMessage,
    Begun,
    Created,
    CreateFailed,
    Done,
    Exited,
    Failed,
    FromInit,
    FromLauncher,
    LauncherReady,
    Loaded,
    NotLoaded,
    NotPlaced,
    NotStarted,
    Ready,
    Started,
    StartedInTerminal,
    Unshared,
)
from sandboxd.isolation.spec import Exit, Unusable

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Words = Annotated[str, msgspec.Meta(max_length=1000)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Errno = Annotated[int, msgspec.Meta(ge=0, le=4095)]
_ExitCode = Annotated[int, msgspec.Meta(ge=0, le=255)]
_SignalNumber = Annotated[int, msgspec.Meta(ge=1, le=64)]

_MASTER_OF_A_TERMINAL = os.makedev(5, 2)
"""Documentation/admin-guide/devices.txt: /dev/ptmx."""
_DEVPTS = 0x1CD1
_ONE_DESCRIPTOR = socket.CMSG_LEN(4)
"""CMSG_SPACE would have room for a second one."""

_FROM_LAUNCHER: dict[str, tuple[type[FromLauncher], Any]] = {
    "Unshared": (Unshared, tuple[()]),
    "LauncherReady": (LauncherReady, tuple[bool]),
    "Created": (Created, tuple[_Count, _Count]),
    "CreateFailed": (CreateFailed, tuple[_Count, _Words, _Words]),
}
_Exit = tuple[_Seconds, _ExitCode | None, _SignalNumber | None, _Seconds, _Seconds, _Count, bool]


def _not_started(command: int, why: tuple[str, int]) -> NotStarted:
    return NotStarted(command, Unusable(*why))


def _exited(command: int, fields: tuple[Any, ...]) -> Exited:
    return Exited(command, Exit(*fields))


_FROM_INIT: dict[str, tuple[Callable[..., FromInit], Any]] = {
    "Begun": (Begun, tuple[()]),
    "Ready": (Ready, tuple[()]),
    "Failed": (Failed, tuple[_Words, _Words]),
    "Loaded": (Loaded, tuple[_Count]),
    "NotLoaded": (NotLoaded, tuple[_Count, _Words, _Words]),
    "Started": (Started, tuple[_Count, _Seconds]),
    "StartedInTerminal": (StartedInTerminal, tuple[_Count, _Seconds]),
    "NotStarted": (_not_started, tuple[_Count, tuple[_Words, _Errno]]),
    "Exited": (_exited, tuple[_Count, _Exit]),
    "NotPlaced": (NotPlaced, tuple[_Count, _Errno]),
    "Done": (Done, tuple[_Count, _Count]),
}
"""Name to what makes the message, and the types of its fields."""


def from_launcher(encoded: bytes) -> FromLauncher:
    """A message of the launcher. Raises BadMessage."""
    message: FromLauncher = _decode(encoded, _FROM_LAUNCHER)
    return message


def from_init(encoded: bytes) -> FromInit:
    """A message of init. Raises BadMessage."""
    message: FromInit = _decode(encoded, _FROM_INIT)
    return message


def receive_from_init(
    channel: socket.socket, *, terminal_due: bool = False
) -> tuple[FromInit, int | None]:
    """Receive one message from a sandbox, inline only, and the master of a terminal with the one that brings it.

    Without `terminal_due` the kernel drops whatever descriptors come; with it there is room for one. Raises EOFError, OSError,
    BadMessage; then no descriptor is left open.
    """
    room = _ONE_DESCRIPTOR if terminal_due else 0
    packet, ancillary, flags, _ = channel.recvmsg(INLINE_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
    descriptor = _descriptor_in(ancillary)
    try:
        if not packet:
            raise EOFError
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or packet[:1] != b"i":
            raise BadMessage("not a message of init")
        message = from_init(packet[1:])
        if isinstance(message, StartedInTerminal):
            _check_terminal(descriptor)
        elif descriptor is not None:
            raise BadMessage("a descriptor that nobody asked for")
        return message, descriptor
    except BaseException:
        if descriptor is not None:
            os.close(descriptor)
        raise


def _descriptor_in(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return descriptors[0] if descriptors else None


def _check_terminal(descriptor: int | None) -> None:
    """Raises BadMessage unless it is the master of a terminal: any other file might be one that leads somewhere."""
    if descriptor is None:
        raise BadMessage("a terminal without its master")
    status = os.fstat(descriptor)
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if mode & os.O_PATH or mode & os.O_ACCMODE != os.O_RDWR:
        raise BadMessage("not opened as a terminal is")
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _MASTER_OF_A_TERMINAL:
        raise BadMessage("not the master of a terminal")
    if syscalls.file_system_type(descriptor) != _DEVPTS:
        raise BadMessage("not of a devpts")


def _decode(encoded: bytes, known: dict[str, tuple[Any, Any]]) -> Any:
    try:
        fields = msgspec.json.decode(encoded, type=list[Any])
        kind, types = known[fields[0]]
        return kind(*msgspec.convert(fields[1:], types))
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise BadMessage(f"{type(error).__name__}: {error}"[:200]) from error
