"""The command line as a whole: help, version, errors, output for people and for programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import environment, sandboxd, sandboxd_on_terminal

from sandboxd import __version__
from sandboxd.cli.main import COMMANDS
from sandboxd.cli.main import sandboxd as root

ESCAPE = "\x1b["


def command_paths() -> list[tuple[str, ...]]:
    """Every command there is, `()` for the root."""
    paths: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        paths.append((name,))
        command = root.get_command(click.Context(root), name)
        if isinstance(command, click.Group):
            paths += [(name, inner) for inner in command.commands]
    return paths


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_every_command_has_help_that_begins_with_its_usage(path: tuple[str, ...]) -> None:
    ended = sandboxd(*path, "--help")

    assert ended.code == 0
    assert ended.output.startswith(" ".join(["Usage: sandboxd", *path]))
    assert not ended.errors


def test_no_command_at_all_shows_the_help() -> None:
    ended = sandboxd()

    assert "Usage: sandboxd" in ended.output + ended.errors


def test_the_version_is_told_without_loading_what_it_does_not_need() -> None:
    code = (
        "import sys; sys.argv = ['sandboxd', '--version']; import sandboxd.__main__ as main\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, check=True, text=True
    )

    version, modules = ended.stdout.splitlines()
    assert version == f"sandboxd {__version__}"
    for heavy in ("starlette", "sqlalchemy", "httpx2", "uvicorn", "asyncio", "rich", "alembic"):
        assert f"'{heavy}'" not in modules


def test_the_version_command_says_the_same() -> None:
    assert sandboxd("version").output == sandboxd("--version").output
    assert json.loads(sandboxd("version", "--json").output)["version"] == __version__


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["jbs"], "Did you mean 'jobs'"),
        (["jobs", "lst"], "Did you mean 'list'"),
        (["serve", "--slotz", "x"], "Did you mean '--slots'"),
        (["jobs", "show"], "Missing argument 'JOB'"),
    ],
)
def test_a_misspelt_command_line_is_one_line_with_a_hint_and_exit_code_2(
    words: list[str], hint: str
) -> None:
    ended = sandboxd(*words)

    assert ended.code == 2
    assert ended.errors.startswith("sandboxd: ")
    assert ended.errors.count("\n") == 1
    assert hint in ended.errors
    assert not ended.output


def test_wrong_settings_are_told_all_at_once_with_exit_code_2() -> None:
    ended = sandboxd("config", "show", SANDBOXD_SERVER_LISTEN="x", SANDBOXD_NONSENSE="1")

    assert ended.code == 2
    assert "server.listen = " in ended.errors
    assert "SANDBOXD_NONSENSE" in ended.errors
    assert "Traceback" not in ended.errors


def test_a_service_that_is_not_there_is_said_in_one_line() -> None:
    ended = sandboxd("jobs", "list", "--url", "http://127.0.0.1:1")

    assert ended.code == 1
    assert ended.errors.count("\n") == 1
    assert "http://127.0.0.1:1" in ended.errors
    assert "--url" in ended.errors
    assert ".:" not in ended.errors


DATA_DIRECTORY_COMMANDS = [
    ["run", "--data-dir", "DIRECTORY", "true"],
    ["images", "list", "--data-dir", "DIRECTORY"],
    ["keys", "list", "--data-dir", "DIRECTORY"],
    ["migrate", "--data-dir", "DIRECTORY"],
    ["serve", "--data-dir", "DIRECTORY"],
]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("words", DATA_DIRECTORY_COMMANDS, ids=" ".join)
def test_a_data_directory_that_cannot_be_used_is_said_with_its_owner(
    tmp_path: Path, words: list[str]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)

    def said(directory: str) -> str:
        ended = sandboxd(*(directory if word == "DIRECTORY" else word for word in words))
        assert ended.code in (1, 125)
        return ended.errors

    assert f"{closed} is not writable: choose another --data-dir" in said(str(closed))
    assert "belongs to root, and you are" in said("/root/there")
    assert "belongs to root, and you are" in said("/etc")


def test_run_tells_its_own_failures_from_those_of_the_command() -> None:
    assert sandboxd("run", "--url", "http://127.0.0.1:1", "--", "true").code == 125
    assert sandboxd("run", "--no-such-option").code == 125
    assert sandboxd("run").code == 125


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "--env", "novalue", "true"], "--env takes KEY=VALUE"),
        (["run", "--pids", "many", "true"], "--pids takes a number"),
        (["run", "--detach", "true"], "--detach needs a service"),
        (["jobs", "list", "--label", "x"], "--label takes KEY=VALUE"),
        (["keys", "create", "x", "--expires", "soon"], "--expires takes a time"),
        (["completion", "csh"], "'csh' is not one of"),
        (["completion"], "Choose from: bash, zsh, fish"),
        (["run", "--url", "nowhere", "true"], "http://HOST:PORT"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(words: list[str], hint: str) -> None:
    ended = sandboxd(*words)

    assert ended.code in (2, 125)
    assert hint in ended.errors


def test_settings_are_shown_with_their_origins_in_stable_columns() -> None:
    ended = sandboxd("config", "show", SANDBOXD_SCHEDULER_SLOTS="3")

    first, *lines = ended.output.splitlines()
    assert first == "setting\tvalue\torigin"
    assert "scheduler.slots\t3\tenvironment SANDBOXD_SCHEDULER_SLOTS" in lines
    assert "server.listen\t127.0.0.1:8080\tdefault" in lines
    assert ESCAPE not in ended.output


def test_secrets_are_never_shown() -> None:
    for words in (["config", "show"], ["config", "show", "--json"]):
        ended = sandboxd(*words, SANDBOXD_KEY="sbx_very_secret")

        assert "very_secret" not in ended.output
        assert "(hidden)" in ended.output


def test_of_an_address_with_a_token_only_the_host_is_shown() -> None:
    webhook = {
        "SANDBOXD_WEBHOOKS_URL": "https://me:very@hooks.example:8443/very?secret=very#very",
        "SANDBOXD_WEBHOOKS_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    }
    for words in (["config", "show"], ["config", "show", "--json"]):
        ended = sandboxd(*words, **webhook)

        assert "very" not in ended.output
        assert "https://hooks.example:8443/(hidden)" in ended.output


def test_settings_are_shown_as_json() -> None:
    shown = json.loads(sandboxd("config", "show", "--json").output)

    assert shown["server.auth"] == {
        "value": True,
        "origin": "default",
        "variable": "SANDBOXD_SERVER_AUTH",
    }


def test_a_terminal_gets_a_table() -> None:
    shown = sandboxd_on_terminal("config", "show").output

    assert "SETTING" in shown
    assert "\t" not in shown
    assert ESCAPE in shown


def test_an_error_is_red_on_a_terminal() -> None:
    assert f"{ESCAPE}31m" in sandboxd_on_terminal("jbs").output


def test_no_color_is_honoured() -> None:
    error = sandboxd_on_terminal("jbs", NO_COLOR="1").output
    table = sandboxd_on_terminal("config", "show", NO_COLOR="1").output

    assert ESCAPE not in error
    assert f"{ESCAPE}3" not in table


def test_control_characters_do_not_reach_the_terminal() -> None:
    ended = sandboxd("run", "--env", "\x1b[2Jbad", "true")

    assert "\x1b" not in ended.errors
    assert "\\x1b[2Jbad" in ended.errors


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sandboxd", "config", "show"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()

    assert process.returncode == 141
    assert not errors


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_completion_script_for_each_shell(shell: str) -> None:
    ended = sandboxd("completion", shell)

    assert ended.code == 0
    assert "_SANDBOXD_COMPLETE" in ended.output


def test_the_shell_completes_commands_and_options() -> None:
    def completions(words: str, position: int) -> str:
        return sandboxd(
            _SANDBOXD_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(position)
        ).output

    assert "plain,jobs" in completions("sandboxd jo", 1)
    assert "plain,cancel" in completions("sandboxd jobs ca", 2)
    assert "plain,--memory" in completions("sandboxd run --mem", 2)


def test_a_bug_is_a_sentence_and_a_traceback_only_when_asked_for() -> None:
    # A function that is gone stands for any mistake of ours.
    code = (
        "import sys; import sandboxd.cli.config as config\n"
        "config.load = None\n"
        "from sandboxd.cli.main import run_command_line\n"
        "sys.exit(run_command_line(['config', 'show']))"
    )

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )

    plain, debugged = run(), run(SANDBOXD_DEBUG="1")
    assert plain.returncode == 1
    assert plain.stderr.startswith("sandboxd: this is a bug in sandboxd: TypeError")
    assert "SANDBOXD_DEBUG=1" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debugged.stderr
