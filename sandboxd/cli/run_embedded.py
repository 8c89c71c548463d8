"""`sandboxd run` without a service: the parts of one, inside this process, for one job."""

import base64
import contextlib
import os
import select
from collections.abc import AsyncIterator
from typing import Any

from sandboxd import execution
from sandboxd.api.output import Output
from sandboxd.api.schemas import Base64, JobView, StreamsView, StreamView
from sandboxd.api.views import job_view
from sandboxd.cli import image_progress
from sandboxd.cli.endings import Ending
from sandboxd.cli.output_directory import new_file
from sandboxd.images.transfers import Tell
from sandboxd.jobs import Job, LogSummary, Stream
from sandboxd.running.fetching import Meanwhile
from sandboxd.settings import Settings


async def run(
    settings: Settings,
    request: dict[str, Any],
    *,
    output_dir: str,
    stdin_fd: int,
    stdout_fd: int,
    stderr_fd: int,
    shows_progress: bool,
) -> Job:
    """The job at its end, with the files that it left in `output_dir`.

    Cancelling this task cancels the job, and the job comes back all the same. `shows_progress`: of its image, if that has to come.
    """
    bars = _Bars(silent=not shows_progress)
    request = dict(request)
    files = request.pop("files", {})
    async with execution.embedded(settings) as service:
        job: Job = await service.run_once(
            request,
            files=files,
            stdin_fd=stdin_fd,
            stdout_fd=stdout_fd,
            stderr_fd=stderr_fd,
            meanwhile=Meanwhile(away=bars.shown, tell=lambda progress: bars.tell(progress)),
        )
        for artifact in job.result.artifacts if job.result else ():
            with new_file(output_dir, artifact.path, artifact.mode) as descriptor:
                for piece in service.content_of(job, artifact):
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
        return job


class _Bars:
    """There while an image comes, and gone before the command writes."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self.tell: Tell = lambda _: None

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        with image_progress.shown(silent=self._silent) as tell:
            self.tell = tell
            yield


def ending_of(job: Job) -> Ending:
    if job.result is None:
        return Ending(job.state, job.reason, None, None)
    return Ending(job.state, job.reason, job.result.exit, job.result.error)


def record_of(job: Job, stdout: bytes, stderr: bytes) -> JobView:
    """The job as the API would show it."""
    logs = job.result.logs if job.result is not None else {}

    def stream_view(stream: Stream, content: bytes) -> StreamView:
        return StreamView(
            size_bytes=len(content),
            inline_bytes=len(content),
            truncated=logs.get(stream, LogSummary()).truncated,
        )

    streams = StreamsView(
        stdout=stream_view(Stream.STDOUT, stdout), stderr=stream_view(Stream.STDERR, stderr)
    )
    return job_view(job, Output(_content(stdout), _content(stderr), streams))


def nobody_reads(descriptor: int) -> bool:
    """Whether it is a pipe whose other end is closed (poll(2): POLLERR)."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _content(content: bytes) -> str | Base64:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return Base64(base64=base64.b64encode(content).decode("ascii"))
