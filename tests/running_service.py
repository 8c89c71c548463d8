"""The real service as a process of its own, started as an operator does, with what it leaves behind in plain sight."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil
from ports import free_port
from waiting import TIME_FACTOR, wait_for

from sandboxd.api.auth import new_key
from sandboxd.cli import database
from sandboxd.client import Client
from sandboxd.quotas.host import probe_host
from sandboxd.settings import StoreSettings

SOURCE = Path(__file__).parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 30.0 * TIME_FACTOR
SECRET_OF_THE_SERVICE = "canary-in-the-environment-of-the-service"
"""In the service's environment; no job may ever see it."""


BLANKS = 2
"""Sandboxes that wait for a shape, as settings come."""


class Leftovers(NamedTuple):
    """What is there besides parked sandboxes. Empty (false) when all is well."""

    busy: int = 0
    queued: int = 0
    processes: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()


def byte_code() -> dict[str, str]:
    """Settings with which programs that we start find compiled what was compiled before."""
    names = ("PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")
    return {name: os.environ[name] for name in names if name in os.environ}


class RunningService:
    """`sandboxd serve` on loopback, on ports and a data directory of its own."""

    def __init__(
        self,
        data_dir: Path,
        *,
        flags: Sequence[str] = ("--no-auth",),
        prefix: Sequence[str] = (),
        **settings: str | int,
    ) -> None:
        """`settings`: `server_max_body_bytes=…` for SANDBOXD_SERVER_MAX_BODY_BYTES and so on.

        `prefix` are words of a command that starts it, such as prlimit(1).
        """
        self.data_dir = data_dir
        self.log_file = data_dir.with_name(f"{data_dir.name}.log")
        self.port, self.metrics_port = free_port(), free_port()
        self._flags = flags
        self._prefix = prefix
        self._settings = settings
        self.process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of the service, and of other commands that are to use its data directory."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        named = {f"SANDBOXD_{name.upper()}": str(value) for name, value in self._settings.items()}
        fixed = {
            "SANDBOXD_CONFIG": "",
            "SANDBOXD_STORE_DATA_DIR": str(self.data_dir),
            "PYTHONPATH": str(SOURCE),
            "SECRET": SECRET_OF_THE_SERVICE,
        }
        return kept | named | fixed | byte_code()

    def start(self) -> "RunningService":
        """Start it and wait until it would take a job."""
        words = ["serve", "--listen", f"127.0.0.1:{self.port}", *self._flags]
        words += ["--metrics-listen", f"127.0.0.1:{self.metrics_port}", "--log-format", "json"]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "sandboxd", *words],
                env=self.environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._is_ready, "the service is ready", seconds=START_SECONDS)
        return self

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the service ended:\n{self.log_file.read_text()}"
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5 * TIME_FACTOR).status_code == 200
        except httpx2.TransportError:
            return False

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """`sandboxd WORDS…` with the same settings."""
        return subprocess.run(
            [sys.executable, "-m", "sandboxd", *words],
            env=self.environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60 * TIME_FACTOR,
            check=False,
        )

    def make_key(self, tenant: str, scopes: Sequence[str] = ("jobs:read", "jobs:write")) -> str:
        """What `sandboxd keys create` makes before the service starts, without a process for each key."""
        text, record = new_key(tenant=tenant, name="k", scopes=tuple(scopes), now=time.time())

        async def write() -> None:
            async with database.opened(StoreSettings(data_dir=str(self.data_dir))) as store:
                await store.create_key(record, one_tenant=False)

        asyncio.run(write())
        return text

    def client(self, key: str | None = None) -> Client:
        return Client(self.url, key=key)

    def http(self, key: str | None = None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60 * TIME_FACTOR)

    # Its ends

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM; assert that it ended in good order and left nothing but its record."""
        everything = self.processes()
        self.terminate()
        code = self.process.wait(STOP_SECONDS)
        log = self.log_file.read_text()
        assert code == 0, log
        assert self.events()[-1]["event"] == "stopped"
        assert "Traceback" not in log, log
        _, alive = psutil.wait_procs(everything, timeout=5 * TIME_FACTOR)
        assert alive == []
        assert self.instance_cgroups() == []
        assert not (self.data_dir / "run").exists()
        assert str(self.data_dir) not in Path("/proc/self/mountinfo").read_text()

    def remove_images(self) -> None:
        """Remove all imported and pulled images, with the service stopped: their files are of subordinate ids."""
        trees = self.data_dir / "images" / "trees"
        if not any(trees.iterdir()):
            return
        records = (self.data_dir / "images").glob("*s/*.json")
        names = sorted({json.loads(record.read_text())["name"] for record in records})
        if names:
            removed = self.command("images", "remove", *names)
            assert removed.returncode == 0, removed.stderr
        if any(trees.iterdir()):
            # What was replaced while a service used it goes at the next start.
            self.start()
            self.stop()
        assert list(trees.iterdir()) == []

    def kill(self) -> None:
        """SIGKILL, as a crash: nothing of it can clean up. Returns when all its processes are gone."""
        everything = self.processes()
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(everything, timeout=10 * TIME_FACTOR)
        assert alive == []

    # What there is of it

    def processes(self) -> list[psutil.Process]:
        """Every process below the service: the launcher, each init, what jobs run."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def launcher(self) -> psutil.Process:
        """Where one has just died, the next one when it is there."""
        (launcher,) = wait_for(psutil.Process(self.process.pid).children, "there is a launcher")
        return launcher

    def inits(self) -> list[psutil.Process]:
        """One for each sandbox, parked and blank ones too."""
        return self.launcher().children()

    def processes_of_jobs(self) -> list[psutil.Process]:
        inits = {init.pid for init in self.inits()}
        found = []
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # Others come and go meanwhile.
                if each.ppid() in inits:
                    found.append(each)
        return found

    def instance_cgroups(self) -> list[Path]:
        """The directories of this instance, one for each hierarchy, as far as they exist."""
        name = hashlib.sha256(os.fsencode(self.data_dir.absolute())).hexdigest()[:16]
        found = {
            Path(os.path.realpath(controller.directory), name)
            for controller in probe_host().controllers.values()
            if controller.directory is not None
        }
        return sorted(path for path in found if path.exists())

    def job_cgroups(self) -> list[Path]:
        """A directory for each sandbox in each hierarchy, parked ones too."""
        return [
            path
            for instance in self.instance_cgroups()
            for path in instance.iterdir()
            if path.is_dir()
        ]

    def leftovers(self, client: Client) -> Leftovers:
        """What is there beyond parked sandboxes; figures of one moment, so look again if there is any."""
        capacity = client.system()["capacity"]
        parked = capacity["parked"] + capacity["blank"]
        hierarchies = len(self.instance_cgroups())
        processes = [f"{each.pid} {' '.join(each.cmdline()).strip()}" for each in self.processes()]
        cgroups = [str(path) for path in self.job_cgroups()]
        return Leftovers(
            capacity["busy"],
            capacity["queued"],
            tuple(processes) if len(processes) != 1 + parked else (),
            tuple(cgroups) if len(cgroups) != hierarchies * parked else (),
        )

    def assert_nothing_left(self, client: Client) -> None:
        """Wait until there is nothing but parked sandboxes."""
        seen: Leftovers | None = None

        def nothing() -> bool:
            nonlocal seen
            try:
                seen = self.leftovers(client)
            except psutil.NoSuchProcess:
                return False  # it ended while we looked
            return seen == Leftovers()

        try:
            wait_for(nothing, "nothing is left")
        except AssertionError as error:
            raise AssertionError(f"left behind: {seen}") from error

    def events(self) -> list[dict[str, Any]]:
        """The service's own log. Lines that are not JSON are not its own: they fail here."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]


@contextmanager
def data_directory() -> Iterator[Path]:
    """A place for a data directory that is on a disk, as in real life: /tmp is often memory."""
    path = Path(tempfile.mkdtemp(prefix="sandboxd-test-", dir="/var/tmp"))
    try:
        yield path / "data"
        shutil.rmtree(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def running_service(
    *,
    flags: Sequence[str] = ("--no-auth",),
    prefix: Sequence[str] = (),
    **settings: str | int,
) -> Iterator[RunningService]:
    """A service for the length of the block. At the end it must stop in good order, and leave nothing."""
    with data_directory() as data_dir:
        service = RunningService(data_dir, flags=flags, prefix=prefix, **settings)
        try:
            yield service.start()
            service.stop()
            service.remove_images()
        finally:
            if service.process.poll() is None:
                service.kill()
