"""The API's JSON: what requests may say and what answers do say. The OpenAPI document is made from these.

Conventions: sizes in bytes, durations in seconds, times RFC 3339 UTC with milliseconds. An answer leaves out
what is not known; a request with a field that is not listed here is refused.
"""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sandboxd.isolation.spec import NATIVE, NetworkMode
from sandboxd.jobs import Component, PullPolicy, Reason, State, Verdict
from sandboxd.quotas.tenants import Quotas, TenantQuotas
from sandboxd.steps import Comparison, StopPolicy

Quantity = Annotated[
    int | str | None,
    Meta(description='Bytes, or a quantity such as "128Mi" or "1.5G".', examples=["128Mi"]),
]


Name = Annotated[
    Annotated[str, Meta(min_length=1, max_length=100)] | None,
    Meta(description="For people, and to find it in the result."),
]


class Request(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Base of what clients send."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what we send: UNSET members are left out."""


# What clients send


class Base64(Request, frozen=True, kw_only=True):
    """Bytes that are not text."""

    base64: str


class CeilingsRequest(Request, frozen=True, kw_only=True):
    """The most that a job may ask for. Where one is left out, it is the operator's."""

    cpus: Annotated[
        int | float | str | None,
        Meta(description='CPU rate in CPUs, or a quantity such as "500m".', examples=[0.5]),
    ] = None
    memory: Quantity = None
    pids: Annotated[int | None, Meta(description="Processes and threads at once.")] = None
    disk: Quantity = None
    wall_seconds: Annotated[float | None, Meta(description="How long the command may run.")] = None
    cpu_seconds: Annotated[
        float | None, Meta(description="CPU time of all processes together.")
    ] = None
    output_bytes: Quantity = None
    open_files: Annotated[int | None, Meta(description="Descriptors per process.")] = None
    idle_seconds: Annotated[
        float | None, Meta(description="How long the command may write nothing.")
    ] = None
    network_bytes: Annotated[
        int | str | None,
        Meta(description="Received and sent together, with `egress`: bytes or a quantity."),
    ] = None
    swap: Annotated[
        int | str | None,
        Meta(description="What may be swapped out, beside the memory: bytes or a quantity."),
    ] = None
    io_bytes_per_second: Annotated[
        int | str | None,
        Meta(
            description="Read from disks, and as many written to them: bytes or a quantity; 0: no limit."
        ),
    ] = None


class LimitsRequest(CeilingsRequest, frozen=True, kw_only=True):
    """What the job may use. A limit that is left out gets the operator's default."""

    queue_seconds: Annotated[
        float | None, Meta(description="How long the job may wait before it is `expired`.")
    ] = None
    pull_seconds: Annotated[
        float | None,
        Meta(description="How long its image may take to come from its registry."),
    ] = None


class NetworkRequest(Request, frozen=True, kw_only=True):
    """What the job can reach."""

    mode: NetworkMode = NetworkMode.NONE
    allow: Annotated[
        list[str] | None,
        Meta(
            description="With `egress`, what it may reach: `public` (every public address), addresses, ranges, host names "
            "(`*.` before one: all below it), each with or without `:PORT`; left out: all that the operator allows.",
            examples=[["pypi.org:443", "*.pythonhosted.org:443", "198.51.100.0/24:5432"]],
        ),
    ] = None


class RetryRequest(Request, frozen=True, kw_only=True):
    """Whether a job that failed through the platform's own fault is tried again."""

    max_attempts: Annotated[int, Meta(ge=1, le=10)] = 1


Text = Annotated[str | Base64, Meta(description="Text, or bytes in base64.")]


class StepLimitsRequest(Request, frozen=True, kw_only=True):
    """What one run of the command may use. What is left out: as much as the job has left."""

    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    output_bytes: Quantity = None


class CheckerRequest(Request, frozen=True, kw_only=True):
    """How what the command printed is compared with what was expected."""

    comparison: Annotated[
        Comparison,
        Meta(
            description="exact: byte for byte; trimmed: without white space at the ends of lines; tokens: word by word; "
            "floats: as tokens, numbers within the tolerance; program: a command of yours decides."
        ),
    ] = Comparison.TRIMMED
    tolerance: Annotated[
        float, Meta(ge=0, le=1, description="For floats: absolute or relative.")
    ] = 1e-6
    command: Annotated[
        list[str],
        Meta(
            description="For program: gets the paths of three files, input, output and expected, and runs in a sandbox "
            "of its own. Exit status 0: accepted; 1: wrong answer."
        ),
    ] = []


class CaseRequest(Request, frozen=True, kw_only=True):
    """One input of a step."""

    name: Name = None
    stdin: Text = ""
    args: Annotated[list[str], Meta(description="Appended to the step's command.")] = []
    env: dict[str, str] = {}
    expected: Annotated[
        str | Base64 | None,
        Meta(description="What the command should print; left out: nothing is compared."),
    ] = None
    checker: Annotated[CheckerRequest | None, Meta(description="Left out: the step's own.")] = None


class StepRequest(Request, frozen=True, kw_only=True):
    """A command, run once or once for each of `inputs`, in the same sandbox as the steps before."""

    name: Name = None
    command: list[str]
    args: list[str] = []
    stdin: Text = ""
    env: dict[str, str] = {}
    workdir: str | None = None
    limits: StepLimitsRequest = StepLimitsRequest()
    continue_on_failure: Annotated[
        bool, Meta(description="Whether the next step runs, and the job can succeed, all the same.")
    ] = False
    inputs: Annotated[list[CaseRequest], Meta(description="The command runs once for each.")] = []
    checker: CheckerRequest = CheckerRequest()
    stop: Annotated[
        StopPolicy, Meta(description="Whether the inputs after one that failed are run.")
    ] = StopPolicy.FIRST_FAILURE


class FileRequest(Request, frozen=True, kw_only=True):
    """A file or directory that is there when the command starts."""

    path: Annotated[
        str,
        Meta(
            description="Inside the sandbox; relative: to the working directory. Directories above it are made.",
            examples=["src/main.c"],
        ),
    ]
    content: Annotated[str | Base64, Meta(description="Text, or bytes in base64.")] = ""
    mode: Annotated[
        int | str | None,
        Meta(
            description='Permission bits: octal digits as a text, or the number itself. Left out: "0644", "0755" for a directory.',
            examples=["0755"],
        ),
    ] = None
    directory: Annotated[bool, Meta(description="A directory, without content.")] = False


class JobRequest(Request, frozen=True, kw_only=True):
    """A command to run in an image."""

    image: Annotated[str, Meta(description="Name of an image.", examples=["host"])]
    pull: Annotated[
        PullPolicy | None,
        Meta(
            description="When the image is fetched from its registry first: `always` (only what changed comes), `missing` or `never`. "
            "Left out: as the operator has it."
        ),
    ] = None
    command: Annotated[
        list[str] | UnsetType,
        Meta(
            description="Program and arguments; no shell is involved. Left out: what the image runs of its own accord. Not with `steps`.",
            examples=[["python3", "-c", "print(6 * 7)"]],
        ),
    ] = UNSET
    steps: Annotated[
        list[StepRequest],
        Meta(description="Commands that run one after the other in one sandbox."),
    ] = []
    args: Annotated[
        list[str],
        Meta(
            description="Appended to `command`; without one, given to the entry point of the image in place of its own arguments."
        ),
    ] = []
    stdin: Annotated[
        str | Base64, Meta(description="Standard input: text, or bytes in base64.")
    ] = ""
    env: Annotated[dict[str, str], Meta(description="Environment variables.")] = {}
    workdir: Annotated[
        str | None, Meta(description="Absolute path inside; left out: the image's own.")
    ] = None
    files: Annotated[
        list[FileRequest], Meta(description="Files that are there when the command starts.")
    ] = []
    keep_on_failure_seconds: Annotated[
        float | None,
        Meta(
            description="If the job fails, its sandbox is paused and kept for so long, as a sandbox of yours: look into it."
        ),
    ] = None
    outputs: Annotated[
        list[str],
        Meta(
            description=(
                "Patterns of files to keep when the command is over, however it ended: `*`, `?` and `[…]` within a "
                "name, `**` for any directories; a directory stands for all that is in it. Relative: to the working "
                "directory."
            ),
            examples=[["result.json", "plots/*.png"]],
        ),
    ] = []
    changes: Annotated[
        bool, Meta(description="Tell which paths were created, modified and deleted.")
    ] = False
    user: Annotated[
        str | None,
        Meta(
            description='Numeric "uid" or "uid:gid" inside; without a gid it is the uid.',
            examples=["1000:1000"],
        ),
    ] = None
    limits: LimitsRequest = LimitsRequest()
    network: NetworkRequest = NetworkRequest()
    runtime: Annotated[
        str,
        Meta(description="`native`, or an OCI runtime that `GET /v1/system` lists."),
    ] = NATIVE
    require: Annotated[
        dict[str, str],
        Meta(
            description="Limit or wall to the least enforcement that is acceptable; else the job is refused."
        ),
    ] = {}
    priority: Annotated[int, Meta(ge=-100, le=100, description="Higher goes first.")] = 0
    stop_signal: Annotated[
        Annotated[str, Meta(max_length=32)] | None,
        Meta(
            description="What asks the command to end when it is cancelled, by name or number; left out: the image's own, or SIGTERM.",
            examples=["SIGINT"],
        ),
    ] = None
    cpuset: Annotated[
        Annotated[str, Meta(max_length=4096)] | None,
        Meta(
            description="CPUs that it runs on, and no others; left out: as many as `limits.cpus` takes, those with the fewest jobs.",
            examples=["0-1,3"],
        ),
    ] = None
    labels: Annotated[dict[str, str], Meta(description="Free words to find the job by.")] = {}
    retry: RetryRequest = RetryRequest()
    ttl_seconds: Annotated[
        float | None,
        Meta(description="How long the record is kept after the end; left out: for ever."),
    ] = None


class CancelRequest(Request, frozen=True, kw_only=True):
    """How a job is cancelled."""

    grace_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=300,
            description="Time between its stop signal (SIGTERM, if none was named) and SIGKILL.",
        ),
    ] = 5.0
    reason: Annotated[
        Annotated[str, Meta(max_length=500)] | None, Meta(description="Kept in the job's events.")
    ] = None


