"""Windows of time, and how many requests are left."""

from datetime import UTC, datetime

import pytest

from sandboxd.quotas.tenants import (
    HOUR_SECONDS,
    TenantQuotas,
    TokenBucket,
    first_hour,
    seconds_left,
)


@pytest.mark.parametrize(
    ("window", "begins", "ends"),
    [
        ("hour", "2024-02-29T23:00", "2024-03-01T00:00"),
        ("day", "2024-02-29T00:00", "2024-03-01T00:00"),
        ("month", "2024-02-01T00:00", "2024-03-01T00:00"),
    ],
)
def test_a_window_is_one_of_the_calendar_in_utc(window: str, begins: str, ends: str) -> None:
    now = datetime(2024, 2, 29, 23, 59, 30, tzinfo=UTC).timestamp()
    begin, end = (
        datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() for moment in (begins, ends)
    )
    assert first_hour(window, now) * HOUR_SECONDS == begin
    assert now + seconds_left(window, now) == end


def test_the_last_month_of_a_year_ends_with_it() -> None:
    now = datetime(2025, 12, 31, 23, tzinfo=UTC).timestamp()
    assert seconds_left("month", now) == seconds_left("day", now) == HOUR_SECONDS


def test_a_bucket_gives_its_burst_at_once_and_then_so_many_a_minute() -> None:
    bucket = TokenBucket(60, 3, now=100.0)
    at_once = [bucket.take(100.0) for _ in range(4)]
    assert [rate.allowed for rate in at_once] == [True, True, True, False]
    assert [rate.left for rate in at_once] == [2, 1, 0, 0]
    assert at_once[-1].reset_seconds == 1
    assert (at_once[0].most, at_once[0].window_seconds) == (3, 3)
    assert bucket.take(100.5).allowed is False
    assert bucket.take(101.0).allowed is True
    assert bucket.take(101.0).allowed is False
    assert [bucket.take(1000.0).left for _ in range(3)] == [2, 1, 0]


def test_without_a_burst_a_minutes_requests_may_come_at_once() -> None:
    bucket = TokenBucket(2, 0, now=0.0)
    assert [bucket.take(0.0).allowed for _ in range(3)] == [True, True, False]
    assert bucket.take(0.0).reset_seconds == 30


def test_what_is_not_in_a_list_is_forbidden_and_an_empty_list_forbids_nothing() -> None:
    wish = {"image": "python-3", "network_mode": "egress", "runtime": "native"}
    assert TenantQuotas().forbids(**wish) == []
    some = TenantQuotas(images=("host", "python-*"), network_modes=("none",), runtimes=("runsc",))
    assert [ban.pointer for ban in some.forbids(**wish)] == ["/network/mode", "/runtime"]
    assert some.forbids(**wish | {"image": "x"})[0][:2] == ("images", "/image")
