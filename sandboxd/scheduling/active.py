"""A job that this process works on: what is known of it beyond the record."""

import asyncio

from sandboxd.admission import Occupant
from sandboxd.jobs import Job, RunResult
from sandboxd.running.commands import Stop
from sandboxd.running.sampling import Samples
from sandboxd.store.logs import JobLog


class Active:
    """One attempt at a job, from its claim to its settlement."""

    def __init__(
        self,
        job: Job,
        log: JobLog,
        occupant: Occupant,
        accepted: "asyncio.Future[None] | None" = None,
        *,
        early: bool = False,
    ) -> None:
        self.job = job
        self.log = log
        self.occupant = occupant
        """The room that it has."""
        self.accepted = accepted
        """Done when it is on the disk. None: it was before it began."""
        self.early = early
        """Its command need not wait for that."""
        self.handed_in = asyncio.Event()
        """It is in the store, or in the store's queue: what is written of it comes after that."""
        self.stop = Stop()
        self.started_at: float | None = None
        self.samples = Samples()
        self.runs: list[RunResult] = []
        """Of a job of steps: those that have ended."""

    async def check_accepted(self) -> None:
        """Wait until it is on the disk. Raises NotAccepted."""
        if self.accepted is not None:
            await asyncio.shield(self.accepted)