class EmptyRequest(Request, frozen=True, kw_only=True):
    """Nothing but `{}`."""


class KeyRequest(Request, frozen=True, kw_only=True):
    """A bearer key to make."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    tenant: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}\Z")] = "default"
    scopes: Annotated[
        list[str], Meta(min_length=1, max_length=8, description="jobs:read, jobs:write, admin")
    ] = msgspec.field(default_factory=lambda: ["jobs:read", "jobs:write"])
    ttl_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=10 * 366 * 86400)] | None,
        Meta(description="How long it is valid; left out: until it is revoked."),
    ] = None
    quotas: Annotated[
        Quotas | None,
        Meta(description="What it may have of what its tenant may; left out: all of it."),
    ] = None


class TenantRequest(Quotas, frozen=True, kw_only=True):
    """What a tenant may have."""

    storage_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="What is kept of its jobs: requests, inputs, results, logs and artifacts.",
        ),
    ] = 0
    ceilings: Annotated[
        CeilingsRequest, Meta(description="The most that each job may ask for.")
    ] = CeilingsRequest()


# What we send


class ExitView(Answer, frozen=True, kw_only=True):
    """How the command ended."""

    code: int | None
    signal: str | None
    oom_killed: bool
    timed_out: bool
    stopped_by: Reason | None


class StreamView(Answer, frozen=True, kw_only=True):
    """What is kept of one stream, and how much of it this answer shows."""

    size_bytes: int
    inline_bytes: int
    truncated: Annotated[bool, Meta(description="The job wrote more than was kept.")]


class StreamsView(Answer, frozen=True, kw_only=True):
    """Both streams."""

    stdout: StreamView
    stderr: StreamView


class ErrorView(Answer, frozen=True, kw_only=True):
    """Why a job did not succeed, in a sentence."""

    component: Component | None
    code: str
    message: str
    remediation: str | None = None


class DifferenceView(Answer, frozen=True, kw_only=True):
    """Where what was printed is first not what was expected."""

    line: int
    expected: str
    printed: str


class RunView(Answer, frozen=True, kw_only=True):
    """How a step's command ended, once or for one of its inputs. Without a state it has not run."""

    name: str | UnsetType = UNSET
    state: State | UnsetType = UNSET
    reason: Reason | UnsetType = UNSET
    verdict: Verdict | UnsetType = UNSET
    difference: DifferenceView | UnsetType = UNSET
    exit: ExitView | UnsetType = UNSET
    error: ErrorView | UnsetType = UNSET
    stdout: str | Base64 | UnsetType = UNSET
    stderr: str | Base64 | UnsetType = UNSET
    streams: StreamsView | UnsetType = UNSET
    usage: "UsageView | UnsetType" = UNSET
    started_at: str | UnsetType = UNSET


