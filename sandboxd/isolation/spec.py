"""The values that go into a sandbox and come out of it. Nothing here has heard of jobs."""

import enum
from typing import NamedTuple


class NetworkMode(enum.StrEnum):
    """What the sandbox can reach."""

    NONE = "none"
    """Its own loopback interface and nothing else."""
    EGRESS = "egress"
    """What the operator and the job allow, through a user-mode network stack behind a firewall."""


NATIVE = "native"
"""The runtime that is always there: init starts the command itself."""


class OciRuntime(NamedTuple):
    """A program with the command line of an OCI runtime (`create`, `start`). See `isolation.oci`."""

    name: str
    """What the operator calls it."""
    path: str
    """Absolute path of the program on the host."""
    args: tuple[str, ...] = ()
    """Words before `create` and `start`."""

    @property
    def own_kernel(self) -> bool:
        """Whether it is gVisor's `runsc`, by its program's name: its commands have a kernel of their own."""
        return self.path.rpartition("/")[2] == "runsc"


class SandboxSpec(NamedTuple):
    """The shape of a sandbox: all that is fixed before a command is known, so that it can be parked.

    Two sandboxes with equal specs are interchangeable; the pool is keyed by this value.
    """

    rootfs: str
    """Absolute path of the image's tree on the host, or of the uppermost of several; it becomes a read-only lower layer."""
    scratch_bytes: int
    """Size of the writable layer (a tmpfs)."""
    scratch_inodes: int
    """Files in the writable layer."""
    binds: tuple[tuple[str, str], ...] = ()
    """(host path, path inside), each bound recursively and read-only. Set by an image, never by a job."""
    writable: tuple[str, ...] = ("/work",)
    """Directories made in the writable layer and owned by `uid` and `gid`. Set by an image, never by a job."""
    uid: int = 0
    """User id of the command inside the sandbox."""
    gid: int = 0
    """Group id of the command inside the sandbox."""
    hostname: str = "sandbox"
    network: NetworkMode = NetworkMode.NONE
    writable_root: bool = False
    """Work on `rootfs` itself instead of a layer above it: only for unpacking and removing images. Where there is something
    below it, that is seen through it, and what becomes of it is written into `rootfs`; beside that is a directory `work`."""
    runtime: OciRuntime | None = None
    """What starts the command; None: init itself (`native`)."""
    below: tuple[str, ...] = ()
    """Absolute paths of the trees under `rootfs`, the uppermost first: layers of the same image."""
    groups: tuple[int, ...] = ()
    """Supplementary groups of the command. Set by an image, never by a job; with a single id it has none."""

    @property
    def is_blank(self) -> bool:
        """Whether it is no shape: that of a sandbox that is begun before anybody has asked for one."""
        return not self.rootfs

    @property
    def fits_blank(self) -> bool:
        """Whether a blank can become this: not if the launcher has more to do for it, or init keeps more rights."""
        plain = self.runtime is None and self.network is NetworkMode.NONE
        return plain and not self.writable_root and not self.is_blank


BLANK = SandboxSpec(rootfs="", scratch_bytes=0, scratch_inodes=0)
"""The spec of a sandbox that is begun ahead: it has no shape as yet."""


class Machine(NamedTuple):
    """What a command is to see of the machine: what it may use, not what the host has."""

    cpus: tuple[int, ...]
    """Numbers of the CPUs that it runs on."""
    memory_bytes: int
    swap_bytes: int


class Used(NamedTuple):
    """What the commands of a sandbox have used of their machine so far."""

    memory_bytes: int
    """At this moment."""
    cpu_seconds: float


class Command(NamedTuple):
    """A command to run in a sandbox that stands."""

    argv: tuple[str, ...]
    env: dict[str, str]
    """The whole environment: nothing is inherited."""
    workdir: str
    """Absolute path inside the sandbox; made if it does not exist."""
    rlimits: dict[str, int]
    """Resource limit (`"nofile"`, `"fsize"`, …: getrlimit(2) without RLIMIT_) to soft and hard value."""
    machine: Machine | None = None
    """None: what the command before it saw, and before any the host."""


class Then(enum.StrEnum):
    """What becomes of the sandbox when a command in it is over."""

    END = "end"
    """It ends, and everything in it."""
    CLEAR = "clear"
    """Whatever the command left running is killed; the files stay."""
    KEEP = "keep"
    """Nothing: what the command left running goes on."""


class File(NamedTuple):
    """A file or directory to make in a sandbox, for the command's user."""

    path: str
    """Absolute path inside the sandbox. Directories above it are made; what is there already is replaced."""
    mode: int
    size_bytes: int | None
    """None for a directory."""


class TerminalSize(NamedTuple):
    """Of a terminal, in characters."""

    rows: int
    columns: int


class NotMade(NamedTuple):
    """A file or directory that cannot be made, and why: the caller's mistake, not a failure of the sandbox."""

    path: str
    errno: int


class Unusable(NamedTuple):
    """Why the command cannot be started, as exec(3) tells it: the caller's mistake, not a failure of the sandbox."""

    what: str
    """`command`, `workdir` or `terminal` (there are too many in this sandbox)."""
    errno: int


class Exit(NamedTuple):
    """How the command ended, as wait4(2) tells it."""

    at: float
    """time.monotonic() of that moment."""
    code: int | None
    """Exit status 0-255, None if a signal ended it."""
    signal: int | None
    """Number of the signal that ended it, None if it exited."""
    cpu_user_seconds: float
    """CPU time of the command and the children that it waited for: the figure where there is no cgroup."""
    cpu_system_seconds: float
    max_rss_bytes: int
    alone: bool
    """Whether the command left no process behind; what it left is killed with init."""


class Walls(NamedTuple):
    """What stands around a sandbox, for the job's record."""

    id_map: str
    """`range` (subordinate ids, the service's own uid not mapped) or `single`."""
    namespaces: tuple[str, ...]
    seccomp_digest: str
    """`sha256:…` of the filter program; `gvisor` where the command has a kernel of its own."""
    no_new_privileges: bool
    capabilities: tuple[str, ...]
    network: NetworkMode
