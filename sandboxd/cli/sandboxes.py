"""`sandboxd sandboxes`, `exec` and `shell`: sandboxes that live until they are told to end, and commands in them."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli import output
from sandboxd.cli.endings import Ending, exit_code_of, sentence_of
from sandboxd.cli.image_changes import changes_of
from sandboxd.cli.options import config_option, json_option, load, pull_option, url_option
from sandboxd.cli.run import limit_option
from sandboxd.cli.service import connect, url_of
from sandboxd.quantities import format_bytes

if TYPE_CHECKING:
    from sandboxd.client import Client, Sandbox, SandboxRecord

EXAMPLES = """\b
Examples:
  id=$(sandboxd sandboxes create --memory 512Mi)
  sandboxd exec $id -- sh -c 'echo hello > file'
  sandboxd exec -it $id -- bash
  sandboxd sandboxes delete $id
"""
SHELL = ("sh", "-c", "if command -v bash >/dev/null; then exec bash; else exec sh; fi")


@click.group(epilog=EXAMPLES)
def sandboxes() -> None:
    """Make, list, show, pause and end the sandboxes of a service."""


@sandboxes.command("list")
@click.option("--all", "everything", is_flag=True, help="Those that ended, too.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, help="At most so many.  [50]")
@url_option
@config_option
@json_option
def list_sandboxes(
    everything: bool, limit: int, url: str | None, config_file: str | None, as_json: bool
) -> None:
    """List sandboxes, newest first."""
    states = () if everything else ("creating", "running", "paused")
    with connect(url, config_file) as client:
        found = client.list_sandboxes(states=states, limit=limit).data
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("sandbox", "state", "reason", "created", "image", "commands"),
        (
            (each.id, each.state, each.reason, str(each.created_at), each.image, str(each.execs))
            for each in found
        ),
        empty="no sandboxes",
    )


@sandboxes.command()
@click.argument("sandbox_id", metavar="SANDBOX")
@url_option
@config_option
@json_option
def show(sandbox_id: str, url: str | None, config_file: str | None, as_json: bool) -> None:
    """Show one sandbox."""
    with connect(url, config_file) as client:
        _print(client.open_sandbox(sandbox_id).record, as_json)


def sandbox_options(command: Any) -> Any:
    """What a sandbox may be made with."""
    for option in reversed(
        (
            click.option(
                "--image", default="host", metavar="NAME", help="Root file system. [host]"
            ),
            pull_option,
            limit_option("cpus", "N", "CPU rate: 0.5 or 500m is half a CPU."),
            limit_option("memory", "SIZE", "Memory: 128Mi, 1.5G."),
            limit_option("pids", "N", "Processes and threads at once."),
            limit_option("disk", "SIZE", "Scratch space for files."),
            click.option("--idle-seconds", type=float, help="It ends when unused for so long."),
            click.option("--ttl-seconds", type=float, help="It ends after so long in any case."),
        )
    ):
        command = option(command)
    return command


@sandboxes.command()
@sandbox_options
@url_option
@config_option
@json_option
def create(url: str | None, config_file: str | None, as_json: bool, **wish: Any) -> None:
    """Make a sandbox and print its id."""
    with connect(url, config_file) as client:
        made = _create(client, wish)
    output.print_json(made.record) if as_json else click.echo(made.id)


@sandboxes.command()
@click.argument("sandbox_ids", metavar="SANDBOX...", nargs=-1, required=True)
@url_option
@config_option
def delete(sandbox_ids: tuple[str, ...], url: str | None, config_file: str | None) -> None:
    """End sandboxes; the record of one that has ended is removed."""
    with connect(url, config_file) as client:
        for sandbox_id in sandbox_ids:
            client.delete_sandbox(sandbox_id)


@sandboxes.command()
@click.argument("sandbox_id", metavar="SANDBOX")
@url_option
@config_option
def pause(sandbox_id: str, url: str | None, config_file: str | None) -> None:
    """Stop everything in a sandbox for a while."""
    with connect(url, config_file) as client:
        client.open_sandbox(sandbox_id).pause()


@sandboxes.command()
@click.argument("sandbox_id", metavar="SANDBOX")
@url_option
@config_option
def resume(sandbox_id: str, url: str | None, config_file: str | None) -> None:
    """Let a paused sandbox go on."""
    with connect(url, config_file) as client:
        client.open_sandbox(sandbox_id).resume()


@sandboxes.command()
@click.argument("sandbox_id", metavar="SANDBOX")
@click.argument("name")
@click.option(
    "--change",
    "-c",
    "instructions",
    multiple=True,
    metavar="INSTRUCTION",
    help="How it is run: CMD, ENTRYPOINT, ENV, LABEL, USER or WORKDIR as in a Dockerfile; repeatable.",
)
@click.option("--message", "-m", default="", help="A comment for the image's history.")
@click.option("--author", "-a", default="", help="Who made it.")
@click.option("--stop/--no-stop", default=True, help="Stop its commands meanwhile.  [stop]")
@url_option
@config_option
@json_option
def commit(
    sandbox_id: str,
    name: str,
    instructions: tuple[str, ...],
    message: str,
    author: str,
    stop: bool,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Make image NAME of what the commands of a sandbox changed, above its image.

    NAME is a reference, or a word without / : @. It needs a key with the scope admin.
    """
    changes = changes_of(instructions)
    with connect(url, config_file) as client:
        image = client.open_sandbox(sandbox_id).commit(
            name, changes=changes, comment=message, author=author, stop=stop
        )
    if as_json:
        output.print_json(image)
    else:
        click.echo(f"committed {image.name}: {format_bytes(image.size_bytes)}, {image.digest}")


