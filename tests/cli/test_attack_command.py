"""`sandboxd attack` against real sandboxes: with all walls, and with one of them taken away."""

import asyncio
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Outcome, sandboxd, sandboxd_on_terminal
from running_service import RunningService, data_directory
from sandbox_bench import ALLOW_ALL_CALLS, launchers_changed

from sandboxd.attack import verdict
from sandboxd.attack.catalogue import BY_NAME
from sandboxd.attack.conduct import conduct
from sandboxd.attack.plan import make_plan
from sandboxd.cli import attack_carriers
from sandboxd.settings import Settings, StoreSettings

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]


@pytest.fixture
def data() -> Iterator[str]:
    with data_directory() as directory:
        yield str(directory)


def attack(data: str, *words: str) -> Outcome:
    return sandboxd("attack", "--data-dir", data, *words)


def test_on_a_prepared_host_every_attempt_is_stopped(data: str) -> None:
    ended = attack(data, "--json")

    report = json.loads(ended.output)
    outcomes = {each["name"]: each["outcome"] for each in report["attempts"]}
    assert {name: how for name, how in outcomes.items() if how != "stopped"} == {}
    assert set(outcomes) == set(BY_NAME)
    assert (ended.code, report["passed"]) == (0, True)


def test_a_service_is_attacked_through_its_api(real_service: RunningService) -> None:
    ended = real_service.command("attack", "--url", real_service.url, "--json")

    report = json.loads(ended.stdout)
    assert [each for each in report["attempts"] if each["outcome"] != "stopped"] == []
    assert (ended.returncode, report["counts"]["stopped"]) == (0, len(BY_NAME))


def test_in_a_pipe_each_attempt_is_a_line_of_five_fields_and_nothing_moves(data: str) -> None:
    ended = attack(data, "--row", "27", "--row", "42")

    lines = [line.split("\t") for line in ended.output.splitlines()]
    assert lines[0] == ["row", "tried", "stopped by", "outcome", "seen"]
    assert {len(line) for line in lines} == {5}
    assert {line[0] for line in lines[1:]} == {"27", "42"}
    assert ended.errors == f"{len(lines) - 1} stopped\n"


def test_on_a_terminal_there_are_colour_and_progress(data: str) -> None:
    ended = sandboxd_on_terminal("attack", "--data-dir", data, "--row", "46")

    assert ended.code == 0
    assert "trying" in ended.output
    assert "\x1b[32mstopped" in ended.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--row", "75"], "row 75 is not tried here; there are 1, 2"),
        (["--url", "http://127.0.0.1:1"], "is the service running there?"),
        (["--image", "absent"], "absent"),
        (["--image", "No"], "was refused"),
    ],
    ids=["row", "connection", "image", "name"],
)
def test_what_cannot_be_tried_is_told_with_exit_code_2(
    data: str, words: list[str], sentence: str
) -> None:
    ended = attack(data, *words)

    assert ended.code == 2
    assert sentence in ended.errors
    assert ended.output == ""


def test_an_image_without_python_is_told(data: str, tmp_path: Path) -> None:
    archive = tmp_path / "empty.tar"
    with tarfile.open(archive, "w") as tar:
        directory = tarfile.TarInfo("etc")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
    imported = sandboxd("images", "import", "--data-dir", data, "empty", str(archive))
    assert imported.code == 0, imported.errors

    ended = attack(data, "--image", "empty")
    sandboxd("images", "remove", "--data-dir", data, "empty")  # with the files of foreign ids

    assert ended.code == 2
    assert "the image has no python3" in ended.errors


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (ALLOW_ALL_CALLS, {"mounts", "file-handles", "keyrings", "terminal-injection", "bpf"}),
        ("init.Init.forbid_more_namespaces = lambda self: None", {"namespace-limit"}),
        ("init.privileges.forbid_new_privileges = lambda: None", {"no-new-privileges"}),
        ("init.mounts.MASKED_IN_PROC.clear()", {"masked-paths"}),
        ("init.privileges.drop_bounding_set = lambda: None", {"capabilities"}),
        ("init.mounts.READ_ONLY_IN_PROC.remove('sys')", set()),
    ],
    ids=["filter", "nesting", "no_new_privs", "masks", "bounding set", "read-only sysctls"],
)
def test_a_wall_that_is_missing_is_found(change: str, names: set[str], tmp_path: Path) -> None:
    """The last one has another wall behind it: only root of the machine may write there."""
    settings = Settings(store=StoreSettings(data_dir=str(tmp_path)))

    async def attack_here() -> list[verdict.Finding]:
        async with attack_carriers.local(settings) as carrier:
            return await conduct(
                make_plan("host", [1, 10, 17, 18, 19, 20, 21, 25, 27, 28, 29]), carrier
            )

    with launchers_changed(change):
        findings = asyncio.run(attack_here())

    found = {f.name for f in findings if f.outcome is not verdict.Outcome.STOPPED}
    assert found >= names
    assert verdict.passed(findings) is not bool(names)
