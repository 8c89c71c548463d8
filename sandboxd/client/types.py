"""What the client gives back: jobs and their parts, pieces of logs, and errors that carry the service's problem."""

import base64
from datetime import datetime
from typing import Any

import msgspec

from sandboxd.errors import SandboxdError
from sandboxd.jobs import (
    TERMINAL,
    Changes,
    Denied,
    ExitStatus,
    JobError,
    Reason,
    State,
    Stream,
    Usage,
    Verdict,
)


class Bytes(msgspec.Struct, frozen=True):
    """Output that is not UTF-8, as JSON carries it."""

    base64: str


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a stream is kept, and how much of it came with the job."""

    size_bytes: int = 0
    inline_bytes: int = 0
    truncated: bool = False
    """The job wrote more than was kept."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """What a queued job waits for."""

    for_: str = msgspec.field(name="for")
    position: int | None = None
    expected_start_at: datetime | None = None
    """As the last jobs went; a guess, not a promise."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where what was printed is first not what was expected."""

    line: int
    expected: str
    printed: str


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended and what it wrote: of a job, a step, an input, or one in a sandbox."""

    exit: ExitStatus | None = None
    usage: Usage | None = None
    error: JobError | None = None
    streams: dict[Stream, StreamInfo] = {}
    stdout_field: str | Bytes = msgspec.field(name="stdout", default="")
    stderr_field: str | Bytes = msgspec.field(name="stderr", default="")

    @property
    def stdout(self) -> bytes:
        """Standard output, unharmed: the first `streams["stdout"].inline_bytes` of it."""
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
        """The command's exit code; None if it did not exit by itself, or has not yet."""
        return self.exit.code if self.exit is not None else None


class Run(Ended, frozen=True, kw_only=True):
    """How a command ended: a step's, or one of its inputs'. Without a state it has not run."""

    name: str | None = None
    state: State | None = None
    reason: Reason | None = None
    verdict: Verdict | None = None
    difference: Difference | None = None
    started_at: datetime | None = None


class Step(Run, frozen=True, kw_only=True):
    """A step of a job."""

    command: tuple[str, ...]
    continue_on_failure: bool = False
    inputs: tuple[Run, ...] = ()
    accepted: int | None = None
    """How many inputs ended well and as expected."""


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a job left and that is kept."""

    path: str
    """Relative to the working directory, or absolute where it is not below that."""
    size_bytes: int
    sha256: str
    mode: str


class PassedOver(msgspec.Struct, frozen=True, kw_only=True):
    """What matched and is not kept, and why."""

    path: str
    reason: str


class Job(Ended, frozen=True, kw_only=True):
    """One job as the service tells it. What is not known (yet) is None or empty.

    Fields that a newer service adds are ignored. `read_log` has all output, `stdout` its first part.
    """

    id: str
    state: State
    reason: Reason
    attempt: int = 0
    image: str
    pull: str = ""
    command: tuple[str, ...]
    """What the image says itself is known when the job has ended."""
    steps: tuple[Step, ...] = ()
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    limits: dict[str, int | float | None] = {}
    runtime: str = "native"
    priority: int = 0
    cpuset: str | None = None
    stop_signal: str | None = None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    image_digest: str | None = None
    artifacts: tuple[Artifact, ...] = ()
    artifacts_passed_over: tuple[PassedOver, ...] = ()
    changes: Changes | None = None
    enforcement: dict[str, Any] = {}
    denied: tuple[Denied, ...] = ()
    kept_sandbox: str | None = None
    """Id of the sandbox of a job that failed, paused and kept for a while."""
    waiting: Waiting | None = None
    cancel_requested: bool = False
    retried_from: str | None = None
    request_id: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended; nothing about it changes any more."""
        return self.state in TERMINAL


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the list of jobs, newest first."""

    data: list[Job]
    next_cursor: str | None = None
    has_more: bool = False


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What a job had at one moment. None: not counted on that host."""

    time: datetime
    cpu_seconds: float | None = None
    """Used so far, by all processes together."""
    memory_bytes: int | None = None
    pids: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    cpu_pressure_seconds: float | None = None
    """In which at least one of its processes waited for a CPU so far, as the next two."""
    memory_pressure_seconds: float | None = None
    io_pressure_seconds: float | None = None
    cpu_full_pressure_seconds: float | None = None
    """In which all of them that were not asleep waited, as the next two."""
    memory_full_pressure_seconds: float | None = None
    io_full_pressure_seconds: float | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a job's state."""

    seq: int
    time: datetime
    state: State
    reason: Reason
    attempt: int = 0
    message: str | None = None


class LogChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a job's output, in order of arrival."""

    stream: Stream
    time: datetime
    offset: int
    """Where it starts in the merged log, in bytes."""
    text: str | None = msgspec.field(name="data", default=None)
    base64: str | None = None

    @property
    def data(self) -> bytes:
        """The bytes as the command wrote them."""
        return bytes_of(self.text or "" if self.base64 is None else Bytes(self.base64))


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image that jobs can name."""

    name: str
    digest: str
    size_bytes: int
    created_at: datetime
    source: str


class LayerProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a layer of an image is that is pulled or pushed."""

    digest: str
    done_bytes: int
    size_bytes: int
    cached: bool = False
    """The service, or the registry, had it before."""


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the author of an image wants it run."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: dict[str, str] = {}
    user: str = ""
    workdir: str = ""
    stop_signal: str = ""
    labels: dict[str, str] = {}


class ImageLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer as its registry has it."""

    digest: str
    size_bytes: int
    media_type: str = ""


class ImageDetail(Image, frozen=True, kw_only=True):
    """An image with what it is made of."""

    last_used_at: datetime | None = None
    config_digest: str | None = None
    config: ImageConfig | None = None
    """None: it says nothing of how it is run."""
    layers: tuple[ImageLayer, ...] = ()


class HistoryStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of how an image was made, in its author's words."""

    created: str | None = None
    """As the author wrote it."""
    created_by: str = ""
    comment: str = ""
    layer: str | None = None
    """Digest of the layer it made; None: none."""
    size_bytes: int = 0
    """Of that layer, as it is kept."""


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry has of an image now."""

    reference: str
    digest: str
    size_bytes: int


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed of images."""

    images: tuple[str, ...] = ()
    """Their names."""
    trees: int = 0
    blobs: int = 0
    freed_bytes: int = 0
    not_removed: int = 0
    """Leftovers that could not be removed now."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key, without its secret."""

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    quotas: dict[str, Any] | None = None
    """Its own, besides its tenant's."""


class NewKey(Key, frozen=True, kw_only=True):
    """A key as made: its text is shown only now."""

    key: str


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a request: where (in its body or its query) and what."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None

    def __str__(self) -> str:
        place = self.pointer or self.parameter
        return f"{place}: {self.detail}" if place else self.detail


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal (RFC 9457) as the service worded it."""

    status: int
    title: str = ""
    detail: str = ""
    code: str = "unknown"
    """A stable word for programs."""
    request_id: str | None = None
    """By which the service's log has it."""
    errors: tuple[Fault, ...] = ()
    retry_after_seconds: float | None = None


class ClientError(SandboxdError):
    """Root of what the client raises."""


class ConnectionFailed(ClientError):
    """There is no service there, or the connection to it broke."""


class IncompleteFile(ClientError):
    """A file that was downloaded is not what the service has."""


class NotTheService(ClientError):
    """Something answered, but not as sandboxd does."""


class WaitTimedOut(ClientError):
    """The job had not ended when the caller's patience did. It goes on."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"{job.id} is still {job.state}")
        self.job = job


class RequestRefused(ClientError):
    """The service said no; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        sentence = problem.detail or problem.title or f"HTTP status {problem.status}"
        # A refusal with one reason may have it in its sentence already.
        faults = (str(fault) for fault in problem.errors if fault.detail not in sentence)
        super().__init__("\n  ".join([sentence, *faults]))
        self.problem = problem

    @property
    def code(self) -> str:
        """A stable word for programs."""
        return self.problem.code

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Everything that is wrong with the request."""
        return self.problem.errors

    @property
    def request_id(self) -> str | None:
        """By which the service's log has it."""
        return self.problem.request_id


class KeyRefused(RequestRefused):
    """No key, a wrong one, or one without the scope (401, 403)."""


class NotFound(RequestRefused):
    """It does not exist, or belongs to another tenant (404)."""


class Conflict(RequestRefused):
    """The state of the thing does not allow it (409, 412)."""


class InvalidRequest(RequestRefused):
    """The request is wrong; `faults` says where (400, 413, 415, 422, …)."""


class Unavailable(RequestRefused):
    """Not now: too many requests, a full queue, a service that stops (429, 503)."""


class ServiceFault(RequestRefused):
    """The service failed (500 and the like); `request_id` finds it in its log."""


def bytes_of(field: str | Bytes) -> bytes:
    return field.encode() if isinstance(field, str) else base64.b64decode(field.base64)
