"""Settings: what can be set, what is accepted, and the defaults. `settings_loader` reads them."""

import base64
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from sandboxd.quotas.limits import LONGEST_SECONDS, MOST_NETWORK_BYTES, Limits
from sandboxd.quotas.tenants import TenantQuotas

Bytes = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Ratio = Annotated[float, msgspec.Meta(ge=0)]


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    listen: str = "127.0.0.1:8080"
    """`HOST:PORT`, `[IPV6]:PORT` or `unix:/path`."""
    metrics_listen: str = "127.0.0.1:9464"
    """Where `/metrics` is served, `HOST:PORT`; empty: nowhere but on the API."""
    auth: bool = True
    """Off is accepted only on loopback or a unix socket."""
    max_body_bytes: Bytes = 16 * 2**20
    max_wait_seconds: Seconds = 60.0
    """The longest that a request is held (`Prefer: wait`, `?wait=`)."""
    shutdown_grace_seconds: Seconds = 10.0


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    data_dir: str = ""
    """Database, logs and images. The loader fills it in where it is not set: $STATE_DIRECTORY (systemd), the
    service user's home /var/lib/sandboxd, or $XDG_STATE_HOME/sandboxd."""
    inline_log_bytes: Bytes = 64 * 2**10
    """Logs up to this size live in SQL, longer ones in files."""

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return Path(self.data_dir) / "sandboxd.sqlite3"


class FilesSettings(msgspec.Struct, frozen=True, kw_only=True):
    max_upload_bytes: Bytes = 2**30
    """The largest request that brings files as a form or as a tar archive."""
    max_artifact_bytes: Bytes = 2**30
    """What is kept of the files of one job, together."""
    max_artifacts: Count = 1000
    """Files and directories that the patterns of one job may match."""
    transfer_seconds: Seconds = 60.0
    """How long it may take to put files into a sandbox, or to take them out."""
    min_free_bytes: Bytes = 256 * 2**20
    """Space of the data directory's file system that uploads and artifacts leave free."""


class IsolationSettings(msgspec.Struct, frozen=True, kw_only=True):
    id_map: Literal["auto", "range", "single"] = "auto"
    """`range` (subordinate ids), `single` (own id only) or `auto` (range where the host allows it)."""
    single_id_many_tenants: bool = False
    """Serve more than one tenant although all jobs have the service's own id (`single`)."""
    cgroups: Literal["auto", "none"] = "auto"
    """`auto`: those that are delegated; `none`: sample and use rlimits and affinity, as where none is."""
    cpusets: bool = False
    """Let jobs name the CPUs that they run on."""
    best_effort: bool = False
    """Run jobs although a limit cannot be enforced; each record says which."""
    attack_at_start: Literal["off", "warn", "gate"] = "off"
    """Try the attacks of `sandboxd attack` when the service starts; `gate`: not ready before all were stopped."""
    parked_sandboxes: Count = 4
    """How many sandboxes are kept ready per shape."""
    parked_shapes: Count = 8
    """How many shapes are kept ready at once."""
    parked_idle_seconds: Seconds = 300.0
    """A shape that was not asked for so long is dropped."""
    blank_sandboxes: Count = 2
    """How many are begun ahead for shapes that are not kept ready."""


class NetworkSettings(msgspec.Struct, frozen=True, kw_only=True):
    egress: Literal["off", "on"] = "off"
    """Whether jobs may ask for `network: {"mode": "egress"}`."""
    allow: tuple[str, ...] = ("public",)
    """The most that they may reach: `public`, addresses, ranges, host names, each with or without `:PORT`."""
    deny: tuple[str, ...] = ()
    """Addresses and ranges that stay closed, whatever `allow` says."""
    rate_bytes: Bytes = 32 * 2**20
    """Bytes a second that a job can send, and as many that it can receive."""


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True):
    slots: Count = 0
    """Jobs at once; 0: twice the CPUs that this process may use."""
    max_queued: Count = 10_000
    """Waiting jobs; more are refused with 503."""
    memory_ratio: Ratio = 1.0
    """The limits on memory of all that runs at once, together, as a part of the host's memory."""
    cpu_ratio: Ratio = 0.0
    """The same for CPU rates and the host's CPUs; 0: as much as all slots have with `limits.cpus`."""
    min_free_memory_bytes: Bytes = 128 * 2**20
    """With less available on the host no job starts: it waits."""
    min_free_disk_bytes: Bytes = 64 * 2**20
    """With less free on the file system of the data directory no job is taken or started."""


class SandboxSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Sandboxes that live until they are told to end. Each holds a slot while it does."""

    most: Count = 0
    """So many at once; 0: half of the slots, so that jobs have the other half."""
    most_per_tenant: Count = 0
    """So many at once for one tenant; 0: as many as there may be."""
    idle_seconds: Seconds = 300.0
    """A sandbox that nobody uses for so long ends, if its maker said nothing else."""
    most_idle_seconds: Seconds = 3600.0
    ttl_seconds: Seconds = 3600.0
    """A sandbox ends after so long in any case, if its maker said nothing else."""
    most_ttl_seconds: Seconds = 86_400.0
    most_execs: Count = 32
    """Commands that run at once in one sandbox."""
    most_file_bytes: Bytes = 256 * 2**20
    """The largest file that is written or read over HTTP."""


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True):
    url: str = ""
    """The service that commands such as `sandboxd jobs` talk to; empty: none is configured."""
    key: str = ""
    """Bearer key for it."""


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True):
    url: str = ""
    """Where events are sent, such as `quota.threshold`; empty: none are made."""
    secret: str = ""
    """What they are signed with (Standard Webhooks): `whsec_` and 24 to 64 bytes in base64."""

    @property
    def signing_key(self) -> bytes:
        """Raises ValueError."""
        prefix, _, text = self.secret.partition("_")
        key = base64.b64decode(text, validate=True)  # Raises a ValueError of its own.
        if prefix != "whsec" or not 24 <= len(key) <= 64:
            raise ValueError
        return key


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    format: Literal["auto", "console", "json"] = "auto"
    """`auto`: for people on a terminal, JSON lines elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A program with the command line of an OCI runtime."""

    path: str
    args: tuple[str, ...] = ()
    """Words before its command (`create`, `start`)."""


class TenantRegistrySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Who a tenant is at a registry."""

    username: str = ""
    password_file: str = ""
    token_file: str = ""


