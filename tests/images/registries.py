"""Images made here, and registries to pull them from: one that does what a test says, and Debian's docker-registry."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from host_tests import host_required
from image_bench import uncompressed
from ports import free_port
from waiting import wait_for

from sandboxd.images.documents.manifests import this_machine
from sandboxd.images.registries.terms import Patience

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
BRIEF = Patience(
    connect_seconds=5.0,
    read_seconds=15.0,
    tries=3,
    first_wait_seconds=0.01,
    most_wait_seconds=0.05,
    grace_seconds=10.0,
)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Made(NamedTuple):
    """An image: what a registry has of it."""

    blobs: dict[str, bytes]
    manifest: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def make_image(
    *layers: bytes, run: dict[str, Any] | None = None, docker: bool = False, **config: Any
) -> Made:
    """Of layers as they are given, compressed or not."""
    document = {
        "architecture": this_machine().architecture,
        "os": "linux",
        "config": run,
        "rootfs": {
            "type": "layers",
            "diff_ids": [digest_of(uncompressed(layer)) for layer in layers],
        },
        **config,
    }
    encoded = json.dumps(document).encode()
    media_type = DOCKER + "distribution.manifest.v2+json" if docker else OCI + "manifest.v1+json"
    config_type = DOCKER + "container.image.v1+json" if docker else OCI + "config.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": described(encoded, config_type),
        "layers": [described(layer, layer_type(layer, docker=docker)) for layer in layers],
    }
    blobs = {digest_of(content): content for content in (encoded, *layers)}
    return Made(blobs, json.dumps(manifest).encode(), media_type)


def described(content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content), **more}


def layer_type(layer: bytes, *, docker: bool) -> str:
    if layer[:2] == b"\x1f\x8b":
        suffix = ".gzip" if docker else "+gzip"
    elif layer[:4] == b"\x28\xb5\x2f\xfd":
        suffix = ".zstd" if docker else "+zstd"
    else:
        suffix = ""
    return (DOCKER + "image.rootfs.diff.tar" if docker else OCI + "layer.v1.tar") + suffix


def make_index(*images: tuple[Made, dict[str, str]], docker: bool = False) -> Made:
    media_type = DOCKER + "distribution.manifest.list.v2+json" if docker else OCI + "index.v1+json"
    manifests = [
        described(image.manifest, image.media_type, platform=platform) for image, platform in images
    ]
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    return Made({}, json.dumps(document).encode(), media_type)


class Asked(NamedTuple):
    """A request that came."""

    path: str
    headers: dict[str, str]
    method: str = "GET"
    content: bytes = b""


Route = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One request: to be answered by the route of its path."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        stub = self.server.stub
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k.lower(): v for k, v in self.headers.items()}
        stub.asked.append(Asked(self.path, headers, self.command, content))
        route = stub.routes.get(self.path.partition("?")[0])
        with contextlib.suppress(ConnectionError):
            if route is None:
                self.answer(404, b"{}")
            else:
                route(self)

    do_POST = do_PUT = do_HEAD = do_GET

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    stub: "Stub"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what the tests are about."""


class Stub:
    """A registry that answers what a test says, on loopback."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.asked: list[Asked] = []
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.stub = self
        self.authority = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def speak_tls(self, key: Path, certificate: Path) -> None:
        """From now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def offer(self, image: Made, name: str = "team/tools", tag: str = "1") -> str:
        """Serve an image. Returns its reference."""
        for target in (tag, image.digest):
            self.routes[f"/v2/{name}/manifests/{target}"] = document(
                image.manifest, image.media_type
            )
        for digest, content in image.blobs.items():
            self.routes[f"/v2/{name}/blobs/{digest}"] = document(content)
        return f"{self.authority}/{name}:{tag}"

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]


def document(content: bytes, media_type: str = "application/octet-stream") -> Route:
    return lambda handler: handler.answer(200, content, Content_Type=media_type)


def needs(stub: Stub, image: Made, authorization: str, challenge: str) -> None:
    """Serve the image to who has this authorization; challenge everybody else."""
    stub.offer(image)
    for path, route in list(stub.routes.items()):

        def guarded(handler: Handler, route: Any = route) -> None:
            if handler.headers.get("Authorization") == authorization:
                route(handler)
            else:
                handler.answer(401, b"{}", WWW_Authenticate=challenge)

        stub.routes[path] = guarded


@contextlib.contextmanager
def a_stub() -> Iterator[Stub]:
    stub = Stub()
    try:
        yield stub
    finally:
        stub.close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with a_stub() as made:
        yield made


# Debian's registry

USERNAME, PASSWORD = "puller", "correct horse"
HTPASSWD = "puller:$2b$04$fzIRISKtY7xDEEJL5eITK.jTAYk2xkGS13BEB1E1zzg9fwGfMoZkO\n"
BASIC = "Basic " + base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()


