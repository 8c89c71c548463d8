"""Options that several commands share, and the settings that follow from them."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from sandboxd.settings_loader import Loaded, load_settings

_Command = TypeVar("_Command", bound=Callable[..., Any])

_URL = (
    "The service to talk to: http://HOST:PORT or unix:/path. Default: $SANDBOXD_URL; {}. "
    "Its key comes from $SANDBOXD_KEY or the settings."
)


def config_option(command: _Command) -> _Command:
    """`--config FILE`: which settings file to read."""
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        help="Settings file (TOML) instead of /etc/sandboxd/config.toml or the user's own.",
    )(command)


def url_option(command: _Command) -> _Command:
    """`--url URL`: which service to talk to."""
    return click.option("--url", metavar="URL", help=_URL.format("else the one on this machine"))(
        command
    )


def optional_url_option(command: _Command) -> _Command:
    """`--url URL` of a command that can do without a service."""
    return click.option("--url", metavar="URL", help=_URL.format("without it no service is used"))(
        command
    )


def data_dir_option(command: _Command) -> _Command:
    """`--data-dir DIR`: where the record is kept."""
    return click.option(
        "--data-dir",
        metavar="DIR",
        type=click.Path(file_okay=False, readable=False, resolve_path=True),
        help="Where the database, logs and images are.",
    )(command)


def json_option(command: _Command) -> _Command:
    """`--json`: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def pull_option(command: _Command) -> _Command:
    """`--pull WHEN`: whether an image is fetched before something runs in it."""
    return click.option(
        "--pull",
        type=click.Choice(["always", "missing", "never"]),
        help="Fetch the image from its registry first. [missing, unless the settings say otherwise]",
    )(command)


def load(flags: Mapping[str, Any], config_file: str | None) -> Loaded:
    """The settings in force for this command."""
    return load_settings(flags, os.environ, config_file=config_file)


_DURATION = re.compile(r"(\d{1,9})(s|m|h|d)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration(option: str, word: str) -> float:
    """`12h` in seconds. Raises UsageError that names the option."""
    match = _DURATION.fullmatch(word)
    if match is None or int(match[1]) == 0:
        raise click.UsageError(f'{option} takes a time such as 12h or 90d, not "{word}"')
    return float(int(match[1]) * _SECONDS[match[2]])
