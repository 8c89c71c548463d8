"""`sandboxd images`: the root file systems that jobs can name."""

import asyncio
import os
import pwd
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sandboxd.cli import image_archives, image_progress, output
from sandboxd.cli.opened_images import opened_images
from sandboxd.cli.options import (
    config_option,
    data_dir_option,
    json_option,
    load,
    optional_url_option,
)
from sandboxd.quantities import format_bytes
from sandboxd.settings import Settings

EXAMPLES = """\b
Examples:
  sandboxd images pull python:3.13-slim
  sandboxd run --image docker.io/library/python:3.13-slim -- python3 -V
  sandboxd images import debian rootfs.tar
  docker export $(docker create debian:12) > rootfs.tar    a file to import
  sandboxd run --image debian -- cat /etc/os-release
"""


@click.group(epilog=EXAMPLES)
def images() -> None:
    """List, pull, import and remove root file systems.

    "host" is always there: this machine's own /usr, read-only.
    """


@images.command("list")
@data_dir_option
@optional_url_option
@config_option
@json_option
def list_images(
    data_dir: str | None, url: str | None, config_file: str | None, as_json: bool
) -> None:
    """List the images of the service of --url or the settings, else of the data directory."""
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    if settings.client.url and data_dir is None:
        found = _of_service(settings)
    else:
        found = asyncio.run(_of_data_dir(settings))
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("name", "size", "created", "source", "digest"),
        (
            (image.name, format_bytes(image.size_bytes), _day(image), image.source, image.digest)
            for image in found
        ),
        empty="no images",
    )


@images.command()
@click.argument("reference")
@data_dir_option
@config_option
@json_option
def pull(reference: str, data_dir: str | None, config_file: str | None, as_json: bool) -> None:
    """Fetch image REFERENCE from its registry, verify and unpack it.

    REFERENCE is [REGISTRY[:PORT]/]PATH[:TAG][@DIGEST]; without a registry it is one of docker.io. Jobs name the image
    by the whole reference, which is shown when it is there. Registries that need credentials, a certificate of their own or
    plain HTTP, or are not at a public address, have a section in the settings.
    """
    settings = load({"store.data_dir": data_dir}, config_file).settings
    image = asyncio.run(_pull(settings, reference, silent=as_json))
    if as_json:
        output.print_json(image)
    else:
        size = format_bytes(image.size_bytes)
        click.echo(f"pulled {image.name} into {settings.store.data_dir}: {size}, {image.digest}")


@images.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(readable=False, path_type=Path))
@data_dir_option
@config_option
@json_option
def import_image(
    name: str, file: Path, data_dir: str | None, config_file: str | None, as_json: bool
) -> None:
    """Make image NAME of the root file system in tar FILE (which may be compressed).

    An image of that name is replaced; jobs that run from it are not disturbed.
    """
    settings = load({"store.data_dir": data_dir}, config_file).settings
    if not os.access(file, os.R_OK):
        user = pwd.getpwuid(os.geteuid()).pw_name
        raise click.UsageError(f"{file} does not exist, or user {user} may not read it")
    image = asyncio.run(_import(settings, name, file.absolute()))
    if as_json:
        output.print_json(image)
    else:
        size = format_bytes(image.size_bytes)
        click.echo(f"imported {image.name} into {settings.store.data_dir}: {size}, {image.digest}")


@images.command()
@click.argument("name")
@data_dir_option
@config_option
@json_option
def remove(name: str, data_dir: str | None, config_file: str | None, as_json: bool) -> None:
    """Remove image NAME and its files."""
    settings = load({"store.data_dir": data_dir}, config_file).settings
    asyncio.run(_remove(settings, name))
    if as_json:
        output.print_json({"removed": name})
    else:
        click.echo(f"removed {name}")


def _of_service(settings: Settings) -> Sequence[Any]:
    from sandboxd.client import Client

    with Client(settings.client.url, key=settings.client.key or None) as client:
        return client.images()


async def _of_data_dir(settings: Settings) -> Sequence[Any]:
    async with opened_images(settings) as images:
        found: Sequence[Any] = await images.list()
        return found


async def _import(settings: Settings, name: str, file: Path) -> Any:
    async with opened_images(settings) as images:
        with output.progress(f"reading {file.name}") as told:
            return await images.import_tar(name, file, told)


async def _pull(settings: Settings, text: str, *, silent: bool) -> Any:
    from sandboxd.images.accesses import open_accesses
    from sandboxd.images.pulling import pull as pull_image
    from sandboxd.images.references import BadReference, parse_reference
    from sandboxd.images.transport import Transport

    try:
        reference = parse_reference(text)
    except BadReference as error:
        raise click.UsageError(f"the reference {error}") from None
    async with opened_images(settings) as images:
        transport = Transport(open_accesses(settings.registries, settings.images))
        try:
            with image_progress.shown(silent=silent) as tell:
                return await pull_image(images, transport, reference, tell)
        finally:
            await transport.close()


async def _remove(settings: Settings, name: str) -> None:
    async with opened_images(settings) as images:
        await images.remove(name)


def _day(image: Any) -> str:
    moment = image.created_at
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    return f"{moment:%Y-%m-%d %H:%M}Z"


for command in image_archives.COMMANDS:
    images.add_command(command)
