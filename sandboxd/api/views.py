"""Values as the API shows them: a Job, its limits, its output, an image, a key."""

from typing import Any

from msgspec import UNSET, UnsetType, structs

from sandboxd.api.headers import trace_id_of
from sandboxd.api.output import Output
from sandboxd.api.query import rfc3339
from sandboxd.api.schemas import (
    ArtifactView,
    ChangesView,
    DeniedView,
    DryRunView,
    ErrorView,
    EventView,
    ExitView,
    FileView,
    ImageView,
    JobView,
    KeyView,
    LimitsView,
    LinksView,
    NetworkView,
    PassedOverView,
    RetryView,
    SampleView,
    StepView,
    UsageView,
    WaitingView,
)
from sandboxd.cpu_lists import format_cpu_list
from sandboxd.images.resolved import ResolvedImage
from sandboxd.jobs import (
    TERMINAL,
    WAITING,
    ApiKey,
    Artifact,
    Denied,
    ExitStatus,
    Image,
    InputFile,
    Job,
    JobError,
    JobEvent,
    JobSpec,
    Network,
    Result,
    Sample,
    State,
    Usage,
)
from sandboxd.scheduling.scheduler import Waits
from sandboxd.signal_names import signal_name


def job_view(
    job: Job,
    output: Output | None = None,
    *,
    steps: list[StepView] | None = None,
    waits: Waits | None = None,
) -> JobView:
    """A job, with its output and its steps if they are known."""
    spec, result = job.spec, job.result
    return JobView(
        id=job.id,
        state=job.state,
        reason=job.reason,
        attempt=job.attempt,
        created_at=rfc3339(job.created_at),
        queued_at=rfc3339(job.queued_at),
        started_at=_time(job.started_at),
        finished_at=_time(job.finished_at),
        expires_at=_time(job.expires_at),
        image_digest=_known(result.image_digest if result else None),
        exit=exit_view(result.exit) if result else UNSET,
        usage=usage_view(result.usage) if result else UNSET,
        stdout=output.stdout if output else UNSET,
        stderr=output.stderr if output else UNSET,
        streams=output.streams if output else UNSET,
        enforcement=result.enforcement if result else UNSET,
        error=error_view(result.error) if result and result.error else UNSET,
        artifacts=_artifact_views(spec, result),
        artifacts_passed_over=_passed_over_views(result),
        changes=_changes_view(result),
        steps=steps or UNSET,
        denied=tuple(map(_denied_view, result.denied)) if result and result.denied else UNSET,
        waiting=_waiting_view(job.state, waits),
        cancel_requested=True if job.cancel_requested and job.state not in TERMINAL else UNSET,
        kept_sandbox=_known(result.kept_sandbox if result else None),
        retried_from=_known(job.retried_from),
        request_id=_known(job.request_id),
        trace_id=trace_id_of(job.traceparent) if job.traceparent else UNSET,
        links=_links_view(job.id, spec),
        **_asked_for(spec, job.command),
    )


def listed_view(job: Job, *, shortened: bool) -> JobView:
    """A job of a list: many of them must fit into one answer."""
    truncated = True if shortened else UNSET
    return structs.replace(job_view(job), env=UNSET, artifacts=UNSET, command_truncated=truncated)


def dry_run_view(spec: JobSpec, image: ResolvedImage | None) -> DryRunView:
    """What would have been accepted. `image`: None where it is not known yet."""
    command, digest = spec.command, None
    if image is not None:
        digest = image.digest
        if not command and not spec.steps:
            command = image.command(spec.args)
    return DryRunView(dry_run=True, image_digest=digest, **_asked_for(spec, command))


def _asked_for(spec: JobSpec, command: tuple[str, ...]) -> dict[str, Any]:
    return {
        "image": spec.image,
        "pull": spec.pull,
        "command": command,
        "args": spec.args if spec.args and not command else UNSET,
        "env": spec.env,
        "workdir": spec.workdir,
        "files": [_file_view(file) for file in spec.files] or UNSET,
        "outputs": spec.outputs or UNSET,
        "user": None if spec.user is None else f"{spec.user[0]}:{spec.user[1]}",
        "limits": _limits_view(spec),
        "network": _network_view(spec.network),
        "runtime": spec.runtime,
        "require": spec.require,
        "priority": spec.priority,
        "cpuset": format_cpu_list(spec.cpuset) if spec.cpuset else UNSET,
        "stop_signal": UNSET if spec.stop_signal is None else signal_name(spec.stop_signal),
        "labels": spec.labels,
        "retry": RetryView(max_attempts=spec.retry.max_attempts),
        "keep_on_failure_seconds": _known_number(spec.keep_on_failure_seconds),
        "ttl_seconds": spec.ttl_seconds,
    }


