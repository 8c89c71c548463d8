"""`sandboxd run` on a service: hand in the job, copy its output as it comes, wait for its end."""

import asyncio
import contextlib
import os
import sys
from typing import Any

from sandboxd.cli import image_progress
from sandboxd.cli.endings import Ending
from sandboxd.cli.interrupts import Interrupts
from sandboxd.cli.output_directory import new_file
from sandboxd.client import AsyncClient, Job, LayerProgress
from sandboxd.images.documents.references import is_reference
from sandboxd.jobs import Stream

_DESCRIPTORS = {Stream.STDOUT: 1, Stream.STDERR: 2}


async def submit(url: str, key: str | None, request: dict[str, Any]) -> Job:
    """Hand in the job and leave it alone."""
    async with AsyncClient(url, key=key) as client:
        return await client.submit(**request)


async def run(
    url: str,
    key: str | None,
    request: dict[str, Any],
    interrupts: Interrupts,
    *,
    copy_output: bool,
    output_dir: str,
    shows_progress: bool,
) -> Job:
    """The job at its end; its output went to our own, unless `copy_output` is off, and its files to `output_dir`.

    `shows_progress`: of its image, which is had pulled before where somebody looks on; else it comes when the job starts.
    Cancelled by `interrupts` it cancels the job and still waits for its end; cancelled again it gives up.
    """
    async with AsyncClient(url, key=key) as client:
        if shows_progress:
            await _have_pulled(client, request["image"], request.get("pull", "missing"))
        job = await client.submit(**request)
        output = _Output(client, job.id)
        try:
            if copy_output:
                await output.copy()
            return await _with_files(client, await client.wait(job.id), output_dir)
        except BrokenPipeError:
            await client.cancel(job.id, reason="nobody reads the output any more")
            raise
        except asyncio.CancelledError:
            if len(interrupts.received) != 1:
                raise
            _forget_cancellation()
        await client.cancel(job.id, reason="interrupted by its user")
        if copy_output:
            await output.copy()
        return await _with_files(client, await client.wait(job.id), output_dir)


async def _have_pulled(client: AsyncClient, image: str, pull: str) -> None:
    if pull == "never" or not is_reference(image):
        return
    with image_progress.shown(silent=False) as tell:
        async with contextlib.aclosing(client.pull(image, pull=pull)) as steps:
            async for step in steps:
                if isinstance(step, LayerProgress):
                    tell(step)


async def _with_files(client: AsyncClient, job: Job, output_dir: str) -> Job:
    for artifact in job.artifacts:
        with new_file(output_dir, artifact.path, int(artifact.mode, 8)) as descriptor:
            await client.download(job.id, artifact.path, descriptor)
    return job


def ending_of(job: Job) -> Ending:
    return Ending(job.state, job.reason, job.exit, job.error)


class _Output:
    """Copies a job's output to ours; called again, it goes on where it was stopped."""

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._copied_bytes = 0
        self._writing: asyncio.Task[None] | None = None

    async def copy(self) -> None:
        if self._writing is not None:
            await self._writing
        logs = self._client.logs(self._job_id, follow=True, after_bytes=self._copied_bytes)
        async with contextlib.aclosing(logs) as pieces:
            async for piece in pieces:
                # In a thread: a reader that is slow must not keep Ctrl-C from being heard. Shielded: a thread
                # cannot be stopped, so what it began to write counts as copied.
                write = asyncio.to_thread(_write_all, _DESCRIPTORS[piece.stream], piece.data)
                self._writing = asyncio.create_task(write)
                self._copied_bytes = piece.offset + len(piece.data)
                await asyncio.shield(self._writing)


def _write_all(descriptor: int, content: bytes) -> None:
    sys.stdout.flush()
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _forget_cancellation() -> None:
    """Tell asyncio that the cancellation was dealt with, so that later time-outs are not taken for it."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
