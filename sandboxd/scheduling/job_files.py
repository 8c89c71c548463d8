"""What jobs brought, left and wrote, on the disk: removed when the record needs it no more.

What the disk does not do now is told; the next start sweeps it up.
"""

import asyncio
import contextlib
from collections.abc import Collection, Iterator

import structlog

from sandboxd.files.content import Contents
from sandboxd.jobs import Job
from sandboxd.store.logs import remove_log
from sandboxd.store.records import Deleted

logger = structlog.get_logger(__name__)


class JobFiles:
    """The files of jobs. What blocks goes to a thread."""

    def __init__(self, uploads: Contents, artifacts: Contents) -> None:
        self._uploads = uploads
        self._artifacts = artifacts

    async def sweep(self, *, unfinished: Collection[str], with_artifacts: Collection[str]) -> None:
        """Remove what a process that was killed left, for no job. These have some."""
        for contents, keep in ((self._uploads, unfinished), (self._artifacts, with_artifacts)):
            with _told("leftover files not removed"):
                await asyncio.to_thread(contents.sweep, keep)

    async def remove_upload(self, job: Job) -> None:
        """The job needs no more what was sent for it."""
        if job.spec.has_upload:
            await self._remove(self._uploads, job)

    async def remove_artifacts(self, job: Job, *, of: int) -> None:
        """Nothing of what an attempt kept, so many files, is wanted."""
        if of:
            await self._remove(self._artifacts, job)

    async def drop_artifacts(self, job: Job, *, of: int) -> None:
        """Remove the content of those, of so many, that the record did not take."""
        if job.result is not None and job.result.artifact_count < of:
            kept_bytes = sum(artifact.size_bytes for artifact in job.result.artifacts)
            with _told("files not removed", job_id=job.id):
                await asyncio.to_thread(self._artifacts.cut, job.id, kept_bytes)

    async def remove_deleted(self, deleted: Deleted) -> None:
        """Those of jobs that are no longer on the record."""

        def remove() -> None:
            for path in deleted.logs:
                remove_log(path)
            self._artifacts.remove(deleted.job_ids)

        with _told("files not removed"):
            await asyncio.to_thread(remove)

    async def _remove(self, contents: Contents, job: Job) -> None:
        with _told("files not removed", job_id=job.id):
            await asyncio.to_thread(contents.remove, [job.id])


@contextlib.contextmanager
def _told(event: str, **facts: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        logger.warning(event, error=str(error), **facts)
