"""A sandbox's changes as an image: committed, run, pushed, saved; and what a sandbox tries meanwhile."""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import directory, entry, link, packed
from host_tests import host_required
from registries import Registry, a_registry, make_image
from running_service import RunningService

from sandboxd.client import Client, ClientError, Conflict, Sandbox

RUN = {"Env": ["PATH=/bin", "A=image"], "User": "12:34", "Cmd": ["sh"], "WorkingDir": "/srv"}
NAME = "registry.example/made/here:1"


def busybox() -> bytes:
    found = shutil.which("busybox")
    if found is None:
        host_required("this host has no busybox (busybox-static)")
    names = (
        "sh",
        "id",
        "cat",
        "ls",
        "pwd",
        "rm",
        "mv",
        "mkdir",
        "ln",
        "chmod",
        "mkfifo",
        "stat",
        "sleep",
    )
    return packed(
        directory("bin"),
        entry("bin/busybox", Path(found).resolve().read_bytes(), mode=0o755),
        *(
            link(f"bin/{name}", "busybox")
            for name in (*names, "dd", "find", "touch", "head", "tail")
        ),
        directory("srv", uid=12, gid=34),
        entry("srv/gone", b"x", uid=12, gid=34),
        entry("srv/kept", b"kept", uid=12, gid=34),
        directory("srv/opaque", uid=12, gid=34),
        entry("srv/opaque/old", b"x", uid=12, gid=34),
        directory("srv/empty", uid=12, gid=34),
    )


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One for all: what is pulled from it is only looked at."""
    with a_registry(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture(scope="module")
def config(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings that know the registry."""
    file = tmp_path_factory.mktemp("config") / "config.toml"
    file.write_text(f'[registries."{registry.authority}"]\ninsecure = true\n')
    return file


@pytest.fixture(scope="module")
def image(registry: Registry, real_service: RunningService, config: Path) -> str:
    reference = registry.push(make_image(gzip.compress(busybox()), run=RUN))
    pulled = real_service.command("images", "pull", reference, "--config", str(config))
    assert pulled.returncode == 0, pulled.stderr
    return reference


@pytest.fixture
def sandbox(client: Client, image: str) -> Iterator[Sandbox]:
    with client.sandbox(image=image) as made:
        yield made


def shell(sandbox: Sandbox, script: str) -> str:
    ended = sandbox.exec(["sh", "-c", script])
    assert ended.exit_code == 0, ended
    return ended.text


def output_of(client: Client, image: str, script: str, **options: Any) -> str:
    job = client.run(["sh", "-c", script], image=image, **options)
    assert job.state == "succeeded", job
    return job.text


def layer_of(service: RunningService, name: str) -> dict[str, tarfile.TarInfo]:
    """The uppermost layer, from what is saved of the image."""
    with service.http() as http:
        answer = http.get(f"/v1/images/{name}/archive", params={"format": "oci"}, timeout=60)
    assert answer.status_code == 200, answer.text
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:

        def blob(digest: str) -> bytes:
            file = archive.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")
            assert file is not None
            return file.read()

        index = json.load(archive.extractfile("index.json") or io.BytesIO())
        manifest = json.loads(blob(index["manifests"][0]["digest"]))
        layer = gzip.decompress(blob(manifest["layers"][-1]["digest"]))
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        return {member.name: member for member in tar}


CHANGES = """
rm gone; rm -r opaque; mkdir opaque; echo new > opaque/new
echo changed > kept; mkdir -p deep/er; echo deep > deep/er/file; chmod 750 deep
ln -s kept soft; ln kept hard; mkfifo pipe; touch secret; chmod 000 secret
echo mine > /work/mine; echo t > /tmp/t
"""


def test_what_was_changed_is_in_the_image_and_nothing_else(
    sandbox: Sandbox, client: Client, real_service: RunningService
) -> None:
    shell(sandbox, CHANGES)

    image = sandbox.commit(NAME, comment="by hand")

    assert (image.name, image.source) == (NAME, "commit")
    script = (
        "find . | sort; cat kept opaque/new deep/er/file /work/mine; stat -c '%a %u:%g' deep secret"
    )
    assert output_of(client, NAME, script.replace("| sort", "")).splitlines()[-6:] == [
        "changed",
        "new",
        "deep",
        "mine",
        "750 12:34",
        "0 12:34",
    ]
    found = output_of(client, NAME, "find . -type f; find . -type l; find . -type p").split()
    assert sorted(found) == sorted(
        ["./kept", "./hard", "./opaque/new", "./deep/er/file", "./secret", "./soft"]
    )
    assert output_of(client, NAME, "stat -c %i kept hard").split()[0::2] != []
    layer = layer_of(real_service, NAME)
    assert set(layer) == {
        "srv",
        "srv/.wh.gone",
        "srv/deep",
        "srv/deep/er",
        "srv/deep/er/file",
        "srv/hard",
        "srv/kept",
        "srv/opaque",
        "srv/opaque/.wh..wh..opq",
        "srv/opaque/new",
        "srv/secret",
        "srv/soft",
        "tmp/t",
        "work",
        "work/mine",
    }
    assert layer["srv/kept"].islnk()
    assert (layer["work"].uid, layer["work"].gid) == (12, 34)