class StepView(RunView, frozen=True, kw_only=True):
    """A step: what it runs and how that ended."""

    command: tuple[str, ...]
    continue_on_failure: bool
    inputs: list[RunView] | UnsetType = UNSET
    accepted: Annotated[
        int | UnsetType, Meta(description="How many inputs ended well and as expected.")
    ] = UNSET


class RunEventView(RunView, frozen=True, kw_only=True):
    """A run that has ended, told while the job goes on."""

    step: Annotated[int, Meta(description="Its place in the job's steps, from 0 on.")]
    input: Annotated[
        int | UnsetType, Meta(description="Its place in the step's inputs, where it has any.")
    ] = UNSET


class StepList(Answer, frozen=True, kw_only=True):
    """All steps of one job."""

    data: list[StepView]


class LimitsView(Answer, frozen=True, kw_only=True):
    """The limits that hold for the job."""

    cpus: float
    memory: int
    pids: int
    disk: int
    wall_seconds: float
    cpu_seconds: float
    output_bytes: int
    open_files: int
    idle_seconds: float
    network_bytes: int
    swap: int
    io_bytes_per_second: int
    queue_seconds: float | None
    pull_seconds: float | None


class UsageView(Answer, frozen=True, kw_only=True):
    """What the job used; null where this host could not measure it."""

    cpu_seconds: float | None
    cpu_user_seconds: float | None
    cpu_system_seconds: float | None
    cpu_throttled_seconds: float | None
    memory_peak_bytes: int | None
    pids_peak: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None
    net_rx_bytes: int | None
    net_tx_bytes: int | None
    cpu_pressure_seconds: Annotated[
        float | None,
        Meta(description="In which at least one process waited for a CPU."),
    ]
    memory_pressure_seconds: float | None
    io_pressure_seconds: float | None
    wall_seconds: float
    queue_seconds: float
    pull_seconds: Annotated[
        float,
        Meta(description="In which its image came from its registry; no part of `setup_seconds`."),
    ]
    setup_seconds: float
    warm: bool


