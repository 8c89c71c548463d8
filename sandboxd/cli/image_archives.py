"""`sandboxd images load`, `save`, `push`, `tag`, `history`: images on their way to others and from them."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from sandboxd.cli import image_progress, output
from sandboxd.cli.opened_images import opened_images, opened_service
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


@click.command("save")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--output", "-o", "file", metavar="FILE", type=click.Path(path_type=Path), help="Where to."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("docker", "oci")),
    default="docker",
    help="With Docker's index, too, or as an OCI layout alone.  [docker]",
)
@data_dir_option
@config_option
def save_images(
    names: tuple[str, ...],
    file: Path | None,
    form: str,
    data_dir: str | None,
    config_file: str | None,
) -> None:
    """Write images into an archive that docker, podman, skopeo and `sandboxd images load` read.

    Without -o it goes to our output, which must not be a terminal. Every digest stays what it is.
    """
    settings = load({"store.data_dir": data_dir}, config_file).settings
    if file is None and output.is_terminal(sys.stdout):
        raise click.UsageError("an archive is nothing for a terminal: name a file by -o")
    asyncio.run(_save(settings, names, file, docker=form == "docker"))


@click.command()
@click.argument("name")
@click.argument("destination", required=False)
@data_dir_option
@config_option
@json_option
def push(
    name: str, destination: str | None, data_dir: str | None, config_file: str | None, as_json: bool
) -> None:
    """Send image NAME to a registry: to where its name says, or to DESTINATION.

    Credentials are those of the registry's section in the settings.
    """
    settings = load({"store.data_dir": data_dir}, config_file).settings
    pushed = asyncio.run(_push(settings, name, destination, silent=as_json))
    if as_json:
        output.print_json(pushed)
    else:
        size = format_bytes(pushed.size_bytes)
        click.echo(f"pushed {pushed.reference}: {size}, {pushed.digest}")


@click.command()
@click.argument("source")
@click.argument("target")
@data_dir_option
@config_option
@json_option
def tag(
    source: str, target: str, data_dir: str | None, config_file: str | None, as_json: bool
) -> None:
    """Give image SOURCE the name TARGET, too.

    TARGET is a reference, or a word without / : @ such as imported images have.
    """
    settings = load({"store.data_dir": data_dir}, config_file).settings
    image = asyncio.run(_tag(settings, source, target))
    if as_json:
        output.print_json(image)
    else:
        click.echo(f"{image.name} is {image.digest}")


@click.command()
@click.argument("name")
@data_dir_option
@config_option
@json_option
def history(name: str, data_dir: str | None, config_file: str | None, as_json: bool) -> None:
    """Show how image NAME was made, as its author tells it: the last step first.

    Sizes are those of layers as they are kept and passed on.
    """
    settings = load({"store.data_dir": data_dir}, config_file).settings
    steps = asyncio.run(_history(settings, name))
    if as_json:
        output.print_json(steps)
        return
    output.print_table(
        ("created", "created by", "size", "comment"),
        (
            (step.created or "", step.created_by, format_bytes(step.size_bytes), step.comment)
            for step in reversed(steps)
        ),
        empty="nothing is told of it",
        cut=(1,),
    )


async def _save(
    settings: "Settings", names: tuple[str, ...], file: Path | None, *, docker: bool
) -> None:
    from sandboxd.images.saving import save

    async with (
        opened_images(settings) as images,
        contextlib.aclosing(save(images, names, docker=docker)) as pieces,
    ):
        first = await anext(pieces)  # Before anything is written: it may be refused.
        with _written(file) as archive:
            archive.write(first)
            async for piece in pieces:
                archive.write(piece)


async def _push(settings: "Settings", name: str, destination: str | None, *, silent: bool) -> Any:
    from sandboxd.images.pushing import destination_of

    where = destination_of(name, destination)
    async with opened_service(settings) as service:
        with image_progress.shown(silent=silent) as tell:
            return await service.puller.push(name, where, None, tell)


@contextlib.contextmanager
def _written(file: Path | None) -> Iterator[BinaryIO]:
    """A file that is there whole or not at all; a device or a pipe as it is; our output for None."""
    if file is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if file.exists() and not file.is_file():
        with file.open("wb") as there:
            yield there
        return
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as made:
            yield made
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


async def _tag(settings: "Settings", source: str, target: str) -> Any:
    from sandboxd.images.new_names import new_name

    name = new_name(target)
    async with opened_images(settings) as images:
        return await images.tag(source, name)


async def _history(settings: "Settings", name: str) -> Any:
    from sandboxd.images.history import read_history

    async with opened_images(settings) as images:
        return read_history(images, name)


COMMANDS = (load_images, save_images, push, tag, history)
