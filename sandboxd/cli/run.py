"""`sandboxd run`: one command in a sandbox, with the input, output and exit code of this process."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from sandboxd.cli import output
from sandboxd.cli.accounts import refuse_root
from sandboxd.cli.data_directory import check_data_dir
from sandboxd.cli.endings import SIGNAL_BASE, Ending, exit_code_of, sentence_of
from sandboxd.cli.interrupts import interrupts_cancel_task
from sandboxd.cli.options import (
    config_option,
    data_dir_option,
    json_option,
    load,
    optional_url_option,
    pull_option,
)
from sandboxd.jobs import State
from sandboxd.settings import Settings

EXAMPLES = """\b
Examples:
  sandboxd run -- python3 -c 'print(6 * 7)'
  echo 'hello' | sandboxd run -- tr a-z A-Z
  sandboxd run --memory 64Mi --wall-seconds 5 -- ./configure
  sandboxd run --image debian -e LANG=C -- sh -c 'echo $LANG; id'
  sandboxd run --file main.c --output a.out -- cc main.c
  sandboxd run --url http://127.0.0.1:8080 --detach -- make test

\b
Exit code: the command's own, and
  124      its wall, idle or CPU time was up   126, 127  it cannot be run, is not there
  125      sandboxd failed, not the command    128 + N   signal N ended it (137: a limit, too)
"""


_Command = TypeVar("_Command", bound=Callable[..., Any])


def limit_option(name: str, metavar: str, text: str) -> Callable[[_Command], _Command]:
    return click.option(f"--{name}", metavar=metavar, help=text)


@click.command(epilog=EXAMPLES, context_settings={"allow_interspersed_args": False})
@click.option("--image", default="host", metavar="NAME", help="Root file system. [host]")
@limit_option("cpus", "N", "CPU rate: 0.5 or 500m is half a CPU.")
@limit_option("memory", "SIZE", "Memory: 128Mi, 1.5G.")
@limit_option("swap", "SIZE", "What may be swapped out, beside the memory.")
@limit_option("pids", "N", "Processes and threads at once.")
@limit_option("disk", "SIZE", "Scratch space for files it writes.")
@limit_option("wall-seconds", "S", "How long it may run.")
@limit_option("idle-seconds", "S", "How long it may write nothing.")
@limit_option("cpu-seconds", "S", "CPU time of all its processes together.")
@limit_option("output-bytes", "SIZE", "Output and error output together.")
@limit_option("network-bytes", "SIZE", "Received and sent together, with --network egress.")
@limit_option("io-bytes-per-second", "SIZE", "Read from disks, and as many written to them.")
@limit_option("open-files", "N", "Open files per process.")
@click.option("--env", "-e", multiple=True, metavar="K=V", help="Environment variable; repeatable.")
@click.option("--workdir", "-w", metavar="DIR", help="Directory inside to start in.")
@click.option("--user", metavar="UID[:GID]", help="Numeric user inside.")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="LOCAL[:PATH]",
    help="Put this file, or all files of this directory, there inside; repeatable.",
)
@click.option(
    "--output", "outputs", multiple=True, metavar="GLOB", help="Get these files back; repeatable."
)
@click.option("--output-dir", default=".", metavar="DIR", help="Where to put them. [.]")
@pull_option
@click.option("--runtime", metavar="NAME", help="OCI runtime that starts it. [native]")
@click.option("--network", type=click.Choice(["none", "egress"]), help="What it can reach.")
@click.option(
    "--allow",
    multiple=True,
    metavar="HOST[:PORT]",
    help="With egress: name, address, range or public, instead of all that is allowed; repeatable.",
)
@click.option("--stop-signal", metavar="SIG", help="What asks it to end when it is cancelled.")
@click.option("--cpuset", metavar="LIST", help="CPUs that it runs on: 0-1,3.")
@click.option("--label", multiple=True, metavar="K=V", help="Label on the record; repeatable.")
@click.option("--interactive", "-i", is_flag=True, help="Read the input though it is a terminal.")
@click.option("--detach", "-d", is_flag=True, help="Print the job's id and do not wait (--url).")
@optional_url_option
@data_dir_option
@config_option
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    url: str | None,
    data_dir: str | None,
    config_file: str | None,
    interactive: bool,
    detach: bool,
    as_json: bool,
    output_dir: str,
    **options: Any,
) -> int:
    """Run COMMAND in a sandbox, as if it ran right here. An image from a registry may have one of its own.

    Its input, output, error output and exit code are those of this process; Ctrl-C cancels it. It runs on the service
    of --url or the settings, else in a sandbox of this process's own: no service is needed.

    The image "host" is this machine's /usr, read-only. Nothing that the command writes is kept.
    """
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    request = job_request(**options)
    if settings.client.url:
        return _run_remote(settings, request, interactive, detach, as_json, output_dir)
    if detach:
        raise click.UsageError("--detach needs a service to leave the job with: give --url")
    return _run_embedded(settings, request, interactive, as_json, output_dir)


def job_request(
    *,
    image: str,
    command: tuple[str, ...],
    env: tuple[str, ...],
    label: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    pull: str | None,
    runtime: str | None,
    stop_signal: str | None,
    cpuset: str | None,
    network: str | None,
    allow: tuple[str, ...],
    files: tuple[str, ...],
    outputs: tuple[str, ...],
    **limits: str | None,
) -> dict[str, Any]:
    """The options in the words of the API's `POST /v1/jobs`."""
    request: dict[str, Any] = {
        "image": image,
        "env": dict(_pair("--env", word) for word in env),
        "labels": dict(_pair("--label", word) for word in label),
        "limits": {name: _amount(name, word) for name, word in limits.items() if word is not None},
    }
    if allow and network != "egress":
        raise click.UsageError("--allow goes with --network egress")
    if network is not None:
        request["network"] = {"mode": network, **({"allow": list(allow)} if allow else {})}
    if outputs:
        request["outputs"] = list(outputs)
    if brought := dict(pair for word in files for pair in _files(word)):
        request["files"] = brought
    if command:
        request["command"] = list(command)
    elif image == "host":
        raise click.UsageError("Missing argument 'COMMAND...': image host has none of its own")
    optional = {
        "pull": pull,
        "workdir": workdir,
        "user": user,
        "runtime": runtime,
        "cpuset": cpuset,
        "stop_signal": stop_signal,
    }
    return request | {name: value for name, value in optional.items() if value is not None}


