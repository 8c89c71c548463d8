"""The values of sandboxes that live long: what was asked for, where one stands, how it ended."""

import enum

import msgspec

from sandboxd.jobs import PullPolicy, Usage
from sandboxd.quotas.limits import Limits


class SandboxState(enum.StrEnum):
    """Where a sandbox stands. The words are those in SQL and in JSON."""

    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


class SandboxReason(enum.StrEnum):
    """Why a sandbox is in its state."""

    REQUESTED = "requested"
    CREATED = "created"
    JOB_FAILED = "job_failed"
    """It was a job's, which failed, and is kept for its owner to look into."""
    PAUSED_BY_CLIENT = "paused_by_client"
    RESUMED_BY_CLIENT = "resumed_by_client"
    DELETED = "deleted"
    IDLE_SECONDS = "idle_seconds"
    TTL_SECONDS = "ttl_seconds"
    MEMORY = "memory"
    """The kernel killed it because of its memory limit (cgroup v2; on v1 a single command dies)."""
    INIT_DIED = "init_died"
    """Its first process is gone and nobody here ended it."""
    CREATE_FAILED = "create_failed"
    SHUTDOWN = "shutdown"
    SERVICE_LOST = "service_lost"
    """The service died, and it with the service."""


class SandboxPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for, checked and with every default filled in."""

    image: str
    pull: PullPolicy = PullPolicy.MISSING
    env: dict[str, str] = {}
    """For every command in it, below what the command itself brings."""
    workdir: str | None = None
    user: tuple[int, int] | None = None
    limits: Limits
    """`wall_seconds` and `output_bytes` are those of a command that asks for nothing else. Nothing limits `cpu_seconds` here."""
    labels: dict[str, str] = {}
    idle_seconds: float
    ttl_seconds: float


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One sandbox as the record has it. Times are Unix time in seconds, None where not yet."""

    id: str
    tenant: str
    plan: SandboxPlan
    state: SandboxState
    reason: SandboxReason
    message: str | None = None
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    image_digest: str | None = None
    usage: Usage | None = None
    """Of all its commands together, known at the end."""
    execs: int = 0
    """Commands that were started in it, known at the end."""
    request_id: str | None = None


class SandboxPage(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a list; `next_cursor` is None at its end."""

    items: list[SandboxRecord]
    next_cursor: str | None