def test_the_sandbox_goes_on_and_can_be_committed_again(sandbox: Sandbox, client: Client) -> None:
    shell(sandbox, "echo 1 > one")
    first = sandbox.commit(NAME)
    shell(sandbox, "echo 2 > two; rm one")
    second = sandbox.commit(NAME)

    assert first.digest != second.digest
    assert output_of(client, NAME, "ls").split() == ["empty", "gone", "kept", "opaque", "two"]


def test_what_is_committed_can_be_the_image_of_the_next(sandbox: Sandbox, client: Client) -> None:
    shell(sandbox, "echo 1 > one; rm kept")
    sandbox.commit(NAME)
    with client.sandbox(image=NAME) as above:
        shell(above, "echo 2 > two; rm one")
        above.commit("made-twice")

    assert output_of(client, "made-twice", "ls").split() == ["empty", "gone", "opaque", "two"]


def test_how_it_is_run_may_be_changed(
    sandbox: Sandbox, client: Client, real_service: RunningService
) -> None:
    shell(sandbox, "echo 1 > one")

    sandbox.commit(
        NAME,
        changes={
            "entrypoint": ["/bin/sh", "-c", 'echo "$A $B $* $(id -u) $(pwd)"', "sh"],
            "cmd": ["c"],
            "env": {"B": "new"},
            "user": "7",
            "workdir": "/bin",
            "labels": {"a": "b"},
        },
        author="me",
        comment="why",
    )

    assert client.run(image=NAME).text == "image new c 7 /bin\n"
    with real_service.http() as http:
        shown = http.get(f"/v1/images/{NAME}").json()
        told = http.get(f"/v1/images/{NAME}/history").json()["data"]
    assert shown["config"]["labels"] == {"a": "b"}
    assert (told[-1]["created_by"], told[-1]["comment"]) == ("sandboxd commit", "why")


def test_a_commit_is_pushed_and_is_the_same_elsewhere(
    sandbox: Sandbox,
    client: Client,
    registry: Registry,
    real_service: RunningService,
    config: Path,
    tmp_path: Path,
) -> None:
    shell(sandbox, "echo 1 > one; rm gone")
    name = f"{registry.authority}/made/here:1"
    image = sandbox.commit(name)
    known = ("--config", str(config))
    pushed = real_service.command("images", "push", name, *known, "--json")
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["digest"] == image.digest
    elsewhere = real_service.command(
        "images", "pull", name, *known, "--data-dir", str(tmp_path / "elsewhere")
    )
    assert elsewhere.returncode == 0, elsewhere.stderr

    ran = real_service.command(
        "run", "--data-dir", str(tmp_path / "elsewhere"), "--image", name, "--", "sh", "-c", "ls"
    )

    assert ran.stdout.split() == ["empty", "kept", "one", "opaque"], ran.stderr
    real_service.command("images", "remove", name, "--data-dir", str(tmp_path / "elsewhere"))


def test_an_image_is_pushed_to_no_registry_that_the_operator_does_not_want(
    image: str, real_service: RunningService, config: Path, tmp_path: Path
) -> None:
    strict = tmp_path / "config.toml"
    strict.write_text(f'[images]\nregistries = ["elsewhere.example/*"]\n{config.read_text()}')

    pushed = real_service.command("images", "push", image, "--config", str(strict))

    assert pushed.returncode != 0
    assert "the operator allows only elsewhere.example/*" in pushed.stderr


def test_commands_are_stopped_while_they_are_read_and_go_on_afterwards(
    sandbox: Sandbox, client: Client
) -> None:
    """Two files that a command changes in turns, with much to be read between them, are never seen further apart than one turn."""
    shell(
        sandbox,
        "dd if=/dev/zero of=m bs=1024 count=16384 2>/dev/null; "
        "(n=0; while :; do n=$((n+1)); for f in a z; do echo $n > t; mv t $f; done; done) >/dev/null 2>&1 & until [ -e z ]; do sleep 0.01; done",
    )
    for _ in range(3):
        sandbox.commit(NAME)
        a, z = output_of(client, NAME, "cat a; echo; cat z; echo").split()
        assert 0 <= int(a) - int(z) <= 1

    before = int(shell(sandbox, "cat z"))
    assert int(shell(sandbox, "sleep 0.3; cat z")) > before