@click.command("exec", epilog=EXAMPLES, context_settings={"allow_interspersed_args": False})
@click.option("--interactive", "-i", is_flag=True, help="Pass our input on.")
@click.option("--tty", "-t", "terminal", is_flag=True, help="Give it a terminal.")
@click.option("--env", "-e", multiple=True, metavar="K=V", help="Environment variable; repeatable.")
@click.option("--workdir", "-w", metavar="DIR", help="Directory inside to start in.")
@click.option("--wall-seconds", type=float, help="How long it may run.")
@url_option
@config_option
@click.argument("sandbox_id", metavar="SANDBOX")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    interactive: bool,
    terminal: bool,
    env: tuple[str, ...],
    workdir: str | None,
    wall_seconds: float | None,
    url: str | None,
    config_file: str | None,
    sandbox_id: str,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND in a sandbox that is there, with its output and exit code.

    With -i our input is its input; with -t it has a terminal. Leaving hangs up.
    """
    if command[0] == "--":  # It stands after our own argument, so click leaves it in.
        command = command[1:]
    if not command:
        raise click.UsageError("name a command to run in the sandbox")
    wish: dict[str, Any] = {"env": dict(_pair(word) for word in env)}
    if workdir is not None:
        wish["workdir"] = workdir
    if wall_seconds is not None:
        wish["wall_seconds"] = wall_seconds
    return _attached(url, config_file, sandbox_id, command, interactive, terminal, wish)


@click.command()
@sandbox_options
@click.option("--keep", is_flag=True, help="Leave the sandbox when the shell ends.")
@url_option
@config_option
def shell(keep: bool, url: str | None, config_file: str | None, **wish: Any) -> int:
    """Open a shell in a new sandbox, and end the sandbox with it."""
    with connect(url, config_file) as client, _shell_sandbox(client, wish, keep) as made:
        return _attached(url, config_file, made.id, SHELL, True, _is_terminal(), {})


@contextlib.contextmanager
def _shell_sandbox(client: "Client", wish: dict[str, Any], keep: bool) -> "Iterator[Sandbox]":
    made = _create(client, wish)
    if keep:
        output.print_note(f"sandbox {made.id}")
        yield made
        return
    with made:
        yield made


def _create(client: "Client", wish: dict[str, Any]) -> "Sandbox":
    limits = {name: wish[name] for name in ("cpus", "memory", "pids", "disk") if wish[name]}
    if "pids" in limits:
        limits["pids"] = int(limits["pids"])
    times = {name: wish[name] for name in ("idle_seconds", "ttl_seconds") if wish[name] is not None}
    pull = {} if wish["pull"] is None else {"pull": wish["pull"]}
    return client.sandbox(image=wish["image"], limits=limits, **pull, **times)


def _attached(
    url: str | None,
    config_file: str | None,
    sandbox_id: str,
    command: tuple[str, ...],
    interactive: bool,
    terminal: bool,
    wish: dict[str, Any],
) -> int:
    if terminal and interactive and not _is_terminal():
        raise click.UsageError("-t needs a terminal, and our input is none: leave it out")
    from sandboxd.cli.attach import attach

    settings = load({"client.url": url}, config_file).settings
    ending: Ending = asyncio.run(
        attach(
            url_of(settings),
            settings.client.key or None,
            sandbox_id,
            command,
            interactive=interactive,
            terminal=terminal,
            **wish,
        )
    )
    if (sentence := sentence_of(ending)) is not None:
        output.print_error(sentence)
    return exit_code_of(ending)


def _is_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return False


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise click.UsageError(f'--env takes KEY=VALUE, not "{word}"')
    return key, value


def _print(record: "SandboxRecord", as_json: bool) -> None:
    if as_json:
        output.print_json(record)
        return
    fields = {
        "id": record.id,
        "state": f"{record.state} ({record.message or record.reason})",
        "image": record.image,
        "created": str(record.created_at),
        "ended" if record.ended_at else "expires": str(record.ended_at or record.expires_at),
        "commands": str(record.execs),
        "limits": ", ".join(f"{name} {value}" for name, value in record.limits.items()),
    }
    output.print_fields(fields.items())
