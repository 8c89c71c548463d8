"""`sandboxd pull` and `sandboxd run --pull`, seen through a terminal and a pipe, with and without a service."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import sandboxd, sandboxd_on_terminal
from pulling_service import Pulling, a_pulling_service, name_of

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]

BAR = "━"


@pytest.fixture(scope="module")
def pulling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulling]:
    with a_pulling_service(tmp_path_factory.mktemp("registry")) as made:
        yield made


class Data:
    """A data directory of its own, with the settings of the service: for commands without it."""

    def __init__(self, pulling: Pulling, directory: Path) -> None:
        self.variables = {
            "SANDBOXD_CONFIG": str(pulling.config),
            "SANDBOXD_STORE_DATA_DIR": str(directory),
        }


@pytest.fixture
def data(pulling: Pulling, tmp_path: Path) -> Iterator[Data]:
    made = Data(pulling, tmp_path / "data")
    yield made
    listed = sandboxd("images", "list", "--json", **made.variables)
    for image in json.loads(listed.output):
        if image["name"] != "host":
            sandboxd("images", "remove", image["name"], **made.variables)


def test_people_see_a_bar_for_each_layer_that_a_service_fetches(pulling: Pulling) -> None:
    reference = pulling.push()

    shown = sandboxd_on_terminal("pull", reference, "--url", pulling.service.url)

    assert shown.code == 0
    assert shown.output.count(BAR) > 20
    for digest in pulling.layers(reference):
        assert digest.removeprefix("sha256:")[:12] in shown.output
    assert f"pulled {reference} on" in shown.output.replace("\n", " ")
    assert reference in {image.name for image in pulling.client.images()}


def test_programs_get_the_image_that_a_service_fetched(pulling: Pulling) -> None:
    reference = pulling.push()

    pulled = sandboxd("images", "pull", reference, "--json", "--url", pulling.service.url)

    assert pulled.code == 0, pulled
    assert json.loads(pulled.output)["name"] == reference
    assert pulled.errors == ""


def test_what_the_registry_says_is_told(pulling: Pulling) -> None:
    reference = f"{pulling.proxy.authority}/team/nothing:1"

    refused = sandboxd("pull", reference, "--url", pulling.service.url)

    assert refused.code == 1
    assert "has no team/nothing:1" in refused.errors


def test_an_image_of_a_service_is_listed_shown_and_removed(pulling: Pulling) -> None:
    reference, url = pulling.push(), pulling.service.url
    sandboxd("pull", reference, "--url", url)

    listed = sandboxd("images", "list", "--url", url)
    shown = sandboxd("images", "show", reference, "--url", url)
    told = json.loads(sandboxd("images", "show", reference, "--url", url, "--json").output)
    removed = sandboxd("images", "remove", reference, "--url", url)
    pruned = sandboxd("images", "prune", "--url", url)
    gone = sandboxd("images", "show", reference, "--url", url)

    assert reference in listed.output
    assert "entrypoint\tcat\n" in shown.output
    assert shown.output.count("\nlayer\tsha256:") == 2
    assert told["config"]["cmd"] == ["/mark"]
    assert removed.output == f"removed {reference}\n"
    assert gone.code == 1
    assert pruned.output.startswith("removed 0 images, ")


def test_an_image_of_a_data_directory_is_shown(pulling: Pulling, data: Data) -> None:
    reference = pulling.push()
    sandboxd("pull", reference, **data.variables)

    told = json.loads(sandboxd("images", "show", reference, "--json", **data.variables).output)
    host = sandboxd("images", "show", "host", **data.variables)
    pruned = json.loads(sandboxd("images", "prune", "--all", "--json", **data.variables).output)

    assert told["config"]["entrypoint"] == ["cat"]
    assert [layer["digest"] for layer in told["layers"]] == pulling.layers(reference)
    assert "source\thost\n" in host.output
    assert pruned["images"] == [reference]


def test_a_run_pulls_its_image_first_and_shows_how_far_it_is(pulling: Pulling, data: Data) -> None:
    reference = pulling.push()

    refused = sandboxd("run", "--image", reference, "--pull", "never", **data.variables)
    shown = sandboxd_on_terminal("run", "--image", reference, **data.variables)
    again = sandboxd_on_terminal("run", "--image", reference, **data.variables)

    assert refused.code == 125
    assert "sandboxd images pull" in refused.errors
    assert shown.code == 0
    assert shown.output.count(BAR) > 20
    assert f"here {name_of(reference)}" in shown.output
    assert BAR not in again.output
    assert again.code == 0


def test_nothing_but_the_command_writes_into_a_pipe(pulling: Pulling, data: Data) -> None:
    reference = pulling.push()

    ran = sandboxd("run", "--image", reference, "--pull", "always", **data.variables)

    assert ran == (0, f"here {name_of(reference)}\n", "")


def test_a_run_on_a_service_shows_how_far_its_image_is(pulling: Pulling) -> None:
    reference, url = pulling.push(), pulling.service.url

    shown = sandboxd_on_terminal("run", "--image", reference, "--url", url)
    piped = sandboxd("run", "--image", pulling.push(), "--pull", "missing", "--url", url)

    assert shown.code == 0
    assert shown.output.count(BAR) > 20
    assert f"here {name_of(reference)}" in shown.output
    assert piped.code == 0
    assert piped.errors == ""


def test_a_registry_that_the_operator_does_not_want_is_refused_here_too(
    pulling: Pulling, data: Data
) -> None:
    variables = data.variables | {"SANDBOXD_IMAGES_REGISTRIES": "docker.io/library/*"}

    refused = sandboxd("pull", pulling.push(), **variables)
    run = sandboxd("run", "--image", pulling.push(), **variables)

    assert refused.code == 1
    assert "only docker.io/library/*" in refused.errors
    assert run.code == 125
    assert "only docker.io/library/*" in run.errors
