"""Ctrl-C and SIGTERM while a job runs: the first cancels the job, the second stops the waiting."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupts:
    """The signals that came."""

    def __init__(self) -> None:
        self.received: list[int] = []

    @property
    def first(self) -> int | None:
        """The signal on which the job was cancelled."""
        return self.received[0] if self.received else None


@contextmanager
def interrupts_cancel_task() -> Iterator[Interrupts]:
    """Within, each SIGINT, SIGTERM and SIGHUP cancels the current task instead of ending the process.

    Signals that are ignored already stay so.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs us
    interrupts = Interrupts()

    def interrupt(number: int) -> None:
        interrupts.received.append(number)
        task.cancel()

    # What is ignored stays ignored: nohup(1), and commands that a script starts in the background.
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    for number in numbers:
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield interrupts
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
