"""The JSON of sandboxes that live until they are told to end, and of commands in them."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType, field

from sandboxd.api.schemas import (
    Answer,
    Base64,
    ErrorView,
    ExitView,
    Quantity,
    Request,
    StreamsView,
    UsageView,
)
from sandboxd.jobs import PullPolicy, Reason, State
from sandboxd.sandbox_values import SandboxReason, SandboxState

Cpus = Annotated[
    int | float | str | None,
    Meta(description='CPU rate in CPUs, or a quantity such as "500m".', examples=[0.5]),
]


class SandboxLimitsRequest(Request, frozen=True, kw_only=True):
    """What all commands of the sandbox together may use. What is left out gets the operator's default."""

    cpus: Cpus = None
    memory: Quantity = None
    pids: Annotated[int | None, Meta(description="Processes and threads at once.")] = None
    disk: Quantity = None
    open_files: Annotated[int | None, Meta(description="Descriptors per process.")] = None
    swap: Quantity = None
    io_bytes_per_second: Quantity = None


class SandboxRequest(Request, frozen=True, kw_only=True):
    """A sandbox to make."""

    image: Annotated[str, Meta(description="Name of an image.", examples=["host"])] = "host"
    pull: Annotated[
        PullPolicy | None,
        Meta(
            description="When the image is fetched from its registry first: `always`, `missing` or `never`. Left out: as the "
            "operator has it. The answer comes when the sandbox stands."
        ),
    ] = None
    env: Annotated[dict[str, str], Meta(description="Variables of every command in it.")] = field(
        default_factory=dict
    )
    workdir: Annotated[
        str | None, Meta(description="Absolute path inside; left out: the image's own.")
    ] = None
    user: Annotated[
        str | None,
        Meta(description='Numeric "uid" or "uid:gid" inside; without a gid it is the uid.'),
    ] = None
    limits: SandboxLimitsRequest = SandboxLimitsRequest()
    labels: Annotated[dict[str, str], Meta(description="Free words.")] = field(default_factory=dict)
    idle_seconds: Annotated[
        float | None, Meta(description="It ends when nobody has used it for so long.")
    ] = None
    ttl_seconds: Annotated[float | None, Meta(description="It ends after so long in any case.")] = (
        None
    )


class SandboxLimitsPatch(Request, frozen=True, kw_only=True):
    """Limits to change."""

    cpus: Cpus = None
    memory: Quantity = None
    pids: int | None = None


class SandboxPatch(Request, frozen=True, kw_only=True):
    """What is to be different from now on; what is left out stays."""

    limits: SandboxLimitsPatch = SandboxLimitsPatch()
    idle_seconds: float | None = None
    ttl_seconds: Annotated[
        float | None, Meta(description="Counted from when the sandbox was made.")
    ] = None


class ExecLimitsRequest(Request, frozen=True, kw_only=True):
    """What one command may take beside what the sandbox has."""

    wall_seconds: Annotated[float | None, Meta(description="How long it may run.")] = None
    output_bytes: Quantity = None


class ExecRequest(Request, frozen=True, kw_only=True):
    """A command to run in a sandbox."""

    command: Annotated[
        list[str],
        Meta(
            description="Program and arguments; no shell is involved.",
            examples=[["sh", "-c", "echo hello > file"]],
        ),
    ]
    args: Annotated[list[str], Meta(description="Appended to `command`.")] = field(
        default_factory=list
    )
    stdin: Annotated[
        str | Base64, Meta(description="Standard input: text, or bytes in base64.")
    ] = ""
    env: Annotated[dict[str, str], Meta(description="Added to the sandbox's own.")] = field(
        default_factory=dict
    )
    workdir: Annotated[
        str | None, Meta(description="Absolute path inside; left out: the sandbox's own.")
    ] = None
    limits: ExecLimitsRequest = ExecLimitsRequest()


class TerminalRequest(Request, frozen=True, kw_only=True):
    """The size of a terminal, in characters."""

    rows: Annotated[int, Meta(ge=1, le=1000)] = 24
    columns: Annotated[int, Meta(ge=1, le=1000)] = 80


class ConnectRequest(Request, frozen=True, kw_only=True):
    """The first message of a socket: the command to be connected to. Without `wall_seconds` it may run as long as the sandbox."""

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    terminal: TerminalRequest | None = None
    wall_seconds: float | None = None


class SignalRequest(Request, frozen=True, kw_only=True):
    """A signal for a command's process group."""

    signal: Annotated[str, Meta(description="By name.", examples=["SIGTERM"])]


class SandboxLimitsView(Answer, frozen=True, kw_only=True):
    """The limits that hold for the sandbox."""

    cpus: float
    memory: int
    pids: int
    disk: int
    open_files: int
    swap: int
    io_bytes_per_second: int


class SandboxLinksView(Answer, frozen=True, kw_only=True):
    """Where to go from here."""

    self: str
    exec: str
    files: str


class SandboxView(Answer, frozen=True, kw_only=True):
    """One sandbox."""

    id: str
    state: SandboxState
    reason: SandboxReason
    message: str | UnsetType = UNSET
    created_at: str
    started_at: str | None
    ended_at: str | None
    expires_at: Annotated[str, Meta(description="When `ttl_seconds` are over.")]
    image: str
    pull: PullPolicy
    image_digest: str | None
    env: dict[str, str]
    workdir: str | None
    user: str | None
    limits: SandboxLimitsView
    labels: dict[str, str]
    idle_seconds: float
    ttl_seconds: float
    execs: Annotated[int, Meta(description="Commands that were started in it.")]
    usage: Annotated[
        UsageView | UnsetType, Meta(description="Of all its commands together, so far.")
    ] = UNSET
    request_id: str | UnsetType = UNSET
    links: SandboxLinksView


class SandboxList(Answer, frozen=True, kw_only=True):
    """One page of sandboxes, newest first."""

    data: list[SandboxView]
    next_cursor: str | None
    has_more: bool


class ExecView(Answer, frozen=True, kw_only=True):
    """One command in a sandbox."""

    id: str
    state: State
    reason: Reason
    exit: ExitView | UnsetType = UNSET
    stdout: str | Base64 | UnsetType = UNSET
    stderr: str | Base64 | UnsetType = UNSET
    streams: StreamsView | UnsetType = UNSET
    error: ErrorView | UnsetType = UNSET
    usage: Annotated[
        UsageView | UnsetType,
        Meta(
            description="CPU and time of this command (and of what ran beside it); peaks are the sandbox's since its start."
        ),
    ] = UNSET
    created_at: str
    started_at: str | None
    ended_at: str | None
    command: tuple[str, ...]


class ExecList(Answer, frozen=True, kw_only=True):
    """The commands that ran last, and those that run."""

    data: list[ExecView]


class FileView(Answer, frozen=True, kw_only=True):
    """One entry of a directory."""

    name: str
    kind: Annotated[str, Meta(description="file, directory, symlink, fifo, socket or device")]
    size_bytes: int
    mode: Annotated[str, Meta(description="Octal.", examples=["0644"])]
    modified_at: str


class FileList(Answer, frozen=True, kw_only=True):
    """What is in a directory."""

    data: list[FileView]
    truncated: Annotated[bool, Meta(description="There are more, which are left out.")]


class FileWritten(Answer, frozen=True, kw_only=True):
    """A file that was written."""

    path: str
    size_bytes: int
