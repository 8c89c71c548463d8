"""What strangers send is refused or understood, whatever it is.

The same inputs on every run; `make fuzz` goes on searching, led by coverage, with new ones.
"""

import pytest
from fuzz_seeds import seeds_of, strategy_for
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, settings

CASES = [
    pytest.param("hear_init", marks=pytest.mark.attack(15)),
    pytest.param("hear_launcher", marks=pytest.mark.attack(15)),
    pytest.param("hear_entries", marks=pytest.mark.attack(15, 31)),
    pytest.param("compare", marks=pytest.mark.attack(46)),
    pytest.param("job_request", marks=pytest.mark.attack(12, 38, 41, 71)),
    pytest.param("words", marks=pytest.mark.attack(38, 71)),
    pytest.param("query", marks=pytest.mark.attack(35)),
    pytest.param("request_headers", marks=pytest.mark.attack(40)),
    pytest.param("archive", marks=pytest.mark.attack(61, 62, 64, 65, 66)),
    pytest.param("layer", marks=pytest.mark.attack(61, 62, 63, 64, 65, 66)),
    pytest.param("registry_answer", marks=pytest.mark.attack(67, 68, 69, 74)),
    pytest.param("image_archive", marks=pytest.mark.attack(65, 75)),
    pytest.param("uploaded_archive", marks=pytest.mark.attack(61, 62, 64, 65, 66)),
    pytest.param("form", marks=pytest.mark.attack(31)),
]


def test_every_target_is_tried() -> None:
    assert [case.values[0] for case in CASES] == list(TARGETS)


@pytest.mark.thorough
@pytest.mark.parametrize("target", CASES)
def test_whatever_comes_is_refused_or_understood(target: str) -> None:
    @settings(
        max_examples=400,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(strategy_for(target))
    def feed(content: bytes) -> None:
        TARGETS[target](content)

    feed()


@pytest.mark.parametrize("target", CASES)
def test_an_input_is_refused_or_understood_wherever_it_is_cut(target: str) -> None:
    """At 200 places, evenly."""
    for seed in seeds_of(target):
        step = max(1, len(seed) // 200)
        for cut in range(0, len(seed), step):
            TARGETS[target](seed[:cut])


@pytest.mark.attack(41)
@pytest.mark.parametrize("count", [10**4, 10**6])
def test_deep_and_long_json_is_refused_without_a_fault_of_ours(count: int) -> None:
    for content in (b"[" * count, b'{"a":' * count, b"[" * count + b"]" * count, b"9" * count):
        TARGETS["job_request"](content)
    TARGETS["job_request"](b'{"image":"host","command":' + b"[" * count + b"]" * count + b"}")
