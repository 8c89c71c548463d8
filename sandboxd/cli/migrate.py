"""`sandboxd migrate`: the database's schema."""

import click

from sandboxd.cli import output
from sandboxd.cli.database import revisions, upgrade
from sandboxd.cli.options import config_option, data_dir_option, json_option, load


@click.command()
@click.option(
    "--check", is_flag=True, help="Change nothing; exit 1 if there is something to change."
)
@data_dir_option
@config_option
@json_option
def migrate(check: bool, data_dir: str | None, config_file: str | None, as_json: bool) -> int:
    """Bring the database to the schema of this version, making it if there is none.

    Stop the service first. Doing it twice is harmless.
    """
    settings = load({"store.data_dir": data_dir}, config_file).settings.store
    before = revisions(settings) if check else upgrade(settings)
    pending = before.current != before.wanted
    if as_json:
        output.print_json(
            {
                "database": str(settings.database),
                "before": before.current,
                "wanted": before.wanted,
                "changed": pending and not check,
                "pending": pending and check,
            }
        )
    elif not pending:
        click.echo(f"{settings.database}: up to date at {before.wanted}")
    else:
        verb = "has to go" if check else "went"
        click.echo(
            f"{settings.database}: {verb} from {before.current or 'nothing'} to {before.wanted}"
        )
    return 1 if check and pending else 0
