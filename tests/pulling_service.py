"""A service, a registry that it knows, and images there that nobody has yet."""

import gzip
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import patient_http
import pytest
from archives import directory, entry, link, packed
from host_tests import host_required
from registries import OCI, Made, Proxy, Registry, a_proxy, a_registry, make_image
from running_service import RunningService, running_service

from sandboxd.client import Client, Job

SLOTS = 2
RUN = {"Env": ["PATH=/bin"], "Entrypoint": ["cat"], "Cmd": ["/mark"]}
_numbers = itertools.count()


class Pulling(NamedTuple):
    """A service, and the registry that it knows."""

    service: RunningService
    registry: Registry
    proxy: Proxy
    client: Client
    config: Path

    def push(self, mark: str = "here", run: dict[str, Any] | None = RUN, tag: str = "1") -> str:
        """A new image whose layers nobody has. Its reference."""
        return self.push_as(f"team/image{next(_numbers)}", mark, run, tag)

    def push_as(
        self, name: str, mark: str, run: dict[str, Any] | None = RUN, tag: str = "1"
    ) -> str:
        self.registry.push(image_of(name, mark, run), name, tag)
        return f"{self.proxy.authority}/{name}:{tag}"

    def layers(self, reference: str) -> list[str]:
        """The digests of its layers, the lowest first."""
        path, _, tag = reference.partition("/")[2].rpartition(":")
        answer = patient_http.get(
            f"http://{self.registry.authority}/v2/{path}/manifests/{tag}",
            headers={"Accept": f"{OCI}manifest.v1+json"},
        )
        return [layer["digest"] for layer in answer.json()["layers"]]

    def reasons(self, job: Job) -> list[str]:
        return [str(event.reason) for event in self.client.events(job.id)]

    def capacity(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.system()["capacity"]
        return found


def image_of(name: str, mark: str, run: dict[str, Any] | None) -> Made:
    """With layers of its own. Its command prints the mark and the name."""
    busybox = Path(shutil.which("busybox") or host_required("busybox-static is not installed"))
    base = packed(
        directory("bin"),
        entry("bin/busybox", busybox.resolve().read_bytes(), mode=0o755),
        *(link(f"bin/{applet}", "busybox") for applet in ("sh", "cat", "sleep")),
        entry("name", name.encode()),  # A layer that no other image has.
    )
    above = packed(entry("mark", f"{mark} {name}\n".encode()))
    return make_image(*(gzip.compress(each, mtime=0) for each in (base, above)), run=run)


@contextmanager
def a_pulling_service(where: Path, *more: str) -> Iterator[Pulling]:
    """`more`: lines of its settings file."""
    with a_registry(where) as registry, a_proxy(registry) as proxy:
        config = where / "config.toml"
        # The registry itself for pushes, which the proxy does not pass on.
        known = (proxy.authority, registry.authority)
        sections = [f'[registries."{each}"]\ninsecure = true\n' for each in known]
        config.write_text("\n".join([*more, *sections]))
        flags = ("--no-auth", "--slots", str(SLOTS), "--config", str(config))
        with running_service(flags=flags) as service, service.client() as client:
            yield Pulling(service, registry, proxy, client, config)
            service.assert_nothing_left(client)


@pytest.fixture(scope="module")
def pulling(prepared_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulling]:
    with a_pulling_service(tmp_path_factory.mktemp("registry")) as made:
        yield made


def name_of(reference: str) -> str:
    return reference.partition("/")[2].rpartition(":")[0]


def hold(pulling: Pulling, reference: str) -> Any:
    """Its layers do not come until the gate is set."""
    return pulling.proxy.hold(f"{name_of(reference)}/blobs")
