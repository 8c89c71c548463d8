"""What the client says and hears, without any input or output: both clients drive these same conversations.

A conversation is a generator. It yields a `Request` and is sent the `Answer` or `Lost`; it yields a `Pause` and is
sent None when that is over; what it returns is the result. So a retry or a long poll is written once.
"""

import base64
import json
import os
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import msgspec

from sandboxd.client.files import Content, Part, Upload, as_json, fit_into_json, parts_of
from sandboxd.client.types import (
    Artifact,
    ClientError,
    Conflict,
    ConnectionFailed,
    Event,
    InvalidRequest,
    Job,
    JobPage,
    Key,
    KeyRefused,
    LogChunk,
    NewKey,
    NotFound,
    NotTheService,
    Problem,
    RequestRefused,
    Sample,
    ServiceFault,
    Unavailable,
    WaitTimedOut,
)
from sandboxd.jobs import State, Stream

ATTEMPTS = 5
"""How often a request is sent that may be repeated."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
"""A service that says "later" and means longer is not waited for."""
POLL_SECONDS = 30.0
"""How long one request waits for the end of a job: shorter than the time-outs of proxies."""
SHORTEST_POLL_SECONDS = 0.2
"""A service that does not hold requests is asked no more often."""
PATIENCE_SECONDS = 30.0
"""Without an answer for so long (above what the service was asked to wait) the connection is given up."""

UPLOAD_PATIENCE_SECONDS = 300.0
"""A gigabyte is on the service's disk before it answers."""

_JSON = {"content-type": "application/json"}
_NOT_CARRIED_OUT = frozenset({409, 429, 503})
"""With Retry-After these mean: nothing was done, come back."""

_Result = TypeVar("_Result")


