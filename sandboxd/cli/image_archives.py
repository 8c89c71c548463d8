"""`sandboxd images load`: images in the archives that other tools write, too."""

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli import image_progress, output
from sandboxd.cli.opened_images import opened_images
from sandboxd.cli.options import config_option, data_dir_option, json_option, load
from sandboxd.quantities import format_bytes

if TYPE_CHECKING:
    from sandboxd.settings import Settings


@click.command("load")
@click.argument("file", type=click.Path(readable=False, allow_dash=True, path_type=Path))
@click.option("--name", metavar="REF", help="What the archive's only image is to be called.")
@data_dir_option
@config_option
@json_option
def load_images(
    file: Path, name: str | None, data_dir: str | None, config_file: str | None, as_json: bool
) -> None:
    """Make images of all that is in archive FILE (- is our input).

    FILE is what `docker save`, podman, skopeo or `sandboxd images save` write, or an OCI layout in a directory; it may be compressed
    by gzip or zstd. Images are called what the archive says, as references in full; those of the same name are replaced.
    """
    settings = load({"store.data_dir": data_dir}, config_file).settings
    if str(file) == "-" and output.is_terminal(sys.stdin):
        raise click.UsageError("our input is a terminal: give the name of an archive")
    found = asyncio.run(
        _load(settings, file.absolute() if str(file) != "-" else None, name, as_json)
    )
    if as_json:
        output.print_json(found)
        return
    for image in found:
        size = format_bytes(image.size_bytes)
        click.echo(f"loaded {image.name} into {settings.store.data_dir}: {size}, {image.digest}")


async def _load(settings: "Settings", file: Path | None, name: str | None, silent: bool) -> Any:
    from sandboxd.images.archive_opening import opened, opened_file
    from sandboxd.images.loading import load as load_into

    async with opened_images(settings) as images:
        spool = images.blobs.directory
        with contextlib.ExitStack() as stack:
            archive = (
                opened_file(sys.stdin.fileno(), spool) if file is None else opened(file, spool)
            )
            source = await asyncio.to_thread(stack.enter_context, archive)
            tell = stack.enter_context(image_progress.shown(silent=silent))
            return await load_into(images, source, tell, name=name)


COMMANDS = (load_images,)
