"""The values passed around: what a client asked for, where it stands, and how it ended."""

import enum
from typing import Any, NamedTuple

import msgspec

from sandboxd.isolation.spec import NATIVE, NetworkMode
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.tenants import Quotas
from sandboxd.steps import Step


class State(enum.StrEnum):
    """Where a job stands. The words are those in SQL and in JSON."""

    QUEUED = "queued"
    RETRYING = "retrying"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    NETWORK_LIMIT = "network_limit"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    ERROR = "error"


WAITING = frozenset({State.QUEUED, State.RETRYING})
ACTIVE = frozenset({State.STARTING, State.RUNNING})
TERMINAL = frozenset(State) - WAITING - ACTIVE


class Reason(enum.StrEnum):
    """Why a job is in its state: one machine-readable word."""

    SUBMITTED = "submitted"
    CLAIMED = "claimed"
    IMAGE_PULL_STARTED = "image_pull_started"
    IMAGE_PULLED = "image_pulled"
    STARTED = "started"
    RETRY = "retry"
    EXITED = "exited"
    SIGNALLED = "signalled"
    COMMAND_NOT_FOUND = "command_not_found"
    COMMAND_NOT_EXECUTABLE = "command_not_executable"
    WORKDIR_UNUSABLE = "workdir_unusable"
    WRONG_ANSWER = "wrong_answer"
    CHECKER_FAILED = "checker_failed"
    FILE_UNUSABLE = "file_unusable"
    WALL_SECONDS = "wall_seconds"
    CPU_SECONDS = "cpu_seconds"
    IDLE_SECONDS = "idle_seconds"
    MEMORY = "memory"
    OUTPUT_BYTES = "output_bytes"
    NETWORK_BYTES = "network_bytes"
    QUEUE_SECONDS = "queue_seconds"
    CANCELLED_BY_CLIENT = "cancelled_by_client"
    CLIENT_GONE = "client_gone"
    SHUTDOWN = "shutdown"
    SERVICE_LOST = "service_lost"
    SANDBOX_FAILED = "sandbox_failed"
    IMAGE_FAILED = "image_failed"
    LOG_FAILED = "log_failed"
    FILES_FAILED = "files_failed"
    SANDBOX_ENDED = "sandbox_ended"
    """Of a command in a sandbox: that ended, and took it along."""
    INTERNAL = "internal"


class Component(enum.StrEnum):
    """Which part is at fault when a job ends as `error`."""

    API = "api"
    QUEUE = "queue"
    IMAGE = "image"
    ISOLATION = "isolation"
    STORAGE = "storage"
    WEBHOOK = "webhook"


