"""How often a job waits for the disk: one commit where its client waits for its end anyway, else two."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_service import RunningService, running_service

from sandboxd.ids import new_id

JOBS = 20
_HEADER = struct.Struct(">4I2I2I")
"""Of the write-ahead log: magic, version, page size, checkpoints; salts; checksums (SQLite's file format, 4.1)."""
_FRAME = struct.Struct(">2I2I2I")
"""Page, size of the database after a commit or 0; salts; checksums."""


def commits(database: Path) -> int:
    """Transactions in the write-ahead log since its last restart."""
    log = Path(f"{database}-wal").read_bytes()
    _, _, page_size, _, *salts, _, _ = _HEADER.unpack_from(log)
    count = 0
    for offset in range(_HEADER.size, len(log), _FRAME.size + page_size):
        _, committed_size, *of_frame, _, _ = _FRAME.unpack_from(log, offset)
        if of_frame != salts:
            break
        count += committed_size > 0
    return count


@pytest.fixture
def service(prepared_host: None) -> Iterator[RunningService]:
    with running_service(flags=("--no-auth", "--slots", "2")) as service:
        yield service


def further_commits(job: Any) -> int:
    """How many a job may need besides the one: if it took longer than the patience for it, or nearly so, its acceptance was
    written by itself; after some more time, that it runs.
    """
    usage = job["usage"]
    seconds = usage["setup_seconds"] + usage["wall_seconds"]
    return (seconds > 0.006) + (seconds > 0.09)


def commits_per_job(service: RunningService, **options: Any) -> tuple[float, float]:
    """How many, and how many of them because jobs were slow."""
    database = service.data_dir / "sandboxd.sqlite3"
    with service.http() as http:
        before, slow = commits(database), 0
        for _ in range(JOBS):
            headers = {"Prefer": "wait=30"}
            if options.get("idempotency"):
                headers["Idempotency-Key"] = f'"{new_id("key")}"'
            body = {"image": "host", "command": ["true"]} | options.get("job", {})
            answer = http.post("/v1/jobs", json=body, headers=headers)
            assert answer.json()["state"] == "succeeded"
            slow += further_commits(answer.json())
        return (commits(database) - before) / JOBS, slow / JOBS


def test_a_short_job_whose_client_waits_takes_one_commit(service: RunningService) -> None:
    per_job, slow = commits_per_job(service)
    # The maintenance may have had something to write, too.
    assert 1 <= per_job <= 1.25 + slow


# Each on a service of its own: its log begins anew after a thousand pages, which all three together are.
@pytest.mark.parametrize(
    "options",
    [
        {"idempotency": True},
        {"job": {"outputs": ["*.txt"]}},
        {"job": {"keep_on_failure_seconds": 1}},
    ],
)
def test_what_may_be_seen_of_a_job_before_its_answer_is_on_the_disk_before_it_runs(
    service: RunningService, options: dict[str, Any]
) -> None:
    assert commits_per_job(service, **options)[0] >= 2


def test_a_job_that_cannot_be_written_down_leaves_nothing(service: RunningService) -> None:
    database = service.data_dir / "sandboxd.sqlite3"
    elsewhere = database.with_name("elsewhere")
    body = {"image": "host", "command": ["sleep", "600"]}
    with service.http() as http:
        database.rename(elsewhere)
        answers = [
            http.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"}) for _ in range(5)
        ]
        elsewhere.rename(database)
        jobs = http.get("/v1/jobs").json()["data"]
    with service.client() as client:
        service.assert_nothing_left(client)

    assert [answer.status_code for answer in answers] == [503] * 5
    assert jobs == []
