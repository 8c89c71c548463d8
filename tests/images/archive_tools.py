"""Archives of images: made by hand, by skopeo, and read by skopeo and umoci."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from archives import Entry, entry, packed
from host_tests import host_required
from registries import Made, described

NAME = "org.opencontainers.image.ref.name"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


def blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def index_of(*images: tuple[Made, str | None], **more: Any) -> bytes:
    """`index.json` with these names."""
    manifests = []
    for image, name in images:
        annotations = {} if name is None else {"annotations": {NAME: name}}
        manifests.append(described(image.manifest, image.media_type, **annotations, **more))
    return json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()


def oci_files(*images: tuple[Made, str | None], **more: Any) -> dict[str, bytes]:
    """An OCI layout: path to content."""
    files = {"oci-layout": LAYOUT, "index.json": index_of(*images, **more)}
    for image, _ in images:
        files[blob_name(image.digest)] = image.manifest
        files |= {blob_name(digest): content for digest, content in image.blobs.items()}
    return files


def docker_files(image: Made, *tags: str, **changed: Any) -> dict[str, bytes]:
    """As `docker save` wrote it before version 25; the layers are those of the image, uncompressed or not."""
    manifest = json.loads(image.manifest)
    config = manifest["config"]["digest"].removeprefix("sha256:")
    files = {f"{config}.json": image.blobs[f"sha256:{config}"]}
    layers = []
    for number, layer in enumerate(manifest["layers"]):
        layers.append(f"{number:064x}/layer.tar")
        files[layers[-1]] = image.blobs[layer["digest"]]
    said = {"Config": f"{config}.json", "RepoTags": list(tags), "Layers": layers, **changed}
    return files | {"manifest.json": json.dumps([said]).encode()}


def archive_of(files: dict[str, bytes], *more: Entry) -> bytes:
    return packed(*(entry(name, content) for name, content in files.items()), *more)


def write_layout(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def tool(*words: str | Path, home: Path) -> str:
    """Run skopeo or umoci."""
    program = str(words[0])
    if shutil.which(program) is None:
        host_required(f"{program} is not installed")
    more = ["--insecure-policy"] if program == "skopeo" else []
    ran = subprocess.run(
        [program, *more, *map(str, words[1:])],
        check=False,
        capture_output=True,
        env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
    )
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode()


def layers_in(image: Made) -> list[str]:
    return [layer["digest"] for layer in json.loads(image.manifest)["layers"]]


def config_in(image: Made) -> str:
    digest: str = json.loads(image.manifest)["config"]["digest"]
    return digest
