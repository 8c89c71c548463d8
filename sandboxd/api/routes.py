"""The one table of routes: what the service answers and what its OpenAPI document says come from here."""

from http import HTTPStatus

from sandboxd.api import artifacts, docs, jobs, openapi, step_stream, streams, system, tenants
from sandboxd.api.artifacts import RAW
from sandboxd.api.auth import ADMIN, JOBS_READ, JOBS_WRITE
from sandboxd.api.image_archive_routes import IMAGE_ARCHIVE_ROUTES
from sandboxd.api.image_routes import IMAGE_ROUTES
from sandboxd.api.query import DEFAULT_PAGE, MAX_PAGE
from sandboxd.api.resources import PUBLIC, Parameter, Reply, Route
from sandboxd.api.sandbox_routes import SANDBOX_ROUTES
from sandboxd.api.schemas import (
    ArtifactList,
    CancelRequest,
    DryRunView,
    EventList,
    HealthView,
    IdentityView,
    JobList,
    JobRequest,
    JobView,
    KeyList,
    KeyRequest,
    NewKeyView,
    QuotasView,
    SampleList,
    StepList,
    TenantRequest,
    TenantView,
    UsageList,
)
from sandboxd.api.uploads import FORM, TAR
from sandboxd.jobs import State, Stream

_BOOLEAN = {"type": "boolean"}
_SECONDS = {"type": "number", "minimum": 0}
_TIME = {"type": "string", "format": "date-time"}

