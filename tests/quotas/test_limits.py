"""What a job asks for is what it gets, or a sentence that says what it may ask for."""

import msgspec
import pytest

from sandboxd.quantities import format_quantity, parse_bytes
from sandboxd.quotas.limits import LEAST, LimitsAsked, settle
from sandboxd.settings import CEILINGS, DEFAULT_LIMITS

MIB = 2**20
MOST = msgspec.structs.replace(
    LEAST, memory_bytes=int(23.57 * 2**30), cpus=4.0, wall_seconds=3600.0
)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (LimitsAsked(memory_bytes=1000 * 2**30), "1000Gi is not from 4Mi to 23.5Gi"),
        (LimitsAsked(memory_bytes=1), "1 is not from 4Mi to 23.5Gi"),
        (LimitsAsked(memory_bytes=4 * 2**20 - 1), "4194303 is not from 4Mi to 23.5Gi"),
        (LimitsAsked(swap_bytes=2**20), "1Mi is not to be had here: it has to be 0"),
        (LimitsAsked(cpus=9.5), "9.5 is not from 0.01 to 4.0"),
    ],
)
def test_what_is_out_of_bounds_is_said_as_people_write_it(
    asked: LimitsAsked, sentence: str
) -> None:
    _, faults = settle(asked, LEAST, MOST)

    assert [fault.detail for fault in faults] == [sentence]


@pytest.mark.parametrize(
    ("default", "ceiling", "asked", "given"),
    [
        (0, 0, None, 0),
        (0, 0, 5 * MIB, 5 * MIB),
        (0, 8 * MIB, None, 8 * MIB),
        (4 * MIB, 8 * MIB, None, 4 * MIB),
        (9 * MIB, 8 * MIB, None, 8 * MIB),
        (4 * MIB, 0, 0, 0),
    ],
)
def test_no_limit_is_more_than_any_limit(
    default: int, ceiling: int, asked: int | None, given: int
) -> None:
    limits, faults = settle(
        LimitsAsked(io_bytes_per_second=asked),
        msgspec.structs.replace(LEAST, io_bytes_per_second=default),
        msgspec.structs.replace(LEAST, io_bytes_per_second=ceiling),
    )

    assert not faults
    assert limits.io_bytes_per_second == given


@pytest.mark.parametrize(
    ("ceiling", "asked", "sentence"),
    [
        (8 * MIB, 0, "0 is not from 1Mi to 8Mi"),
        (8 * MIB, 9 * MIB, "9Mi is not from 1Mi to 8Mi"),
        (0, 1, "1 is neither 0, which is no limit, nor at least 1Mi"),
    ],
)
def test_a_rate_that_is_too_low_or_too_high_is_refused(
    ceiling: int, asked: int, sentence: str
) -> None:
    ceilings = msgspec.structs.replace(LEAST, io_bytes_per_second=ceiling)

    _, faults = settle(LimitsAsked(io_bytes_per_second=asked), LEAST, ceilings)

    assert [fault.detail for fault in faults] == [sentence]
    assert faults[0].pointer == "/limits/io_bytes_per_second"


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 2**20 + 1, 1000 * 2**30, 2**62])
def test_a_quantity_is_never_more_than_the_size(size: int) -> None:
    assert size * 0.9 <= parse_bytes(format_quantity(size)) <= size


def test_a_tenants_ceiling_holds_where_it_is_lower() -> None:
    own = LimitsAsked(cpus=0.5, pids=10**9)
    limits, faults = settle(LimitsAsked(pids=CEILINGS.pids + 1), DEFAULT_LIMITS, CEILINGS, own)
    _, refused = settle(LimitsAsked(cpus=0.75), DEFAULT_LIMITS, CEILINGS, own)

    assert limits.cpus == 0.5
    assert [fault.pointer for fault in faults] == ["/limits/pids"]
    assert "tenant" not in faults[0].detail
    assert refused[0].detail == "0.75 is not from 0.01 to 0.5, the most that your tenant may have"
