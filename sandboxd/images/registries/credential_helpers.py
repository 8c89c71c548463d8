"""Credential helpers: programs `docker-credential-NAME` that know who somebody is at a registry.

    $ echo ghcr.io | docker-credential-secretservice get
    {"ServerURL": "ghcr.io", "Username": "me", "Secret": "…"}

https://github.com/docker/docker-credential-helpers. Such a program is the operator's and runs as the service does, with no more of
its environment than it needs: none of the service's own variables, which hold secrets of others.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal

import msgspec

from sandboxd.errors import Unavailable
from sandboxd.images.registries.credentials import Credentials

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*", re.ASCII)
_LONGEST_NAME = 64
_SECONDS = 15.0
_MOST_BYTES = 64 * 2**10
_IDENTITY_TOKEN = "<token>"  # noqa: S105 (a word in place of a name)
_NOTHING = b"credentials not found in native keychain"
_OURS = ("SANDBOXD_", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "LISTEN_", "STATE_DIRECTORY")
"""The service's own variables, and what systemd gives to it alone."""


class _Answer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""


def is_helper(name: str) -> bool:
    """Whether a helper can be called so: the name becomes a part of a program's."""
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None


async def ask_helper(name: str, server: str, *, seconds: float = _SECONDS) -> Credentials:
    """What the helper knows of a registry; none if it knows nothing. Raises Unavailable."""
    program = f"docker-credential-{name}"
    path = shutil.which(program) if is_helper(name) else None
    if path is None or not path.startswith("/"):
        raise _failed(program, "is not in the PATH of the service (images.docker_config names it)")
    try:
        async with asyncio.timeout(seconds):
            status, output = await _run(path, server)
    except TimeoutError:
        raise _failed(program, f"said nothing in {seconds:.0f} s") from None
    except OSError as error:
        raise _failed(program, f"cannot be started: {error.strerror}") from error
    if len(output) > _MOST_BYTES:
        raise _failed(program, f"said more than {_MOST_BYTES} bytes")
    if status != 0:
        if _NOTHING in output.lower():
            return Credentials()
        # What it said may be anybody's secret.
        raise _failed(program, f"ended with {status}: `echo {server} | {program} get` shows why")
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _failed(program, "did not answer as a credential helper does") from None
    if answer.username == _IDENTITY_TOKEN:
        return Credentials(identity_token=answer.secret)
    return Credentials(answer.username, answer.secret)


async def _run(path: str, server: str) -> tuple[int, bytes]:
    """Its exit status and, up to a little more than the most that it may say, its output."""
    process = await asyncio.create_subprocess_exec(
        path,
        "get",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.startswith(_OURS)},
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101 (for the type checker)
    assert process.stdout is not None  # noqa: S101
    try:
        with contextlib.suppress(ConnectionError):  # It need not read.
            process.stdin.write(f"{server}\n".encode())
            await process.stdin.drain()
        process.stdin.close()
        output = bytearray()
        while len(output) <= _MOST_BYTES and (piece := await process.stdout.read(_MOST_BYTES)):
            output += piece
        if len(output) > _MOST_BYTES:
            return 0, bytes(output)
        return await process.wait(), bytes(output)
    finally:
        if process.returncode is None:
            # With what it started. Of one that has ended that may stay: gpg's agent does.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        # Before it is waited for: asyncio tells of its end only when its pipes have ended, too, and one that is not read does not;
        # and who was started by it may hold the other end for ever.
        process._transport.close()  # type: ignore[attr-defined]
        await process.wait()


def _failed(program: str, reason: str) -> Unavailable:
    return Unavailable(f"{program} {reason}", code="credential_helper_failed")
