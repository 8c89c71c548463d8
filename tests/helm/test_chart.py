"""The chart renders, lints, validates and refuses nonsense; Helm's own SDK does the work, no cluster is needed."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from sandboxd import __version__
from sandboxd.settings import SECRETS
from sandboxd.settings_loader import fields, load_settings

TREE = Path(__file__).parents[2]
CHART = TREE / "helm" / "sandboxd"
CASES = sorted(path.name for path in (CHART / "ci").glob("*-values.yaml"))
KUBERNETES_VERSIONS = ["1.33", "1.35", "1.37"]
WITHOUT_SCHEMA = {"ServiceMonitor"}
"""Kinds of other projects' CRDs, which the validator does not know."""
CHART_SETS = {"server.listen", "server.metrics_listen", "server.auth", "store.data_dir"}

Manifest = dict[str, Any]


def values_of(case: str) -> dict[str, Any]:
    values = yaml.safe_load((CHART / "ci" / case).read_text())
    assert isinstance(values, dict)
    return values


def render(values: dict[str, Any]) -> list[Manifest]:
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="demo", namespace="prod")
    return [
        manifest
        for path, text in files.items()
        if path.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pod_of(values: dict[str, Any]) -> Manifest:
    pod = only(render(values), "Deployment")["spec"]["template"]
    assert isinstance(pod, dict)
    return pod


def notes(values: dict[str, Any]) -> str:
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="demo", namespace="prod")
    return str(files["sandboxd/templates/NOTES.txt"])


def changed(path: str, value: Any) -> dict[str, Any]:
    words = path.split(".")
    for word in reversed(words):
        value = {word: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("case", CASES)
def test_lint_finds_nothing_wrong(case: str) -> None:
    report = helm.lint(str(CHART), values_of(case))

    warnings = [message for message in report["messages"] if message["severity"] >= 2]
    assert warnings == []
    assert report["errors"] == []


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_manifest_is_valid_kubernetes(case: str, version: str) -> None:
    manifests = render(values_of(case))

    assert manifests
    for manifest in manifests:
        if manifest["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_labelled_and_in_the_release_namespace(case: str) -> None:
    for manifest in render(values_of(case)):
        assert manifest["metadata"]["namespace"] == "prod"
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "demo"
        assert manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


@pytest.mark.parametrize("case", CASES)
def test_service_and_network_policy_select_the_pod(case: str) -> None:
    manifests = render(values_of(case))
    labels = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"].items()

    assert only(manifests, "Service")["spec"]["selector"].items() <= labels
    for manifest in manifests:
        if manifest["kind"] == "NetworkPolicy":
            assert manifest["spec"]["podSelector"]["matchLabels"].items() <= labels


@pytest.mark.parametrize("case", CASES)
def test_the_settings_in_the_config_map_are_accepted_by_sandboxd(case: str, tmp_path: Path) -> None:
    config = only(render(values_of(case)), "ConfigMap")["data"]["config.toml"]
    file = tmp_path / "config.toml"
    file.write_text(config)

    loaded = load_settings({}, {}, config_file=str(file))

    assert loaded.settings.server.listen == "0.0.0.0:8080"
    assert loaded.settings.server.auth is True
    assert loaded.settings.store.data_dir == "/var/lib/sandboxd"


def test_numbers_reach_the_settings_unharmed() -> None:
    config = only(render(values_of("full-values.yaml")), "ConfigMap")["data"]["config.toml"]
    sections = tomllib.loads(config)

    assert sections["limits"] == {"memory_bytes": 134217728, "cpus": 0.5}
    assert sections["server"]["shutdown_grace_seconds"] == 20.5
    assert sections["scheduler"]["slots"] == 8


def test_the_schema_knows_every_setting_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    in_schema = {
        f"{section}.{name}"
        for section, part in schema["properties"]["config"]["properties"].items()
        for name in part["properties"]
    }

    # A secret does not go into a ConfigMap: it comes as a variable (`extraEnv`).
    settings = {key for key in fields() if not key.startswith("client.") and key not in SECRETS}
    assert in_schema == settings - CHART_SETS


def test_a_change_of_the_settings_starts_a_new_pod() -> None:
    before = pod_of({})["metadata"]["annotations"]["checksum/config"]
    after = pod_of({"config": {"scheduler": {"slots": 3}}})["metadata"]["annotations"]

    assert after["checksum/config"] != before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replicaCount", 2),
        ("replicaCount", "1"),
        ("zzz", True),
        ("image.pullPolicy", "Sometimes"),
        ("image.digest", "latest"),
        ("service.port", 0),
        ("service.type", "ExternalName"),
        ("persistence.enabled", "yes"),
        ("isolation.seccompProfile", {"type": "None"}),
        ("config.scheduler", {"slot": 3}),
        ("config.scheduler", {"slots": "many"}),
        ("config.server", {"listen": "0.0.0.0:80"}),
        ("config.server", {"auth": False}),
        ("config.limits", {"memory_bytes": "lots"}),
        ("config.isolation", {"id_map": "none"}),
        ("config.nonsense", {}),
        ("terminationGracePeriodSeconds", 0),
    ],
)
def test_a_wrong_value_is_refused_by_name(path: str, value: Any) -> None:
    with pytest.raises(helm.HelmError, match=path.split(".")[0]):
        render(changed(path, value))


