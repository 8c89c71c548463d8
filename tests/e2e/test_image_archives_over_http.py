"""Images in and out over HTTP: archives, tags, pushes, history; for whom, and what is refused."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from archive_tools import archive_of, config_in, docker_files, layers_in, oci_files
from archives import directory, entry, packed
from registries import Made, Registry, make_image
from running_service import RunningService, data_directory, running_service

AS_JSON = {"Accept": "application/json"}
NAME = "registry.example/team/tools:1"
TREE = packed(directory("app"), entry("app/one", b"1"))
HISTORY = [{"created_by": "ADD \x1b[31mbase", "comment": "c"}]


@pytest.fixture
def made() -> Made:
    return make_image(gzip.compress(TREE), history=HISTORY, run={"Labels": {"a": "b"}})


@pytest.fixture
def without_images(http: httpx2.Client) -> Iterator[None]:
    yield
    for image in http.get("/v1/images").json()["data"]:
        if image["name"] != "host":
            http.delete(f"/v1/images/{image['name']}")


@pytest.fixture
def loaded(http: httpx2.Client, made: Made, without_images: None) -> str:
    answer = http.post("/v1/images/load", content=archive_of(oci_files((made, NAME))))
    assert answer.status_code == 200, answer.text
    assert [image["name"] for image in answer.json()["data"]] == [NAME]
    return NAME


def problem(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_an_image_that_was_loaded_is_there_and_comes_out_again(
    http: httpx2.Client, loaded: str, made: Made
) -> None:
    shown = http.get(f"/v1/images/{loaded}").json()
    answer = http.get(f"/v1/images/{loaded}/archive")

    assert (shown["digest"], shown["source"]) == (made.digest, "archive")
    assert shown["config"]["labels"] == {"a": "b"}
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        names = archive.getnames()
    wanted = {config_in(made), *layers_in(made), made.digest}
    assert {f"blobs/sha256/{each.removeprefix('sha256:')}" for each in wanted} <= set(names)
    assert "manifest.json" in names
    again = http.post("/v1/images/load", content=gzip.compress(answer.content))
    assert again.json()["data"][0]["digest"] == made.digest
    assert http.head(f"/v1/images/{loaded}/archive").status_code == 200


def test_a_root_file_system_is_imported_and_comes_out_as_an_image(
    http: httpx2.Client, without_images: None
) -> None:
    answer = http.post("/v1/images/import", params={"name": "mine"}, content=gzip.compress(TREE))

    assert (answer.status_code, answer.json()["source"]) == (201, "import")
    saved = http.get("/v1/images/mine/archive", params={"format": "oci"})
    loaded = http.post("/v1/images/load", params={"name": "other/name"}, content=saved.content)
    assert loaded.json()["data"][0]["name"] == "docker.io/other/name:latest"
    (step,) = http.get("/v1/images/mine/history").json()["data"]
    assert step["created_by"] == "sandboxd images import"


def test_names_history_and_a_push(
    http: httpx2.Client, loaded: str, made: Made, real_service: RunningService
) -> None:
    tagged = http.post(f"/v1/images/{loaded}/tag", json={"name": "short"})
    told = http.get("/v1/images/short/history").json()["data"]

    assert (tagged.status_code, tagged.json()["digest"]) == (201, made.digest)
    assert told == [
        {
            "created": None,
            "created_by": "ADD \x1b[31mbase",
            "comment": "c",
            "layer": layers_in(made)[0],
            "size_bytes": len(gzip.compress(TREE)),
        }
    ]
    shown = real_service.command("images", "history", "short")
    assert "ADD \\x1b[31mbase" in shown.stdout


def test_a_push_goes_where_it_is_said(made: Made, registry: Registry, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[registries."{registry.authority}"]\ninsecure = true\n')
    flags = ("--no-auth", "--config", str(config))
    with running_service(flags=flags) as service, service.http() as http:
        http.post("/v1/images/load", content=archive_of(docker_files(made, NAME)))
        place = f"{registry.authority}/team/new:1"

        wish = {"destination": place}
        told = http.post(f"/v1/images/{NAME}/push", json=wish)
        pushed = http.post(f"/v1/images/{NAME}/push", json=wish, headers=AS_JSON)

        assert pushed.status_code == 200, pushed.text
        assert pushed.json()["reference"] == place
        lines = [json.loads(line) for line in told.text.splitlines()]
        assert lines[-1] == {"pushed": pushed.json()}
        layer = lines[-2]["layer"]
        assert layer["digest"] == layers_in(made)[0]
        assert layer["done_bytes"] == layer["size_bytes"]
        pulled = http.post("/v1/images/pull", json={"image": place}, headers=AS_JSON)
        assert pulled.json()["digest"] == pushed.json()["digest"]
        wish = {"destination": "127.0.0.1:1/x"}
        nobody = http.post(f"/v1/images/{NAME}/push", json=wish, headers=AS_JSON)
        assert problem(nobody) == (503, "registry_failed")
        for name in (NAME, place):
            http.delete(f"/v1/images/{name}")


@pytest.mark.attack(75)
def test_what_is_refused_is_a_problem_and_changes_nothing(
    http: httpx2.Client, made: Made, without_images: None
) -> None:
    hostile = archive_of(docker_files(made, NAME, Layers=["../../../../etc/passwd"]))
    for content in (hostile, b"", b"no archive", archive_of({"x": b"y"}, entry("../x"))):
        assert problem(http.post("/v1/images/load", content=content)) == (422, "bad_archive")
    assert problem(http.post("/v1/images/import", params={"name": "x"}, content=b"?")) == (
        422,
        "bad_archive",
    )
    assert http.post("/v1/images/import", content=TREE).status_code == 400
    assert http.get("/v1/images/host/archive", params={"format": "x"}).status_code == 400
    assert problem(http.get("/v1/images/host/archive")) == (409, "host_image")
    assert problem(http.get("/v1/images/none/archive")) == (404, "image_not_found")
    assert problem(http.post("/v1/images/none/tag", json={"name": "x"})) == (
        404,
        "image_not_found",
    )
    assert problem(http.post("/v1/images/none/tag", json={"name": "X"}))[0] == 422
    assert problem(http.post("/v1/images/none/push", json={}))[0] == 422
    coded = {"Content-Encoding": "gzip"}
    assert http.post("/v1/images/load", content=b"x", headers=coded).status_code == 415
    assert [image["name"] for image in http.get("/v1/images").json()["data"]] == ["host"]


def test_only_a_key_with_the_scope_admin_changes_what_all_share(prepared_host: None) -> None:
    scopes = ("--scope", "jobs:write", "--scope", "jobs:read")
    sandbox = "sbx_06f8k0000000000000000000ab"
    with data_directory() as data_dir:
        service = RunningService(data_dir, flags=())
        data_dir.mkdir(mode=0o700)
        made = service.command("keys", "create", "ada", *scopes)
        assert made.returncode == 0, made.stderr
        service.start()
        try:
            with service.http(made.stdout.strip()) as http:
                for method, path in (
                    ("POST", "/v1/images/load"),
                    ("POST", "/v1/images/import?name=x"),
                    ("GET", "/v1/images/host/archive"),
                    ("POST", "/v1/images/host/tag"),
                    ("POST", "/v1/images/host/push"),
                    ("POST", f"/v1/sandboxes/{sandbox}/commit"),
                ):
                    assert http.request(method, path, json={}).status_code == 403, path
                assert http.get("/v1/images/none/history").status_code == 404
        finally:
            service.stop()


def test_the_command_line_saves_what_it_loads(
    real_service: RunningService, made: Made, tmp_path: Path
) -> None:
    archive, saved, data = tmp_path / "in.tar", tmp_path / "out.tar", str(tmp_path / "data")
    archive.write_bytes(archive_of(docker_files(made, "tools:1")))
    (tmp_path / "data").mkdir()

    def images(*words: str) -> str:
        done = real_service.command("images", *words, "--data-dir", data)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = images("load", str(archive))
    assert told.startswith("loaded docker.io/library/tools:1 into ")
    images("tag", "tools:1", "mine")
    images("save", "tools:1", "mine", "-o", str(saved))
    images("remove", "mine")
    images("remove", "tools:1")
    listed = json.loads(images("load", str(saved), "--json"))

    assert sorted(image["name"] for image in listed) == [
        "docker.io/library/mine:latest",
        "docker.io/library/tools:1",
    ]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    refused = real_service.command(
        "images", "save", "none", "-o", str(tmp_path / "no"), "--data-dir", data
    )
    assert refused.returncode == 1
    assert not (tmp_path / "no").exists()
    for image in listed:
        images("remove", image["name"])
