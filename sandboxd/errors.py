"""What we raise on purpose.

Three kinds of failure never mix. What a *caller* asked for and cannot have is a `Refused`: it becomes a 4xx or 503
before anything starts. What the *program* did is a value (`jobs.Result`), never an exception. What *we or the host*
could not do is a `SandboxFailed`: the job ends as `error` and names the component at fault.
"""

from typing import NamedTuple


class SandboxdError(Exception):
    """The root of every exception of this project."""


class Fault(NamedTuple):
    """One thing that is wrong with a request."""

    pointer: str
    """JSON pointer (RFC 6901) to the offending value, `""` for the whole body."""
    detail: str


class Refused(SandboxdError):
    """A request that is not carried out. `code` is a stable word for programs, the message is for people."""

    code = "refused"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code


class Malformed(Refused):
    """The request cannot be read at all (400)."""

    code = "malformed"


class Unauthenticated(Refused):
    """No key, or one that is not valid (401)."""

    code = "unauthenticated"


class Forbidden(Refused):
    """A valid key without the needed scope (403)."""

    code = "forbidden"


class NotAllowed(Forbidden):
    """What a quota of the caller's tenant or key, or the operator, does not let them use (403). `policy`, `of`: as in QuotaExceeded; `service`: a setting."""

    code = "not_allowed"

    def __init__(self, detail: str, *, policy: str, of: str) -> None:
        super().__init__(detail)
        self.policy = policy
        self.of = of


class NotFound(Refused):
    """It does not exist, or it belongs to another tenant: the caller cannot tell which (404)."""

    code = "not_found"


class Conflict(Refused):
    """The state of the resource does not allow it (409)."""

    code = "conflict"


class TooLarge(Refused):
    """A body or a part of it is over its limit (413)."""

    code = "too_large"


class Invalid(Refused):
    """Readable but wrong (422): every fault at once, each with its JSON pointer."""

    code = "invalid"

    def __init__(
        self, detail: str, faults: tuple[Fault, ...] = (), *, code: str | None = None
    ) -> None:
        super().__init__(detail, code=code)
        self.faults = faults


class Unavailable(Refused):
    """Not now (503): the store is down, the queue is full, the service is draining."""

    code = "unavailable"

    def __init__(
        self, detail: str, *, retry_after_seconds: float = 1, code: str | None = None
    ) -> None:
        super().__init__(detail, code=code)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(Refused):
    """More than the tenant or the key may have (429). `policy` is the quota's name, `of` says whose it is."""

    code = "quota_exceeded"

    def __init__(
        self,
        detail: str,
        *,
        policy: str,
        of: str,
        retry_after_seconds: float,
        code: str | None = None,
    ) -> None:
        super().__init__(detail, code=code)
        self.policy = policy
        self.of = of
        self.retry_after_seconds = retry_after_seconds


class SandboxFailed(SandboxdError):
    """A sandbox could not be built or broke: our fault or the host's, never the program's."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step
        self.reason = reason


class HostNotReady(SandboxdError):
    """The host lacks something that the service needs; the message says what mends it."""


class SettingsError(SandboxdError):
    """A setting is unknown or has a value that cannot be used; the message names it and where it came from."""


class BrokenOff(Exception):
    """An answer had begun when it failed. Why is told already: the server only has to close the connection."""
