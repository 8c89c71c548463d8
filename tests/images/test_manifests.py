"""Manifests, indexes and configurations: what is ambiguous, too large, too deep or for another machine is refused."""

import json
import signal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.images.documents.configuration import Configuration, parse_configuration
from sandboxd.images.documents.manifests import (
    MOST_MANIFEST_BYTES,
    BadManifest,
    Index,
    Machine,
    Manifest,
    choose,
    parse_manifest,
    this_machine,
    x86_variants,
)

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DIGEST = "sha256:" + "ab" * 32
AMD64 = Machine("amd64", ("", "v1"))


def descriptor(media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 10, **more}


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG),
        "layers": [descriptor(OCI_LAYER)],
        **changes,
    }


def index(*manifests: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests, **changes}


def on(system: str, architecture: str, digit: str, **more: Any) -> dict[str, Any]:
    platform = {"os": system, "architecture": architecture, **more}
    return descriptor(OCI_MANIFEST, platform=platform) | {"digest": "sha256:" + digit * 64}


def read(document: Any, content_type: str = OCI_MANIFEST) -> Manifest | Index:
    return parse_manifest(json.dumps(document).encode(), content_type)


def chosen(*manifests: dict[str, Any], machine: Machine = AMD64) -> str:
    found = read(index(*manifests), OCI_INDEX)
    assert isinstance(found, Index)
    return choose(found, machine).digest[7]


def test_a_manifest_of_either_format_is_read() -> None:
    docker = manifest(
        mediaType=DOCKER_MANIFEST,
        config=descriptor("application/vnd.docker.container.image.v1+json"),
        layers=[descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip")] * 2,
    )

    assert isinstance(read(manifest()), Manifest)
    assert isinstance(read(docker, DOCKER_MANIFEST + "; charset=utf-8"), Manifest)
    assert isinstance(read(index(mediaType=DOCKER_INDEX), DOCKER_INDEX), Index)


def test_an_oci_document_need_not_say_what_it_is_but_one_of_docker_does() -> None:
    document = manifest()
    del document["mediaType"]

    assert isinstance(read(document), Manifest)
    with pytest.raises(BadManifest, match="does not say so"):
        read(document, DOCKER_MANIFEST)


@pytest.mark.parametrize(
    ("document", "content_type", "fault"),
    [
        (manifest(manifests=[]), OCI_MANIFEST, "at once"),
        (index(layers=[]), OCI_INDEX, "at once"),
        (index(config=descriptor(OCI_CONFIG)), OCI_INDEX, "at once"),
        (manifest(), OCI_INDEX, "says that it is"),
        (index(), OCI_MANIFEST, "says that it is"),
        (manifest(), DOCKER_MANIFEST, "says that it is"),
        (manifest(), "application/json", "no image"),
        (manifest(), "", "no image"),
        ({"schemaVersion": 1, "fsLayers": []}, OCI_MANIFEST, "schema 1"),
        (manifest(fsLayers=[]), OCI_MANIFEST, "schema 1"),
        (
            {"schemaVersion": 1},
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "schema 1",
        ),
        (manifest(schemaVersion=3), OCI_MANIFEST, "schema version 3"),
        (manifest(layers=[descriptor(OCI_LAYER)] * 129), OCI_MANIFEST, "not valid"),
        (manifest(layers=[descriptor("text/plain")]), OCI_MANIFEST, "layer of type"),
        (manifest(layers=[descriptor(OCI_MANIFEST)]), OCI_MANIFEST, "layer of type"),
        (manifest(config=descriptor("application/vnd.helm+json")), OCI_MANIFEST, "no image"),
        (manifest(config=descriptor(OCI_CONFIG, size=-1)), OCI_MANIFEST, "not valid"),
        (manifest(config=descriptor(OCI_CONFIG, size=2**63)), OCI_MANIFEST, "not valid"),
        (manifest(config=descriptor(OCI_CONFIG, size="1")), OCI_MANIFEST, "not valid"),
        (
            manifest(config=descriptor(OCI_CONFIG) | {"digest": "sha256:../../x"}),
            OCI_MANIFEST,
            "not valid",
        ),
        (
            manifest(config=descriptor(OCI_CONFIG) | {"digest": DIGEST + "\n"}),
            OCI_MANIFEST,
            "not valid",
        ),
        ([], OCI_MANIFEST, "not valid"),
        (manifest(annotations="x" * MOST_MANIFEST_BYTES), OCI_MANIFEST, "larger than"),
    ],
)
@pytest.mark.attack(67, 68, 69)
def test_a_document_that_is_ambiguous_or_out_of_bounds_is_refused(
    document: Any, content_type: str, fault: str
) -> None:
    with pytest.raises(BadManifest, match=fault):
        read(document, content_type)


@pytest.mark.attack(69)
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"null"])
def test_what_is_no_document_is_refused(content: bytes) -> None:
    with pytest.raises(BadManifest, match="not valid"):
        parse_manifest(content, OCI_MANIFEST)