class NetworkView(Answer, frozen=True, kw_only=True):
    """What the job can reach."""

    mode: NetworkMode
    allow: tuple[str, ...] | UnsetType = UNSET


class DeniedView(Answer, frozen=True, kw_only=True):
    """Something that the job tried and was refused."""

    kind: Annotated[str, Meta(description="`network`: a destination.")]
    host: Annotated[
        str | UnsetType, Meta(description="Address, or the name that was not told (`dns`).")
    ] = UNSET
    protocol: Annotated[str | UnsetType, Meta(description="`tcp`, `udp` or `dns`.")] = UNSET
    port: int | UnsetType = UNSET
    count: Annotated[int | UnsetType, Meta(description="Packets or questions.")] = UNSET


class RetryView(Answer, frozen=True, kw_only=True):
    """The retry policy."""

    max_attempts: int


class WaitingView(Answer, frozen=True, kw_only=True):
    """What a queued job waits for."""

    for_: Annotated[
        str,
        Meta(
            description="`slot`, `memory` or `cpus`: others have it; `tenant`: as many of your jobs run as may; `key`: as many of your key's; `image`: as many wait for its image to come as can start then; `free_memory`, `free_disk`: the host itself has too "
            "little; `retry`: the pause before another attempt."
        ),
    ] = msgspec.field(name="for")
    position: Annotated[
        int | UnsetType,
        Meta(description="How many are before it. Only where this one job is asked for."),
    ] = UNSET
    expected_start_at: Annotated[
        str | UnsetType,
        Meta(description="When it should start, as the last jobs went; a guess, not a promise."),
    ] = UNSET