class Stream(enum.StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


class PullPolicy(enum.StrEnum):
    """When an image is fetched from its registry before it is used. One that was imported, and `host`, never is."""

    ALWAYS = "always"
    """Each time: the registry says what the name means now, and only what is not here is fetched."""
    MISSING = "missing"
    NEVER = "never"


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a job is tried again. Only the platform's own faults are: a user's code may not be idempotent."""

    max_attempts: int = 1


class InputFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file or a directory that the command finds when it starts."""

    path: str
    """Inside the sandbox; relative: to the working directory."""
    mode: int
    size_bytes: int | None = None
    """None: a directory."""
    offset: int | None = None
    """Where its content begins in what was uploaded for the job; None: it came with the request itself."""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """What the job is to reach."""

    mode: NetworkMode = NetworkMode.NONE
    allow: tuple[str, ...] | None = None
    """Destinations as `isolation.destinations` reads them; None: all that the operator allows."""


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for, checked and with every default filled in."""

    image: str
    pull: PullPolicy = PullPolicy.MISSING
    pull_seconds: float | None = None
    """How long the image may take to come; None: as long as the operator lets it."""
    command: tuple[str, ...]
    """Empty where there are steps, and where the image says what runs: with `args`, when the job starts."""
    args: tuple[str, ...] = ()
    """For the image's entry point, in place of the image's own; where there is a command, they are in it."""
    steps: tuple[Step, ...] = ()
    stdin: bytes = b""
    env: dict[str, str] = {}
    workdir: str | None = None
    """None: the image's own."""
    files: tuple[InputFile, ...] = ()
    """Those whose content is in `contents` first, then those that were uploaded."""
    contents: bytes = b""
    """Of the files that came with the request itself, one after the other. Kept apart, like `stdin`."""
    outputs: tuple[str, ...] = ()
    """Patterns of the files that are kept when the command is over; relative: to the working directory."""
    keep_on_failure_seconds: float | None = None
    """How long the sandbox of a job that failed is kept for its owner; None: not at all."""
    changes: bool = False
    """Tell what was created, changed and deleted."""
    user: tuple[int, int] | None = None
    """(uid, gid) inside the sandbox; None: the image's own."""
    stop_signal: int | None = None
    """What asks the command to end; None: the image's own, or SIGTERM."""
    limits: Limits
    runtime: str = NATIVE
    """What starts the command: `native`, or an OCI runtime by the operator's name for it."""
    network: Network = Network()
    queue_seconds: float | None = None
    """How long the job may wait before it is `expired`."""
    require: dict[str, str] = {}
    """Wall or limit to the least enforcement that the client accepts, such as `{"memory": "cgroup"}`."""
    priority: int = 0
    cpuset: tuple[int, ...] = ()
    """The CPUs that it runs on; empty: as many as its rate takes, whichever are the least used."""
    labels: dict[str, str] = {}
    retry: Retry = Retry()
    ttl_seconds: float | None = None
    """How long the record is kept after the end; None: for ever."""

    @property
    def has_upload(self) -> bool:
        """Whether files were uploaded for it, apart from the request."""
        return any(file.offset is not None for file in self.files)


class Candidate(NamedTuple):
    """A job that may run now, as far as it matters for whether it does."""

    id: str
    tenant: str
    priority: int
    memory_bytes: int
    millicpus: int
    wall_seconds: float
    key_id: str | None = None


class ExitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the command ended."""

    code: int | None = None
    signal: str | None = None
    """Name of the signal that ended it, such as `SIGSEGV`."""
    oom_killed: bool = False
    timed_out: bool = False
    stopped_by: Reason | None = None
    """Why the service stopped it, if it did."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the job used. None: this host could not measure it."""

    cpu_seconds: float | None = None
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    cpu_throttled_seconds: float | None = None
    memory_peak_bytes: int | None = None
    pids_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None
    cpu_pressure_seconds: float | None = None
    """In which at least one of its processes waited for a CPU, as the next two."""
    memory_pressure_seconds: float | None = None
    io_pressure_seconds: float | None = None
    wall_seconds: float = 0.0
    """From the command's start to its end."""
    queue_seconds: float = 0.0
    """From acceptance until a slot was free."""
    pull_seconds: float = 0.0
    """In which the image came from its registry."""
    setup_seconds: float = 0.0
    """From the slot until the command started, without the pull."""
    warm: bool = False
    """Whether a parked sandbox was used."""


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job did not succeed, in one sentence with figures."""

    component: Component | None
    """The part of the platform at fault; None when the program itself (or its limits) ended it."""
    code: str
    message: str
    remediation: str | None = None


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a job left and that is kept."""

    path: str
    """Relative to the working directory, or absolute where it is not below that."""
    size_bytes: int
    mode: int
    sha256: str
    """In hexadecimal digits."""
    offset: int
    """Where its content begins among the job's kept content."""


class PassedOver(msgspec.Struct, frozen=True, kw_only=True):
    """What matched and is not kept, and why."""

    path: str
    reason: str


class Denied(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the job tried and was refused."""

    kind: str
    """`network`: a destination; `pids`: processes and threads above the limit."""
    host: str | None = None
    """Address; or host name, which the resolver did not tell."""
    protocol: str | None = None
    """`tcp`, `udp` or `dns`."""
    port: int | None = None
    count: int | None = None
    """How often: packets, questions to the resolver, processes."""


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What a job created, changed and deleted in its sandbox, as absolute paths."""

    created: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    truncated: bool = False
    """There is more than is told."""


class LogSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What was kept of one stream."""

    size_bytes: int = 0
    truncated: bool = False


class Verdict(enum.StrEnum):
    """What was printed, next to what was expected."""

    ACCEPTED = "accepted"
    WRONG_ANSWER = "wrong_answer"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where what was printed is first not what was expected."""

    line: int
    expected: str
    printed: str


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A part of one stream of a job's log."""

    offset: int
    size_bytes: int


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one run of a step's command ended."""

    step: int
    """Its place in the job's steps, from 0 on."""
    case: int | None = None
    """Its place in the step's cases; None where the step has none."""
    state: State
    reason: Reason
    verdict: Verdict | None = None
    """None: nothing was compared."""
    difference: Difference | None = None
    exit: ExitStatus = ExitStatus()
    usage: Usage = Usage()
    error: JobError | None = None
    started_at: float | None = None
    stdout: Span
    stderr: Span

    @property
    def good(self) -> bool:
        """Whether the next one may follow."""
        return self.state is State.SUCCEEDED and self.verdict is not Verdict.WRONG_ANSWER


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """What a job had at one moment. None: not counted on this host."""

    at: float
    """Unix time."""
    cpu_seconds: float | None
    """Used so far by all its processes together."""
    memory_bytes: int | None
    pids: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None
    cpu_pressure_seconds: float | None = None
    """In which at least one of its processes waited for a CPU so far, as the next two."""
    memory_pressure_seconds: float | None = None
    io_pressure_seconds: float | None = None
    cpu_full_pressure_seconds: float | None = None
    """In which all of them that were not asleep waited, as the next two."""
    memory_full_pressure_seconds: float | None = None
    io_full_pressure_seconds: float | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt ended. Made in one place (`verdict.result_of`), stored once."""

    state: State
    reason: Reason
    exit: ExitStatus = ExitStatus()
    usage: Usage = Usage()
    error: JobError | None = None
    enforcement: dict[str, Any] = {}
    image_digest: str | None = None
    command: tuple[str, ...] | None = None
    """What ran, where the image said it."""
    started_at: float | None = None
    """When the command started, Unix time in seconds; None if it never did."""
    logs: dict[Stream, LogSummary] = {}
    runs: tuple[RunResult, ...] = ()
    """Of a job of steps: every run, in order."""
    artifacts: tuple[Artifact, ...] = ()
    """Kept apart: lists do not have them."""
    samples: tuple[Sample, ...] = ()
    """Kept apart."""
    artifact_count: int = 0
    artifacts_passed_over: tuple[PassedOver, ...] = ()
    changes: Changes | None = None
    denied: tuple[Denied, ...] = ()
    kept_sandbox: str | None = None
    """Id of the sandbox, if it is kept for its owner to look into."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the record has it. Times are Unix time in seconds, None where not yet."""

    id: str
    tenant: str
    key_id: str | None = None
    """Of the key that it came with."""
    spec: JobSpec
    state: State
    reason: Reason
    attempt: int = 0
    lease_token: int = 0
    """Fencing token: only the holder of the newest may settle the job."""
    created_at: float
    queued_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    cancel_requested: bool = False
    result: Result | None = None
    request_id: str | None = None
    traceparent: str | None = None
    retried_from: str | None = None
    sequence: int = 0
    """Grows with each change of the row: the ETag."""

    @property
    def command(self) -> tuple[str, ...]:
        """What it runs, or ran; empty where there are steps, and where the image says it and has not been looked at."""
        ran = None if self.result is None else self.result.command
        return self.spec.command if ran is None else ran


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One change of state."""

    seq: int
    at: float
    state: State
    reason: Reason
    attempt: int
    message: str | None = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer key as stored: never the secret itself."""

    id: str
    tenant: str
    name: str
    secret_sha256: bytes
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    quotas: Quotas | None = None
    """Its own, which hold besides its tenant's."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A root file system by name."""

    name: str
    digest: str
    """`sha256:…` of what it was made from."""
    size_bytes: int
    created_at: float
    source: str
    """`host`, `import`, `registry`, `archive` or `commit`."""
