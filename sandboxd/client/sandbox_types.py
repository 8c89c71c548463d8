"""What the client gives back of sandboxes: their records, how commands in them ended, files."""

from datetime import datetime

import msgspec

from sandboxd.client.types import Bytes, StreamInfo, bytes_of
from sandboxd.jobs import ExitStatus, JobError, Reason, State, Stream, Usage


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One sandbox as the service tells it."""

    id: str
    state: str
    """`creating`, `running`, `paused` or `ended`."""
    reason: str
    message: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    image: str
    image_digest: str | None = None
    env: dict[str, str] = {}
    limits: dict[str, int | float] = {}
    labels: dict[str, str] = {}
    idle_seconds: float
    ttl_seconds: float
    execs: int = 0
    usage: Usage | None = None


class SandboxPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the list of sandboxes, newest first."""

    data: list[SandboxRecord]
    next_cursor: str | None = None


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a command in a sandbox ended."""

    id: str
    state: State
    reason: Reason
    exit: ExitStatus | None = None
    usage: Usage | None = None
    streams: dict[Stream, StreamInfo] = {}
    error: JobError | None = None
    stdout_field: str | Bytes = msgspec.field(name="stdout", default="")
    stderr_field: str | Bytes = msgspec.field(name="stderr", default="")

    @property
    def stdout(self) -> bytes:
        """Standard output: the first `streams["stdout"].inline_bytes` of it."""
        return bytes_of(self.stdout_field)

    @property
    def stderr(self) -> bytes:
        """Standard error, like `stdout`."""
        return bytes_of(self.stderr_field)

    @property
    def text(self) -> str:
        """Standard output as text; what is not UTF-8 is shown as U+FFFD."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def exit_code(self) -> int | None:
        """The command's exit code; None if it did not exit by itself."""
        return self.exit.code if self.exit is not None else None


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a directory in a sandbox."""

    name: str
    kind: str
    size_bytes: int
    mode: str
    modified_at: datetime
