"""`sandboxd jobs`: look at the jobs of a service, and stop or remove them."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import click
import msgspec

from sandboxd.cli import output
from sandboxd.cli.options import config_option, json_option, url_option
from sandboxd.cli.service import connect
from sandboxd.jobs import State, Stream
from sandboxd.quantities import format_bytes

if TYPE_CHECKING:
    from sandboxd.client import Job, Sample

EXAMPLES = """\b
Examples:
  sandboxd jobs list --state running --state queued
  sandboxd jobs list --label build=42 --json
  sandboxd jobs logs -f job_06f8k0...
  sandboxd jobs list --state queued | cut -f1 | tail -n +2 | xargs -r sandboxd jobs cancel
"""
LIST_EXAMPLES = """In a pipe the columns are separated by tabs and the first line names them."""


@click.group(epilog=EXAMPLES)
def jobs() -> None:
    """List, show, follow, cancel and delete the jobs of a service."""


@jobs.command("list", epilog=LIST_EXAMPLES)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    metavar="STATE",
    help=f"Only these, repeatable: {', '.join(State)}.",
)
@click.option("--label", multiple=True, metavar="K=V", help="Only with this label; repeatable.")
@click.option("--limit", type=click.IntRange(1), default=50, help="At most so many.  [50]")
@click.option("--all", "everything", is_flag=True, help="All of them, however many.")
@url_option
@config_option
@json_option
def list_jobs(
    states: tuple[str, ...],
    label: tuple[str, ...],
    limit: int,
    everything: bool,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """List jobs, newest first."""
    labels = dict(_label(word) for word in label)
    page = 200 if everything else min(limit, 200)
    with connect(url, config_file) as client:
        found = client.list_all(states=states, labels=labels, limit=page)
        listed = list(found if everything else islice(found, limit))
    if as_json:
        output.print_json(listed)
        return
    output.print_table(
        ("job", "state", "created", "took", "image", "command"),
        (_row(job) for job in listed),
        empty="no jobs",
        state=1,
        cut=(4, 5),
    )


@jobs.command()
@click.argument("job_id", metavar="JOB")
@url_option
@config_option
@json_option
def show(job_id: str, url: str | None, config_file: str | None, as_json: bool) -> None:
    """Show one job: how it stands, how it ended, what it used."""
    with connect(url, config_file) as client:
        job = client.get(job_id)
    if as_json:
        output.print_json(job)
    else:
        output.print_fields(_fields(job))


@jobs.command()
@click.argument("job_id", metavar="JOB")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@click.option(
    "--stream", type=click.Choice([stream.value for stream in Stream]), help="Only this stream."
)
@url_option
@config_option
@json_option
def logs(
    job_id: str,
    follow: bool,
    stream: str | None,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Print what a job wrote.

    Its output goes to the output, its error output to the error output; with --json one object per line and piece.
    """
    with connect(url, config_file) as client:
        for chunk in client.logs(job_id, stream=stream, follow=follow):
            if as_json:
                click.echo(msgspec.json.encode(chunk))
            else:
                target = sys.stdout if chunk.stream is Stream.STDOUT else sys.stderr
                target.buffer.write(chunk.data)
                target.buffer.flush()