_PREFER = Parameter(
    name="Prefer",
    place="header",
    description=(
        "`wait=30` holds the answer until the job has ended, for at most so many seconds (and the server's own "
        "maximum); `respond-async` answers at once."
    ),
)
_ON_DISCONNECT = Parameter(
    name="Sandboxd-On-Disconnect",
    place="header",
    description="`continue`: with `Prefer: wait`, the job goes on although the client hangs up.",
)
_IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    place="header",
    description="Up to 255 characters. The same key and body give the same job for 24 hours.",
)
_ACCEPTED = Reply(
    status=HTTPStatus.ACCEPTED,
    description="The job is on the record. `Location` is where it can be watched.",
    body=JobView,
)
_ENDED = Reply(
    status=HTTPStatus.OK,
    description="With `Prefer: wait`: the job has ended, well or not. With `?dry_run=true`: it would be accepted.",
    body=JobView,
    or_body=DryRunView,
)
_TIME_RANGE = (
    Parameter(name="since", description="Made at this time or later.", schema=_TIME),
    Parameter(name="until", description="Made before this time.", schema=_TIME),
)

ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/v1/jobs",
        handler=jobs.submit,
        group="Jobs",
        summary="Run a command",
        description=(
            "Answers 202 as soon as the job is on the record, unless `Prefer: wait` asks to hold the answer. A "
            "command that fails is no failed request: look at `state`. Fields that are not listed are refused. Files that are "
            "too large for JSON come in a form, whose part `job` is the JSON and whose other parts are files, each called by its "
            "path; or in a tar archive, with the JSON in the header `Sandboxd-Job`."
        ),
        scope=JOBS_WRITE,
        request=JobRequest,
        other_requests={
            FORM: {
                "type": "object",
                "properties": {"job": {"$ref": "#/components/schemas/JobRequest"}},
                "required": ["job"],
                "additionalProperties": {"type": "string", "contentMediaType": RAW},
            },
            TAR: {"type": "string", "contentMediaType": TAR},
        },
        parameters=(
            Parameter(
                name="dry_run",
                description="Check everything, store and run nothing.",
                schema=_BOOLEAN,
            ),
            Parameter(
                name="Sandboxd-Job",
                place="header",
                description="With a tar archive as body: the job as JSON, in ASCII.",
            ),
            _PREFER,
            _IDEMPOTENCY_KEY,
            _ON_DISCONNECT,
        ),
        replies=(_ACCEPTED, _ENDED),
    ),
    Route(
        method="GET",
        path="/v1/jobs",
        handler=jobs.list_,
        group="Jobs",
        summary="List jobs",
        description=(
            "Newest first, without input, output and `env`; `command` is cut after 4 KiB, and `command_truncated` then "
            "says so. A page has fewer than `limit` where they are more than 1 MiB. `Link` and `next_cursor` lead to "
            "the next page."
        ),
        scope=JOBS_READ,
        parameters=(
            Parameter(
                name="state",
                description="Only jobs in this state; may be repeated, and hold several with commas.",
                schema={"type": "array", "items": {"enum": [str(state) for state in State]}},
            ),
            Parameter(name="label.KEY", description="Only jobs whose label KEY has this value."),
            *_TIME_RANGE,
            Parameter(
                name="limit",
                description="Jobs on a page.",
                schema={
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MAX_PAGE,
                    "default": DEFAULT_PAGE,
                },
            ),
            Parameter(name="cursor", description="`next_cursor` of the page before."),
        ),
        replies=(Reply(status=HTTPStatus.OK, description="One page.", body=JobList),),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}",
        handler=jobs.show,
        group="Jobs",
        summary="Show a job",
        description=(
            'With the first 64 KiB of each stream: as text, or as `{"base64": …}` where it is not UTF-8. '
            "`If-None-Match` with the `ETag` of a former answer gives 304 while nothing has changed."
        ),
        scope=JOBS_READ,
        parameters=(
            Parameter(
                name="wait",
                description="Hold the answer until the job has ended, for at most so many seconds.",
                schema=_SECONDS,
            ),
            Parameter(name="If-None-Match", place="header", description="An `ETag`."),
        ),
        replies=(
            Reply(status=HTTPStatus.OK, description="The job.", body=JobView),
            Reply(status=HTTPStatus.NOT_MODIFIED, description="It is as you know it."),
        ),
    ),
    Route(
        method="DELETE",
        path="/v1/jobs/{job_id}",
        handler=jobs.delete,
        group="Jobs",
        summary="Delete a job",
        description="Removes the record, the logs and the files of a job that has ended.",
        scope=JOBS_WRITE,
        replies=(Reply(status=HTTPStatus.NO_CONTENT, description="It is gone."),),
    ),
    Route(
        method="POST",
        path="/v1/jobs/{job_id}/cancel",
        handler=jobs.cancel,
        group="Jobs",
        summary="Cancel a job",
        description="The job's stop signal (SIGTERM, if none was named), then after the grace SIGKILL to everything in the sandbox. Idempotent.",
        scope=JOBS_WRITE,
        request=CancelRequest,
        request_optional=True,
        replies=(
            Reply(status=HTTPStatus.OK, description="The job has ended.", body=JobView),
            Reply(status=HTTPStatus.ACCEPTED, description="It is being stopped.", body=JobView),
        ),
    ),
    Route(
        method="POST",
        path="/v1/jobs/{job_id}/retry",
        handler=jobs.retry,
        group="Jobs",
        summary="Run a job again",
        description="A new job of the same kind; `retried_from` names the old one.",
        scope=JOBS_WRITE,
        parameters=(_PREFER, _IDEMPOTENCY_KEY, _ON_DISCONNECT),
        replies=(
            _ACCEPTED,
            Reply(
                status=HTTPStatus.OK,
                description="With `Prefer: wait`: the new job has ended.",
                body=JobView,
            ),
        ),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/logs",
        handler=streams.logs,
        group="Jobs",
        summary="Read or follow the output",
        description=(
            "Raw bytes, one JSON object per line, or server-sent events, by `Accept`. The raw log takes `Range`. An "
            "event's id is the offset that the client has reached, so `Last-Event-ID` resumes exactly; after the `end` "
            "event the answer is 204."
        ),
        scope=JOBS_READ,
        parameters=(
            Parameter(
                name="stream",
                description="Only this stream; left out: both in order of arrival.",
                schema={"enum": [str(stream) for stream in Stream]},
            ),
            Parameter(name="follow", description="Stay until the job has ended.", schema=_BOOLEAN),
            Parameter(
                name="tail",
                description="Only the last lines.",
                schema={"type": "integer", "minimum": 0, "maximum": streams.MAX_TAIL_LINES},
            ),
            Parameter(
                name="since",
                description="Only what came at this time or later, to about a second.",
                schema=_TIME,
            ),
            Parameter(name="Range", place="header", description="`bytes=0-1023`, on the raw log."),
            Parameter(name="Last-Event-ID", place="header", description="Where events go on."),
        ),
        replies=(
            Reply(
                status=HTTPStatus.OK,
                description="The output. NDJSON lines and the events' data are LogRecords.",
                media_types=streams.OFFERED,
            ),
            Reply(
                status=HTTPStatus.PARTIAL_CONTENT,
                description="The range that was asked for.",
                media_types=(streams.TEXT, streams.RAW),
            ),
            Reply(status=HTTPStatus.NO_CONTENT, description="You have seen the end."),
        ),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/steps",
        handler=step_stream.steps,
        group="Jobs",
        summary="How a job's steps stand, or each run as it ends",
        description=(
            "All steps with the runs that have ended, or as server-sent events one `run` for each run in order, and an `end`. An "
            "event's id is the number of runs until then, so `Last-Event-ID` resumes exactly."
        ),
        scope=JOBS_READ,
        parameters=(
            Parameter(name="follow", description="Stay until the job has ended.", schema=_BOOLEAN),
            Parameter(name="Last-Event-ID", place="header", description="Where events go on."),
        ),
        replies=(
            Reply(
                status=HTTPStatus.OK,
                description="The steps. The events' data are RunEventViews.",
                body=StepList,
                media_types=step_stream.OFFERED,
            ),
        ),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/artifacts",
        handler=artifacts.list_,
        group="Jobs",
        summary="List the files that a job left, or get them all",
        description="With `Accept: application/x-tar` all of them as one tar archive.",
        scope=JOBS_READ,
        replies=(
            Reply(
                status=HTTPStatus.OK,
                description="The files.",
                body=ArtifactList,
                media_types=(artifacts.JSON, artifacts.TAR),
            ),
        ),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/artifacts/{path:path}",
        handler=artifacts.download,
        group="Jobs",
        summary="Get a file that a job left",
        description=(
            "`path` as the list has it, an absolute one without its first slash. The `ETag` is the SHA-256 of the content. A name "
            "with `%`, a backslash or a control character is to be had by the archive only."
        ),
        scope=JOBS_READ,
        parameters=(
            Parameter(name="Range", place="header", description="`bytes=0-1023`."),
            Parameter(
                name="If-Range", place="header", description="An `ETag`: else the whole file comes."
            ),
            Parameter(name="If-None-Match", place="header", description="An `ETag`."),
        ),
        replies=(
            Reply(status=HTTPStatus.OK, description="The content.", media_types=(artifacts.RAW,)),
            Reply(
                status=HTTPStatus.PARTIAL_CONTENT,
                description="The range that was asked for.",
                media_types=(artifacts.RAW,),
            ),
            Reply(status=HTTPStatus.NOT_MODIFIED, description="It is as you know it."),
        ),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/events",
        handler=jobs.events,
        group="Jobs",
        summary="What happened to a job",
        scope=JOBS_READ,
        replies=(Reply(status=HTTPStatus.OK, description="All changes of state.", body=EventList),),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{job_id}/stats",
        handler=jobs.stats,
        group="Jobs",
        summary="What a job used, moment by moment",
        description=(
            "CPU time, memory, processes, and disk where it is counted: from 50 ms on at growing distances up to a second; of "
            "jobs that run for longer than four minutes, at most 240 samples. A shorter job has none: see its `usage`."
        ),
        scope=JOBS_READ,
        replies=(Reply(status=HTTPStatus.OK, description="The samples.", body=SampleList),),
    ),
    *SANDBOX_ROUTES,
    *IMAGE_ARCHIVE_ROUTES,
    *IMAGE_ROUTES,
    Route(
        method="GET",
        path="/v1/system",
        handler=system.system,
        group="System",
        summary="What this service and its host can do",
        description="Version, walls, how each limit is enforced here, capacity.",
        scope=JOBS_READ,
        replies=(Reply(status=HTTPStatus.OK, description="Facts.", body=dict),),
    ),
    Route(
        method="GET",
        path="/v1/whoami",
        handler=system.whoami,
        group="Keys",
        summary="Who am I",
        scope=None,
        replies=(Reply(status=HTTPStatus.OK, description="Tenant and scopes.", body=IdentityView),),
    ),
    Route(
        method="GET",
        path="/v1/quotas",
        handler=tenants.quotas,
        group="Tenants",
        summary="What you may have",
        description="Quotas of your tenant, and what is used of those over an hour, a day and a month.",
        scope=None,
        replies=(Reply(status=HTTPStatus.OK, description="The quotas.", body=QuotasView),),
    ),
    Route(
        method="GET",
        path="/v1/usage",
        handler=tenants.usage,
        group="Tenants",
        summary="What you used",
        description="Hour by hour, this month unless told otherwise.",
        scope=JOBS_READ,
        parameters=(
            Parameter(
                name="since", description="RFC 3339, or Unix time; the hour that it is in counts."
            ),
            Parameter(name="until", description="As `since`."),
        ),
        replies=(Reply(status=HTTPStatus.OK, description="The hours.", body=UsageList),),
    ),
    Route(
        method="GET",
        path="/v1/tenants/{name}",
        handler=tenants.show,
        group="Tenants",
        summary="Quotas of a tenant",
        scope=ADMIN,
        replies=(Reply(status=HTTPStatus.OK, description="The quotas.", body=TenantView),),
    ),
    Route(
        method="PUT",
        path="/v1/tenants/{name}",
        handler=tenants.put,
        group="Tenants",
        summary="Give a tenant quotas of its own",
        description="All at once: what is left out has no bound. They hold from now on. `ceilings` cannot be above the operator's.",
        scope=ADMIN,
        request=TenantRequest,
        replies=(Reply(status=HTTPStatus.OK, description="The quotas.", body=TenantView),),
    ),
    Route(
        method="DELETE",
        path="/v1/tenants/{name}",
        handler=tenants.reset,
        group="Tenants",
        summary="Give a tenant the quotas of all",
        scope=ADMIN,
        replies=(Reply(status=HTTPStatus.NO_CONTENT, description="It has them now."),),
    ),
    Route(
        method="GET",
        path="/v1/keys",
        handler=system.list_keys,
        group="Keys",
        summary="List keys",
        description="Of all tenants, without their secrets.",
        scope=ADMIN,
        replies=(Reply(status=HTTPStatus.OK, description="All keys.", body=KeyList),),
    ),
    Route(
        method="POST",
        path="/v1/keys",
        handler=system.create_key,
        group="Keys",
        summary="Make a key",
        description="The key's text is in this answer and never again.",
        scope=ADMIN,
        request=KeyRequest,
        replies=(Reply(status=HTTPStatus.CREATED, description="The key.", body=NewKeyView),),
    ),
    Route(
        method="DELETE",
        path="/v1/keys/{key_id}",
        handler=system.revoke_key,
        group="Keys",
        summary="Revoke a key",
        description="Other processes on the same database may honour it for ten seconds more.",
        scope=ADMIN,
        replies=(Reply(status=HTTPStatus.NO_CONTENT, description="It is worthless now."),),
    ),
    Route(
        method="GET",
        path="/livez",
        handler=system.livez,
        group="System",
        summary="Whether the process is alive",
        scope=PUBLIC,
        replies=(Reply(status=HTTPStatus.OK, description="It is.", body=HealthView),),
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=system.readyz,
        group="System",
        summary="Whether jobs can be taken",
        scope=PUBLIC,
        replies=(
            Reply(status=HTTPStatus.OK, description="They can.", body=dict),
            Reply(status=HTTPStatus.SERVICE_UNAVAILABLE, description="Not now; why.", body=dict),
        ),
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handler=openapi.document,
        group="System",
        summary="This API as an OpenAPI 3.1 document",
        scope=PUBLIC,
        replies=(Reply(status=HTTPStatus.OK, description="The document.", body=dict),),
    ),
    Route(
        method="GET",
        path="/docs",
        handler=docs.page,
        group="System",
        summary="This API for people",
        scope=PUBLIC,
        replies=(Reply(status=HTTPStatus.OK, description="A page.", media_types=("text/html",)),),
    ),
)

METRICS_ROUTE = Route(
    method="GET",
    path="/metrics",
    handler=system.metrics,
    group="System",
    summary="Figures for Prometheus",
    scope=ADMIN,
    replies=(
        Reply(
            status=HTTPStatus.OK,
            description="Text or OpenMetrics.",
            media_types=("text/plain", "application/openmetrics-text"),
        ),
    ),
)
"""In the table only where there are metrics."""