def _file_view(file: InputFile) -> FileView:
    return FileView(
        path=file.path,
        mode=f"{file.mode:04o}",
        size_bytes=UNSET if file.size_bytes is None else file.size_bytes,
        directory=True if file.size_bytes is None else UNSET,
    )


def artifact_view(artifact: Artifact) -> ArtifactView:
    return ArtifactView(
        path=artifact.path,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        mode=f"{artifact.mode:04o}",
    )


def _artifact_views(spec: JobSpec, result: Result | None) -> list[ArtifactView] | UnsetType:
    if result is None or not spec.outputs:
        return UNSET
    return [artifact_view(artifact) for artifact in result.artifacts]


def _changes_view(result: Result | None) -> ChangesView | UnsetType:
    if result is None or result.changes is None:
        return UNSET
    return ChangesView(**structs.asdict(result.changes))


def _passed_over_views(result: Result | None) -> list[PassedOverView] | UnsetType:
    if result is None or not result.artifacts_passed_over:
        return UNSET
    return [
        PassedOverView(path=each.path, reason=each.reason) for each in result.artifacts_passed_over
    ]


def event_view(event: JobEvent) -> EventView:
    return EventView(
        seq=event.seq,
        time=rfc3339(event.at),
        state=event.state,
        reason=event.reason,
        attempt=event.attempt,
        message=event.message,
    )


def sample_view(sample: Sample) -> SampleView:
    counted = {name: getattr(sample, name) for name in sample.__struct_fields__ if name != "at"}
    return SampleView(time=rfc3339(sample.at), **counted)


def image_view(image: Image) -> ImageView:
    return ImageView(
        name=image.name,
        digest=image.digest,
        size_bytes=image.size_bytes,
        created_at=rfc3339(image.created_at),
        source=image.source,
    )


def key_view(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.id,
        tenant=key.tenant,
        name=key.name,
        scopes=key.scopes,
        created_at=rfc3339(key.created_at),
        expires_at=_time(key.expires_at),
        revoked_at=_time(key.revoked_at),
        quotas=key.quotas,
    )


def _time(unix_seconds: float | None) -> str | None:
    return None if unix_seconds is None else rfc3339(unix_seconds)


def _known_number(number: float | None) -> float | UnsetType:
    return UNSET if number is None else number


def _known(text: str | None) -> str | UnsetType:
    return UNSET if text is None else text


def _limits_view(spec: JobSpec) -> LimitsView:
    limits = spec.limits
    return LimitsView(
        cpus=limits.cpus,
        memory=limits.memory_bytes,
        pids=limits.pids,
        disk=limits.disk_bytes,
        wall_seconds=limits.wall_seconds,
        cpu_seconds=limits.cpu_seconds,
        output_bytes=limits.output_bytes,
        open_files=limits.open_files,
        idle_seconds=limits.idle_seconds,
        network_bytes=limits.network_bytes,
        swap=limits.swap_bytes,
        io_bytes_per_second=limits.io_bytes_per_second,
        queue_seconds=spec.queue_seconds,
        pull_seconds=spec.pull_seconds,
    )


def exit_view(status: ExitStatus) -> ExitView:
    return ExitView(
        code=status.code,
        signal=status.signal,
        oom_killed=status.oom_killed,
        timed_out=status.timed_out,
        stopped_by=status.stopped_by,
    )


def usage_view(usage: Usage) -> UsageView:
    return UsageView(**{name: getattr(usage, name) for name in usage.__struct_fields__})


def _network_view(network: Network) -> NetworkView:
    return NetworkView(mode=network.mode, allow=UNSET if network.allow is None else network.allow)


def _denied_view(denied: Denied) -> DeniedView:
    known = {name: getattr(denied, name) for name in denied.__struct_fields__}
    return DeniedView(**{name: value for name, value in known.items() if value is not None})


def error_view(error: JobError) -> ErrorView:
    return ErrorView(
        component=error.component,
        code=error.code,
        message=error.message,
        remediation=error.remediation,
    )


def _waiting_view(state: State, waits: Waits | None) -> WaitingView | UnsetType:
    if state not in WAITING:
        return UNSET
    if waits is None:
        return WaitingView(for_="slot" if state is State.QUEUED else "retry")
    expected = waits.expected_at
    return WaitingView(
        for_=waits.reason,
        position=waits.position,
        expected_start_at=_time(expected) or UNSET,
    )


def _links_view(job_id: str, spec: JobSpec) -> LinksView:
    path = f"/v1/jobs/{job_id}"
    return LinksView(
        self=path,
        logs=f"{path}/logs",
        events=f"{path}/events",
        artifacts=f"{path}/artifacts" if spec.outputs else UNSET,
        cancel=f"{path}/cancel",
        retry=f"{path}/retry",
    )
