"""What the kernel counts for a user or for the whole host: a sandbox that takes all it can get leaves others theirs."""

import asyncio
import os

import pytest
from sandbox_bench import Bench, start_in

from sandboxd.isolation.sandbox import Sandbox

PROGRAM = """
import ctypes, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
{take}
taken = 0
try:
    while taken < 5000 and take(taken) != -1:
        taken += 1
except OSError:
    pass
print(taken, flush=True)
signal.pause()
"""
TAKE = {
    # What is taken, and how many a sandbox gets of it.
    "inotify instances": ("def take(n): return libc.inotify_init()", 16),
    "timers": (
        "def take(n): return libc.timer_create(0, None, ctypes.byref(ctypes.c_void_p()))",
        1024,
    ),
    "message queues": ("def take(n): return libc.mq_open(b'/%d' % n, 0o102, 0o666, None)", 1),
    "pipes": ("def take(n): return os.pipe()[0]", 510),
}
UNDER_WAY = """
pairs = []
def take(n):
    if n % 10 == 0:
        pairs.append(socket.socketpair())
    socket.send_fds(pairs[-1][0], [b"x"], [0] * 10)
    return 0
"""


async def take_all(made: Sandbox, take: str) -> int:
    """How many a command of this sandbox gets. It keeps them until the sandbox ends."""
    null, (reading, out) = os.open("/dev/null", os.O_RDWR), os.pipe()
    source = PROGRAM.format(take=take)
    await start_in(made, "python3", "-c", source, descriptors=[null, out, null])
    os.close(out)
    os.close(null)
    with os.fdopen(reading) as answer:
        return int(await asyncio.to_thread(answer.readline))


@pytest.mark.attack(43, 52)
@pytest.mark.parametrize(("take", "most"), TAKE.values(), ids=TAKE)
def test_who_takes_all_leaves_another_the_same(bench: Bench, take: str, most: int) -> None:
    async def one_after_the_other() -> list[int]:
        async with bench.sandbox() as first, bench.sandbox() as second:
            return [await take_all(first, take), await take_all(second, take)]

    assert bench.do(one_after_the_other()) == [most, most]


@pytest.mark.attack(52)
def test_descriptors_that_jobs_keep_under_way_keep_no_other_job_from_starting(bench: Bench) -> None:
    """They are counted for all sandboxes of a user together (SECURITY.md); the service passes them as another user."""

    seven = "def take(n): return -1 if n == 7 else 0"

    async def start_another() -> list[int]:
        async with bench.sandbox() as first, bench.sandbox() as second:
            taken = [await take_all(first, UNDER_WAY), await take_all(second, UNDER_WAY)]
            async with bench.sandbox() as another:
                return [*taken, await take_all(another, seven)]

    first, _, another = bench.do(start_another())

    assert 100 <= first <= 110
    assert another == 7
