"""What a job used, moment by moment: often at first, then once a second, then less often, and never more than so many samples."""

import asyncio
import time
from collections.abc import Callable

from sandboxd.errors import SandboxFailed
from sandboxd.jobs import Sample
from sandboxd.quotas.usage import CgroupNow

MOST_SAMPLES = 240
_FIRST_SECONDS = 0.05
_USUAL_SECONDS = 1.0


class Samples:
    """Of one attempt. What there is so far is in `taken`, oldest first."""

    def __init__(self) -> None:
        self.taken: list[Sample] = []
        self._look: Callable[[], CgroupNow] | None = None
        self._tell: Callable[[CgroupNow], None] = lambda _: None
        self._pause = _FIRST_SECONDS
        self._longest_pause = _USUAL_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    def start(self, look: Callable[[], CgroupNow], tell: Callable[[CgroupNow], None]) -> None:
        """Begin; `look` reads the figures, and `tell` is told them.

        A job that is over sooner than the first look has no samples, and costs nothing.
        """
        self._look = look
        self._tell = tell
        self._wait()

    def stop(self) -> None:
        """No more. Twice is harmless."""
        self._look = None
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._take)
        self._pause = min(2 * self._pause, self._longest_pause)

    def _take(self) -> None:
        if self._look is None:
            return
        try:
            now = self._look()
        except SandboxFailed:
            return  # The cgroup is gone, and the job with it.
        self._tell(now)
        self.taken.append(Sample(time.time(), *now[:-1], *now.stalls))
        if len(self.taken) == MOST_SAMPLES:
            # Half as many, half as often: the whole life of the job stays in sight.
            del self.taken[1::2]
            self._longest_pause *= 2
        self._wait()