class LinksView(Answer, frozen=True, kw_only=True):
    """Where to go from here."""

    self: str
    logs: str
    events: str
    artifacts: str | UnsetType = UNSET
    cancel: str
    retry: str


class FileView(Answer, frozen=True, kw_only=True):
    """A file that was asked for, without its content."""

    path: str
    mode: str
    size_bytes: int | UnsetType = UNSET
    directory: bool | UnsetType = UNSET


class ArtifactView(Answer, frozen=True, kw_only=True):
    """A file that the job left and that is kept."""

    path: Annotated[
        str,
        Meta(
            description="Relative to the working directory, or absolute where it is not below that."
        ),
    ]
    size_bytes: int
    sha256: str
    mode: str


class ArtifactList(Answer, frozen=True, kw_only=True):
    """All files that a job left."""

    data: list[ArtifactView]


class PassedOverView(Answer, frozen=True, kw_only=True):
    """What is not kept although a pattern names it. Without a path it is said of all that may follow."""

    path: str
    reason: Annotated[
        str,
        Meta(
            description=(
                "`not_found`, `symlink`, `fifo`, `socket`, `device`, `too_large`, `too_many`, `too_deep`, `not_utf8`, "
                "`proc`, `changed`, `ambiguous`, the name of an errno; `time_limit`, `stopped`, `sandbox_gone`, `and_N_more`."
            )
        ),
    ]


class ChangesView(Answer, frozen=True, kw_only=True):
    """What the job did to its file system, as absolute paths; up to 1,000 of them."""

    created: tuple[str, ...]
    modified: tuple[str, ...]
    deleted: tuple[str, ...]
    truncated: Annotated[bool, Meta(description="There is more than is told.")]


class DryRunView(Answer, frozen=True, kw_only=True):
    """The answer to `?dry_run=true`: the job would be accepted, as this."""

    dry_run: bool
    image_digest: Annotated[
        str | None,
        Meta(
            description="Null: the image is pulled when the job starts, and could be any by then."
        ),
    ]
    image: str
    pull: PullPolicy
    command: tuple[str, ...]
    args: Annotated[
        tuple[str, ...] | UnsetType,
        Meta(description="For the image's entry point, where that is not known yet."),
    ] = UNSET
    env: dict[str, str]
    workdir: str | None
    files: list[FileView] | UnsetType = UNSET
    outputs: tuple[str, ...] | UnsetType = UNSET
    user: str | None
    limits: LimitsView
    network: NetworkView
    runtime: str
    require: dict[str, str]
    priority: int
    cpuset: str | UnsetType = UNSET
    stop_signal: str | UnsetType = UNSET
    labels: dict[str, str]
    retry: RetryView
    keep_on_failure_seconds: float | UnsetType = UNSET
    ttl_seconds: float | None


