"""What the store keeps of each tenant's jobs, in bytes, and what still fits where that is bounded.

The request and its inputs count from the acceptance on, the result, its samples, logs and artifacts from the end, all until
the job is deleted; files that were uploaded go with the end. Each job's row has its own sum, each tenant one over all, which
triggers of the database keep: no job costs a statement more, and nobody ever has to look at the files.
"""

from itertools import accumulate
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, func, select

from sandboxd.errors import QuotaExceeded
from sandboxd.files.keeping import MOST_TOLD
from sandboxd.jobs import Job, JobSpec, PassedOver, Result
from sandboxd.quotas.tenants import STORAGE, Holder
from sandboxd.store import tables
from sandboxd.store.logs import StoredLog
from sandboxd.store.records import encode_result, encode_samples, encode_spec, input_of

_RETRY_SECONDS = 60.0
_DROPPED = "storage_quota"

_job, _storage = tables.job, tables.tenant_storage
_USED = select(_storage.c.used_bytes).where(_storage.c.tenant == bindparam("of_tenant"))
_USED_BY_OTHERS = (
    select(func.coalesce(_storage.c.used_bytes, 0) - _job.c.upload_bytes)
    .select_from(_job.outerjoin(_storage, _storage.c.tenant == _job.c.tenant))
    .where(_job.c.id == bindparam("of_job"))
)
"""What the tenant of a job has without the uploads that go with its end."""


class Incoming(NamedTuple):
    """What is kept of a job from its acceptance on."""

    spec: bytes
    """The request, without its inputs."""
    stdin: bytes
    """As it is stored, the inputs of all steps together."""
    kept_bytes: int
    """Until it is deleted."""
    upload_bytes: int
    """Until it ends."""

    @property
    def all_bytes(self) -> int:
        return self.kept_bytes + self.upload_bytes


def incoming(spec: JobSpec) -> Incoming:
    """What comes with a job, encoded."""
    encoded, stdin = encode_spec(spec), input_of(spec)
    uploaded = sum(file.size_bytes or 0 for file in spec.files if file.offset is not None)
    return Incoming(encoded, stdin, len(encoded) + len(stdin) + len(spec.contents), uploaded)


def used(connection: Connection, tenant: str) -> int:
    """All that is kept of a tenant's jobs."""
    return connection.scalar(_USED, {"of_tenant": tenant}) or 0


def check(connection: Connection, job: Job, coming: Incoming, most_bytes: int) -> None:
    """Raises QuotaExceeded where the job's tenant would have more than it may with what comes with the job."""
    used_bytes = used(connection, job.tenant)
    if used_bytes + coming.all_bytes > most_bytes:
        raise QuotaExceeded(
            f"{used_bytes} of {most_bytes} bytes are kept of your jobs, and {coming.all_bytes} would come with this one: "
            "delete jobs that have ended (`DELETE /v1/jobs/ID`), with which their inputs, logs and artifacts go, "
            "or give jobs a `ttl_seconds`",
            policy=STORAGE,
            of=Holder.TENANT,
            retry_after_seconds=_RETRY_SECONDS,
        )


def fitting(
    connection: Connection, job_id: str, result: Result, log: StoredLog, most_bytes: int
) -> tuple[Result, StoredLog]:
    """What of a job's log and artifacts may be kept: the first bytes of the one, then the first of the others.

    The result is kept in any case, and what it says of what was dropped.
    """
    used_bytes = connection.scalar(_USED_BY_OTHERS, {"of_job": job_id}) or 0
    used_bytes += len(encode_result(result)) + len(encode_samples(result))
    free = max(0, most_bytes - used_bytes)
    log = log.cut(free)
    free -= log.kept_bytes
    ends = accumulate(artifact.size_bytes for artifact in result.artifacts)
    number = sum(end <= free for end in ends)
    if number == len(result.artifacts):
        return result, log
    dropped = [artifact.path for artifact in result.artifacts[number:]]
    told = [PassedOver(path=path, reason=_DROPPED) for path in dropped[:MOST_TOLD]]
    if len(dropped) > MOST_TOLD:
        told.append(PassedOver(path="", reason=f"and_{len(dropped) - MOST_TOLD}_more"))
    return (
        msgspec.structs.replace(
            result,
            artifacts=result.artifacts[:number],
            artifact_count=number,
            artifacts_passed_over=(*result.artifacts_passed_over, *told),
        ),
        log,
    )
