"""`sandboxd images load`, `import`, `save`, `push`, `tag` and `history` with `--url`: as with a data directory."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_tools import archive_of, docker_files, oci_files, write_layout
from archives import directory, entry, packed
from command_line import Outcome, environment, sandboxd, sandboxd_on_terminal
from pulling_service import Pulling, a_pulling_service
from registries import make_image

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]

NAME = "registry.example/team/tools:1"
TREE = packed(directory("app"), entry("app/one", b"1"))
MADE = make_image(gzip.compress(TREE), history=[{"created_by": "ADD base"}])
IMAGE = {"name", "digest", "size_bytes", "created_at", "source"}


@pytest.fixture(scope="module")
def pulling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulling]:
    with a_pulling_service(tmp_path_factory.mktemp("registry")) as made:
        yield made


class Images:
    """`sandboxd images …` on a service or a data directory."""

    def __init__(self, where: tuple[str, str], config: Path) -> None:
        self.where = where
        self._config = str(config)

    def __call__(self, *words: str, stdin: bytes = b"", terminal: bool = False) -> Outcome:
        words = ("images", *words, *self.where)
        if terminal:
            return sandboxd_on_terminal(*words, columns=300, SANDBOXD_CONFIG=self._config)
        return sandboxd(*words, stdin=stdin, SANDBOXD_CONFIG=self._config)


@pytest.fixture(params=["service", "data directory"])
def images(request: pytest.FixtureRequest, pulling: Pulling, tmp_path: Path) -> Iterator[Images]:
    places = {
        "service": ("--url", pulling.service.url),
        "data directory": ("--data-dir", str(tmp_path / "data")),
    }
    made = Images(places[request.param], pulling.config)
    yield made
    made("prune", "--all")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "in.tar").write_bytes(archive_of(docker_files(MADE, NAME)))
    return tmp_path / "in.tar"


def test_an_archive_goes_in_and_out(images: Images, archive: Path, tmp_path: Path) -> None:
    loaded = images("load", str(archive))
    saved = images("save", NAME, "-o", str(tmp_path / "out.tar"))
    again = images("load", "-", "--name", "other:2", stdin=(tmp_path / "out.tar").read_bytes())

    assert loaded.output.startswith(f"loaded {NAME} ")
    assert images.where[1] in loaded.output
    assert saved == (0, "", "")
    assert again.output.startswith("loaded docker.io/library/other:2 ")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_programs_get_the_same_of_every_command(
    images: Images, archive: Path, pulling: Pulling
) -> None:
    (loaded,) = json.loads(images("load", str(archive), "--json").output)
    imported = json.loads(images("import", "mine", "-", "--json", stdin=TREE).output)
    tagged = json.loads(images("tag", "mine", "short", "--json").output)
    place = f"{pulling.registry.authority}/team/json:1"
    pushed = json.loads(images("push", "short", place, "--json").output)
    pulled = json.loads(images("pull", place, "--json").output)
    listed = json.loads(images("list", "--json").output)
    (step,) = json.loads(images("history", NAME, "--json").output)

    for image in (loaded, imported, tagged, pulled, *listed):
        assert set(image) == IMAGE
        assert image["created_at"].endswith("Z")
    assert pushed.keys() == {"reference", "digest", "size_bytes"}
    assert pulled["digest"] == pushed["digest"]
    assert step["created_by"] == "ADD base"


def test_people_see_a_bar_for_each_layer_that_is_pushed(
    images: Images, archive: Path, pulling: Pulling
) -> None:
    images("load", str(archive))
    place = f"{pulling.registry.authority}/team/bar-{images.where[0].strip('-')}:1"

    shown = images("push", NAME, place, terminal=True)

    assert shown.code == 0
    assert shown.output.count("━") > 20
    assert f"pushed {place}: " in shown.output


def test_a_pipe_gets_a_line_for_each_layer_that_was_sent(
    images: Images, archive: Path, pulling: Pulling
) -> None:
    images("load", str(archive))
    place = f"{pulling.registry.authority}/team/line-{images.where[0].strip('-')}:1"

    first = images("push", NAME, place)
    again = images("push", NAME, place)

    assert first.errors.count("layer ") == 1
    assert again.errors == ""
    assert first.output == again.output


def test_a_sandbox_says_whether_its_image_is_pulled(pulling: Pulling) -> None:
    reference, url = pulling.push(), ("--url", pulling.service.url)
    create = ("sandboxes", "create", "--image", reference, *url)

    refused = sandboxd(*create, "--pull", "never")
    made = sandboxd(*create, "--pull", "always")

    assert refused.code == 1
    assert "sandboxd images pull" in refused.errors
    assert made.code == 0, made
    sandboxd("sandboxes", "delete", made.output.strip(), *url)


def test_several_images_are_removed_at_once(images: Images, archive: Path) -> None:
    images("load", str(archive))
    images("tag", NAME, "short")

    removed = images("remove", "short", NAME, "none")
    listed = json.loads(images("list", "--json").output)

    assert removed.output == f"removed short\nremoved {NAME}\n"
    assert (removed.code, removed.errors.count("no image")) == (1, 1)
    assert not {"short", NAME} & {image["name"] for image in listed}


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["save", "none", "-o", "/tmp/none.tar"], 1, "sandboxd images pull"),
        (["save", "host", "-o", "/nonexistent/x.tar"], 2, "there is no directory /nonexistent"),
        (["import", "x", "/nonexistent.tar"], 2, "/nonexistent.tar does not exist"),
        (["tag", "host", "x"], 1, "cannot be passed on"),
        (["push", "none"], 1, "say where it is to be pushed to"),
        (["load", "-"], 1, "tar archive"),
        (["pull", "Team/Tools"], 2, "capitals"),
    ],
)
def test_what_cannot_be_done_is_said_alike(
    images: Images, words: list[str], code: int, sentence: str
) -> None:
    refused = images(*words, stdin=b"" if words[0] == "load" else TREE)

    assert refused.code == code
    assert refused.output == ""
    assert sentence in refused.errors
    assert refused.errors.count(sentence) == 1


def test_a_service_takes_no_directory_but_what_tar_makes_of_it(
    pulling: Pulling, tmp_path: Path
) -> None:
    layout = write_layout(tmp_path / "layout", oci_files((MADE, NAME)))
    url = ("--url", pulling.service.url)

    refused = sandboxd("images", "load", str(layout), *url)
    packed_by_tar = subprocess.run(
        ["tar", "-C", layout, "-c", "."], capture_output=True, check=True
    ).stdout
    loaded = sandboxd("images", "load", "-", *url, stdin=packed_by_tar)

    assert refused.code == 2
    assert f"tar -C {layout} -c ." in refused.errors
    assert loaded.code == 0, loaded
    sandboxd("images", "remove", NAME, *url)


def test_several_images_are_saved_from_a_data_directory_only(pulling: Pulling) -> None:
    refused = sandboxd("images", "save", "a", "b", "--url", pulling.service.url)

    assert refused.code == 2
    assert "one image at a time" in refused.errors


def test_an_archive_goes_through_a_pipe_to_another(pulling: Pulling, archive: Path) -> None:
    url = ("--url", pulling.service.url)
    sandboxd("images", "load", str(archive), *url)
    command = [sys.executable, "-m", "sandboxd", "images"]
    with subprocess.Popen(
        [*command, "save", NAME, *url], stdout=subprocess.PIPE, env=environment()
    ) as saving:
        loaded = subprocess.run(
            [*command, "load", "-", "--name", "piped", *url],
            stdin=saving.stdout,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
            check=False,
        )

    assert saving.returncode == 0
    assert loaded.stdout.startswith("loaded piped on "), loaded
    for name in (NAME, "piped"):
        sandboxd("images", "remove", name, *url)
