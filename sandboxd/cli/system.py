"""`sandboxd system`: what a running service is and can do."""

from collections.abc import Iterator
from typing import Any

import click

from sandboxd.cli import output
from sandboxd.cli.options import config_option, json_option, url_option
from sandboxd.cli.service import connect


@click.command()
@url_option
@config_option
@json_option
def system(url: str | None, config_file: str | None, as_json: bool) -> None:
    """Show a running service: version, walls, quotas, capacity."""
    with connect(url, config_file) as client:
        found = client.system()
    if as_json:
        output.print_json(found)
    else:
        output.print_fields(_flatten(found))


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, part in value.items():
        if isinstance(part, dict):
            yield from _flatten(part, f"{prefix}{name}.")
        elif isinstance(part, list) and part and isinstance(part[0], dict):
            for item in part:
                first, *rest = (str(word) for word in item.values())
                yield f"{prefix}{name}.{first}", ": ".join(rest)
        elif isinstance(part, list):
            yield f"{prefix}{name}", ", ".join(str(item) for item in part)
        else:
            yield f"{prefix}{name}", str(part).lower() if isinstance(part, bool) else str(part)
