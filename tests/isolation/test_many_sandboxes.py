"""Sandboxes made at the same time and one after the other."""

import asyncio
import os

import pytest
from sandbox_bench import Bench, children_of


def test_sandboxes_asked_for_all_at_once_are_all_made(bench: Bench) -> None:
    """While many wait for their maps, the launcher's descriptors take every small number, also those init uses."""

    async def make_sixty() -> list[int]:
        made = await asyncio.gather(*(bench.launcher.create(bench.spec()) for _ in range(60)))
        pids = [one.pid for one in made]
        for one in made:
            one.kill()
        await asyncio.gather(*(one.dead() for one in made))
        return pids

    pids = bench.do(make_sixty())

    assert len(set(pids)) == 60


@pytest.mark.attack(21)
def test_hundreds_of_sandboxes_leave_nothing_and_exhaust_no_quota(bench: Bench) -> None:
    """A user has 200 kernel keys: each sandbox's session keyring must go with it."""

    async def make_and_end(count: int) -> None:
        for _ in range(count):
            async with bench.sandbox():
                pass

    bench.do(make_and_end(20))
    descriptors_before = len(os.listdir("/proc/self/fd"))
    bench.do(make_and_end(210))

    assert bench.launcher.starts == 1
    assert len(os.listdir("/proc/self/fd")) == descriptors_before
    assert bench.launcher.process is not None
    assert children_of(bench.launcher.process.pid) == set()