def test_the_command_line_commits(
    sandbox: Sandbox, client: Client, real_service: RunningService
) -> None:
    shell(sandbox, "echo 1 > one")
    words = ["-c", 'CMD ["ls"]', "-c", "ENV B=x C='y z'", "-m", "why", "--url", real_service.url]

    made = real_service.command("sandboxes", "commit", sandbox.id, NAME, *words)

    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(f"committed {NAME}: ")
    assert "one" in client.run(image=NAME).text
    assert output_of(client, NAME, 'echo "$B,$C"') == "x,y z\n"
    for wrong in ("CMD [1]", "VOLUME /x", "ENV", "CMD"):
        refused = real_service.command(
            "sandboxes", "commit", sandbox.id, NAME, "-c", wrong, "--url", real_service.url
        )
        assert refused.returncode == 2


# What cannot be, and what a sandbox tries


def test_the_machine_s_own_image_cannot_be_committed_upon(client: Client) -> None:
    with client.sandbox(image="host") as made, pytest.raises(Conflict) as refused:
        made.commit(NAME)
    assert refused.value.code == "host_image"


def test_an_image_that_is_another_one_now_is_not_built_upon(
    client: Client, image: str, real_service: RunningService
) -> None:
    client.tag_image(image, "mine:1")
    with client.sandbox(image="mine:1") as sandbox, real_service.http() as http:
        tagged = http.post("/v1/images/host/tag", json={"name": "mine:1"})
        assert tagged.status_code == 409
        body = packed(entry("x", b"1"))
        http.post("/v1/images/import", params={"name": "other"}, content=body)
        assert http.post("/v1/images/other/tag", json={"name": "mine:1"}).status_code == 201

        with pytest.raises(Conflict) as refused:
            sandbox.commit(NAME)
    assert refused.value.code == "image_changed"


@pytest.mark.parametrize(
    ("wish", "pointer"),
    [
        ({"name": "host/../x"}, "/name"),
        ({"name": "x:1@sha256:" + "0" * 64}, "/name"),
        ({"name": NAME, "changes": {"env": {"A=B": "x"}}}, "/changes/env/A=B"),
        ({"name": NAME, "changes": {"workdir": "../x"}}, "/changes"),
        ({"name": NAME, "changes": {"cmd": "ls"}}, "/changes/cmd"),
        ({"name": NAME, "changes": {"cmd": ["a\0"]}}, "/changes"),
        ({"name": NAME, "other": 1}, "/other"),
        ({}, "/name"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(
    wish: Any, pointer: str, sandbox: Sandbox, real_service: RunningService
) -> None:
    with real_service.http() as http:
        answer = http.post(f"/v1/sandboxes/{sandbox.id}/commit", json=wish)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


@pytest.mark.attack(63)
def test_a_file_that_would_hide_something_in_a_layer_is_refused(sandbox: Sandbox) -> None:
    shell(sandbox, "mkdir d; echo x > d/.wh.kept")

    with pytest.raises(Conflict, match=r"\.wh\.kept"):
        sandbox.commit(NAME)
    shell(sandbox, "rm -r d")
    assert sandbox.commit(NAME).name == NAME


@pytest.mark.attack(65)
def test_a_file_with_holes_costs_nothing_and_is_refused(sandbox: Sandbox) -> None:
    shell(sandbox, "dd if=/dev/zero of=hole bs=1 count=1 seek=900G 2>/dev/null")

    with pytest.raises(Conflict, match="more than may be kept"):
        sandbox.commit(NAME)
    assert shell(sandbox, "cat kept") == "kept"


@pytest.mark.attack(2, 61)
def test_links_are_packed_as_links_wherever_they_lead(
    sandbox: Sandbox, real_service: RunningService
) -> None:
    shell(
        sandbox,
        "ln -s /proc/self/fd fds; ln -s /proc/self/environ env; ln -s ../../../../etc/shadow up; "
        "mkdir -p d/e; ln -s /proc/self d/self",
    )
    sandbox.commit(NAME)

    layer = layer_of(real_service, NAME)

    for name in ("fds", "env", "up", "d/self"):
        assert layer[f"srv/{name}"].issym()
    assert {name for name in layer if "proc" in name.split("/")} == set()


@pytest.mark.attack(2, 61)
def test_what_is_swapped_for_a_link_meanwhile_leads_nowhere(
    sandbox: Sandbox, real_service: RunningService
) -> None:
    """Commands that are not stopped change a directory into a link to init's own files, and back."""
    shell(
        sandbox,
        "mkdir -p d/task; (while :; do rm -rf d; ln -s /proc/self d; rm d; mkdir -p d/task; done) "
        ">/dev/null 2>&1 & sleep 0.2",
    )
    packed_names: set[str] = set()
    for _ in range(5):
        try:
            sandbox.commit(NAME, stop=False)
        except ClientError:
            continue  # Gone while it was looked at.
        packed_names |= set(layer_of(real_service, NAME))

    assert {"srv/d/environ", "srv/d/mem", "srv/d/status"} & packed_names == set()