class Registry:
    """A docker-registry process, and how a test puts images into it."""

    def __init__(
        self, authority: str, authorization: str | None, trusted: ssl.SSLContext | None = None
    ) -> None:
        self.authority = authority
        self._headers = {} if authorization is None else {"Authorization": authorization}
        self._trusted = trusted

    def push(self, image: Made, name: str = "team/tools", tag: str = "1") -> str:
        """By plain requests. Returns its reference."""
        for digest, content in image.blobs.items():
            place = self._ask("POST", f"/v2/{name}/blobs/uploads/", b"", "", 202)
            path = place.partition(self.authority)[2] or place
            joint = "&" if "?" in path else "?"
            where = f"{path}{joint}digest={digest}"
            self._ask("PUT", where, content, "application/octet-stream", 201)
        for target in (image.digest, tag):
            where = f"/v2/{name}/manifests/{target}"
            self._ask("PUT", where, image.manifest, image.media_type, 201)
        return f"{self.authority}/{name}:{tag}"

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            with contextlib.closing(self._connect()) as there:
                there.request("GET", "/v2/")
                return there.getresponse().status in (200, 401)
        except OSError:
            return False

    def _connect(self) -> http.client.HTTPConnection:
        if self._trusted is None:
            return http.client.HTTPConnection(self.authority, timeout=30)
        return http.client.HTTPSConnection(self.authority, timeout=30, context=self._trusted)

    def _ask(self, method: str, path: str, content: bytes, media_type: str, expected: int) -> str:
        """Where it says that we go on."""
        headers = {**self._headers, "Content-Type": media_type}
        with contextlib.closing(self._connect()) as there:
            there.request(method, path, content, headers)
            answer = there.getresponse()
            said = answer.read()
        assert answer.status == expected, said
        return answer.headers.get("Location", "")


def settings_of_a_registry(
    directory: Path,
    port: int,
    htpasswd: str | None,
    tokens: dict[str, str] | None,
    certified: tuple[Path, Path] | None,
    mirrored: str | None,
) -> str:
    """Its configuration, which is YAML: JSON is, too."""
    http: dict[str, Any] = {"addr": f"127.0.0.1:{port}"}
    auth: dict[str, Any] = {}
    if htpasswd is not None:
        (directory / "htpasswd").write_text(htpasswd)
        auth["htpasswd"] = {"realm": "test", "path": str(directory / "htpasswd")}
    if tokens is not None:
        auth["token"] = tokens
    if certified is not None:
        http["tls"] = dict(zip(("key", "certificate"), map(str, certified), strict=True))
    content = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": http,
        **({"auth": auth} if auth else {}),
        **({"proxy": {"remoteurl": mirrored}} if mirrored else {}),
    }
    return json.dumps(content)


@contextlib.contextmanager
def a_registry(
    directory: Path,
    htpasswd: str | None = None,
    *,
    tokens: dict[str, str] | None = None,
    authorization: str = BASIC,
    certified: tuple[Path, Path] | None = None,
    trusted: ssl.SSLContext | None = None,
    mirrored: str | None = None,
) -> Iterator[Registry]:
    """docker-registry on a port of loopback; with `htpasswd` for who has a password there only, with `tokens` for who has a token of that
    service. `mirrored`: URL of the registry that it is a mirror of. `certified`: key and certificate for HTTPS, `trusted`: who made them."""
    program = shutil.which("docker-registry")
    if program is None:
        host_required("docker-registry is not installed")
    port = free_port()
    text = settings_of_a_registry(directory, port, htpasswd, tokens, certified, mirrored)
    (directory / "registry.yml").write_text(text)
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(directory / "registry.yml")],
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
            stdout=log,
            stderr=log,
        )
    try:
        closed = htpasswd is not None or tokens is not None
        registry = Registry(f"127.0.0.1:{port}", authorization if closed else None, trusted)
        wait_for(registry.answers, "the registry answers")
        yield registry
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """For anybody, over plain HTTP."""
    with a_registry(tmp_path) as made:
        yield made


class Passing(BaseHTTPRequestHandler):
    """One request on its way to the registry behind, and the answer back."""

    protocol_version = "HTTP/1.1"
    server: "PassingServer"

    def do_GET(self) -> None:
        proxy = self.server.proxy
        proxy.asked.append(self.path)
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            for part, gate in list(proxy.gates.items()):
                if part in self.path:
                    gate.wait(60)
            self._pass_on(proxy.behind)

    def _pass_on(self, behind: str) -> None:
        with contextlib.closing(http.client.HTTPConnection(behind, timeout=30)) as there:
            there.request("GET", self.path, headers=dict(self.headers))
            answer = there.getresponse()
            content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class PassingServer(ThreadingHTTPServer):
    daemon_threads = True
    proxy: "Proxy"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what the tests are about."""


class Proxy:
    """In front of a registry: counts what is asked, and holds requests as long as a test wants."""

    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.asked: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.server = PassingServer(("127.0.0.1", 0), Passing)
        self.server.proxy = self
        self.authority = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def hold(self, part: str) -> threading.Event:
        """Requests with this in their path are answered only when the event is set."""
        return self.gates.setdefault(part, threading.Event())

    def count(self, part: str) -> int:
        return sum(part in path for path in list(self.asked))

    def close(self) -> None:
        for gate in self.gates.values():
            gate.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@contextlib.contextmanager
def a_proxy(behind: Registry) -> Iterator[Proxy]:
    proxy = Proxy(behind.authority)
    try:
        yield proxy
    finally:
        proxy.close()
