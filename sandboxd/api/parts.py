"""What the API is made of: the parts that it is handed, who is calling, and one call.

The parts are protocols because there are two of each: the service's own, and the plain ones on which the API is
tested without a sandbox.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from starlette.types import Receive, Scope

from sandboxd.api.log_reader import ReadableLog
from sandboxd.api.query import Query
from sandboxd.api.validate import Check
from sandboxd.files.content import Contents
from sandboxd.images.puller import Puller
from sandboxd.images.resolved import ResolvedImage
from sandboxd.jobs import ApiKey, Image, Job, JobEvent, Reason, RunResult, Sample, State
from sandboxd.quotas.limits import Limits
from sandboxd.quotas.tenants import HourOfUse, Whose
from sandboxd.sandboxes.registry import Sandboxes
from sandboxd.scheduling.scheduler import Waits
from sandboxd.settings import FilesSettings, ImagesSettings, ServerSettings
from sandboxd.store.records import Idempotency, Page, Submitted
from sandboxd.tenants import Tenants


class Scheduler(Protocol):
    """Takes jobs in."""

    async def submit(
        self, job: Job, *, idempotency: Idempotency | None, client_waits: bool
    ) -> Submitted: ...

    async def cancel(
        self,
        tenant: str,
        job_id: str,
        *,
        grace_seconds: float,
        message: str | None,
        reason: Reason = Reason.CANCELLED_BY_CLIENT,
    ) -> Job: ...

    async def waits(self, job: Job) -> Waits:
        """What a job that waits is waiting for."""
        ...


class Progress(Protocol):
    """Knows how far the jobs are that are under way."""

    async def wait(self, tenant: str, job_id: str, timeout_seconds: float) -> Job:
        """Returns at the end of the job or at the timeout."""
        ...

    async def wait_started(self, tenant: str, job_id: str, timeout_seconds: float) -> Job:
        """Returns when the job no longer waits in the queue, or at the timeout."""
        ...

    async def wait_run(self, tenant: str, job_id: str, seen: int, timeout_seconds: float) -> Job:
        """Returns when more than `seen` runs of the job's steps have ended, at its end, or at the timeout."""
        ...

    def runs(self, job: Job) -> tuple[RunResult, ...]:
        """The runs of the job's steps that have ended so far."""
        ...

    async def samples(self, tenant: str, job_id: str) -> tuple[Sample, ...]:
        """What the job used, moment by moment. Raises NotFound."""
        ...

    async def log(self, tenant: str, job_id: str) -> ReadableLog:
        """Live or stored. Raises NotFound where there is none (yet)."""
        ...


class Store(Protocol):
    """The durable record, as far as the API reads it itself."""

    async def get(self, tenant: str, job_id: str, *, with_stdin: bool = True) -> Job: ...

    async def list_jobs(
        self,
        tenant: str,
        *,
        states: Collection[State],
        labels: Mapping[str, str],
        since: float | None,
        until: float | None,
        limit: int,
        cursor: str | None,
    ) -> Page: ...

    async def waiting_before(self, job: Job, now: float) -> int:
        """How many waiting jobs are claimed before this one."""
        ...

    async def delete(self, tenant: str, job_id: str) -> Path | None: ...
    async def events(self, tenant: str, job_id: str) -> list[JobEvent]: ...
    async def uses(self, tenant: str, since: int, until: int) -> list[HourOfUse]:
        """What the tenant's jobs used that ended from hour `since` to before hour `until`."""
        ...

    async def stored_bytes(self, tenant: str) -> int:
        """What is kept of the tenant's jobs."""
        ...

    async def used_and_reserved(self, whose: Whose, now: float) -> dict[str, dict[str, float]]:
        """By what is metered and by window."""
        ...

    async def create_key(self, key: ApiKey, *, one_tenant: bool = False) -> None:
        """Raises Conflict if it would be a second tenant's and there may be `one_tenant` only."""
        ...

    async def find_key(self, key_id: str) -> ApiKey | None: ...
    async def list_keys(self) -> list[ApiKey]: ...
    async def revoke_key(self, key_id: str, now: float) -> bool: ...


class Images(Protocol):
    """The images that jobs can name."""

    async def resolve(self, name: str, tenant: str | None = None) -> ResolvedImage:
        """As a tenant may use it. Raises NotFound."""
        ...

    async def list(self, tenant: str | None = None) -> list[Image]:
        """Those that a tenant may use; None: all."""
        ...

    def command_of(
        self, name: str, args: Sequence[str], tenant: str | None = None
    ) -> tuple[str, ...] | None:
        """What an image runs of its own accord; empty if it does not say. None: it is not here."""
        ...


class Metrics(Protocol):
    """Counts requests and shows all figures."""

    def request(self, method: str, route: str, status: int, seconds: float) -> None: ...

    def over_quota(self, policy: str) -> None:
        """A request was refused because of this quota."""
        ...

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type. May take a while: called in a thread."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """The API about itself, made once."""

    openapi: bytes
    """JSON."""
    page: bytes
    """HTML."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Everything that a request may need."""

    scheduler: Scheduler
    progress: Progress
    sandboxes: Sandboxes | None
    store: Store
    images: Images
    image_settings: ImagesSettings
    puller: Puller | None
    """None: no images come from registries here."""
    artifacts: Contents
    """Of the files that jobs left."""
    uploads: Contents
    """Of the files that are sent for jobs, apart from the JSON."""
    files: FilesSettings
    system: Callable[[], dict[str, Any]]
    metrics: Metrics | None
    settings: ServerSettings
    limits: Limits
    ceilings: Limits
    check: Check
    readiness: Callable[[], Awaitable[dict[str, Any]]]
    documents: Documents
    tenants: Tenants
    one_tenant: bool
    """Whether keys are given to a single tenant only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """Who is calling."""

    tenant: str
    scopes: tuple[str, ...]
    key_id: str | None = None


class Authentication(Protocol):
    """Tells who is calling."""

    async def principal(self, scope: Scope) -> Principal:
        """Raises Unauthenticated."""
        ...

    def forget(self, key_id: str) -> None:
        """The key was revoked: nothing that is remembered of it holds."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request on its way through the API."""

    parts: Parts
    authentication: Authentication
    scope: Scope
    receive: Receive
    principal: Principal
    parameters: Mapping[str, str]
    """From the path."""
    query: Query
    media_type: str
    """The one of those that the route can answer with that the client likes best; empty where it answers with none."""
    request_id: str
    traceparent: str | None

    @property
    def tenant(self) -> str:
        return self.principal.tenant

    def header(self, name: bytes) -> str:
        """All values of a header, joined by commas as RFC 9110 (5.3) allows; empty if there is none."""
        values = [value for header, value in self.scope["headers"] if header == name]
        return b", ".join(values).decode("latin-1")
