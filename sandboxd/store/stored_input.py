"""What a job reads, which is stored apart from its row: standard input, and contents of files."""

from sqlalchemy import Connection, bindparam, select

from sandboxd.jobs import Job
from sandboxd.store import tables
from sandboxd.store.prepared import Prepared
from sandboxd.store.records import has_contents, with_input

_stdin, _contents = tables.job_stdin.c, tables.job_contents.c
_STDIN = Prepared(select(_stdin.stdin).where(_stdin.job_id == bindparam("of_job")))
_CONTENTS = Prepared(select(_contents.contents).where(_contents.job_id == bindparam("of_job")))


def added(connection: Connection, job: Job) -> Job:
    """The job of a row with its input, as far as there is any."""
    key = {"of_job": job.id}
    stdin = _STDIN.row(connection, key)
    contents = _CONTENTS.row(connection, key) if has_contents(job) else None
    return with_input(job, stdin and stdin.stdin, contents and contents.contents)
