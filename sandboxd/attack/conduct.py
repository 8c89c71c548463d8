"""Carry out a plan over any way to run a job."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

from sandboxd.attack.plan import Request, Task
from sandboxd.attack.verdict import Answer, Finding, merged

Carrier = Callable[[Request], Awaitable[Answer]]
"""Makes one request and waits for the job's end. What keeps the attack from going on it raises."""

AT_ONCE = 3


async def conduct(
    tasks: Sequence[Task],
    carry: Carrier,
    *,
    rows: Collection[int] = (),
    progress: Callable[[int, int], None] = lambda done, tasks: None,
) -> list[Finding]:
    """What came of each attempt (of these rows, if any are named), in the order of the rows.

    The first exception of the carrier, or AttackImpossible, ends everything.
    """
    findings: list[Finding] = []
    places = asyncio.Semaphore(AT_ONCE)
    done = 0

    async def carry_out(task: Task) -> None:
        nonlocal done
        async with places:
            answers = [await carry(request) for request in task.requests]
        findings.extend(task.judge(answers))
        done += 1
        progress(done, len(tasks))

    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(carry_out(task))
    except BaseExceptionGroup as failed:
        raise _first(failed) from None
    return [found for found in merged(findings) if not rows or found.probe.row in rows]


def _first(failed: BaseExceptionGroup) -> BaseException:
    for error in failed.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("a group holds at least one")
