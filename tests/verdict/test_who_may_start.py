"""Who may start: nothing that does not fit, everybody in turn, and the large ones too."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.admission import (
    NOTHING,
    Blocked,
    Choice,
    Occupant,
    Room,
    choose,
    in_turn,
    need_of,
)
from sandboxd.jobs import Candidate, JobSpec
from sandboxd.settings import DEFAULT_LIMITS
from sandboxd.steps import Case, Checker, Comparison, Step

WHOLE = Room(slots=4, memory_bytes=1000, millicpus=4000)
NOW = 1_000_000.0


def a_job(number: int, **values: Any) -> Candidate:
    usual = {
        "id": f"job_{number:03}",
        "tenant": "ada",
        "priority": 0,
        "memory_bytes": 100,
        "millicpus": 1000,
        "wall_seconds": 60.0,
    }
    return Candidate(**(usual | values))


def chosen(*waiting: Candidate, running: tuple[Occupant, ...] = ()) -> Choice:
    free = WHOLE
    for occupant in running:
        free = free.minus(occupant.need)
    return choose(waiting, running, WHOLE, free, NOW)


def runs(memory: int, until: float, tenant: str = "ada") -> Occupant:
    return Occupant(tenant, Room(1, memory, 1000), NOW + until)


def test_all_that_fit_start_and_the_first_that_does_not_is_told() -> None:
    choice = chosen(*(a_job(n) for n in range(6)))
    assert choice.job_ids == ("job_000", "job_001", "job_002", "job_003")
    assert choice.blocked == Blocked("job_004", "slots", NOW + 60.0)


def test_nobody_waits_for_more_than_there_is() -> None:
    assert chosen(a_job(1, memory_bytes=10**9)).job_ids == ("job_001",)
    blocked = chosen(a_job(1, memory_bytes=10**9), running=(runs(1, 30.0),)).blocked
    assert blocked == Blocked("job_001", "memory_bytes", NOW + 30.0)


@pytest.mark.parametrize(
    ("need", "lacks"),
    [
        ({"memory_bytes": 601}, "memory_bytes"),
        ({"millicpus": 3001}, "millicpus"),
        ({"memory_bytes": 600, "millicpus": 3000}, None),
    ],
)
def test_what_is_lacking_is_named(need: dict[str, int], lacks: str | None) -> None:
    blocked = chosen(a_job(1, **need), running=(runs(400, 30.0),)).blocked
    assert (blocked and blocked.lacks) == lacks


def test_the_highest_priority_goes_first_and_then_the_oldest() -> None:
    jobs = [a_job(1), a_job(2), a_job(3, priority=9), a_job(4, priority=-1), a_job(5, priority=9)]
    assert chosen(*jobs).job_ids == ("job_003", "job_005", "job_001", "job_002")


def test_tenants_take_turns_whoever_came_first() -> None:
    flood = [a_job(n) for n in range(50)]
    late = [a_job(100 + n, tenant="eve") for n in range(2)]
    assert chosen(*flood, *late).job_ids == ("job_000", "job_100", "job_001", "job_101")


def test_where_nobody_runs_the_turn_goes_to_whose_last_one_is_longest_ago() -> None:
    jobs = [a_job(1), a_job(2, tenant="eve"), a_job(3, tenant="bob")]
    one = Room(1, 1000, 4000)
    turns = [
        choose(jobs, (), WHOLE, one, NOW, {"ada": 3, "eve": eve, "bob": 2}).job_ids
        for eve in (1, 4)
    ]
    assert turns == [("job_002",), ("job_003",)]


def test_the_turn_goes_to_who_has_the_smallest_part_of_what_he_has_most_of() -> None:
    # Ada has a fifth of the memory, eve half of the CPUs.
    running = (
        Occupant("ada", Room(1, 200, 100), NOW + 9),
        Occupant("eve", Room(1, 1, 2000), NOW + 9),
    )
    choice = chosen(a_job(1, tenant="eve"), a_job(2, tenant="ada"), running=running)
    assert choice.job_ids[0] == "job_002"


def test_priority_orders_the_jobs_of_one_tenant_and_takes_no_turn_of_another() -> None:
    pushy = [a_job(n, priority=9) for n in range(4)]
    assert "job_100" in chosen(*pushy, a_job(100, tenant="eve", priority=-9)).job_ids


def test_a_small_job_overtakes_a_large_one_only_if_it_ends_before_that_can_start() -> None:
    large = a_job(1, memory_bytes=800)
    running = (runs(500, 30.0),)
    quick, slow = a_job(2, wall_seconds=29.0), a_job(3, wall_seconds=31.0, memory_bytes=201)

    choice = chosen(large, quick, slow, running=running)

    assert choice == Choice(("job_002",), Blocked("job_001", "memory_bytes", NOW + 30.0))


def test_a_job_that_has_room_beside_the_large_one_need_not_end_before_it() -> None:
    large = a_job(1, memory_bytes=800)
    beside = [a_job(n, wall_seconds=1e6, memory_bytes=100) for n in (2, 3, 4)]

    choice = chosen(large, *beside, running=(runs(500, 30.0),))

    # Of 1000, 200 are left beside the 800: two of them.
    assert choice.job_ids == ("job_002", "job_003")


def test_what_never_ends_holds_up_only_what_does_not_fit_beside_it() -> None:
    blocked = chosen(a_job(1, memory_bytes=800), running=(runs(500, math.inf),)).blocked
    assert blocked is not None
    assert blocked.starts_by == math.inf


def test_a_checker_of_ones_own_needs_room_for_its_sandbox() -> None:
    def spec(comparison: Comparison) -> JobSpec:
        case = Case(checker=Checker(comparison=comparison))
        steps = (Step(command=("true",), cases=(case,)),)
        return JobSpec(image="host", command=(), limits=DEFAULT_LIMITS, steps=steps)

    alone, checked = need_of(spec(Comparison.EXACT)), need_of(spec(Comparison.PROGRAM))
    assert checked == alone._replace(memory_bytes=2 * alone.memory_bytes)


def test_in_turn_looks_at_no_need() -> None:
    jobs = [a_job(1), a_job(2, priority=1, memory_bytes=10**9)]
    assert in_turn(1)(jobs) == ["job_002"]


candidates = st.lists(
    st.builds(
        Candidate,
        id=st.uuids().map(str),
        tenant=st.sampled_from("abc"),
        priority=st.integers(-2, 2),
        memory_bytes=st.integers(1, 1500),
        millicpus=st.integers(10, 5000),
        wall_seconds=st.floats(0.1, 100),
    ),
    max_size=12,
    unique_by=lambda job: job.id,
)


@settings(max_examples=500, deadline=None, database=None)
@given(candidates, st.lists(st.tuples(st.integers(1, 400), st.floats(0, 100)), max_size=3))
def test_never_more_than_there_is_and_the_first_is_never_put_off(
    waiting: list[Candidate], busy: list[tuple[int, float]]
) -> None:
    running = [runs(memory, until) for memory, until in busy]
    free = WHOLE
    for occupant in running:
        free = free.minus(occupant.need)

    choice = choose(waiting, running, WHOLE, free, NOW)

    jobs = {job.id: job for job in waiting}
    started = [jobs[job_id] for job_id in choice.job_ids]
    needs = [Room(1, job.memory_bytes, job.millicpus).within(WHOLE) for job in started]
    left = free
    for need in needs:
        left = left.minus(need)
    if started:
        assert NOTHING.lacks(NOTHING) is None
        assert left.lacks(NOTHING) is None
    if choice.blocked is None:
        assert len(started) == len(waiting)
        return
    # At the time that was told, the first fits, if all use up their time.
    blocked = jobs[choice.blocked.job_id]
    at = choice.blocked.starts_by
    ends = [(NOW + job.wall_seconds, need) for job, need in zip(started, needs, strict=True)]
    for until, need in [*ends, *((each.until, each.need) for each in running)]:
        if until <= at:
            left = left.plus(need)
    assert left.lacks(Room(1, blocked.memory_bytes, blocked.millicpus).within(WHOLE)) is None


def test_jobs_of_a_key_that_has_enough_hold_nobody_up() -> None:
    waiting = [a_job(1, key_id="key_1"), a_job(2, key_id="key_1"), a_job(3), a_job(4, key_id="k")]
    running = (Occupant("ada", Room(1, 100, 1000), NOW + 9, "key_1"),)
    choice = choose(
        waiting,
        running,
        WHOLE,
        WHOLE.minus(running[0].need),
        NOW,
        most_of_key=lambda key_id: 2 if key_id == "key_1" else 0,
    )

    assert choice.job_ids == ("job_001", "job_003", "job_004")
    assert choice.blocked is None
    assert choice.held_back


def test_who_waits_for_an_image_counts_as_one_of_its_tenant_s_though_it_has_no_room() -> None:
    away = Occupant("ada", NOTHING, NOW + 60.0)
    waiting = [a_job(1), a_job(2), a_job(3, tenant="eve")]

    choice = choose(waiting, [away], WHOLE, WHOLE, NOW, most_at_once=lambda _: 2)

    assert sorted(choice.job_ids) == ["job_001", "job_003"]
    assert choice.held_back