class JobView(Answer, frozen=True, kw_only=True):
    """One job: how it stands, then what was asked for, with every default filled in.

    `args` is part of `command`; the input is not shown, nor are contents of files. Lists have no files.
    """

    # What a DryRunView has is repeated here, not inherited: inherited members would come first, and who reads an answer
    # on a terminal looks for these.
    id: str
    state: State
    reason: Reason
    exit: ExitView | UnsetType = UNSET
    stdout: str | Base64 | UnsetType = UNSET
    stderr: str | Base64 | UnsetType = UNSET
    streams: StreamsView | UnsetType = UNSET
    error: ErrorView | UnsetType = UNSET
    artifacts: list[ArtifactView] | UnsetType = UNSET
    artifacts_passed_over: list[PassedOverView] | UnsetType = UNSET
    changes: ChangesView | UnsetType = UNSET
    denied: Annotated[
        tuple[DeniedView, ...] | UnsetType,
        Meta(description="What the job tried and was refused; left out where nothing was."),
    ] = UNSET
    waiting: WaitingView | UnsetType = UNSET
    cancel_requested: bool | UnsetType = UNSET
    attempt: int
    usage: UsageView | UnsetType = UNSET
    created_at: str
    queued_at: str
    started_at: str | None = None
    finished_at: str | None = None
    expires_at: str | None = None
    image_digest: str | UnsetType = UNSET
    image: str
    pull: PullPolicy
    command: Annotated[
        tuple[str, ...],
        Meta(description="What the image says itself is known, and here, when the job has ended."),
    ]
    args: Annotated[
        tuple[str, ...] | UnsetType,
        Meta(description="For the image's entry point; when the job has ended, part of `command`."),
    ] = UNSET
    steps: Annotated[list[StepView] | UnsetType, Meta(description="Left out in lists.")] = UNSET
    command_truncated: Annotated[
        bool | UnsetType,
        Meta(description="In lists: `command` is cut after 4 KiB; the job itself has all."),
    ] = UNSET
    env: Annotated[
        dict[str, str] | UnsetType, Meta(description="Left out in lists; the job itself has it.")
    ] = UNSET
    workdir: str | None
    files: list[FileView] | UnsetType = UNSET
    outputs: tuple[str, ...] | UnsetType = UNSET
    user: str | None
    limits: LimitsView
    network: NetworkView
    runtime: str
    require: dict[str, str]
    priority: int
    cpuset: str | UnsetType = UNSET
    stop_signal: str | UnsetType = UNSET
    labels: dict[str, str]
    retry: RetryView
    keep_on_failure_seconds: float | UnsetType = UNSET
    ttl_seconds: float | None
    kept_sandbox: Annotated[
        str | UnsetType, Meta(description="Id of the sandbox that was kept, paused.")
    ] = UNSET
    enforcement: dict[str, Any] | UnsetType = UNSET
    retried_from: str | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    trace_id: str | UnsetType = UNSET
    links: LinksView


class JobList(Answer, frozen=True, kw_only=True):
    """One page of jobs, newest first."""

    data: list[JobView]
    next_cursor: str | None
    has_more: bool


class MeteredView(Answer, frozen=True, kw_only=True):
    """One quota over an hour, a day or a month (UTC)."""

    quota: str
    used: Annotated[
        float,
        Meta(description="By jobs that ended in it, and what those that wait or run may use yet."),
    ]
    most: Annotated[float | None, Meta(description="Null: no bound.")]
    since: str
    until: str


class KeyQuotasView(Answer, frozen=True, kw_only=True):
    """What your key may have of what your tenant may, and has used. 0 or empty: no bound of its own."""

    id: str
    quotas: Quotas
    metered: list[MeteredView]


