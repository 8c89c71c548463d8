"""What the service hears from launcher and init, checked: types, bounds and nothing else.

What comes from init may come from a sandbox that has been broken into. It is decoded strictly, never larger than
`INLINE_BYTES`, and never followed by descriptors. The bounds are those of what a job's record can hold.
"""

import socket
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from sandboxd.isolation.protocol import (
    INLINE_BYTES,
    BadMessage,
    Created,
    CreateFailed,
    Done,
    Exited,
    Failed,
    FromInit,
    FromLauncher,
    LauncherReady,
    NotPlaced,
    NotStarted,
    Ready,
    Started,
    Unshared,
)
from sandboxd.isolation.spec import Exit, Unusable

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Words = Annotated[str, msgspec.Meta(max_length=1000)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Errno = Annotated[int, msgspec.Meta(ge=0, le=4095)]
_ExitCode = Annotated[int, msgspec.Meta(ge=0, le=255)]
_SignalNumber = Annotated[int, msgspec.Meta(ge=1, le=64)]

_FROM_LAUNCHER: dict[str, tuple[type[FromLauncher], Any]] = {
    "Unshared": (Unshared, tuple[()]),
    "LauncherReady": (LauncherReady, tuple[()]),
    "Created": (Created, tuple[_Count, _Count]),
    "CreateFailed": (CreateFailed, tuple[_Count, _Words, _Words]),
}
_Exit = tuple[_Seconds, _ExitCode | None, _SignalNumber | None, _Seconds, _Seconds, _Count, bool]


def _not_started(command: int, why: tuple[str, int]) -> NotStarted:
    return NotStarted(command, Unusable(*why))


def _exited(command: int, fields: tuple[Any, ...]) -> Exited:
    return Exited(command, Exit(*fields))


_FROM_INIT: dict[str, tuple[Callable[..., FromInit], Any]] = {
    "Ready": (Ready, tuple[()]),
    "Failed": (Failed, tuple[_Words, _Words]),
    "Started": (Started, tuple[_Count, _Seconds]),
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


def receive_from_init(channel: socket.socket) -> FromInit:
    """Receive one message from a sandbox: inline only, no descriptors.

    Raises EOFError, OSError, BadMessage.
    """
    packet, _, flags, _ = channel.recvmsg(INLINE_BYTES + 1)
    if not packet:
        raise EOFError
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or packet[:1] != b"i":
        raise BadMessage("not a message of init")
    return from_init(packet[1:])


def _decode(encoded: bytes, known: dict[str, tuple[Any, Any]]) -> Any:
    try:
        fields = msgspec.json.decode(encoded, type=list[Any])
        kind, types = known[fields[0]]
        return kind(*msgspec.convert(fields[1:], types))
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise BadMessage(f"{type(error).__name__}: {error}"[:200]) from error