@pytest.mark.parametrize("case", CASES)
def test_the_pod_is_no_root_of_the_node_and_none_of_its_own(case: str) -> None:
    spec = pod_of(values_of(case))["spec"]

    assert spec["hostUsers"] is False
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    for container in spec["containers"] + spec.get("initContainers", []):
        assert "privileged" not in container["securityContext"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["procMount"] == "Unmasked"
        assert container["securityContext"]["capabilities"] == {
            "drop": ["ALL"],
            "add": ["SETUID", "SETGID"],
        }


def test_the_first_key_is_made_before_the_service_runs_and_only_if_wanted() -> None:
    made = pod_of({})["spec"]["initContainers"]
    not_made = pod_of({"firstKey": False})["spec"]["initContainers"]

    assert [container["name"] for container in made] == ["check-host", "first-key"]
    assert [container["name"] for container in not_made] == ["check-host"]


def test_two_pods_never_hold_the_same_database() -> None:
    deployment = only(render({}), "Deployment")

    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_nothing_leaves_the_pod_unless_it_is_allowed() -> None:
    policy = only(render({}), "NetworkPolicy")

    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy["spec"]


def test_the_claim_outlives_the_release_unless_told_otherwise() -> None:
    kept = only(render({}), "PersistentVolumeClaim")
    thrown_away = only(render({"persistence": {"keep": False}}), "PersistentVolumeClaim")

    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in thrown_away["metadata"]


def test_an_existing_claim_is_used_and_none_is_made() -> None:
    manifests = render(values_of("existing-claim-values.yaml"))
    volumes = only(manifests, "Deployment")["spec"]["template"]["spec"]["volumes"]

    assert {"claimName": "sandboxd-data"} in [
        volume.get("persistentVolumeClaim") for volume in volumes
    ]
    assert not [manifest for manifest in manifests if manifest["kind"] == "PersistentVolumeClaim"]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"persistence": {"enabled": False}}, "persistence is off"),
        ({"networkPolicy": {"enabled": False}}, "networkPolicy is off"),
        ({"config": {"isolation": {"best_effort": True}}}, "best_effort is set"),
        ({"config": {"isolation": {"id_map": "single"}}}, "id_map is not"),
        ({}, "runtimeClassName is empty"),
    ],
)
def test_the_notes_warn_of_weak_values(values: dict[str, Any], word: str) -> None:
    assert f"WARNING: {word}" not in notes(values_of("full-values.yaml")).replace("\n", " ")

    assert word in notes(values)


def test_the_readme_lists_every_value() -> None:
    made = subprocess.run(
        [sys.executable, TREE / ".ci" / "chart-readme"], capture_output=True, text=True, check=True
    )

    assert made.stdout == (CHART / "README.md").read_text()


def test_every_value_has_a_description() -> None:
    readme = (CHART / "README.md").read_text()
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    for name, value in defaults.items():
        assert f"| `{name}" in readme, name
        if isinstance(value, dict) and name not in ("config", "resources"):
            for inner in value:
                assert f"| `{name}.{inner}" in readme, f"{name}.{inner}"


def test_the_chart_and_the_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["appVersion"] == __version__
