"""`sandboxd images load`, `import`, `save`, `push`, `tag`, `history`: images on their way to others and from them."""

import asyncio
import contextlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli import image_progress, output
from sandboxd.cli.archive_files import (
    OUR_INPUT,
    check_readable,
    check_writable,
    sent,
    written,
)
from sandboxd.cli.opened_images import opened_images, opened_service
from sandboxd.cli.options import (
    config_option,
    data_dir_option,
    json_option,
    load,
    optional_url_option,
)
from sandboxd.cli.service import asks_service, client_of
from sandboxd.quantities import format_bytes

if TYPE_CHECKING:
    from sandboxd.settings import Settings


@click.command("load")
@click.argument("file", type=click.Path(readable=False, allow_dash=True, path_type=Path))
@click.option("--name", metavar="NAME", help="What the archive's only image is to be called.")
@data_dir_option
@optional_url_option
@config_option
@json_option
def load_images(
    file: Path,
    name: str | None,
    data_dir: str | None,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Make images of all that is in archive FILE (- is our input).

    FILE is what `docker save`, podman, skopeo or `sandboxd images save` write, or an OCI layout in a directory; it may be compressed
    by gzip or zstd. Images are called what the archive says, as references in full; those of the same name are replaced.
    """
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    check_readable(file)
    found: Sequence[Any]
    if asks_service(settings, data_dir):
        where = f"on {settings.client.url}"
        if file.is_dir():
            whole = shlex.quote(str(file))
            raise click.UsageError(
                f"{file} is a directory, and a service takes one file: tar -C {whole} -c . | sandboxd images load - --url …"
            )
        with client_of(settings) as client, sent(file) as archive:
            found = client.load_images(archive, name=name)
    else:
        where = f"into {settings.store.data_dir}"
        found = asyncio.run(_load(settings, file, name, as_json))
    if as_json:
        output.print_json(found)
        return
    for image in found:
        size = format_bytes(image.size_bytes)
        click.echo(f"loaded {image.name} {where}: {size}, {image.digest}")


@click.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(readable=False, allow_dash=True, path_type=Path))
@data_dir_option
@optional_url_option
@config_option
@json_option
def import_image(
    name: str,
    file: Path,
    data_dir: str | None,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Make image NAME of the root file system in tar FILE (- is our input), which may be compressed.

    An image of that name is replaced; jobs that run from it are not disturbed.
    """
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    check_readable(file)
    if asks_service(settings, data_dir):
        where = f"on {settings.client.url}"
        with client_of(settings) as client, sent(file) as archive:
            image: Any = client.import_image(name, archive)
    else:
        where = f"into {settings.store.data_dir}"
        image = asyncio.run(_import(settings, name, file))
    if as_json:
        output.print_json(image)
    else:
        size = format_bytes(image.size_bytes)
        click.echo(f"imported {image.name} {where}: {size}, {image.digest}")


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
@optional_url_option
@config_option
def save_images(
    names: tuple[str, ...],
    file: Path | None,
    form: str,
    data_dir: str | None,
    url: str | None,
    config_file: str | None,
) -> None:
    """Write images into an archive that docker, podman, skopeo and `sandboxd images load` read.

    Without -o it goes to our output, which must not be a terminal. Every digest stays what it is. A service gives one image at a time.
    """
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    if file is None and output.is_terminal(sys.stdout):
        raise click.UsageError("an archive is nothing for a terminal: name a file by -o")
    if file is not None:
        check_writable(file)
    if not asks_service(settings, data_dir):
        asyncio.run(_save(settings, names, file, docker=form == "docker"))
        return
    if len(names) > 1:
        raise click.UsageError("a service gives one image at a time: name one, or the --data-dir")
    with client_of(settings) as client:
        if file is None:
            client.save_image(names[0], sys.stdout.fileno(), format=form)
        elif file.exists() and not file.is_file():
            with file.open("wb") as there:
                client.save_image(names[0], there.fileno(), format=form)
        else:
            client.save_image(names[0], file, format=form)


@click.command()
@click.argument("name")
@click.argument("destination", required=False)
@data_dir_option
@optional_url_option
@config_option
@json_option
def push(
    name: str,
    destination: str | None,
    data_dir: str | None,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Send image NAME to a registry: to where its name says, or to DESTINATION.

    The service of --url or the settings does it, else this process for the data directory. Credentials are those of the registry's
    section in the settings of who does it.
    """
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    if asks_service(settings, data_dir):
        with client_of(settings) as client, image_progress.shown(silent=as_json) as tell:
            pushed = image_progress.last_of(client.push(name, destination), tell)
    else:
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
@optional_url_option
@config_option
@json_option
def tag(
    source: str,
    target: str,
    data_dir: str | None,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Give image SOURCE the name TARGET, too.

    TARGET is a reference, or a word without / : @ such as imported images have.
    """
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    if asks_service(settings, data_dir):
        with client_of(settings) as client:
            image: Any = client.tag_image(source, target)
    else:
        image = asyncio.run(_tag(settings, source, target))
    if as_json:
        output.print_json(image)
    else:
        click.echo(f"tagged {image.name}: {image.digest}")


@click.command()
@click.argument("name")
@data_dir_option
@optional_url_option
@config_option
@json_option
def history(
    name: str, data_dir: str | None, url: str | None, config_file: str | None, as_json: bool
) -> None:
    """Show how image NAME was made, as its author tells it: the last step first.

    Sizes are those of layers as they are kept and passed on.
    """
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    steps: Sequence[Any]
    if asks_service(settings, data_dir):
        with client_of(settings) as client:
            steps = client.image_history(name)
    else:
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


async def _load(settings: "Settings", file: Path, name: str | None, silent: bool) -> Any:
    from sandboxd.api.views import image_view
    from sandboxd.images.archives.opening import opened, opened_file
    from sandboxd.images.loading import load as load_into

    async with opened_images(settings) as images:
        spool = images.blobs.directory
        with contextlib.ExitStack() as stack:
            archive = (
                opened_file(sys.stdin.fileno(), spool)
                if file == OUR_INPUT
                else opened(file.absolute(), spool)
            )
            source = await asyncio.to_thread(stack.enter_context, archive)
            tell = stack.enter_context(image_progress.shown(silent=silent))
            found = await load_into(images, source, tell, name=name)
            return [image_view(image) for image in found]


async def _import(settings: "Settings", name: str, file: Path) -> Any:
    from sandboxd.api.views import image_view

    async with opened_images(settings) as images:
        with contextlib.ExitStack() as stack:
            path = file.absolute()
            if file == OUR_INPUT:
                # A copy: what comes through a pipe is there only once.
                copy = stack.enter_context(tempfile.TemporaryFile(dir=images.blobs.directory))
                await asyncio.to_thread(shutil.copyfileobj, sys.stdin.buffer, copy)
                copy.flush()
                path = Path(f"/proc/self/fd/{copy.fileno()}")
            told = stack.enter_context(output.progress(f"reading {file.name}"))
            return image_view(await images.import_tar(name, path, told))


async def _save(
    settings: "Settings", names: tuple[str, ...], file: Path | None, *, docker: bool
) -> None:
    from sandboxd.images.saving import save

    async with (
        opened_images(settings) as images,
        contextlib.aclosing(save(images, names, docker=docker)) as pieces,
    ):
        first = await anext(pieces)  # Before anything is written: it may be refused.
        with written(file) as archive:
            archive.write(first)
            async for piece in pieces:
                archive.write(piece)


async def _push(settings: "Settings", name: str, destination: str | None, *, silent: bool) -> Any:
    from sandboxd.images.pushing import destination_of

    where = destination_of(name, destination)
    async with opened_service(settings) as service:
        with image_progress.shown(silent=silent) as tell:
            return await service.puller.push(name, where, None, tell)


async def _tag(settings: "Settings", source: str, target: str) -> Any:
    from sandboxd.api.views import image_view
    from sandboxd.images.new_names import new_name

    name = new_name(target)
    async with opened_images(settings) as images:
        return image_view(await images.tag(source, name))


async def _history(settings: "Settings", name: str) -> Any:
    from sandboxd.images.history import read_history

    async with opened_images(settings) as images:
        return read_history(images, name)


COMMANDS = (load_images, import_image, save_images, push, tag, history)
