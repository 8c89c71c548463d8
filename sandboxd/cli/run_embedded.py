"""`sandboxd run` without a service: the parts of one, inside this process, for one job."""

from typing import Any

from sandboxd import app
from sandboxd.cli.endings import Ending
from sandboxd.jobs import Job
from sandboxd.settings import Settings


async def run(
    settings: Settings, request: dict[str, Any], *, stdin_fd: int, stdout_fd: int, stderr_fd: int
) -> Job:
    """The job at its end. Cancelling this task cancels the job, and the job comes back all the same."""
    async with app.embedded(settings) as service:
        job: Job = await service.run_once(
            request, stdin_fd=stdin_fd, stdout_fd=stdout_fd, stderr_fd=stderr_fd
        )
        return job


def ending_of(job: Job) -> Ending:
    if job.result is None:
        return Ending(job.state, job.reason, None, None)
    return Ending(job.state, job.reason, job.result.exit, job.result.error)