@settings(deadline=None, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_our_own_words(content: bytes) -> None:
    with pytest.raises(BadManifest):
        parse_manifest(content, OCI_MANIFEST)
    with pytest.raises(BadManifest):
        parse_configuration(content, AMD64, 1)


def test_the_manifest_for_this_machine_is_chosen() -> None:
    arm = Machine("arm64", ("v8", ""))
    both = [on("linux", "arm64", "1", variant="v8"), on("linux", "amd64", "2")]

    assert chosen(*both) == "2"
    assert chosen(*both, machine=arm) == "1"
    assert chosen(on("windows", "amd64", "3"), on("linux", "amd64", "4", variant="v1")) == "4"
    assert chosen(on("linux", "amd64", "5", variant="v3"), on("linux", "amd64", "6")) == "6"
    assert chosen(on("linux", "amd64", "7"), on("linux", "amd64", "8")) == "7"


V1 = frozenset({"lm"})
V2 = V1 | {"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"}
V3 = V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
V4 = V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}


def test_of_several_levels_of_a_cpu_the_best_is_chosen_that_it_can_run() -> None:
    offered = [
        on("linux", "amd64", "0"),
        *(on("linux", "amd64", digit, variant=f"v{digit}") for digit in "1234"),
    ]

    def of(flags: frozenset[str], *among: dict[str, Any]) -> str:
        return chosen(*among, machine=Machine("amd64", x86_variants(flags)))

    assert [of(flags, *offered) for flags in (V1, V2, V3, V4)] == ["1", "2", "3", "4"]
    assert of(V4 - {"movbe"}, *offered) == "2"
    assert of(V3, offered[0], offered[4]) == "0"
    with pytest.raises(BadManifest, match="no image for linux/amd64; it has: linux/amd64/v3"):
        of(V2, offered[3])


def test_this_machine_runs_what_names_no_level() -> None:
    assert "" in this_machine().variants


def test_an_attestation_is_not_an_image() -> None:
    attestation = on("linux", "amd64", "1")
    attestation["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}

    assert chosen(on("unknown", "unknown", "3"), attestation, on("linux", "amd64", "2")) == "2"


def test_an_index_without_an_image_for_this_machine_says_what_it_has() -> None:
    with pytest.raises(BadManifest, match="no image for linux/amd64; it has: linux/s390x"):
        chosen(on("linux", "s390x", "1"))


@pytest.mark.attack(69)
def test_an_index_in_an_index_is_refused() -> None:
    with pytest.raises(BadManifest, match="no manifest"):
        chosen(on("linux", "amd64", "1") | {"mediaType": OCI_INDEX})


def configured(run: Any = None, **changes: Any) -> Configuration:
    document = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        "config": run,
        **changes,
    }
    return parse_configuration(json.dumps(document).encode(), AMD64, 1)


def test_a_configuration_says_how_an_image_is_run() -> None:
    found = configured(
        {
            "User": "app:staff",
            "Env": ["A=1", "B=x=y", "A=2"],
            "Entrypoint": ["/run"],
            "Cmd": None,
            "WorkingDir": "/srv//app/.",
            "Volumes": {"/": {}},
            "Healthcheck": {"Interval": 1},
            "Labels": None,
        }
    )

    assert found == Configuration(
        (DIGEST,), "app:staff", {"A": "2", "B": "x=y"}, ("/run",), (), "/srv/app", signal.SIGTERM
    )
    assert configured(None) == Configuration((DIGEST,), "", {}, (), (), "/", signal.SIGTERM)


@pytest.mark.parametrize(
    ("run", "changes"),
    [
        ({"Env": ["A"]}, {}),
        ({"Env": ["=1"]}, {}),
        ({"Env": ["A=\0"]}, {}),
        ({"Env": ["A=1"] * 1025}, {}),
        ({"Env": {"A": "1"}}, {}),
        ({"Cmd": "sh"}, {}),
        ({"Cmd": ["a\0b"]}, {}),
        ({"Cmd": ["x" * 131_072]}, {}),
        ({"Cmd": ["x" * 131_071] * 9}, {}),
        ({"Entrypoint": [1]}, {}),
        ({"WorkingDir": "work"}, {}),
        ({"WorkingDir": "/a/../../b"}, {}),
        ({"WorkingDir": "/" * 4096}, {}),
        ({"User": "u" * 257}, {}),
        ({}, {"architecture": "arm64"}),
        ({}, {"os": "windows"}),
        ({}, {"rootfs": {"type": "layers", "diff_ids": []}}),
        ({}, {"rootfs": {"type": "layers", "diff_ids": [DIGEST, DIGEST]}}),
        ({}, {"rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}}),
        ({}, {"rootfs": {"type": "windows", "diff_ids": [DIGEST]}}),
        ({}, {"rootfs": None}),
    ],
)
@pytest.mark.attack(74)
def test_a_malicious_configuration_is_refused(run: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(BadManifest):
        configured(run, **changes)
