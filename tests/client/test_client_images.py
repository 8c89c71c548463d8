"""Images on their way to a service and back, through both clients."""

import asyncio
import gzip
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_tools import archive_of, docker_files, oci_files
from archives import directory, entry, packed
from pulling_service import Pulling, a_pulling_service
from registries import Made, make_image

from sandboxd.client import (
    AsyncClient,
    ClientError,
    InvalidRequest,
    LayerProgress,
    NotFound,
    Pushed,
)

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]

NAME = "registry.example/team/tools:1"
TREE = packed(directory("app"), entry("app/one", b"1"))
MADE = make_image(gzip.compress(TREE), history=[{"created_by": "ADD base", "comment": "c"}])


@pytest.fixture(scope="module")
def pulling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulling]:
    with a_pulling_service(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture(autouse=True)
def without_images(pulling: Pulling) -> Iterator[None]:
    yield
    pulling.client.prune_images(all=True)


def oci(made: Made = MADE) -> bytes:
    return archive_of(oci_files((made, NAME)))


def names_in(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return opened.getnames()


def test_an_archive_is_loaded_and_saved(pulling: Pulling, tmp_path: Path) -> None:
    (tmp_path / "in.tar").write_bytes(oci())

    (loaded,) = pulling.client.load_images(tmp_path / "in.tar")
    pulling.client.save_image(NAME, tmp_path / "docker.tar")
    pulling.client.save_image(NAME, tmp_path / "oci.tar", format="oci")
    (again,) = pulling.client.load_images(tmp_path / "docker.tar", name="other/name:2")

    assert (loaded.name, loaded.digest, loaded.source) == (NAME, MADE.digest, "archive")
    assert "manifest.json" in names_in((tmp_path / "docker.tar").read_bytes())
    assert "manifest.json" not in names_in((tmp_path / "oci.tar").read_bytes())
    assert (again.name, again.digest) == ("docker.io/other/name:2", MADE.digest)


def test_an_archive_may_come_from_memory_and_go_through_a_pipe(pulling: Pulling) -> None:
    pulling.client.load_images(io.BytesIO(oci()))
    reading, writing = os.pipe()

    def save() -> None:
        try:
            pulling.client.save_image(NAME, writing)
        finally:
            os.close(writing)

    saving = threading.Thread(target=save)
    saving.start()
    with open(reading, "rb") as pipe:
        (again,) = pulling.client.load_images(pipe)
    saving.join()

    assert again.digest == MADE.digest


def test_an_open_file_is_sent_from_where_it_stands(pulling: Pulling, tmp_path: Path) -> None:
    (tmp_path / "in.tar").write_bytes(b"before" + TREE)
    with (tmp_path / "in.tar").open("rb") as file:
        file.seek(len("before"))

        image = pulling.client.import_image("mine", file)

        assert not file.closed
    assert (image.name, image.source) == ("mine", "import")


def test_an_image_has_other_names_and_a_history(pulling: Pulling) -> None:
    pulling.client.load_images(io.BytesIO(oci()))

    tagged = pulling.client.tag_image(NAME, "short")
    (step,) = pulling.client.image_history("short")

    assert (tagged.name, tagged.digest) == ("short", MADE.digest)
    assert (step.created_by, step.comment) == ("ADD base", "c")


def test_a_push_tells_how_far_it_is(pulling: Pulling) -> None:
    pulling.client.load_images(io.BytesIO(oci()))
    place = f"{pulling.registry.authority}/team/pushed:1"

    *layers, pushed = pulling.client.push(NAME, place)

    assert isinstance(pushed, Pushed)
    assert (pushed.reference, pushed.digest) == (place, MADE.digest)
    last = layers[-1]
    assert isinstance(last, LayerProgress)
    assert last.done_bytes == last.size_bytes


def test_what_is_refused_is_raised_and_leaves_no_file(pulling: Pulling, tmp_path: Path) -> None:
    client = pulling.client
    with pytest.raises(NotFound):
        client.save_image("none", tmp_path / "none.tar")
    with pytest.raises(InvalidRequest):
        client.load_images(io.BytesIO(b"no archive"))
    with pytest.raises(InvalidRequest):
        client.import_image("Capitals", io.BytesIO(TREE))
    with pytest.raises(NotFound):
        list(client.push("none", f"{pulling.proxy.authority}/none"))
    with pytest.raises(ClientError):
        client.tag_image("../keys", "mine")
    with pytest.raises(FileNotFoundError):
        client.load_images(tmp_path / "nothing.tar")

    assert list(tmp_path.iterdir()) == []
    assert [image.name for image in client.images()] == ["host"]


def test_a_refusal_says_its_only_reason_once(pulling: Pulling) -> None:
    pulling.client.import_image("mine", io.BytesIO(TREE))

    with pytest.raises(InvalidRequest) as caught:
        list(pulling.client.push("mine"))

    assert str(caught.value) == "mine is no reference: say where it is to be pushed to"
    assert [fault.pointer for fault in caught.value.faults] == ["/destination"]


def test_the_client_for_asyncio_does_the_same(pulling: Pulling, tmp_path: Path) -> None:
    place = f"{pulling.registry.authority}/team/async:1"
    archive = tmp_path / "in.tar"
    archive.write_bytes(archive_of(docker_files(MADE, NAME)))

    async def go_round() -> None:
        async with AsyncClient(pulling.service.url) as client:
            (loaded,) = await client.load_images(archive)
            imported = await client.import_image("mine", io.BytesIO(gzip.compress(TREE)))
            tagged = await client.tag_image(NAME, "short")
            (step,) = await client.image_history("short")
            await client.save_image("short", tmp_path / "out.tar")
            *layers, pushed = [each async for each in client.push(NAME, place)]
            with pytest.raises(NotFound):
                await client.save_image("none", tmp_path / "none.tar")

        assert (loaded.name, imported.name) == (NAME, "mine")
        assert tagged.digest == loaded.digest
        assert step.created_by == "ADD base"
        assert "manifest.json" in names_in((tmp_path / "out.tar").read_bytes())
        assert isinstance(layers[-1], LayerProgress)
        assert isinstance(pushed, Pushed)
        assert pushed.reference == place

    asyncio.run(go_round())
    assert not (tmp_path / "none.tar").exists()
