"""`sandboxd images`: the root file systems that jobs can name."""

import asyncio
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli import image_archives, image_progress, output
from sandboxd.cli.opened_images import opened_images, opened_service
from sandboxd.cli.options import (
    config_option,
    data_dir_option,
    json_option,
    load,
    optional_url_option,
    parse_duration,
)
from sandboxd.cli.service import asks_service, client_of
from sandboxd.quantities import format_bytes
from sandboxd.settings import Settings

if TYPE_CHECKING:
    from sandboxd.client import Client
    from sandboxd.images.documents.references import Reference

EXAMPLES = """\b
Examples:
  sandboxd images pull python:3.13-slim
  sandboxd run --image docker.io/library/python:3.13-slim -- python3 -V
  sandboxd images import debian rootfs.tar
  docker export $(docker create debian:12) > rootfs.tar    a file to import
  sandboxd run --image debian -- cat /etc/os-release
  docker save debian:12 | sandboxd images load -
  sandboxd images save docker.io/library/debian:12 -o debian.tar
"""


@click.group(epilog=EXAMPLES)
def images() -> None:
    """List, show, pull, push, import, load, save and remove root file systems.

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
    found: Sequence[Any]
    if asks_service(settings, data_dir):
        with client_of(settings) as client:
            found = client.images()
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
@click.argument("name")
@data_dir_option
@optional_url_option
@config_option
@json_option
def show(
    name: str, data_dir: str | None, url: str | None, config_file: str | None, as_json: bool
) -> None:
    """Show image NAME: its digests, its layers, and how its author wants it run."""
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    if asks_service(settings, data_dir):
        with client_of(settings) as client:
            image: Any = client.image(name)
    else:
        image = asyncio.run(_show(settings, name))
    if as_json:
        output.print_json(image)
        return
    config = image.config
    fields = [
        ("name", image.name),
        ("digest", image.digest),
        ("size", format_bytes(image.size_bytes)),
        ("created", _day(image)),
        ("source", image.source),
    ]
    if image.last_used_at is not None:
        fields.append(("last used", _minute(image.last_used_at)))
    if config is not None:
        fields += [
            ("entrypoint", shlex.join(config.entrypoint)),
            ("cmd", shlex.join(config.cmd)),
            ("user", config.user),
            ("workdir", config.workdir),
        ]
        fields += [("env", f"{key}={value}") for key, value in config.env.items()]
        fields += [("label", f"{key}={value}") for key, value in config.labels.items()]
    fields += [("layer", f"{each.digest} {format_bytes(each.size_bytes)}") for each in image.layers]
    output.print_fields(fields)


@click.command()
@click.argument("reference")
@data_dir_option
@optional_url_option
@config_option
@json_option
def pull(
    reference: str, data_dir: str | None, url: str | None, config_file: str | None, as_json: bool
) -> None:
    """Fetch image REFERENCE from its registry, verify and unpack it.

    REFERENCE is [REGISTRY[:PORT]/]PATH[:TAG][@DIGEST]; without a registry it is one of docker.io. Jobs name the image
    by the whole reference, which is shown when it is there. The service of --url or the settings does it, else this process for the data
    directory. Registries that need credentials, a certificate of their own or plain HTTP, or are not at a public address, have a
    section in the settings of who does it.
    """
    from sandboxd.images.documents.references import BadReference, parse_reference

    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    try:
        wanted = parse_reference(reference)
    except BadReference as error:
        raise click.UsageError(f"the reference {error}") from None
    if asks_service(settings, data_dir):
        where = f"on {settings.client.url}"
        with client_of(settings) as client:
            image = _have_pulled(client, reference, silent=as_json)
    else:
        where = f"into {settings.store.data_dir}"
        image = asyncio.run(_pull(settings, wanted, silent=as_json))
    if as_json:
        output.print_json(image)
    else:
        size = format_bytes(image.size_bytes)
        click.echo(f"pulled {image.name} {where}: {size}, {image.digest}")


images.add_command(pull)


@images.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@data_dir_option
@optional_url_option
@config_option
@json_option
def remove(
    names: tuple[str, ...],
    data_dir: str | None,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Remove images by name, and the files that no other image has."""
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings

    def tell(name: str) -> None:
        if not as_json:
            click.echo(f"removed {name}")

    if asks_service(settings, data_dir):
        with client_of(settings) as client:
            for name in names:
                client.remove_image(name)
                tell(name)
    else:
        asyncio.run(_remove(settings, names, tell))
    if as_json:
        output.print_json({"removed": names})


@images.command()
@click.option("--all", "everything", is_flag=True, help="Every image that is not in use, too.")
@click.option(
    "--unused", metavar="TIME", help="Images that nobody used for so long, too: 12h, 90d."
)
@data_dir_option
@optional_url_option
@config_option
@json_option
def prune(
    everything: bool,
    unused: str | None,
    data_dir: str | None,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Remove what no image needs any more, and images that nobody uses."""
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    unused_seconds = None if unused is None else parse_duration("--unused", unused)
    if asks_service(settings, data_dir):
        with client_of(settings) as client:
            pruned: Any = client.prune_images(all=everything, unused_seconds=unused_seconds)
    else:
        pruned = asyncio.run(_prune(settings, everything, unused_seconds))
    if as_json:
        output.print_json(pruned)
        return
    for name in pruned.images:
        output.print_note(f"removed {name}")
    freed = format_bytes(pruned.freed_bytes)
    click.echo(
        f"removed {len(pruned.images)} images, {pruned.trees} trees, {pruned.blobs} blobs: {freed}"
    )
    if pruned.not_removed:
        output.print_note(f"{pruned.not_removed} leftovers could not be removed now")


def _have_pulled(client: "Client", reference: str, *, silent: bool) -> Any:
    with image_progress.shown(silent=silent) as tell:
        return image_progress.last_of(client.pull(reference), tell)


async def _prune(settings: Settings, everything: bool, unused_seconds: float | None) -> Any:
    from sandboxd.api.image_views import pruned_view

    async with opened_images(settings) as opened:
        return pruned_view(await opened.prune(all=everything, unused_seconds=unused_seconds))


async def _show(settings: Settings, name: str) -> Any:
    from sandboxd.api.image_views import image_detail_view
    from sandboxd.images.details import details_of

    async with opened_images(settings) as opened:
        return image_detail_view(await details_of(opened, name), for_operator=True)


async def _of_data_dir(settings: Settings) -> Sequence[Any]:
    from sandboxd.api.views import image_view

    async with opened_images(settings) as images:
        return [image_view(image) for image in await images.list()]


async def _pull(settings: Settings, reference: "Reference", *, silent: bool) -> Any:
    from sandboxd.api.views import image_view

    async with opened_service(settings) as service:
        with image_progress.shown(silent=silent) as tell:
            return image_view((await service.puller.pull(reference, None, tell)).image)


async def _remove(settings: Settings, names: Sequence[str], tell: Callable[[str], None]) -> None:
    async with opened_images(settings) as images:
        for name in names:
            await images.remove(name)
            tell(name)


def _day(image: Any) -> str:
    return _minute(image.created_at)


def _minute(moment: datetime | str) -> str:
    """Of a time as the client or a view has it."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return f"{moment:%Y-%m-%d %H:%M}Z"


for command in image_archives.COMMANDS:
    images.add_command(command)
