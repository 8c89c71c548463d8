"""What a job asks for is what it gets, or a sentence that says what it may ask for."""

import msgspec
import pytest

from sandboxd.quantities import format_quantity, parse_bytes
from sandboxd.quotas.limits import LEAST, LimitsAsked, settle
from sandboxd.settings import CEILINGS, DEFAULT_LIMITS

MOST = msgspec.structs.replace(
    LEAST, memory_bytes=int(23.57 * 2**30), cpus=4.0, wall_seconds=3600.0
)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (LimitsAsked(memory_bytes=1000 * 2**30), "1000Gi is not from 4Mi to 23.5Gi"),
        (LimitsAsked(memory_bytes=1), "1 is not from 4Mi to 23.5Gi"),
        (LimitsAsked(memory_bytes=4 * 2**20 - 1), "4194303 is not from 4Mi to 23.5Gi"),
        (LimitsAsked(cpus=9.5), "9.5 is not from 0.01 to 4.0"),
    ],
)
def test_what_is_out_of_bounds_is_said_as_people_write_it(
    asked: LimitsAsked, sentence: str
) -> None:
    _, faults = settle(asked, LEAST, MOST)

    assert [fault.detail for fault in faults] == [sentence]


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
