"""What the client gives back of sandboxes: their records, how commands in them ended, files."""

from datetime import datetime

import msgspec

from sandboxd.client.types import Ended
from sandboxd.jobs import Reason, State, Usage


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


class ExecResult(Ended, frozen=True, kw_only=True):
    """How a command in a sandbox ended."""

    id: str
    state: State
    reason: Reason


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a directory in a sandbox."""

    name: str
    kind: str
    size_bytes: int
    mode: str
    modified_at: datetime