class RegistrySettings(msgspec.Struct, frozen=True, kw_only=True):
    """A registry that images are pulled from. None has to be named that is public and asks for nothing."""

    username: str = ""
    password_file: str = ""
    """The file has the password in its first line."""
    token_file: str = ""
    """The same for an identity token, which the registry's token service takes instead of a password."""
    insecure: bool = False
    """Speak plain HTTP to it."""
    ca_file: str = ""
    """Certificates (PEM) of the authorities that are trusted for it, instead of those of this machine."""
    mirrors: tuple[str, ...] = ()
    """URLs (`https://HOST[:PORT][/PREFIX]`) of who is asked before it, in this order."""
    mirrors_only: bool = False
    """It is not asked itself."""
    proxy: str = ""
    """As `images.proxy`, or `none`; empty: what `images.proxy` says."""
    tenants: dict[str, TenantRegistrySettings] = {}
    """By the tenant's name: who has credentials of its own."""


class ImagesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Images of registries."""

    pull: Literal["always", "missing", "never"] = "missing"
    """When a job's image is fetched from its registry, if the job does not say."""
    pull_seconds: Seconds = 600.0
    """How long that may take, and the most that a job may ask for."""
    pulls_at_once: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Images that are fetched at the same time; one tenant has half of that. Others wait for their turn."""
    registries: tuple[str, ...] = ()
    """Patterns (`HOST[:PORT]/PATH`) of the registries' images that may be pulled and used; empty: all."""
    docker_config: str = ""
    """File of the shape of Docker's `config.json`, for credentials that no section of `registries` has; empty: none."""
    proxy: str = ""
    """Through whom registries are spoken to: `http://HOST:PORT`, `https://HOST:PORT`, or `environment`: as
    $HTTPS_PROXY, $HTTP_PROXY and $NO_PROXY say; empty: nobody."""
    max_bytes: Bytes = 0
    """What all images of registries may take together, unpacked and as they came; beyond it goes what was not used for longest. 0: no bound."""


DEFAULT_LIMITS = Limits(
    cpus=1.0,
    memory_bytes=256 * 2**20,
    pids=64,
    disk_bytes=64 * 2**20,
    wall_seconds=60.0,
    cpu_seconds=60.0,
    output_bytes=16 * 2**20,
    open_files=1024,
    idle_seconds=LONGEST_SECONDS,
    network_bytes=2**30,
    swap_bytes=0,
    io_bytes_per_second=0,
)
CEILINGS = Limits(
    cpus=64.0,
    memory_bytes=64 * 2**30,
    pids=32_768,
    disk_bytes=64 * 2**30,
    wall_seconds=LONGEST_SECONDS,
    cpu_seconds=LONGEST_SECONDS,
    output_bytes=2**30,
    open_files=65_536,
    idle_seconds=LONGEST_SECONDS,
    network_bytes=MOST_NETWORK_BYTES,
    swap_bytes=0,
    io_bytes_per_second=0,
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. Each part is handed to the one module that it is for."""

    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    files: FilesSettings = FilesSettings()
    isolation: IsolationSettings = IsolationSettings()
    network: NetworkSettings = NetworkSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    sandboxes: SandboxSettings = SandboxSettings()
    quotas: TenantQuotas = TenantQuotas()
    """What each tenant may have that has no quotas of its own."""
    limits: Limits = DEFAULT_LIMITS
    """What a job gets where it asks for nothing."""
    ceilings: Limits = CEILINGS
    """The most that a job may ask for."""
    images: ImagesSettings = ImagesSettings()
    runtimes: dict[str, RuntimeSettings] = {}
    """OCI runtimes that a job may name, besides `native`. Read by `settings_runtimes`."""
    registries: dict[str, RegistrySettings] = {}
    """By HOST[:PORT]. One that is named here may have an address that is not public. Read by `settings_registries`."""
    webhooks: WebhookSettings = WebhookSettings()
    client: ClientSettings = ClientSettings()
    log: LogSettings = LogSettings()


SECRETS = frozenset({"client.key", "webhooks.secret"})
"""Settings whose value is never shown."""
_WITH_TOKENS = frozenset({"webhooks.url"})
"""Addresses that often have a token behind their host: that much of them is shown."""
HIDDEN = "(hidden)"


def shown(key: str, value: Any) -> Any:
    """What may be seen of a setting's value, which need not be one that is accepted."""
    if value and key in SECRETS:
        return HIDDEN
    return _origin_of(str(value)) if value and key in _WITH_TOKENS else value


def _origin_of(url: str) -> str:
    """Scheme, host and port; a word that stands for the rest, if there is any."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https") or not host:
        return HIDDEN
    origin = f"{parts.scheme}://{host}"
    return origin if url in (origin, f"{origin}/") else f"{origin}/{HIDDEN}"
