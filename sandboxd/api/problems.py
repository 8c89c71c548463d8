"""Failures as `application/problem+json` (RFC 9457): the one place where an exception becomes a status."""

import math
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from sandboxd.errors import (
    Conflict,
    Fault,
    Forbidden,
    HostNotReady,
    Invalid,
    Malformed,
    NotAllowed,
    NotFound,
    QuotaExceeded,
    Refused,
    SandboxFailed,
    SettingsError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"

_STATUS_OF: dict[type[Exception], HTTPStatus] = {
    Malformed: HTTPStatus.BAD_REQUEST,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Invalid: HTTPStatus.UNPROCESSABLE_ENTITY,
    QuotaExceeded: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    HostNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    SettingsError: HTTPStatus.SERVICE_UNAVAILABLE,
    SandboxFailed: HTTPStatus.SERVICE_UNAVAILABLE,
    Refused: HTTPStatus.UNPROCESSABLE_ENTITY,
}
"""Looked up along the exception's own ancestry, so a subclass needs a row only where it differs."""


class BadParameters(Malformed):
    """Query parameters that are unknown or have a value that cannot be used (400)."""

    def __init__(self, faults: tuple[tuple[str, str], ...]) -> None:
        super().__init__("; ".join(f"{name}: {detail}" for name, detail in faults))
        self.faults = faults
        """(name of the parameter, what is wrong with it)"""


class TooManyConnections(Unavailable):
    """This connection is one more than the service holds (503): it is answered and closed."""

    code = "too_many_connections"

    def __init__(self) -> None:
        super().__init__("The service holds as many connections as it can.", retry_after_seconds=1)


class HttpRefused(Refused):
    """A refusal that only HTTP knows (405, 406, 408, 415, 416): it brings its own status and headers."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        code: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail, code=code)
        self.status = status
        self.headers = headers or {}


class ProblemFault(msgspec.Struct, omit_defaults=True):
    """One thing that is wrong: where (in the body or in the query), and what."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class Problem(msgspec.Struct, omit_defaults=True):
    """RFC 9457, section 3.1, and our own members."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    component: str | None = None
    errors: list[ProblemFault] | None = None
    retry_after_seconds: float | None = None
    policy: str | None = None
    """The quota or setting because of which, and whose it is: `tenant`, `key` or `service`."""
    policy_of: str | None = None


_encoder = msgspec.json.Encoder()


def problem_of(error: Exception, *, path: str, request_id: str) -> Response:
    """The answer to a request that ended with `error`.

    Anything that was not raised on purpose becomes a 500 that says nothing but the request's id.
    """
    status = _status_of(error)
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        detail, code = (
            "An internal fault. The service's log has it under this request id.",
            "internal",
        )
    elif isinstance(error, Refused):
        detail, code = error.detail, error.code
    else:  # the host's fault: what exactly is the operator's business and is in the log
        detail, code = "This host cannot run the request now.", "host_not_ready"
    retry_after_seconds = _retry_after_seconds(error, status)
    quota = error if isinstance(error, QuotaExceeded | NotAllowed) else None
    problem = Problem(
        type=f"urn:sandboxd:problem:{code}",
        title=status.phrase,
        status=status,
        detail=_printable(detail),
        instance=_printable(path),
        code=code,
        request_id=request_id,
        component="api" if status is HTTPStatus.INTERNAL_SERVER_ERROR else None,
        errors=_faults_of(error),
        retry_after_seconds=retry_after_seconds,
        policy=None if quota is None else quota.policy,
        policy_of=None if quota is None else quota.of,
    )
    headers = _headers_of(error)
    if retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_seconds)))
    return Response(_encoder.encode(problem), status, headers, media_type=MEDIA_TYPE)


def is_internal(error: Exception) -> bool:
    """Whether this failure is ours, so that the log must have its traceback."""
    return _status_of(error) is HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(
        error, HostNotReady | SandboxFailed | SettingsError
    )


def _status_of(error: Exception) -> HTTPStatus:
    if isinstance(error, HttpRefused):
        return error.status
    for ancestor in type(error).__mro__:
        if (status := _STATUS_OF.get(ancestor)) is not None:
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _retry_after_seconds(error: Exception, status: HTTPStatus) -> float | None:
    if isinstance(error, Unavailable | QuotaExceeded):
        return error.retry_after_seconds
    return 1.0 if status is HTTPStatus.SERVICE_UNAVAILABLE else None


def _faults_of(error: Exception) -> list[ProblemFault] | None:
    if isinstance(error, Invalid):
        return [_body_fault(fault) for fault in error.faults]
    if isinstance(error, BadParameters):
        return [
            ProblemFault(parameter=_printable(name), detail=_printable(detail))
            for name, detail in error.faults
        ]
    return None


def _body_fault(fault: Fault) -> ProblemFault:
    return ProblemFault(pointer=_printable(fault.pointer), detail=_printable(fault.detail))


def _headers_of(error: Exception) -> dict[str, str]:
    if isinstance(error, HttpRefused):
        return dict(error.headers)
    if isinstance(error, Unauthenticated):
        invalid = ', error="invalid_token"' if error.code == "invalid_key" else ""
        return {"WWW-Authenticate": f'Bearer realm="sandboxd"{invalid}'}
    if isinstance(error, TooLarge | TooManyConnections):
        return {"Connection": "close"}  # the rest of the body is not read
    return {}


def _printable(text: str) -> str:
    """Text that JSON can carry: a client's lone surrogates are shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
