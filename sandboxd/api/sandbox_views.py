"""Sandboxes and the commands in them as the API shows them."""

from msgspec import UNSET

from sandboxd.api.output import output_of
from sandboxd.api.query import rfc3339
from sandboxd.api.sandbox_schemas import (
    ExecView,
    SandboxLimitsView,
    SandboxLinksView,
    SandboxView,
)
from sandboxd.api.views import error_view, exit_view, usage_view
from sandboxd.sandbox_values import SandboxRecord
from sandboxd.sandboxes.execs import Exec


def sandbox_view(record: SandboxRecord) -> SandboxView:
    """A sandbox."""
    plan, limits = record.plan, record.plan.limits
    path = f"/v1/sandboxes/{record.id}"
    return SandboxView(
        id=record.id,
        state=record.state,
        reason=record.reason,
        message=UNSET if record.message is None else record.message,
        created_at=rfc3339(record.created_at),
        started_at=_time(record.started_at),
        ended_at=_time(record.ended_at),
        expires_at=rfc3339(record.created_at + plan.ttl_seconds),
        image=plan.image,
        pull=plan.pull,
        image_digest=record.image_digest,
        env=plan.env,
        workdir=plan.workdir,
        user=None if plan.user is None else f"{plan.user[0]}:{plan.user[1]}",
        limits=SandboxLimitsView(
            cpus=limits.cpus,
            memory=limits.memory_bytes,
            pids=limits.pids,
            disk=limits.disk_bytes,
            open_files=limits.open_files,
            swap=limits.swap_bytes,
            io_bytes_per_second=limits.io_bytes_per_second,
        ),
        labels=plan.labels,
        idle_seconds=plan.idle_seconds,
        ttl_seconds=plan.ttl_seconds,
        execs=record.execs,
        usage=UNSET if record.usage is None else usage_view(record.usage),
        request_id=UNSET if record.request_id is None else record.request_id,
        links=SandboxLinksView(self=path, exec=f"{path}/exec", files=f"{path}/files"),
    )


async def exec_view(execution: Exec, *, with_output: bool = True) -> ExecView:
    """A command, with the first part of its output so far."""
    result = execution.result
    output = await output_of(execution.log) if with_output else None
    return ExecView(
        id=execution.id,
        state=execution.state,
        reason=execution.reason,
        exit=UNSET if result is None else exit_view(result.exit),
        stdout=output.stdout if output else UNSET,
        stderr=output.stderr if output else UNSET,
        streams=output.streams if output else UNSET,
        error=error_view(result.error) if result and result.error else UNSET,
        usage=usage_view(result.usage) if result else UNSET,
        created_at=rfc3339(execution.created_at),
        started_at=_time(execution.started_at),
        ended_at=_time(execution.ended_at),
        command=execution.spec.command,
    )


def _time(unix_seconds: float | None) -> str | None:
    return None if unix_seconds is None else rfc3339(unix_seconds)
