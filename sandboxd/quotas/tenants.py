"""What one tenant may have, and within that one of its keys: at once, a minute, and an hour, a day and a month.

Nothing here but the ceilings is about one job: it is what all jobs of a tenant, or of a key, have together. 0 or empty:
as much as there is.
"""

import calendar
import math
import time
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

from sandboxd.quotas.image_patterns import matches_any
from sandboxd.quotas.limits import NOTHING_ASKED, LimitsAsked

Whole = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]

HOUR_SECONDS = 3600
WINDOWS = ("hour", "day", "month")
_MINUTE_SECONDS = 60.0


class Holder(StrEnum):
    """Whose quotas they are."""

    TENANT = "tenant"
    KEY = "key"


class Whose(NamedTuple):
    """One tenant or one key."""

    holder: Holder
    id: str
    """A tenant's name, a key's id."""


class Ban(NamedTuple):
    """One thing that may not be used."""

    policy: str
    """The quota that says so."""
    pointer: str
    """JSON pointer into the request."""
    reason: str


class Quotas(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As the operator sets them: for every tenant, for one, or for one key besides its tenant's."""

    max_concurrency: Whole = 0
    """Jobs that run at once; more wait."""
    max_queued: Whole = 0
    """Jobs that wait; more are refused."""
    requests_per_minute: Whole = 0
    request_burst: Whole = 0
    """Requests that may come at once; 0: as many as in a minute."""
    cpu_seconds_per_hour: Amount = 0.0
    cpu_seconds_per_day: Amount = 0.0
    cpu_seconds_per_month: Amount = 0.0
    memory_byte_seconds_per_hour: Amount = 0.0
    """A job's limit on memory, times how long it runs."""
    memory_byte_seconds_per_day: Amount = 0.0
    memory_byte_seconds_per_month: Amount = 0.0
    images: tuple[str, ...] = ()
    """Patterns (`python-*`) of the images that may be used."""
    network_modes: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()

    def most(self, what: str, window: str) -> float:
        """Of CPU seconds or memory byte-seconds in a window; 0: no bound."""
        value: float = getattr(self, f"{what}_per_{window}")
        return value

    @property
    def metered(self) -> bool:
        """Whether anything is bounded over hours, days or months."""
        # Word by word, without loops: each job comes by here more than once.
        return bool(
            self.cpu_seconds_per_hour
            or self.cpu_seconds_per_day
            or self.cpu_seconds_per_month
            or self.memory_byte_seconds_per_hour
            or self.memory_byte_seconds_per_day
            or self.memory_byte_seconds_per_month
        )

    def forbids(self, *, image: str, network_mode: str, runtime: str) -> list[Ban]:
        """Each thing that may not be used."""
        if not (self.images or self.network_modes or self.runtimes):
            return []
        known_image = matches_any(image, self.images)
        return [
            Ban(policy, pointer, f"only {', '.join(allowed)} may be used")
            for policy, pointer, allowed, is_one in (
                ("images", "/image", self.images, known_image),
                (
                    "network_modes",
                    "/network/mode",
                    self.network_modes,
                    network_mode in self.network_modes,
                ),
                ("runtimes", "/runtime", self.runtimes, runtime in self.runtimes),
            )
            if allowed and not is_one
        ]


class TenantQuotas(Quotas, frozen=True, kw_only=True):
    """Those of a tenant."""

    storage_bytes: Whole = 0
    """What is kept of its jobs: requests, inputs, results, logs and artifacts."""
    ceilings: LimitsAsked = NOTHING_ASKED
    """The most that each of its jobs and sandboxes may ask for, where that is less than the operator's `[ceilings]`."""


class Bounds(NamedTuple):
    """All that holds for a job."""

    tenant: TenantQuotas
    key: Quotas | None = None
    """Of the key that it came with, where that has some."""
    told: bool = False
    """Whether somebody is told when most of a quota is used."""

    @property
    def tells(self) -> bool:
        """Whether there may be something to tell when a job ends."""
        return self.told and (self.tenant.metered or self.tenant.storage_bytes > 0)

    @property
    def need_the_record(self) -> bool:
        """Whether only the record can tell if one more job may be accepted."""
        of_key = self.key is not None and self.key.metered
        return self.tenant.metered or of_key or self.tenant.storage_bytes > 0


METERED = ("cpu_seconds", "memory_byte_seconds")
STORAGE = "storage_bytes"
POLICIES = (
    "requests",
    "max_concurrency",
    "max_queued",
    *(f"{what}_per_{window}" for what in METERED for window in WINDOWS),
    STORAGE,
)
"""What a request may be refused for."""


class HourOfUse(NamedTuple):
    """What the jobs of a tenant, or of a key, used that ended in one hour."""

    hour: int
    """Hours since 1970."""
    jobs: int
    cpu_seconds: float
    memory_byte_seconds: float


def first_hour(window: str, now: float) -> int:
    """The hour in which the hour, day or month of a moment (Unix time) began, in UTC."""
    then = time.gmtime(now)
    if window == "hour":
        return int(now // HOUR_SECONDS)
    day = 1 if window == "month" else then.tm_mday
    return calendar.timegm((then.tm_year, then.tm_mon, day, 0, 0, 0)) // HOUR_SECONDS


def seconds_left(window: str, now: float) -> float:
    """Until the next hour, day or month begins."""
    then = time.gmtime(now)
    if window == "hour":
        end = (now // HOUR_SECONDS + 1) * HOUR_SECONDS
    elif window == "day":
        end = calendar.timegm((then.tm_year, then.tm_mon, then.tm_mday + 1, 0, 0, 0))
    else:
        year, month = divmod(then.tm_year * 12 + then.tm_mon, 12)
        end = calendar.timegm((year, month + 1, 1, 0, 0, 0))
    return end - now


class Rate(NamedTuple):
    """How a bucket stands after a request."""

    allowed: bool
    most: int
    """Requests that may come at once."""
    window_seconds: int
    """In which as many come back."""
    left: int
    reset_seconds: int
    """Until it is full again; where none is left, until there is one."""


class TokenBucket:
    """Requests of one tenant or key: some at once, and so many a minute."""

    def __init__(self, per_minute: int, burst: int, now: float) -> None:
        self.shape = (per_minute, burst)
        self._per_second = per_minute / _MINUTE_SECONDS
        self._most = burst or per_minute
        self._left = float(self._most)
        self._at = now

    def take(self, now: float) -> Rate:
        """Take one, if there is one. `now`: of a monotonic clock."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        allowed = self._left >= 1
        if allowed:
            self._left -= 1
        missing = self._most - self._left if allowed else 1 - self._left
        return Rate(
            allowed,
            self._most,
            math.ceil(self._most / self._per_second),
            int(self._left),
            math.ceil(missing / self._per_second),
        )
