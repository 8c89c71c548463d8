"""The attack at the service's start: the attempts of `sandboxd attack`, as ordinary jobs of this very service.

With `gate` the service is not ready before all of them were stopped; with `warn` it only says so. Either way the figures are
in the metrics, and what was not stopped is in the log.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import structlog

from sandboxd.attack import verdict
from sandboxd.attack.conduct import conduct
from sandboxd.attack.plan import Request, make_plan
from sandboxd.attack.verdict import Answer, Ended, Finding, Outcome, Refusal
from sandboxd.errors import Invalid, NotFound, SandboxdError, Unavailable
from sandboxd.ids import new_id
from sandboxd.images import host as host_image
from sandboxd.jobs import TERMINAL, Job, JobSpec, Reason, State, Stream
from sandboxd.metrics import Metrics
from sandboxd.scheduling.progress import Progress
from sandboxd.scheduling.scheduler import Scheduler

logger = structlog.get_logger(__name__)

TENANT = ":attack"
"""Whose jobs these are: a name that no key can have."""
RUNNING, NOT_PASSED = "attack_running", "attack_not_passed"

_JOB_SECONDS = 300.0
"""Longer than any of the jobs takes, with those before it in the queue."""


class AttackGate:
    """Whether this service was seen to withstand the attempts."""

    def __init__(
        self,
        mode: Literal["off", "warn", "gate"],
        scheduler: Scheduler,
        progress: Progress,
        metrics: Metrics,
        spec_of: Callable[[Request], JobSpec],
    ) -> None:
        """`spec_of` makes a job of a request, as for a client's. Raises Invalid."""
        self._mode = mode
        self._scheduler = scheduler
        self._progress = progress
        self._metrics = metrics
        self._spec_of = spec_of
        self.finished = asyncio.Event()
        self.passed = False

    @property
    def closed(self) -> str | None:
        """Why the service is not ready: a word for programs; None if the gate is open."""
        if self._mode != "gate" or self.passed:
            return None
        return NOT_PASSED if self.finished.is_set() else RUNNING

    async def run(self) -> None:
        """Attack once, and tell what came of it."""
        if self._mode == "off":
            return
        begun = time.monotonic()
        findings: list[Finding] = []
        try:
            findings = await conduct(make_plan(host_image.NAME), self._carry)
        except (SandboxdError, OSError) as error:
            logger.error("attack not carried out", error=str(error))
        except Exception:
            logger.exception("attack not carried out")
        self.passed = verdict.passed(findings)
        self.finished.set()
        self._tell(findings, time.monotonic() - begun)

    def _tell(self, findings: list[Finding], seconds: float) -> None:
        rows = verdict.by_row(findings)
        self._metrics.attacked(verdict.counts(rows.values()), time.time())
        for finding in findings:
            if finding.outcome not in verdict.PASSING:
                logger.error(
                    "attack not stopped",
                    row=finding.probe.row,
                    attempt=finding.name,
                    outcome=str(finding.outcome),
                    seen=finding.seen,
                )
        logger.info(
            "attack passed" if self.passed else "attack not passed",
            rows=len(rows),
            attempts=len(findings),
            stopped=sum(finding.outcome is Outcome.STOPPED for finding in findings),
            seconds=round(seconds, 1),
        )

    async def _carry(self, request: Request) -> Answer:
        try:
            spec = self._spec_of(request)
        except Invalid as error:
            faults = (f"{at}: {detail}" for at, detail in error.faults)
            return Refusal("; ".join([str(error), *faults]))
        job_id = await self._submit(spec)
        job = await self._progress.wait(TENANT, job_id, _JOB_SECONDS)
        if job.state not in TERMINAL:
            raise Unavailable(f"{job_id} is still {job.state} after {_JOB_SECONDS:.0f} s")
        output = b""
        try:
            log = await self._progress.log(TENANT, job_id)
            output = log.read_stream(Stream.STDOUT, 0, log.size(Stream.STDOUT))
        except NotFound:
            pass  # It wrote nothing.
        seconds = 0.0
        if job.started_at is not None and job.finished_at is not None:
            seconds = job.finished_at - job.started_at
        message = job.result.error.message if job.result is not None and job.result.error else ""
        return Ended(job.state, job.reason, seconds, output.decode("utf-8", "replace"), message)

    async def _submit(self, spec: JobSpec) -> str:
        """The id of the job, as soon as the queue has room for it."""
        while True:
            now = time.time()
            job = Job(
                id=new_id("job"),
                tenant=TENANT,
                spec=spec,
                state=State.QUEUED,
                reason=Reason.SUBMITTED,
                created_at=now,
                queued_at=now,
            )
            try:
                return (await self._scheduler.submit(job)).job.id
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_seconds)
