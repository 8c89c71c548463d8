"""How `sandboxd attack` gets its jobs run: by a service over HTTP, or by the parts of one inside this process."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator

from sandboxd.attack.conduct import Carrier
from sandboxd.attack.plan import Request
from sandboxd.attack.verdict import Answer, Ended, Refusal
from sandboxd.errors import Invalid, Refused
from sandboxd.jobs import Stream
from sandboxd.settings import Settings


@contextlib.asynccontextmanager
async def remote(url: str, key: str) -> AsyncIterator[Carrier]:
    """Jobs of a service, through its public API."""
    from sandboxd.client import AsyncClient, ClientError, InvalidRequest

    async with AsyncClient(url, key=key or None) as client:

        async def carry(request: Request) -> Answer:
            try:
                job = await client.submit(**request)
            except InvalidRequest as error:
                return Refusal(str(error))
            try:
                job = await client.wait(job.id)
            except asyncio.CancelledError:
                with contextlib.suppress(ClientError):
                    await client.cancel(job.id, reason="interrupted by its user")
                raise
            stream = job.streams.get(Stream.STDOUT)
            output = job.stdout
            if stream is not None and stream.inline_bytes < stream.size_bytes:
                output = await client.read_log(job.id, stream=Stream.STDOUT)
            seconds = 0.0
            if job.started_at is not None and job.finished_at is not None:
                seconds = (job.finished_at - job.started_at).total_seconds()
            message = job.error.message if job.error is not None else ""
            return Ended(job.state, job.reason, seconds, _text(output), message)

        yield carry


@contextlib.asynccontextmanager
async def local(settings: Settings) -> AsyncIterator[Carrier]:
    """Jobs in sandboxes of this process's own."""
    from sandboxd import execution

    async with execution.embedded(settings) as service:

        async def carry(request: Request) -> Answer:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            with tempfile.TemporaryFile() as output:
                try:
                    job = await service.run_once(
                        request, stdin_fd=None, stdout_fd=output.fileno(), stderr_fd=null
                    )
                except Invalid as error:
                    return Refusal(_detail(error))
                finally:
                    os.close(null)
                output.seek(0)
                content = output.read()
            result, seconds = job.result, 0.0
            if job.started_at is not None and job.finished_at is not None:
                seconds = job.finished_at - job.started_at
            message = result.error.message if result is not None and result.error else ""
            return Ended(job.state, job.reason, seconds, _text(content), message)

        yield carry


def _detail(error: Refused) -> str:
    faults = error.faults if isinstance(error, Invalid) else ()
    return "; ".join([str(error), *(f"{at}: {detail}" for at, detail in faults)])


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