def _files(word: str) -> Iterator[tuple[str, Path]]:
    """Path inside and file here, of one `--file`; of a directory all files below it."""
    local, _, inside = word.partition(":")
    source = Path(local)
    inside = inside or source.name
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                yield f"{inside}/{path.relative_to(source)}", path
    elif source.is_file():
        yield inside, source
    else:
        raise click.UsageError(f"--file: {local} is no file and no directory")


def _pair(option: str, word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise click.UsageError(f'{option} takes KEY=VALUE, not "{word}"')
    return key, value


_QUANTITIES = frozenset(
    {"cpus", "memory", "disk", "swap", "output_bytes", "network_bytes", "io_bytes_per_second"}
)


def _amount(name: str, word: str) -> int | float | str:
    """A number as a number; quantities stay words, which the API reads."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    if name in _QUANTITIES:
        return word
    raise click.UsageError(f'--{name.replace("_", "-")} takes a number, not "{word}"')


def _run_remote(
    settings: Settings,
    request: dict[str, Any],
    interactive: bool,
    detach: bool,
    as_json: bool,
    output_dir: str,
) -> int:
    from sandboxd.cli import run_remote

    url, key = settings.client.url, settings.client.key or None
    request["stdin"] = _read_input(interactive, settings.server.max_body_bytes)
    if detach:
        job = asyncio.run(run_remote.submit(url, key, request))
        output.print_json(job) if as_json else click.echo(job.id)
        return 0

    async def run_interruptibly() -> int:
        with interrupts_cancel_task() as interrupts:
            try:
                job = await run_remote.run(
                    url,
                    key,
                    request,
                    interrupts,
                    copy_output=not as_json,
                    output_dir=output_dir,
                    shows_progress=_shows_progress(as_json),
                )
            except asyncio.CancelledError:
                output.print_note("not waiting any longer for the job's end")
                return SIGNAL_BASE + interrupts.received[-1]
        if as_json:
            output.print_json(job)
        _tell_passed_over(job.artifacts_passed_over)
        return _close(run_remote.ending_of(job), interrupts.first)

    return asyncio.run(run_interruptibly())


def _run_embedded(
    settings: Settings, request: dict[str, Any], interactive: bool, as_json: bool, output_dir: str
) -> int:
    refuse_root()
    check_data_dir(settings.store.data_dir)
    from sandboxd.cli import run_embedded

    async def run_interruptibly(stdout_fd: int, stderr_fd: int) -> tuple[Any, int | None]:
        with interrupts_cancel_task() as interrupts, _input(interactive) as stdin_fd:
            job = await run_embedded.run(
                settings,
                request,
                output_dir=output_dir,
                stdin_fd=stdin_fd,
                stdout_fd=stdout_fd,
                stderr_fd=stderr_fd,
                shows_progress=_shows_progress(as_json),
            )
        return job, interrupts.first

    if not as_json:
        job, interrupted_by = asyncio.run(run_interruptibly(1, 2))
        if job.state is State.OUTPUT_LIMIT and run_embedded.nobody_reads(1):
            raise BrokenPipeError
    else:
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            job, interrupted_by = asyncio.run(run_interruptibly(stdout.fileno(), stderr.fileno()))
            output.print_json(run_embedded.record_of(job, _content(stdout), _content(stderr)))
    if job.result is not None:
        _tell_passed_over(job.result.artifacts_passed_over)
    return _close(run_embedded.ending_of(job), interrupted_by)


def _shows_progress(as_json: bool) -> bool:
    """Of an image that comes: to people only, for the error output is the command's."""
    return not as_json and output.is_terminal(sys.stderr)


def _tell_passed_over(passed_over: Iterable[Any]) -> None:
    for each in passed_over:
        output.print_note(f"not kept: {each.path} ({each.reason})")


def _close(ending: Ending, interrupted_by: int | None) -> int:
    if (sentence := sentence_of(ending)) is not None:
        output.print_error(sentence)
    return exit_code_of(ending, interrupted_by=interrupted_by)


def _read_input(interactive: bool, max_bytes: int) -> bytes:
    """All of our standard input, for a job elsewhere."""
    with _input(interactive) as descriptor, open(descriptor, "rb", closefd=False) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise click.UsageError(f"the input is over {max_bytes} bytes, the most that a job can get")
    return content


@contextlib.contextmanager
def _input(interactive: bool) -> Iterator[int]:
    """Our standard input, or an empty one where a person would have to be waited for."""
    if interactive or not _is_terminal_input():
        yield 0
        return
    empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield empty
    finally:
        os.close(empty)


def _is_terminal_input() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return True  # closed: nothing to read either


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
