"""The root of the command line: which commands there are, and what becomes of what they raise."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
from click.exceptions import NoSuchCommand

from sandboxd import __version__
from sandboxd.cli import output
from sandboxd.errors import Invalid, NotFound, SandboxdError, SettingsError

INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""
PIPE_CLOSED = 141
"""128 + SIGPIPE."""
OWN_FAILURE = {"attack": 2, "exec": 125, "run": 125, "shell": 125}
"""Exit codes that tell our failure from the command's, as `docker run` and `env` have them."""


class Entry(NamedTuple):
    """A command that is imported only when it is used, so that `--help` and `--version` are quick."""

    module: str
    attribute: str
    summary: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Run commands": {
        "run": Entry("run", "run", "Run a command in a sandbox, as if it ran right here."),
        "attack": Entry("attack", "attack", "Try to break out, harmlessly, and see what stops it."),
        "shell": Entry("sandboxes", "shell", "Open a shell in a new sandbox of a service."),
        "exec": Entry("sandboxes", "exec_", "Run a command in a sandbox that is there."),
        "sandboxes": Entry("sandboxes", "sandboxes", "Make, list, pause and end sandboxes."),
        "jobs": Entry("jobs", "jobs", "List, show, follow, cancel and delete jobs."),
        "pull": Entry("images", "pull", "Fetch an image from its registry."),
        "images": Entry(
            "images", "images", "List, pull, push, load, save and remove root file systems."
        ),
    },
    "Run the service": {
        "serve": Entry("serve", "serve", "Start the service with its HTTP API."),
        "keys": Entry("keys", "keys", "Make, list and revoke API keys."),
        "migrate": Entry("migrate", "migrate", "Bring the database to this version's schema."),
        "config": Entry("config", "config", "Show the settings and where each comes from."),
        "system": Entry("system", "system", "What a running service is and can do."),
    },
    "Prepare this machine": {
        "doctor": Entry("doctor", "doctor", "Check what this host offers and what it lacks."),
        "setup": Entry("setup", "setup", "Prepare the host, once, as root."),
        "completion": Entry("completion", "completion", "Print a shell completion script."),
        "version": Entry("version", "version", "Print the version."),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}

EXAMPLES = """\b
Examples:
  sandboxd run -- python3 -c 'print(6 * 7)'        run something, now, here
  sandboxd serve --no-auth                         start the service for this machine
  sandboxd run --url http://127.0.0.1:8080 -- id   run something on that service
  sandboxd doctor                                  what is missing on this host?
"""


class OutputClosed(Exception):
    """Whoever read our output has seen enough."""


class LazyGroup(click.Group):
    """Finds commands in `COMMANDS` and imports no other than the one asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (entry := COMMANDS.get(cmd_name)) is None:
            return None
        command = getattr(importlib.import_module(f"sandboxd.cli.{entry.module}"), entry.attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - for the type checker
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise OutputClosed from error  # click would make exit code 1 of it

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.summary) for name, entry in entries.items()])


@click.command(
    cls=LazyGroup,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="sandboxd %(version)s")
def sandboxd() -> None:
    """Run other people's commands safely: rootless sandboxes in milliseconds, with an HTTP API.

    Each command has its own help: sandboxd run --help.
    """


def run_command_line(words: Sequence[str]) -> int:
    """Run `sandboxd WORDS…` and give its exit code. No exception leaves, but for debugging."""
    own_failure = OWN_FAILURE.get(words[0] if words else "")
    try:
        outcome = sandboxd.main(list(words), prog_name="sandboxd", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except (BrokenPipeError, OutputClosed):
        # Nothing can be written any more, also not what the interpreter would flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place before the user, who gets a sentence
        if os.environ.get("SANDBOXD_DEBUG"):
            traceback.print_exception(error)
        output.print_error(_sentence(error))
        return own_failure or _exit_code(error)


def _exit_code(error: Exception) -> int:
    if isinstance(error, click.ClickException):
        return error.exit_code
    return 2 if isinstance(error, SettingsError) else 1


def _sentence(error: Exception) -> str:
    from sandboxd.client import ConnectionFailed, KeyRefused
    from sandboxd.client import NotFound as NothingThere

    match error:
        case ConnectionFailed():
            fact = str(error).removesuffix(".")
            return f"{fact}: is the service running there? Name another by --url or SANDBOXD_URL"
        case KeyRefused():
            return f"{error} Put a key into SANDBOXD_KEY or the settings (`sandboxd keys create`)"
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "sandboxd"
            message = error.format_message().replace("\n\t", " ")  # click's list of choices
            return f"{message} (see: {path} --help)"
        case click.ClickException():
            return error.format_message()
        case Invalid():
            # A refusal with one reason may have it in its sentence already.
            faults = [fault for fault in error.faults if fault.detail not in str(error)]
            return "\n  ".join([str(error), *(f"{at}: {detail}" for at, detail in faults)])
        case NotFound(code="image_not_found") | NothingThere(code="image_not_found"):
            return f"{error} here: see `sandboxd images list`; `sandboxd images pull` or `sandboxd images import` gets one"
        case SandboxdError() | OSError():
            return str(error)
        case _:
            kind = type(error).__name__
            return (
                f"this is a bug in sandboxd: {kind}: {error} (run it again with SANDBOXD_DEBUG=1)"
            )
