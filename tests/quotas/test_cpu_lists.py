"""Lists of CPUs as Linux writes them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.cpu_lists import format_cpu_list, parse_cpu_list


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0", (0,)), ("0-2,5", (0, 1, 2, 5)), ("3,1,1-2", (1, 2, 3)), ("7-7", (7,))],
)
def test_what_is_written_is_meant(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "0,",
        "a",
        "-1",
        "1-",
        "2-1",
        "0-8192",
        "99999",
        " 0",
        "0\n",
        "0 - 1",
        "0x1",
        "\u0661",
    ],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="CPU"):
        parse_cpu_list(text)


@settings(deadline=None, database=None)
@given(st.sets(st.integers(0, 8191), min_size=1, max_size=50))
def test_what_is_formatted_is_read_back(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == tuple(sorted(cpus))