class Request(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    """With a form: its part `job`."""
    upload: Upload | None = None
    """In place of a body: what is sent as it is read."""
    form: Sequence[Part] = ()
    """Files to send beside the body."""
    may_repeat: bool = False
    """Whether sending it twice does no more than sending it once."""
    patience_seconds: float = PATIENCE_SECONDS


class Pause(NamedTuple):
    """Time to let pass."""

    seconds: float


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Lost(NamedTuple):
    """Nothing came back, or only a part."""

    reason: str


Conversation = Generator[Request | Pause, Any, _Result]


class JobOptions(TypedDict, total=False):
    """What a job may be given besides its command; see the API's `POST /v1/jobs`."""

    image: str
    pull: str
    """`always`, `missing` or `never`: when the image is fetched from its registry first."""
    steps: Sequence[Mapping[str, Any]]
    """In place of a command: several, in one sandbox."""
    stdin: str | bytes
    env: Mapping[str, str]
    workdir: str
    files: Mapping[str, Content]
    """Path inside to text, bytes, or the path of a file here (`pathlib.Path`)."""
    outputs: Sequence[str]
    """Patterns of files to keep."""
    changes: bool
    """Tell what was created, modified and deleted."""
    user: str
    limits: Mapping[str, float | int | str]
    """`{"memory": "128Mi", "cpus": 0.5, "wall_seconds": 10, …}`"""
    network: Mapping[str, Any]
    runtime: str
    require: Mapping[str, str]
    priority: int
    stop_signal: str
    """What asks it to end when it is cancelled; left out: the image's own, or SIGTERM."""
    cpuset: str
    """CPUs that it runs on, such as `0-1,3`."""
    labels: Mapping[str, str]
    retry: Mapping[str, int]
    keep_on_failure_seconds: float
    ttl_seconds: float


def submit(command: Sequence[str], **options: Unpack[JobOptions]) -> Conversation[Job]:
    """Hand in a job; the answer comes as soon as it is on the record. Without a command: what the image runs of its own accord."""
    body: dict[str, Any] = {"image": "host", **options}
    if command:
        body["command"] = list(command)
    parts = parts_of(options.get("files", {}))
    body.pop("files", None)
    key = {"idempotency-key": os.urandom(16).hex()}
    if fit_into_json(parts):
        if parts:
            body["files"] = [as_json(part) for part in parts]
        headers = _JSON | key
        request = Request("POST", "/v1/jobs", headers=headers, body=_to_json(body), may_repeat=True)
    else:
        request = Request(
            "POST",
            "/v1/jobs",
            headers=key,
            body=_to_json(body),
            form=parts,
            may_repeat=True,
            patience_seconds=UPLOAD_PATIENCE_SECONDS,
        )
    return (yield from ask(request, Job))


def _to_json(body: dict[str, Any]) -> bytes:
    """With bytes, wherever they are, as the API takes them: text, or base64."""

    def encode(value: object) -> object:
        if isinstance(value, bytes):
            return text_or_base64(value)
        raise TypeError(f"{value!r} cannot be sent as JSON")

    return json.dumps(body, default=encode).encode()


def get(job_id: str) -> Conversation[Job]:
    """The job as it is now."""
    return (yield from ask(get_request(_job_path(job_id)), Job))


def wait(job_id: str, timeout_seconds: float | None) -> Conversation[Job]:
    """The job when it has ended.

    Raises WaitTimedOut after `timeout_seconds`; None: never.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        asked_at = time.monotonic()
        seconds = POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - asked_at)
        request = get_request(_job_path(job_id), [("wait", f"{max(0.0, seconds):.3f}")])
        job = yield from ask(
            request._replace(patience_seconds=PATIENCE_SECONDS + max(0.0, seconds)), Job
        )
        if job.is_terminal:
            return job
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimedOut(job)
        if time.monotonic() - asked_at < SHORTEST_POLL_SECONDS:
            yield Pause(SHORTEST_POLL_SECONDS)


def cancel(job_id: str, grace_seconds: float | None, reason: str | None) -> Conversation[Job]:
    """Stop the job; the answer comes at once, the end when it is stopped. Doing it twice is harmless."""
    body = {"grace_seconds": grace_seconds, "reason": reason}
    known = {name: value for name, value in body.items() if value is not None}
    request = Request(
        "POST",
        _job_path(job_id, "/cancel"),
        headers=_JSON,
        body=json.dumps(known).encode(),
        may_repeat=True,
    )
    return (yield from ask(request, Job))


def delete(job_id: str) -> Conversation[None]:
    """Remove the record and the logs of a job that has ended."""
    yield from exchange(Request("DELETE", _job_path(job_id)))


class ListOptions(TypedDict, total=False):
    """Which jobs to list."""

    states: Sequence[State | str]
    labels: Mapping[str, str]
    since: datetime
    until: datetime
    limit: int
    cursor: str


def list_jobs(**options: Unpack[ListOptions]) -> Conversation[JobPage]:
    """One page of jobs, newest first; `next_cursor` leads to the next."""
    query = [("state", str(state)) for state in options.get("states", ())]
    query += [(f"label.{key}", value) for key, value in options.get("labels", {}).items()]
    if "since" in options:
        query.append(("since", options["since"].isoformat()))
    if "until" in options:
        query.append(("until", options["until"].isoformat()))
    if "limit" in options:
        query.append(("limit", str(options["limit"])))
    if "cursor" in options:
        query.append(("cursor", options["cursor"]))
    return (yield from ask(get_request("/v1/jobs", query), JobPage))


def events(job_id: str) -> Conversation[list[Event]]:
    """Every change of the job's state, oldest first."""
    page = yield from ask(get_request(_job_path(job_id, "/events")), _EventList)
    return page.data


def stats(job_id: str) -> Conversation[list[Sample]]:
    """What the job used, moment by moment, oldest first."""
    page = yield from ask(get_request(_job_path(job_id, "/stats")), _SampleList)
    return page.data


def system() -> Conversation[dict[str, Any]]:
    """What the service and its host are and can do."""
    return (yield from ask(get_request("/v1/system"), dict[str, Any]))


class KeyOptions(TypedDict, total=False):
    """What a key may do, for whom, for how long, how much."""

    tenant: str
    scopes: Sequence[str]
    ttl_seconds: float
    quotas: dict[str, Any]


def create_key(name: str, **options: Unpack[KeyOptions]) -> Conversation[NewKey]:
    """Make an API key. Not repeated by itself: a lost answer may leave a key that nobody knows."""
    body = json.dumps({"name": name, **options}).encode()
    return (yield from ask(Request("POST", "/v1/keys", headers=_JSON, body=body), NewKey))


def list_keys() -> Conversation[list[Key]]:
    """All API keys, without their secrets."""
    page = yield from ask(get_request("/v1/keys"), _KeyList)
    return page.data


def revoke_key(key_id: str) -> Conversation[None]:
    """Make a key worthless."""
    yield from exchange(Request("DELETE", f"/v1/keys/{path_part(key_id)}"))


def read_log(job_id: str, stream: Stream | str | None) -> Conversation[bytes]:
    """All that is kept of the output until now: of one stream, or of both in order of arrival."""
    query = [] if stream is None else [("stream", str(stream))]
    request = get_request(_job_path(job_id, "/logs"), query)
    answer = yield from exchange(request._replace(headers={"accept": "text/plain"}))
    return answer.body


def artifacts(job_id: str) -> Conversation[list[Artifact]]:
    """The files that the job left."""
    page = yield from ask(get_request(_job_path(job_id, "/artifacts")), _ArtifactList)
    return page.data


def artifact_request(job_id: str, path: str) -> Request:
    """What to ask for to get one of them."""
    return get_request(_job_path(job_id, f"/artifacts/{quote(path.lstrip('/'))}"))


class LogReader:
    """Reads one job's log piece by piece and can go on where a broken connection left off."""

    def __init__(
        self, job_id: str, stream: Stream | str | None, *, follow: bool, after_bytes: int
    ) -> None:
        self._path = _job_path(job_id, "/logs")
        self._query = [("follow", "true" if follow else "false")]
        if stream is not None:
            self._query.append(("stream", str(stream)))
        self._follow = follow
        self._last_event_id = str(after_bytes) if after_bytes else ""
        self._failures = 0
        self.ended = False

    def request(self) -> Request:
        """What to ask for next: everything, or what comes after the last piece."""
        headers = {"accept": "text/event-stream"}
        if self._last_event_id:
            headers["last-event-id"] = self._last_event_id
        return get_request(self._path, self._query)._replace(headers=headers)

    def accept(self, status: int, body: bytes, headers: Mapping[str, str]) -> float:
        """Look at an answer that is no stream of events. The pause before asking again, if it is not the end.

        Raises what a refusal means.
        """
        if status == 204:
            self.ended = True
            return 0.0
        answer = Answer(status, headers, body)
        pause = _pause_asked(answer)
        if pause is None:
            raise refusal_of(answer)
        return self.lost(f"HTTP status {status}", pause)

    def read(self, event: str, data: str, event_id: str) -> LogChunk | None:
        """The piece that an event brings, if it brings one."""
        self._failures = 0
        if event_id:
            self._last_event_id = event_id
        if event == "end":
            self.ended = True
        # Other events tell of the job (a further attempt) and bring no output.
        return decode(data.encode(), LogChunk) if event == "log" else None

    def closed(self) -> float:
        """The stream is over: at the end, or it broke without a word. The pause before asking again."""
        if self.ended or not self._follow:
            self.ended = True
            return 0.0
        return self.lost("the stream of the log broke off")

    def lost(self, reason: str, pause: float = 0.0) -> float:
        """The connection broke: the pause before asking again.

        Raises ConnectionFailed if it broke too often without a piece in between.
        """
        self._failures += 1
        if self._failures >= ATTEMPTS:
            raise ConnectionFailed(reason)
        return max(pause, _pause_after(self._failures))


def refusal_of(answer: Answer) -> ClientError:
    """The exception that an answer with a status of 400 or above means."""
    status = answer.status
    try:
        problem = msgspec.json.decode(answer.body, type=Problem)
    except msgspec.DecodeError:
        excerpt = answer.body[:200].decode("utf-8", "replace").strip()
        problem = Problem(status=status, title=f"HTTP status {status}", detail=excerpt)
    return refusal_type(status)(problem)


def refusal_type(status: int) -> type[RequestRefused]:
    match status:
        case 401 | 403:
            return KeyRefused
        case 404:
            return NotFound
        case 409 | 412:
            return Conflict
        case 429 | 503:
            return Unavailable
        case _ if status < 500:
            return InvalidRequest
        case _:
            return ServiceFault


def ask(request: Request, kind: type[_Result]) -> Conversation[_Result]:
    answer = yield from exchange(request)
    return decode(answer.body, kind)


def exchange(request: Request) -> Conversation[Answer]:
    """One request and its good answer, asked again where that is harmless and may help."""
    attempt = 1
    while True:
        answer: Answer | Lost = yield request
        last = attempt == ATTEMPTS or not request.may_repeat
        if isinstance(answer, Lost):
            if last:
                raise ConnectionFailed(answer.reason)
            pause: float | None = _pause_after(attempt)
        elif answer.status < 400:
            return answer
        else:
            pause = _pause_asked(answer)
            if last or pause is None:
                raise refusal_of(answer)
        yield Pause(pause or 0.0)
        attempt += 1


def _pause_after(failures: int) -> float:
    return FIRST_PAUSE_SECONDS * 2.0 ** (failures - 1)


def _pause_asked(answer: Answer) -> float | None:
    """How long the service asks us to stay away; None if coming back would not help or not soon."""
    if answer.status not in _NOT_CARRIED_OUT:
        return None
    try:
        seconds = float(answer.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return seconds if 0 <= seconds <= LONGEST_PAUSE_SECONDS else None


_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_making_decoder = threading.Lock()


def decode(body: bytes, kind: type[_Result]) -> _Result:
    try:
        return _decoder(kind).decode(body)
    except msgspec.DecodeError as error:
        raise NotTheService(f"the answer is not one of this API: {error}") from error


def _decoder(kind: type[_Result]) -> msgspec.json.Decoder[_Result]:
    """Made by one thread at a time: two that meet in making the first one for a type have been seen to crash."""
    with _making_decoder:
        if kind not in _decoders:
            _decoders[kind] = msgspec.json.Decoder(kind)
        return _decoders[kind]


def get_request(path: str, query: Sequence[tuple[str, str]] = ()) -> Request:
    return Request("GET", path, query, may_repeat=True)


def _job_path(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{path_part(job_id)}{rest}"


def path_part(identifier: str) -> str:
    """The identifier as a part of a path. Raises ClientError: "../keys" must not lead elsewhere."""
    if not (identifier.isascii() and identifier.replace("_", "").isalnum()):
        raise ClientError(f'"{identifier}" is not an id')
    return identifier


def text_or_base64(content: bytes) -> str | dict[str, str]:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}


class _ArtifactList(msgspec.Struct):
    data: list[Artifact]


class _EventList(msgspec.Struct):
    data: list[Event]


class _SampleList(msgspec.Struct):
    data: list[Sample]


class _KeyList(msgspec.Struct):
    data: list[Key]
