"""Sandboxes built ahead of need: bounded, never used twice, never left behind."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sandbox_bench import Bench, a_bench, children_of, run_in, without
from waiting import TIME_FACTOR

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import places as places_module
from sandboxd.isolation.places import Taken
from sandboxd.isolation.pool import Pool
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import NetworkMode, SandboxSpec


class CountedPlace:
    """A place without a cgroup, which is busy for a moment after its processes are gone, as a cgroup v1 is."""

    def __init__(self, places: "list[CountedPlace]", busy: int) -> None:
        self.places = places
        self.busy = busy
        self.killed = 0
        places.append(self)

    def join_files(self) -> tuple[str, ...]:
        return ()

    def directory_fd(self) -> int | None:
        return None

    def watch(self, init_pid: int) -> None:
        del init_pid

    def kill(self) -> None:
        self.killed += 1

    def remove(self) -> bool:
        if self.busy:
            self.busy -= 1
            return False
        self.places.remove(self)
        return True


Work = Callable[[Pool[CountedPlace], list[CountedPlace]], Awaitable[Any]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10 * TIME_FACTOR):
        while not condition():  # noqa: ASYNC110 (of the pool, which tells nobody)
            await asyncio.sleep(0.005)


def with_pool(bench: Bench, work: Work, busy: int = 1, **bounds: Any) -> Any:
    """Run `work` with a pool, close the pool, and see that nothing is left of it."""

    async def run() -> Any:
        places: list[CountedPlace] = []
        chosen = {"per_shape": 2, "shapes": 2, "idle_seconds": 60.0, **bounds}
        pool = Pool(bench.launcher, lambda: CountedPlace(places, busy), **chosen)
        try:
            return await work(pool, places)
        finally:
            await pool.close()
            assert places == []
            assert (pool.parked, pool.blank) == (0, 0)

    result = bench.do(run())
    process = bench.launcher.process
    assert process is not None

    async def gone() -> None:
        while children_of(process.pid):  # noqa: ASYNC110 (another process: there is no event)
            await asyncio.sleep(0.02)

    # What a taker gave up while the launcher made it ends when the launcher has told of it, and init finds nobody there.
    bench.do(asyncio.wait_for(gone(), 15 * TIME_FACTOR))
    return result


async def use(pool: Pool[CountedPlace], taken: Taken[CountedPlace]) -> bytes:
    ran = await run_in(taken.sandbox, "echo", "used")
    pool.discard(taken)
    return ran.out


def test_a_parked_sandbox_is_taken_and_replaced(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        pool.prepare(bench.spec())
        await pool.settled()
        assert pool.parked == 2
        taken = await pool.take(bench.spec())
        assert taken.warm
        assert await use(pool, taken) == b"used\n"
        await pool.settled()
        assert (pool.parked, pool.hits, pool.misses, len(places)) == (2, 1, 0, 2)

    with_pool(bench, work)


async def a_blank(pool: Pool[CountedPlace], spec: SandboxSpec) -> Sandbox:
    """The one that waits for a shape, beside one of this shape that is parked."""
    pool.prepare(spec)
    await pool.settled()
    (blank,) = pool._blanks._waiting
    return blank.sandbox


def test_a_shape_that_is_not_parked_gets_a_blank(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        blank = await a_blank(pool, bench.spec())
        taken = await pool.take(bench.spec(hostname="other", uid=7, gid=8))
        assert (taken.sandbox, taken.warm) == (blank, False)
        ran = await run_in(blank, "sh", "-c", "hostname; id -u; id -g; cat /etc/hostname")
        assert ran.out == b"other\n7\n8\nother\n"
        pool.discard(taken)
        await pool.settled()
        assert (pool.blank, pool.parked, len(places)) == (1, 1, 2)
        assert (pool.hits, pool.misses, pool.blanks_used) == (0, 1, 1)

    with_pool(bench, work, per_shape=1, blanks=1)


def test_another_blank_is_there_soon_also_if_the_sandbox_lives_on(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        await a_blank(pool, bench.spec())
        one, other = await asyncio.gather(
            *(pool.take(bench.spec(hostname=name)) for name in ("one", "other"))
        )
        assert one.sandbox is not other.sandbox
        assert pool.blanks_used == 1
        await until(lambda: pool.blank == 1)
        for taken in (one, other):
            assert await use(pool, taken) == b"used\n"

    with_pool(bench, work, per_shape=1, blanks=1)


def test_a_blank_that_nobody_needed_for_a_while_is_replaced(bench: Bench) -> None:
    """Its clocks run: a command would see how long it has waited."""

    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        blank = await a_blank(pool, bench.spec())
        await until(lambda: pool.blank > 0 and not blank.alive)
        await pool.settled()
        assert len(places) == pool.parked + pool.blank

    with_pool(bench, work, blanks=1, idle_seconds=1.0)


def test_a_shape_that_does_not_fit_gets_none(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        blank = await a_blank(pool, bench.spec())
        taken = await pool.take(bench.spec(network=NetworkMode.EGRESS))
        assert taken.sandbox is not blank
        assert len(taken.sandbox.network) == 3
        pool.discard(taken)

    with_pool(bench, work, per_shape=1, blanks=1)


def test_a_blank_that_died_is_passed_over_and_replaced(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        blank = await a_blank(pool, bench.spec())
        blank.kill()
        await blank.dead()
        taken = await pool.take(bench.spec(hostname="other"))
        assert taken.sandbox is not blank
        assert await use(pool, taken) == b"used\n"
        await pool.settled()
        assert pool.blank == 1

    with_pool(bench, work, per_shape=1, blanks=1)


def test_who_gets_a_blank_whose_launcher_dies_in_that_moment_gets_another_sandbox() -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        blank = await a_blank(pool, bench.spec())
        process = bench.launcher.process
        assert process is not None
        process.kill()
        process.wait()
        taken = await pool.take(bench.spec(hostname="other"))
        assert taken.sandbox is not blank
        assert await use(pool, taken) == b"used\n"

    with a_bench() as bench:
        with_pool(bench, work, per_shape=1, blanks=1)


def test_a_blank_that_cannot_become_what_is_wanted_says_why(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        await a_blank(pool, bench.spec())
        with pytest.raises(SandboxFailed, match=r"mount_file_system: .*No such file"):
            await pool.take(bench.spec(rootfs="/does/not/exist"))
        await pool.settled()
        assert (pool.blank, len(places)) == (1, 2)

    with_pool(bench, work, per_shape=1, blanks=1)


def test_where_no_blank_can_be_begun_sandboxes_are_built_in_one_go() -> None:
    broken = (
        "plain = init.Init.bring_up_network; init.Init.bring_up_network = "
        "lambda self: init.os.stat('/no/lo') if self.spec.is_blank else plain(self)"
    )

    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        pool.prepare(bench.spec())
        await pool.settled()
        assert (pool.blank, places) == (0, [])
        assert await use(pool, await pool.take(bench.spec())) == b"used\n"

    with without(broken) as bench:
        with_pool(bench, work, per_shape=0, blanks=1)


def test_a_sandbox_in_which_nothing_runs_any_more_ends_a_moment_later(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        pool.prepare(bench.spec())
        await pool.settled()
        taken = await pool.take(bench.spec())
        pool.discard(taken, quiet=True)
        assert taken.sandbox.alive
        await pool.settled()
        assert not taken.sandbox.alive

    with_pool(bench, work)


def test_a_sandbox_that_cannot_be_made_ready_does_not_stay_parked(bench: Bench) -> None:
    def fails(_: Taken[CountedPlace]) -> None:
        raise SandboxFailed("cgroup memory.max", "no")

    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        pool.prepare(bench.spec())
        await pool.settled()
        await until(lambda: pool.parked == 0)
        await pool.settled()
        assert len(places) == 0
        taken = await pool.take(bench.spec())
        assert not taken.warm
        pool.discard(taken)

    with_pool(bench, work, make_ready=fails)


def test_a_sandbox_is_made_ready_once_while_it_is_parked_and_never_after(bench: Bench) -> None:
    ready: list[Taken[CountedPlace]] = []

    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        pool.prepare(bench.spec())
        await until(lambda: pool.parked == 2)
        taken = await pool.take(bench.spec())
        was_ready = taken in ready  # On a slow machine it may be.
        try:
            await until(lambda: len(ready) == 2 + was_ready)
            await asyncio.sleep(0.2)
            assert (len(ready), taken in ready) == (2 + was_ready, was_ready)
        finally:
            pool.discard(taken)

    with_pool(bench, work, make_ready=ready.append)


def test_a_shape_that_is_not_parked_is_built_at_once_and_parked_when_it_is_used_again(
    bench: Bench,
) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        for parked_then in (0, 2):
            taken = await pool.take(bench.spec())
            assert not taken.warm
            assert await use(pool, taken) == b"used\n"
            await pool.settled()
            assert pool.parked == parked_then
        third = await pool.take(bench.spec())
        assert third.warm
        assert (pool.hits, pool.misses) == (1, 2)
        pool.discard(third)

    with_pool(bench, work)


def test_shapes_that_are_used_once_are_not_parked_and_drive_nobody_out(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        pool.prepare(bench.spec())
        await pool.settled()
        for number in range(6):
            assert await use(pool, await pool.take(bench.spec(uid=number))) == b"used\n"
        await pool.settled()
        assert (pool.parked, len(places)) == (2, 2)
        taken = await pool.take(bench.spec())
        assert taken.warm
        pool.discard(taken)

    with_pool(bench, work)


def test_a_second_use_after_the_idle_time_counts_as_a_first(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        for _turn in range(2):
            assert await use(pool, await pool.take(bench.spec())) == b"used\n"
        await pool.settled()
        assert pool.parked == 0

    # Building and running take longer than this.
    with_pool(bench, work, idle_seconds=0.0001)


def test_no_sandbox_is_handed_out_twice(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> list[int]:
        taken = await asyncio.gather(*(pool.take(bench.spec()) for _ in range(12)))
        outputs = await asyncio.gather(*(use(pool, one) for one in taken))
        assert set(outputs) == {b"used\n"}
        return [one.sandbox.pid for one in taken]

    pids = with_pool(bench, work)
    assert len(set(pids)) == 12


def test_never_more_are_parked_than_allowed(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> int:
        most = 0
        for number in range(30):
            pool.prepare(bench.spec(hostname=f"shape{number % 5}"))
            await asyncio.sleep(0)
            most = max(most, pool.parked)
        await pool.settled()
        return max(most, pool.parked)

    assert with_pool(bench, work, per_shape=1, shapes=3) <= 3


def test_a_parked_sandbox_that_died_is_passed_over(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        pool.prepare(bench.spec())
        await pool.settled()
        parked = [taken.sandbox for shape in pool._shapes.values() for taken in shape.parked]
        for sandbox in parked:
            sandbox.kill()
            await sandbox.dead()
        taken = await pool.take(bench.spec())
        assert taken.sandbox not in parked
        assert await use(pool, taken) == b"used\n"

    with_pool(bench, work)


def test_the_shape_that_was_not_asked_for_the_longest_is_dropped(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        for name in ("a", "b"):
            pool.prepare(bench.spec(hostname=name))
        await pool.settled()
        pool.prepare(bench.spec(hostname="a"))
        pool.prepare(bench.spec(hostname="c"))
        await pool.settled()
        assert {spec.hostname for spec in pool._shapes} == {"a", "c"}
        assert pool.parked == 4

    with_pool(bench, work)


def test_a_shape_that_nobody_asks_for_is_dropped_after_a_while(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        pool.prepare(bench.spec())
        async with asyncio.timeout(20 * TIME_FACTOR):
            # Each time something ends, it is looked whether that was the last.
            while places or pool.parked or pool._shapes:
                await pool.settled()
                await asyncio.sleep(0.01)

    with_pool(bench, work, idle_seconds=0.3)


def test_nothing_is_parked_where_none_are_wished_or_after_the_end(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        taken = await pool.take(bench.spec())
        pool.discard(taken)
        await pool.settled()
        assert (pool.parked, places) == (0, [])
        await pool.close()
        late = await pool.take(bench.spec())
        pool.discard(late)

    with_pool(bench, work, per_shape=0)
    with_pool(bench, work, per_shape=0, busy=0)


def test_a_shape_that_cannot_be_built_fails_for_who_asks_and_leaves_no_place(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        broken = bench.spec(rootfs="/does/not/exist")
        pool.prepare(broken)
        for _ in range(3):
            with pytest.raises(SandboxFailed, match="mount_file_system"):
                await pool.take(broken)
        await pool.settled()
        assert (pool.parked, places) == (0, [])

    with_pool(bench, work)


def test_closing_while_sandboxes_are_built_leaves_nothing(bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        for number in range(4):
            pool.prepare(bench.spec(hostname=f"h{number}"))
        await asyncio.sleep(0)

    with_pool(bench, work, per_shape=3, shapes=4, blanks=2)


@pytest.mark.attack(51)
def test_a_place_is_killed_only_where_the_death_of_init_does_not_suffice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> list[int]:
        killed = []
        for seconds in (60.0, 0.0):
            monkeypatch.setattr(places_module, "_DEATH_SECONDS", seconds)
            taken = await pool.take(bench.spec())
            pool.discard(taken)
            await pool.settled()
            assert not taken.sandbox.alive
            killed.append(taken.place.killed)
        return killed

    assert with_pool(bench, work, per_shape=0) == [0, 1]


def test_a_place_that_stays_busy_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> int:
        monkeypatch.setattr(places_module, "_TRIES_BEFORE_KILL", 2)
        taken = await pool.take(bench.spec())
        pool.discard(taken)
        await pool.settled()
        return taken.place.killed

    assert with_pool(bench, work, per_shape=0, busy=2) == 0
    assert with_pool(bench, work, per_shape=0, busy=5) == 1


@pytest.mark.attack(51)
def test_closing_does_not_wait_for_ever_for_what_cannot_be_removed(bench: Bench) -> None:
    async def run() -> float:
        places: list[CountedPlace] = []
        endless = 10**9
        pool = Pool(
            bench.launcher,
            lambda: CountedPlace(places, endless),
            per_shape=1,
            shapes=1,
            idle_seconds=60.0,
        )
        pool.prepare(bench.spec())
        await pool.settled()
        before = time.monotonic()
        await pool.close(timeout_seconds=0.2)
        assert pool.parked == 0
        assert len(places) == 1
        return time.monotonic() - before

    assert bench.do(run()) < 9


@pytest.mark.parametrize("blanks", [0, 1])
def test_a_taker_that_is_cancelled_leaves_nothing(blanks: int, bench: Bench) -> None:
    async def work(pool: Pool[CountedPlace], places: list[CountedPlace]) -> None:
        for turns in range(4):
            if blanks:
                pool.prepare(bench.spec())
                await until(lambda: pool.blank == blanks)
            taking = asyncio.ensure_future(pool.take(bench.spec()))
            for _ in range(turns):
                await asyncio.sleep(0)
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
        await pool.settled()
        assert len(places) == pool.blank

    with_pool(bench, work, per_shape=0, blanks=blanks)


def test_what_was_parked_is_not_handed_out_when_the_launcher_died() -> None:
    async def work(pool: Pool[CountedPlace], _: list[CountedPlace]) -> None:
        pool.prepare(bench.spec())
        await pool.settled()
        process = bench.launcher.process
        assert process is not None
        process.kill()
        # The service hears of it by pidfds; whoever takes one before that is told that it failed.
        parked = [taken.sandbox for shape in pool._shapes.values() for taken in shape.parked]
        for sandbox in parked:
            await sandbox.dead()
        for blank in pool._blanks._waiting:
            await blank.sandbox.dead()
        for hostname in ("sandbox", "other"):
            taken = await pool.take(bench.spec(hostname=hostname))
            assert await use(pool, taken) == b"used\n"
        await pool.settled()
        assert pool.blank == 1

    with a_bench() as bench:
        with_pool(bench, work, blanks=1)
