"""A service whose jobs have egress, in a small internet of the test's own (`world`)."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
from running_service import RunningService

from sandboxd.client import Client

WORLD = Path(__file__).parent / "world.py"
OPENED = ("10.1.2.3:443", "fd00:ec2::254", "192.168.1.0/24:80")
"""Of what is closed; the operator of the tests opens it."""
DENIED = ("198.51.100.0/24",)
RATE_BYTES = 8 * 2**20


class ServiceInWorld(RunningService):
    """`sandboxd serve` in the world's first half; its clients, outside, reach it by a socket file."""

    def __init__(self, data_dir: Path, world: int, *, path: str = "", **settings: Any) -> None:
        """`path` is its PATH, where it is not ours."""
        self._path = path
        self.socket = data_dir.with_name("api.socket")
        super().__init__(
            data_dir,
            flags=("--no-auth", "--listen", f"unix:{self.socket}"),
            prefix=(sys.executable, str(WORLD), str(world)),
            **settings,
        )

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | ({"PATH": self._path} if self._path else {})

    @property
    def url(self) -> str:
        return f"unix:{self.socket}"

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the service ended:\n{self.log_file.read_text()}"
        if not self.socket.exists():
            return False
        try:
            with self.http() as http:
                return http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def launcher(self) -> psutil.Process:
        """The service has other children here: pasta, and nft for a moment."""
        children = psutil.Process(self.process.pid).children()
        (launcher,) = [each for each in children if each.name() == "sandboxd"]
        return launcher

    def http(self, key: str | None = None) -> httpx2.Client:
        return httpx2.Client(
            base_url="http://sandboxd", transport=httpx2.HTTPTransport(uds=str(self.socket))
        )


class Jobs:
    """Runs Python programs in jobs with egress."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def run(self, source: str, *, allow: Sequence[str] | None = None, **options: Any) -> Any:
        """The job of a program that has `reach(…)` and `resolve(…)` at hand."""
        network: dict[str, Any] = {"mode": "egress"}
        if allow is not None:
            network["allow"] = list(allow)
        return self.client.run(["python3", "-c", f"{TOOLS}\n{source}"], network=network, **options)

    def tell(self, source: str, *, allow: Sequence[str] | None = None, **options: Any) -> Any:
        """What the program prints as JSON."""
        job = self.run(source, allow=allow, **options)
        assert job.exit_code == 0, (job.error, job.stderr, job.stdout)
        return json.loads(job.text)


TOOLS = '''
import errno, json, socket, time
def reach(host, port, kind="tcp"):
    """(what it says or the word of the error, seconds)"""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as made:
        made.settimeout(5)
        began = time.monotonic()
        try:
            made.connect((host, port))
            if kind == "udp":
                made.send(b"hello")
            said = made.recv(100).decode()
        except OSError as error:
            said = errno.errorcode.get(error.errno, repr(error))
        return said.strip(), time.monotonic() - began
def resolve(name, family=0):
    try:
        return sorted({found[4][0] for found in socket.getaddrinfo(name, 80, family)})
    except socket.gaierror as error:
        return error.errno
'''
