"""How many short jobs the store records: one claimed submit and one finish each, every commit on the disk.

python bench/store.py [--jobs 5000] [--directory DIR]
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from sandboxd.ids import new_id
from sandboxd.jobs import ExitStatus, Job, JobSpec, LogSummary, Reason, Result, State, Stream, Usage
from sandboxd.quotas.limits import Limits
from sandboxd.store import migrate
from sandboxd.store.logs import JobLog
from sandboxd.store.sqlite import SqliteStore

LIMITS = Limits(
    cpus=1.0,
    memory_bytes=2**28,
    pids=64,
    disk_bytes=2**26,
    wall_seconds=60.0,
    cpu_seconds=60.0,
    output_bytes=2**24,
    open_files=1024,
)


async def one_job(store: SqliteStore, logs: Path, waits: list[float]) -> None:
    now = time.time()
    spec = JobSpec(image="host", command=("/bin/echo", "hello"), limits=LIMITS)
    job = Job(
        id=new_id("job"),
        tenant="default",
        spec=spec,
        state=State.QUEUED,
        reason=Reason.SUBMITTED,
        created_at=now,
        queued_at=now,
    )
    began = time.perf_counter()
    await store.submit(job, claim_owner="bench")
    waits.append(time.perf_counter() - began)
    log = JobLog(logs, job.id, limit_bytes=2**24, inline_bytes=2**16)
    log.append(Stream.STDOUT, b"hello\n", now)
    result = Result(
        state=State.SUCCEEDED,
        reason=Reason.EXITED,
        exit=ExitStatus(code=0),
        usage=Usage(cpu_seconds=0.001, memory_peak_bytes=2**20, wall_seconds=0.001),
        enforcement={"memory": "cgroup2", "pids": "cgroup2", "cpus": "cgroup2"},
        started_at=now,
        logs={Stream.STDOUT: LogSummary(size_bytes=6)},
    )
    began = time.perf_counter()
    ended = await store.finish(job.id, 1, result, log.close(), time.time())
    waits.append(time.perf_counter() - began)
    assert ended is not None


async def measure(directory: Path, jobs: int, clients: int) -> None:
    path = directory / f"{clients}.db"
    migrate.upgrade(migrate.sqlite_url(path))
    store = await SqliteStore.open(path, inline_log_bytes=2**16)
    waits: list[float] = []

    async def client() -> None:
        for _ in range(jobs // clients):
            await one_job(store, directory, waits)

    began, cpu_began = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    await store.close()
    waits.sort()
    done = len(waits) // 2
    print(
        f"{clients:3} at a time: {done / seconds:7,.0f} jobs/s"
        f"  commit p50 {waits[len(waits) // 2] * 1e3:.2f} ms, p99 {waits[len(waits) * 99 // 100] * 1e3:.2f} ms"
        f"  {cpu_seconds / len(waits) * 1e6:.0f} µs CPU per operation (client's part included)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument(
        "--directory", type=Path, help="where the database is made; default: a temporary one"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for clients in (1, 64):
            asyncio.run(measure(Path(directory), arguments.jobs, clients))


if __name__ == "__main__":
    main()
