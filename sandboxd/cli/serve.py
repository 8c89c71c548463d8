"""`sandboxd serve`: the service."""

import os

import click

from sandboxd.cli.accounts import SYSTEM_USER, become
from sandboxd.cli.data_directory import check_data_dir
from sandboxd.cli.options import config_option, data_dir_option, load
from sandboxd.errors import HostNotReady

EXAMPLES = """\b
Examples:
  sandboxd serve --no-auth                            for this machine only, without keys
  sandboxd serve --listen unix:/run/user/1000/sandboxd.sock --no-auth
  sandboxd keys create ci && sandboxd serve --listen 0.0.0.0:8080
  sudo sandboxd serve --user sandboxd                 as root: name the user to become

\b
Then, elsewhere:
  sandboxd run --url http://127.0.0.1:8080 -- echo hello
  curl http://127.0.0.1:8080/docs
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--listen", metavar="ADDRESS", help="HOST:PORT, [IPV6]:PORT or unix:/path. [127.0.0.1:8080]"
)
@click.option(
    "--metrics-listen", metavar="ADDRESS", help="HOST:PORT for Prometheus; '' for none of its own."
)
@data_dir_option
@click.option("--slots", type=int, metavar="N", help="Jobs at once. [twice the CPUs]")
@click.option(
    "--auth/--no-auth",
    default=None,
    help="Ask for keys, or not: only on loopback or a unix socket. [--auth]",
)
@click.option(
    "--user", metavar="NAME", help=f'When started as root: the user to become ("{SYSTEM_USER}").'
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "console", "json"]),
    help="For people, for programs, or whichever the terminal suggests. [auto]",
)
@config_option
def serve(
    listen: str | None,
    metrics_listen: str | None,
    data_dir: str | None,
    slots: int | None,
    auth: bool | None,
    user: str | None,
    log_format: str | None,
    config_file: str | None,
) -> None:
    """Start the service and its HTTP API. It stops in good order on Ctrl-C or SIGTERM.

    It runs as an ordinary user. `sandboxd doctor` tells what this host lacks, if anything.
    """
    if user is not None:
        become(user)
    elif os.geteuid() == 0:
        raise HostNotReady(
            f"the service does not run as root: start it as an ordinary user, or add --user {SYSTEM_USER}"
        )
    loaded = load(
        {
            "server.listen": listen,
            "server.metrics_listen": metrics_listen,
            "server.auth": auth,
            "store.data_dir": data_dir,
            "scheduler.slots": slots,
            "log.format": log_format,
        },
        config_file,
    )
    check_data_dir(loaded.settings.store.data_dir)
    from sandboxd import app

    app.serve(loaded)
