"""Several commands, one after the other or at once, in one sandbox."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from sandbox_bench import Bench, run_in, start_in

from sandboxd.errors import SandboxFailed
from sandboxd.isolation.sandbox import Process, Sandbox
from sandboxd.isolation.spec import Exit, Then, Unusable

COUNT = "cat /proc/[0-9]*/comm 2>/dev/null | grep -c '^sleep$'"
DAEMONS = f"""
sleep 1000 & setsid sleep 1000 & (setsid sh -c 'trap "" TERM; sleep 1000; :' &)
until [ "$({COUNT})" = 3 ]; do :; done
"""
FORK_BOMB = """
import os, resource, time
resource.setrlimit(resource.RLIMIT_NPROC, (60, 60))
end = time.monotonic() + 10
if os.fork() == 0:
    while time.monotonic() < end:
        try:
            os.fork()
        except BlockingIOError:
            pass
time.sleep(0.2)
os._exit(0)
"""


async def ended(made: Sandbox, script: str, then: Then) -> Exit:
    """Run a shell script to its end; its output is not looked at."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        process = await start_in(made, "sh", "-c", script, descriptors=[null] * 3, then=then)
        assert isinstance(process, Process), process
        how = await process.exited()
    finally:
        os.close(null)
    assert how is not None
    return how


async def processes(made: Sandbox) -> int:
    """How many of the daemons there are."""
    ran = await run_in(made, "sh", "-c", COUNT, then=Then.KEEP)
    return int(ran.out)


def test_what_a_command_leaves_running_goes_on_where_it_is_kept(bench: Bench) -> None:
    async def run() -> tuple[int, int]:
        async with bench.sandbox() as made:
            await ended(made, DAEMONS, Then.KEEP)
            before = await processes(made)
            await ended(made, "true", Then.KEEP)
            return before, await processes(made)

    before, after = bench.do(run())
    assert before == after == 3


def test_what_a_command_leaves_running_is_gone_before_its_end_is_told(bench: Bench) -> None:
    async def run() -> tuple[Exit, int]:
        async with bench.sandbox() as made:
            how = await ended(made, DAEMONS, Then.CLEAR)
            return how, await processes(made)

    how, left = bench.do(run())
    assert (how.code, how.alone) == (0, False)
    assert left == 0


def test_a_fork_bomb_does_not_escape_the_clearing(bench: Bench) -> None:
    async def run() -> int:
        async with bench.sandbox() as made:
            await run_in(made, "python3", "-c", FORK_BOMB, then=Then.CLEAR)
            names = (await run_in(made, "ls", "/proc", then=Then.KEEP)).out.split()
            return sum(name.isdigit() for name in names)

    assert bench.do(run()) == 2  # init and ls


def test_files_stay_from_one_command_to_the_next(bench: Bench) -> None:
    async def run() -> bytes:
        async with bench.sandbox() as made:
            await ended(made, "echo hello > /work/a", Then.CLEAR)
            return (await run_in(made, "cat", "/work/a")).out

    assert bench.do(run()) == b"hello\n"


def test_commands_run_beside_each_other_and_each_end_is_its_own(bench: Bench) -> None:
    async def run() -> list[int | None]:
        async with bench.sandbox() as made:
            scripts = [f"sleep 0.{9 - code}; exit {code}" for code in range(5)]
            ends = await asyncio.gather(*(ended(made, script, Then.KEEP) for script in scripts))
            return [end.code for end in ends]

    assert bench.do(run()) == [0, 1, 2, 3, 4]


def test_a_command_that_cannot_run_leaves_the_sandbox_as_it_is(bench: Bench) -> None:
    async def run() -> tuple[Any, bytes]:
        async with bench.sandbox() as made:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            wrong = await start_in(made, "no-such", descriptors=[null] * 3, then=Then.KEEP)
            os.close(null)
            return wrong, (await run_in(made, "echo", "there")).out

    wrong, out = bench.do(run())
    assert isinstance(wrong, Unusable)
    assert out == b"there\n"


def test_the_last_command_takes_everything_along(bench: Bench) -> None:
    async def run() -> bool:
        async with bench.sandbox() as made:
            await ended(made, DAEMONS, Then.KEEP)
            await ended(made, "true", Then.END)
            await made.dead()
            return made.alive

    assert not bench.do(run())


def test_whoever_waits_for_a_command_hears_of_the_sandbox_s_death(bench: Bench) -> None:
    async def run() -> tuple[Any, ...]:
        async with bench.sandbox() as made:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            several = [
                await start_in(made, "sleep", "1000", descriptors=[null] * 3, then=Then.KEEP)
                for _ in range(3)
            ]
            os.close(null)
            made.kill()
            return tuple([await one.exited() for one in several if isinstance(one, Process)])

    assert bench.do(run()) == (None, None, None)


def test_a_dead_sandbox_takes_no_command(bench: Bench, tmp_path: Path) -> None:
    async def run() -> None:
        async with bench.sandbox() as made:
            made.kill()
            await made.dead()
            await run_in(made, "true")

    with pytest.raises(SandboxFailed):
        bench.do(run())