class StorageView(Answer, frozen=True, kw_only=True):
    """What is kept of your jobs: requests, inputs, results, logs and artifacts, until they are deleted."""

    used_bytes: int
    most_bytes: Annotated[int | None, Meta(description="Null: no bound.")]


class QuotasView(Answer, frozen=True, kw_only=True):
    """What your tenant may have, and has used. 0 or empty: no bound."""

    tenant: str
    quotas: TenantQuotas
    metered: list[MeteredView]
    storage: StorageView
    key: Annotated[
        KeyQuotasView | None,
        Meta(description="Of the key that you asked with: null if it has none of its own."),
    ]


class TenantView(Answer, frozen=True, kw_only=True):
    """What a tenant may have. 0 or empty: no bound."""

    name: str
    quotas: TenantQuotas


class HourView(Answer, frozen=True, kw_only=True):
    """What your jobs used that ended in one hour (UTC)."""

    hour: Annotated[str, Meta(description="When it began.")]
    jobs: int
    cpu_seconds: float
    memory_byte_seconds: Annotated[
        float, Meta(description="Each job's limit on memory, times how long it ran.")
    ]


class UsageList(Answer, frozen=True, kw_only=True):
    """Hours in which jobs ended, oldest first."""

    data: list[HourView]
    storage_bytes: Annotated[int, Meta(description="What is kept of your jobs now.")]


class SampleView(Answer, frozen=True, kw_only=True):
    """What a job had at one moment. Null: not counted on this host."""

    time: str
    cpu_seconds: Annotated[
        float | None, Meta(description="Used so far, by all processes together.")
    ]
    memory_bytes: int | None
    pids: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None
    cpu_pressure_seconds: Annotated[
        float | None,
        Meta(description="In which at least one process waited for a CPU."),
    ]
    memory_pressure_seconds: float | None
    io_pressure_seconds: float | None
    cpu_full_pressure_seconds: Annotated[
        float | None, Meta(description="In which all of them waited that were not asleep.")
    ]
    memory_full_pressure_seconds: float | None
    io_full_pressure_seconds: float | None


class SampleList(Answer, frozen=True, kw_only=True):
    """From the job's start on, oldest first; while it runs, so far."""

    data: list[SampleView]


class EventView(Answer, frozen=True, kw_only=True):
    """One change of state."""

    seq: int
    time: str
    state: State
    reason: Reason
    attempt: int
    message: str | None


class EventList(Answer, frozen=True, kw_only=True):
    """The whole history of one job."""

    data: list[EventView]


class LogRecord(Answer, frozen=True, kw_only=True):
    """A piece of a job's output: `data` where it is UTF-8, else `base64`."""

    time: str
    stream: str
    offset: Annotated[int, Meta(description="Where it starts in the merged log, in bytes.")]
    data: str | UnsetType = UNSET
    base64: str | UnsetType = UNSET


class EndView(Answer, frozen=True, kw_only=True):
    """The last event of a stream."""

    state: State
    reason: Reason
    attempt: int
    exit: ExitView | None


class ImageView(Answer, frozen=True, kw_only=True):
    """An image that jobs can name."""

    name: str
    digest: str
    size_bytes: int
    created_at: str
    source: str


class ImageList(Answer, frozen=True, kw_only=True):
    """All images."""

    data: list[ImageView]


class KeyView(Answer, frozen=True, kw_only=True):
    """A key, without its secret."""

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    quotas: Annotated[
        Quotas | None, Meta(description="Its own, besides its tenant's. Null: it has none.")
    ]


class NewKeyView(KeyView, frozen=True, kw_only=True):
    """A key as made: its text is shown only now."""

    key: str


class KeyList(Answer, frozen=True, kw_only=True):
    """All keys."""

    data: list[KeyView]


class IdentityView(Answer, frozen=True, kw_only=True):
    """Who the service takes the caller for."""

    tenant: str
    scopes: tuple[str, ...]
    key_id: str | None


class HealthView(Answer, frozen=True, kw_only=True):
    """Whether the service is well."""

    status: str
