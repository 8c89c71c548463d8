"""What a command's words, variables, directory and input must satisfy, whoever's they are in a request."""

import base64
import binascii
from collections.abc import Mapping, Sequence

from sandboxd.api.conversion import pointer_to
from sandboxd.api.schemas import Base64
from sandboxd.errors import Fault

MAX_ARGUMENTS = 4096
MAX_VARIABLES = 4096
MAX_STRING_BYTES = 128 * 2**10 - 1
"""MAX_ARG_STRLEN of execve(2), less the NUL at the end."""
MAX_STRINGS_BYTES = 2**20
"""All arguments and variables: half of Linux's usual ARG_MAX, so that the service's own variables fit too."""
MAX_PATH_BYTES = 4095


def decode_text(value: str | Base64, pointer: str, faults: list[Fault]) -> bytes:
    """The bytes of a text or of base64."""
    if not isinstance(value, Base64):
        return value.encode("utf-8")
    try:
        return base64.b64decode(value.base64, validate=True)
    except (binascii.Error, ValueError):
        detail = "is not base64 (RFC 4648, section 4, with padding)"
        faults.append(Fault(f"{pointer}/base64", detail))
        return b""


def check_command(
    place: str, command: Sequence[str], args: Sequence[str], faults: list[Fault]
) -> None:
    """The members `command` and `args` of the object at `place`."""
    if not command:
        faults.append(Fault(f"{place}/command", "must name a program"))
    elif not command[0]:
        faults.append(Fault(f"{place}/command/0", "is empty: it must name a program"))
    if (count := len(command) + len(args)) > MAX_ARGUMENTS:
        name = "command" if len(command) > MAX_ARGUMENTS else "args"
        detail = f"{count} arguments are over the limit of {MAX_ARGUMENTS}"
        faults.append(Fault(f"{place}/{name}", detail))
        return
    for name, words in (("command", command), ("args", args)):
        for index, word in enumerate(words):
            if "\0" in word:
                detail = "has a NUL, which no argument can hold"
                faults.append(Fault(f"{place}/{name}/{index}", detail))
            elif (size := size_of(word)) > MAX_STRING_BYTES:
                faults.append(Fault(f"{place}/{name}/{index}", too_long(size, MAX_STRING_BYTES)))


def check_environment(place: str, env: Mapping[str, str], faults: list[Fault]) -> None:
    """The environment at `place`."""
    if len(env) > MAX_VARIABLES:
        faults.append(Fault(place, f"{len(env)} variables are over the limit of {MAX_VARIABLES}"))
        return
    for name, value in env.items():
        where = pointer_to(place, name)
        if not name or "=" in name or "\0" in name:
            faults.append(Fault(where, 'a variable\'s name must not be empty nor hold "=" or NUL'))
        elif "\0" in value:
            faults.append(Fault(where, "has a NUL, which no variable can hold"))
        elif (size := size_of(name) + 1 + size_of(value)) > MAX_STRING_BYTES:
            faults.append(Fault(where, too_long(size, MAX_STRING_BYTES)))


def check_sizes(
    place: str, words: Sequence[str], env: Mapping[str, str], faults: list[Fault]
) -> None:
    """Arguments and environment of one command together."""
    size = sum(size_of(word) + 1 for word in words)
    size += sum(size_of(name) + size_of(value) + 2 for name, value in env.items())
    if size > MAX_STRINGS_BYTES:
        detail = f"arguments and environment: {too_long(size, MAX_STRINGS_BYTES)}"
        faults.append(Fault(place, detail))


def check_workdir(place: str, path: str | None, faults: list[Fault]) -> None:
    """The working directory at `place`."""
    if path is None:
        return
    if "\0" in path or not path.startswith("/"):
        faults.append(Fault(place, "must be an absolute path without NUL"))
    elif any(part in (".", "..") for part in path.split("/")):
        faults.append(Fault(place, 'must not have "." or ".." as a part'))
    elif (size := size_of(path)) > MAX_PATH_BYTES:
        faults.append(Fault(place, too_long(size, MAX_PATH_BYTES)))


def size_of(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def too_long(size: int, limit: int) -> str:
    return f"{size} bytes are over the limit of {limit}"
