"""`sandboxd version`."""

import platform

import click

from sandboxd import __version__
from sandboxd.cli.options import json_option
from sandboxd.cli.output import print_json


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        click.echo(f"sandboxd {__version__}")
