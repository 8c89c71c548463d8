"""`sandboxd config`: the settings in force and where each comes from."""

import json
from typing import Any

import click

from sandboxd import settings_registries
from sandboxd.cli.options import config_option, json_option, load
from sandboxd.cli.output import print_json, print_table
from sandboxd.settings import shown
from sandboxd.settings_loader import Loaded, variable_of
from sandboxd.settings_runtimes import SECTION

EXAMPLES = """\b
Settings are read in this order, later ones win:
  1. defaults
  2. a TOML file: --config, else $SANDBOXD_CONFIG, else the first that exists of
     /etc/sandboxd/config.toml and ~/.config/sandboxd/config.toml
  3. the environment: SANDBOXD_SERVER_LISTEN for server.listen, and so on
  4. flags of a command, such as --listen

\b
Example of a file:
  [server]
  listen = "127.0.0.1:9000"
  [limits]
  memory_bytes = "512Mi"
"""


@click.group()
def config() -> None:
    """Show the settings and where each comes from."""


@config.command(epilog=EXAMPLES)
@config_option
@json_option
def show(config_file: str | None, as_json: bool) -> None:
    """Show every setting, its value and its origin; secrets are hidden."""
    loaded = load({}, config_file)
    if as_json:
        print_json(
            {
                key: {"value": _value(loaded, key), "origin": origin, "variable": _variable(key)}
                for key, origin in loaded.origins.items()
            }
        )
        return
    print_table(
        ("setting", "value", "origin"),
        [(key, _word(_value(loaded, key)), origin) for key, origin in loaded.origins.items()],
        empty="",
    )


def _value(loaded: Loaded, key: str) -> Any:
    section, _, name = key.partition(".")
    if section == settings_registries.SECTION:
        return dict(settings_registries.keys(loaded.settings.registries))[key]
    if section == SECTION:
        runtime, _, field = name.rpartition(".")
        return getattr(loaded.settings.runtimes[runtime], field)
    return shown(key, getattr(getattr(loaded.settings, section), name))


def _variable(key: str) -> str | None:
    """None: it is set in a file only."""
    return None if key.startswith(f"{settings_registries.SECTION}.") else variable_of(key)


def _word(value: Any) -> str:
    """As the settings file would have it."""
    if isinstance(value, tuple):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
