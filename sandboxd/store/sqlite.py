"""The store on SQLite: one thread writes, a few read, one process owns the file."""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import time
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine, exc

from sandboxd.admission import Choose
from sandboxd.errors import Unavailable
from sandboxd.jobs import ApiKey, Job, JobEvent, Reason, Result, Sample, State
from sandboxd.quotas.tenants import Bounds, HourOfUse, Quotas, TenantQuotas, Whose
from sandboxd.sandbox_values import SandboxPage, SandboxRecord, SandboxState
from sandboxd.store import (
    catalog,
    claims,
    deletions,
    outbox,
    reads,
    sandboxes,
    storage,
    tenants,
    writes,
)
from sandboxd.store.logs import StoredLog, remove_log, truncate_log
from sandboxd.store.outbox import Undelivered
from sandboxd.store.records import Conservation, Deleted, Idempotency, Page, Submitted
from sandboxd.store.sqlite_file import READERS, opened, same_file
from sandboxd.store.writer import Writer

T = TypeVar("T")

_MISTAKES = (
    exc.IntegrityError,
    exc.ProgrammingError,
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
)
"""Of ours, not of the disk's: they are not mended by waiting."""

_FREED_PAGES = 1024
"""Given back to the file system with each batch of deletions."""


class SqliteStore:
    """The durable record. Made by `open`, ended by `close`; every method may raise `Unavailable`."""

    def __init__(
        self,
        path: Path,
        *,
        inline_log_bytes: int,
        writer: Writer,
        readers: Engine,
        check: Callable[[], None],
        resources: ExitStack,
    ) -> None:
        """For `open` only."""
        self._base = path.parent
        self._inline_log_bytes = inline_log_bytes
        self._writer = writer
        self._readers = readers
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._check = check
        self._resources = resources
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, inline_log_bytes: int) -> Self:
        """Own and open the database `path`. Logs of up to `inline_log_bytes` will be kept in it.

        Raises HostNotReady if another process owns it or if its schema is not that of this release.
        """
        with ExitStack() as resources:
            connection, readers = await asyncio.to_thread(opened, path, resources)
            check = same_file(path)
            return cls(
                path,
                inline_log_bytes=inline_log_bytes,
                writer=Writer(connection, check),
                readers=readers,
                check=check,
                resources=resources.pop_all(),
            )

    async def close(self) -> None:
        """Finish what was asked for and let the database go. Twice is harmless."""
        self._closed = True
        await self._writer.close()
        await asyncio.to_thread(self._threads.shutdown)
        self._resources.close()

    # What changes a job

    async def submit(
        self,
        job: Job,
        *,
        idempotency: Idempotency | None = None,
        claim_owner: str | None = None,
        patience_seconds: float = 0.0,
        bounds: Bounds | None = None,
    ) -> Submitted:
        """Accept a job; it is on the disk when this returns, which may be so much later that its end is, too.

        With `claim_owner` it is claimed in the same commit: `starting`, attempt 1, lease token 1. A request that was
        sent before, in the last 24 hours and with the same idempotency key, answers with the job that it made then.
        Raises Invalid (`idempotency_key_reused`) for another request with that key, and Conflict
        (`idempotency_job_deleted`) if that job's record is gone, and QuotaExceeded where `bounds` say so.
        """
        return await self._write(
            lambda c: writes.submit(c, job, idempotency, claim_owner, bounds),
            patience_seconds=patience_seconds,
        )

    async def claim(
        self,
        owner: str,
        choose: Choose,
        now: float,
        *,
        passed_over: Collection[str] = (),
        of_images: Collection[tuple[str, str]] = (),
    ) -> list[Job]:
        """Take the jobs that `choose` picks of those that may run, with their input.

        It sees the first of each tenant, without those of the keys that are `passed_over` and without those `of_images` of a tenant, and is
        called by the thread that writes.
        """
        return await self._write(
            lambda c: claims.claim(c, owner, choose, now, passed_over, of_images)
        )

    async def mark_running(self, job_id: str, lease_token: int, started_at: float) -> None:
        """Note that the command started; nothing if the lease is stale. `finish` notes it too: short jobs skip this."""
        await self._write(lambda c: writes.mark_running(c, job_id, lease_token, started_at))

    async def note_start(
        self, job_id: str, lease_token: int, reason: Reason, message: str, now: float
    ) -> None:
        """Note how far a job that starts has come; nothing if the lease is stale."""
        await self._write(lambda c: writes.note_start(c, job_id, lease_token, reason, message, now))

    async def finish(
        self,
        job_id: str,
        lease_token: int,
        result: Result,
        log: StoredLog,
        finished_at: float,
        *,
        bounds: Bounds | None = None,
    ) -> Job | None:
        """End a job for good, with its log. None: the lease was lost, and nothing was written.

        Where `bounds` have quotas of its key, what it used is counted for the key, too.

        The log's file is on the disk before the record says so; a short one moves into the database. The job comes as it is
        kept: with less where its tenant may store no more.
        """
        kept = log
        if log.path is not None:
            with _as_unavailable():
                kept = await asyncio.to_thread(self._settled, log)
        ended = await self._write(
            lambda c: writes.finish(
                c, job_id, lease_token, result, kept, finished_at, self._base, bounds
            )
        )
        if ended is None:
            return None
        job, stored = ended
        if log.path is not None and stored.path is None:
            remove_log(log.path)
        elif log.path is not None and stored.size() < log.size():
            with suppress(OSError):  # The record says where it ends.
                await asyncio.to_thread(truncate_log, stored)
        return job

    async def retry(
        self,
        job_id: str,
        lease_token: int,
        reason: Reason,
        message: str | None,
        run_at: float,
        now: float | None = None,
    ) -> bool:
        """Let a job wait for another attempt, not before `run_at`. False: the lease was lost."""
        at = time() if now is None else now
        return await self._write(
            lambda c: writes.retry(c, job_id, lease_token, reason, message, run_at, at)
        )

    async def request_cancel(
        self,
        tenant: str,
        job_id: str,
        now: float,
        message: str | None,
        reason: Reason = Reason.CANCELLED_BY_CLIENT,
    ) -> Job:
        """Cancel a waiting job at once, ask for the end of an active one, leave an ended one as it is.

        Raises NotFound.
        """
        return await self._write(
            lambda c: writes.request_cancel(c, tenant, job_id, now, message, reason)
        )

    async def expire_waiting(self, now: float) -> list[Job]:
        """End the jobs that waited longer than their clients wanted."""
        return await self._write(lambda c: writes.expire_waiting(c, now))

    async def recover(self, owner: str) -> list[Job]:
        """After a restart: the jobs that a dead process worked on, with new lease tokens.

        The caller ends or retries each.
        """
        return await self._write(lambda c: writes.recover(c, owner))

    async def delete(self, tenant: str, job_id: str) -> Path | None:
        """Forget a job; the path of its log if that is a file, which the caller removes (`remove_log`).

        Raises NotFound, and Conflict unless the job has ended.
        """
        return await self._write(lambda c: deletions.delete_job(c, tenant, job_id, self._base))

    async def delete_expired(self, now: float, limit: int) -> Deleted:
        """Forget every job whose time is over, `limit` per commit; their files are the caller's to remove."""
        every = Deleted([], [])
        while True:
            some = await self._write(lambda c: deletions.delete_expired(c, now, limit, self._base))
            every.job_ids.extend(some.job_ids)
            every.logs.extend(some.logs)
            await self._write(_give_back_space)
            if len(some.job_ids) < limit:
                return every

    async def check_writable(self) -> None:
        """Write a little that means nothing, all the way to the disk. Raises Unavailable."""
        await self._write(lambda c: c.exec_driver_sql("PRAGMA user_version = 0"))

    # Questions about jobs

    async def get(self, tenant: str, job_id: str, *, with_stdin: bool = True) -> Job:
        """One job.

        Raises NotFound, also where it is another tenant's.
        """
        return await self._read(lambda c: reads.get(c, tenant, job_id, with_stdin))

    async def list_jobs(
        self,
        tenant: str,
        *,
        states: Collection[State] = (),
        labels: Mapping[str, str] | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> Page:
        """A tenant's jobs, newest first, without input and environment, long commands cut.

        A page has fewer than `limit` where those would be more than a mebibyte.
        Those in one of `states` (none: any) that have all `labels` and were made from `since` to before `until`.
        Raises Invalid for a cursor that is not from a page of this list.
        """
        return await self._read(
            lambda c: reads.list_jobs(c, tenant, states, labels or {}, since, until, limit, cursor)
        )

    async def samples(self, tenant: str, job_id: str) -> tuple[Sample, ...]:
        """What a job used, moment by moment; empty while it runs. Raises NotFound."""
        return await self._read(lambda c: reads.samples(c, tenant, job_id))

    async def events(self, tenant: str, job_id: str) -> list[JobEvent]:
        """What happened to a job, in order.

        Raises NotFound.
        """
        return await self._read(lambda c: reads.events(c, tenant, job_id))

    async def log(self, tenant: str, job_id: str) -> StoredLog | None:
        """The log of a job that has ended, None if it has not.

        Raises NotFound, also (`log_gone`) if the log was a file that somebody removed.
        """
        return await self._read(lambda c: reads.log(c, tenant, job_id, self._base))

    async def jobs_with_artifacts(self) -> set[str]:
        """The ids of all jobs that left something."""
        return await self._read(reads.jobs_with_artifacts)

    async def unfinished_jobs(self) -> set[str]:
        """The ids of all jobs that have not ended."""
        return await self._read(reads.unfinished_jobs)

    async def counts(self) -> dict[State, int]:
        """Jobs by state: waiting and active ones now, and how many ever ended in each terminal state."""
        return await self._read(reads.counts)

    async def conservation(self) -> Conservation:
        """The figures that must add up, all of one moment."""
        return await self._read(reads.conservation)

    async def oldest_waiting(self) -> float | None:
        """Since when the job that waits longest has waited, as Unix time in seconds; None if none waits."""
        return await self._read(reads.oldest_waiting)

    async def waiting_before(self, job: Job, now: float) -> int:
        """How many of the jobs that wait and may run now are claimed before this one."""
        return await self._read(lambda c: reads.waiting_before(c, job, now))

    async def next_due(self, now: float) -> float | None:
        """When a retry may run or a waiting job expires next, as Unix time in seconds; None: time changes nothing."""
        return await self._read(lambda c: reads.next_due(c, now))

    # Keys

    async def create_key(self, key: ApiKey, *, one_tenant: bool = False) -> None:
        """Store a new key.

        With `one_tenant`: raises Conflict (`one_tenant_only`) if another tenant has keys that are not revoked.
        """
        await self._write(lambda c: catalog.create_key(c, key, one_tenant))

    async def find_key(self, key_id: str) -> ApiKey | None:
        """The key, also if it is revoked or expired: the caller judges."""
        return await self._read(lambda c: catalog.find_key(c, key_id))

    async def list_keys(self) -> list[ApiKey]:
        """Every key, oldest first."""
        return await self._read(catalog.list_keys)

    async def quotas_of_keys(self) -> dict[str, Quotas]:
        """Of every key that has its own, also if it is revoked."""
        return await self._read(catalog.quotas_of_keys)

    async def revoke_key(self, key_id: str, now: float) -> bool:
        """Make a key worthless; the first time counts. False: there is no such key."""
        return await self._write(lambda c: catalog.revoke_key(c, key_id, now))

    # Tenants

    async def all_quotas(self) -> dict[str, TenantQuotas]:
        """Of every tenant that has its own."""
        return await self._read(tenants.all_quotas)

    async def put_quotas(self, tenant: str, quotas: TenantQuotas | None) -> None:
        """Set a tenant's quotas; None: it has those of all from now on."""
        await self._write(lambda c: tenants.put_quotas(c, tenant, quotas))

    async def uses(self, tenant: str, since: int, until: int) -> list[HourOfUse]:
        """What the tenant's jobs used that ended from hour `since` to before hour `until`, oldest first."""
        return await self._read(lambda c: tenants.uses(c, tenant, since, until))

    async def stored_bytes(self, tenant: str) -> int:
        """What is kept of the tenant's jobs: requests, inputs, results, logs and artifacts."""
        return await self._read(lambda c: storage.used(c, tenant))

    async def used_and_reserved(self, whose: Whose, now: float) -> dict[str, dict[str, float]]:
        """By what is metered and by window: what ended jobs used in it, and what the others may use yet."""
        return await self._read(lambda c: tenants.used_and_reserved(c, whose, now))

    # Events for the webhook

    async def due_events(self, now: float, limit: int) -> list[Undelivered]:
        """Those that are to be delivered now, oldest first."""
        return await self._read(lambda c: outbox.due(c, now, limit))

    async def next_event_due(self) -> float | None:
        """When the next one is to be delivered (Unix time); None: all are settled."""
        return await self._read(outbox.next_due)

    async def note_attempt(self, event_id: str, next_at: float | None) -> None:
        """One more attempt was made; another one is due then. None: it was delivered, or is given up."""
        await self._write(lambda c: outbox.note_attempt(c, event_id, next_at))

    async def undelivered_events(self) -> int:
        """How many are to be delivered yet."""
        return await self._read(outbox.backlog)

    # Sandboxes that live long

    async def create_sandbox(self, record: SandboxRecord) -> None:
        """Store a new one; it is on the disk when this returns."""
        await self._write(lambda c: sandboxes.create(c, record))

    async def change_sandbox(self, record: SandboxRecord) -> None:
        """Store one as it is now."""
        await self._write(lambda c: sandboxes.change(c, record))

    async def get_sandbox(self, tenant: str, sandbox_id: str) -> SandboxRecord:
        """Raises NotFound, also where it is another tenant's."""
        return await self._read(lambda c: sandboxes.get(c, tenant, sandbox_id))

    async def list_sandboxes(
        self, tenant: str, *, states: frozenset[SandboxState], limit: int, cursor: str | None
    ) -> SandboxPage:
        """A tenant's sandboxes, newest first. Raises Invalid for a cursor that is not from a page of this list."""
        return await self._read(lambda c: sandboxes.list_(c, tenant, states, limit, cursor))

    async def forget_sandbox(self, tenant: str, sandbox_id: str) -> None:
        """Remove the record of one that has ended."""
        await self._write(lambda c: sandboxes.forget(c, tenant, sandbox_id))

    async def end_all_sandboxes(self, now: float) -> int:
        """After a restart: none lives any more. How many had."""
        return await self._write(lambda c: sandboxes.end_all(c, now))

    async def _write(
        self, operation: Callable[[Connection], T], *, patience_seconds: float = 0.0
    ) -> T:
        with _as_unavailable():
            return await self._writer.run(operation, patience_seconds=patience_seconds)

    async def _read(self, question: Callable[[Connection], T]) -> T:
        if self._closed:
            raise Unavailable("the store is closed", code="store_closed")
        with _as_unavailable():
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._ask, question
            )

    def _ask(self, question: Callable[[Connection], T]) -> T:
        self._check()
        with self._readers.connect() as connection:
            return question(connection)

    def _settled(self, log: StoredLog) -> StoredLog:
        if log.size() <= self._inline_log_bytes:
            return log.in_memory()
        log.sync()
        return log


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """What the disk or the file did becomes `Unavailable`; a mistake of ours stays what it is."""
    try:
        yield
    except _MISTAKES:
        raise
    except exc.DatabaseError as error:
        raise Unavailable(f"the store cannot be used: {error.orig}", code="store_down") from error
    except sqlite3.DatabaseError as error:  # From what is given to the driver as it is.
        raise Unavailable(f"the store cannot be used: {error}", code="store_down") from error
    except OSError as error:
        raise Unavailable(
            f"the store cannot be used: {error.strerror}", code="store_down"
        ) from error


def _give_back_space(connection: Connection) -> None:
    """Return some of the pages that deletions freed to the file system."""
    free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
    for _ in range(min(free, _FREED_PAGES)):
        # Each page is one step of the statement, and the driver takes one step only.
        connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")