@jobs.command()
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@click.option(
    "--grace-seconds",
    type=float,
    metavar="S",
    help="Time between its stop signal and SIGKILL.  [5]",
)
@click.option("--reason", metavar="TEXT", help="Kept with the job's events.")
@url_option
@config_option
@json_option
def cancel(
    job_ids: tuple[str, ...],
    grace_seconds: float | None,
    reason: str | None,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Cancel jobs and wait until each has ended. One that has ended already stays as it is."""
    with connect(url, config_file) as client:
        for job_id in job_ids:
            client.cancel(job_id, grace_seconds=grace_seconds, reason=reason)
        ended = [client.wait(job_id) for job_id in job_ids]
    if as_json:
        output.print_json(ended)
    for job in () if as_json else ended:
        click.echo(f"{job.id}\t{job.state}")


@jobs.command()
@click.argument("job_id", metavar="JOB")
@url_option
@config_option
@json_option
def events(job_id: str, url: str | None, config_file: str | None, as_json: bool) -> None:
    """Show every change of a job's state, oldest first."""
    with connect(url, config_file) as client:
        history = client.events(job_id)
    if as_json:
        output.print_json(history)
        return
    output.print_table(
        ("time", "state", "reason", "attempt", "message"),
        (
            (
                _moment(event.time),
                event.state,
                event.reason,
                str(event.attempt),
                event.message or "",
            )
            for event in history
        ),
        empty="no events",
        state=1,
    )


@jobs.command()
@click.argument("job_id", metavar="JOB")
@url_option
@config_option
@json_option
def stats(job_id: str, url: str | None, config_file: str | None, as_json: bool) -> None:
    """Show what a job used, moment by moment; while it runs, so far."""
    with connect(url, config_file) as client:
        samples = client.stats(job_id)
    if as_json:
        output.print_json(samples)
        return
    output.print_table(
        ("time", "CPU", "CPU time", "memory", "processes"),
        (
            (
                _moment(now.time),
                _rate(before, now),
                "" if now.cpu_seconds is None else f"{now.cpu_seconds:.2f} s",
                "" if now.memory_bytes is None else format_bytes(now.memory_bytes),
                "" if now.pids is None else str(now.pids),
            )
            for before, now in zip((None, *samples), samples, strict=False)
        ),
        empty="no samples: the job has not started, or was over at once",
    )


def _rate(before: "Sample | None", now: "Sample") -> str:
    """CPU time over the time since the sample before, in percent of one CPU."""
    if before is None or before.cpu_seconds is None or now.cpu_seconds is None:
        return ""
    seconds = (now.time - before.time).total_seconds()
    return f"{100 * (now.cpu_seconds - before.cpu_seconds) / seconds:.0f} %" if seconds else ""


@jobs.command()
@click.argument("job_id", metavar="JOB")
@click.argument("path", required=False)
@url_option
@config_option
@json_option
def artifacts(
    job_id: str, path: str | None, url: str | None, config_file: str | None, as_json: bool
) -> None:
    """List the files that a job left, or write the one at PATH to the output."""
    with connect(url, config_file) as client:
        if path is not None:
            sys.stdout.flush()
            client.download(job_id, path, sys.stdout.fileno())
            return
        listed = client.artifacts(job_id)
    if as_json:
        output.print_json(listed)
        return
    output.print_table(
        ("path", "size", "mode", "sha256"),
        ((each.path, str(each.size_bytes), each.mode, each.sha256) for each in listed),
        empty="no files",
        cut=(0,),
    )


@jobs.command()
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@url_option
@config_option
@json_option
def delete(
    job_ids: tuple[str, ...], url: str | None, config_file: str | None, as_json: bool
) -> None:
    """Remove the records and logs of jobs that have ended."""
    with connect(url, config_file) as client:
        for job_id in job_ids:
            client.delete(job_id)
            if not as_json:
                click.echo(f"{job_id}\tdeleted")
    if as_json:
        output.print_json({"deleted": job_ids})


def _label(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise click.UsageError(f'--label takes KEY=VALUE, not "{word}"')
    return key, value


def _row(job: "Job") -> tuple[str, ...]:
    return (
        job.id,
        job.state,
        _short_moment(job.created_at)
        if output.is_terminal(sys.stdout)
        else _moment(job.created_at),
        f"{job.usage.wall_seconds:.3f} s" if job.usage else "",
        job.image,
        " ".join(job.command),
    )


def _fields(job: "Job") -> Iterator[tuple[str, str]]:
    yield "id", job.id
    yield "state", job.state
    yield "reason", job.reason
    if job.error is not None:
        yield "message", job.error.message
        if job.error.remediation:
            yield "what to do", job.error.remediation
    if job.waiting is not None:
        before = job.waiting.position
        position = "" if before is None else f", {before} before it"
        yield "waits for", f"{job.waiting.for_}{position}"
        if job.waiting.expected_start_at is not None:
            yield "should start", _moment(job.waiting.expected_start_at)
    yield "image", job.image
    yield "command", " ".join(job.command)
    for key, value in job.labels.items():
        yield f"label {key}", value
    for name, moment in (
        ("created", job.created_at),
        ("started", job.started_at),
        ("finished", job.finished_at),
        ("expires", job.expires_at),
    ):
        if moment is not None:
            yield name, _moment(moment)
    yield from _end_fields(job)


def _end_fields(job: "Job") -> Iterator[tuple[str, str]]:
    if job.exit is not None and job.exit.code is not None:
        yield "exit code", str(job.exit.code)
    if job.exit is not None and job.exit.signal is not None:
        yield "signal", job.exit.signal
    if (usage := job.usage) is not None:
        yield "wall time", f"{usage.wall_seconds:.3f} s"
        if usage.cpu_seconds is not None:
            yield "CPU time", f"{usage.cpu_seconds:.3f} s"
        if usage.memory_peak_bytes is not None:
            yield "memory peak", format_bytes(usage.memory_peak_bytes)
        if usage.pids_peak is not None:
            yield "processes peak", str(usage.pids_peak)
        yield "queued", f"{usage.queue_seconds:.3f} s"
        yield "set-up", f"{usage.setup_seconds:.4f} s, {'warm' if usage.warm else 'cold'}"
    for stream, info in job.streams.items():
        cut = ", truncated" if info.truncated else ""
        yield stream, format_bytes(info.size_bytes) + cut


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _short_moment(moment: datetime) -> str:
    """The time of a moment of today, the day of any other."""
    moment = moment.astimezone(UTC)
    return (
        f"{moment:%H:%M:%S}Z" if moment.date() == datetime.now(UTC).date() else f"{moment:%Y-%m-%d}"
    )
