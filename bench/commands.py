"""Rows of sandboxd for one command at a time: parked, cold, with files, in a pulled image, on the command line, in a live sandbox."""

import contextlib
import functools
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

from peers import last_line
from rows import PAUSE_SECONDS, Block, Ground, NotHereError, each_alone, program
from service import (
    JOB,
    TRUE,
    MeasuredService,
    WentWrongError,
    archives,
    ask,
    byte_code,
    job_done,
    registries,
    running_service,
)

WARM_UP = 20
COLD_DISK_BYTES = 64 * 2**20
COLD_STEP_BYTES = 2**16
"""Each cold job has a scratch of a size of its own, so that no sandbox of its shape was ever asked for."""
FILES = 10
PYTHON = next(
    (path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists()), ""
)
PRINT = (PYTHON, "-c", "print(1)")
LIFE_SECONDS = 3600


@contextlib.contextmanager
def parked(ground: Ground) -> Iterator[Block]:
    with contextlib.closing(ground.service().connection()) as connection:
        yield warm(connection, lambda: job_done(connection, json.dumps(JOB)))


@contextlib.contextmanager
def cold(ground: Ground) -> Iterator[Block]:
    sizes = itertools.count(COLD_DISK_BYTES + COLD_STEP_BYTES, COLD_STEP_BYTES)

    def job(connection: HTTPConnection) -> None:
        done = job_done(connection, json.dumps(JOB | {"limits": {"disk": next(sizes)}}))
        if done["usage"]["warm"]:
            raise WentWrongError("a job that was to be cold found a parked sandbox")

    with contextlib.closing(ground.service().connection()) as connection:
        job(connection)
        yield over(connection, functools.partial(job, connection))


@contextlib.contextmanager
def with_files(ground: Ground) -> Iterator[Block]:
    """Ten files of a kilobyte in, one out and kept."""
    files = [{"path": f"{n}.txt", "content": f"{n}\n" * 512} for n in range(FILES)]
    job = JOB | {"command": ["cp", "1.txt", "out"], "files": files, "outputs": ["out"]}
    with contextlib.closing(ground.service().connection()) as connection:
        yield warm(connection, lambda: job_done(connection, json.dumps(job)))


@contextlib.contextmanager
def print_one(ground: Ground) -> Iterator[Block]:
    job = JOB | {"command": PRINT}
    with contextlib.closing(ground.service().connection()) as connection:
        yield warm(connection, lambda: job_done(connection, json.dumps(job)))


@contextlib.contextmanager
def pulled(ground: Ground) -> Iterator[Block]:
    """An image of three layers, from a registry on loopback."""
    service = ground.service()
    reference = pull(service, ground.directory)
    with contextlib.closing(service.connection()) as connection:
        yield warm(connection, lambda: job_done(connection, json.dumps(JOB | {"image": reference})))


def by_runtime(name: str) -> Callable[[Ground], contextlib.AbstractContextManager[Block]]:
    """A service of its own, whose jobs an OCI runtime starts."""

    @contextlib.contextmanager
    def opened(ground: Ground) -> Iterator[Block]:
        path = program(name, name)
        with (
            running_service(ground.data_dir, settings={f"runtimes_{name}_path": path}) as service,
            contextlib.closing(service.connection()) as connection,
        ):
            request = json.dumps(JOB | {"runtime": name})
            said = ask(connection, "POST", "/v1/jobs", request)
            if said.get("state") != "succeeded":
                raise NotHereError(f"{name}: {said.get('detail') or said['error']['message']}")
            yield warm(connection, lambda: job_done(connection, request))

    return opened


@contextlib.contextmanager
def by_command_line(_: Ground) -> Iterator[Block]:
    """`sandboxd run` without a service: everything is started for one command."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-", dir="/var/tmp") as data:
        settings = {**os.environ, **byte_code()}
        words = [sys.executable, "-m", "sandboxd", "run", "--data-dir", data, "--", TRUE]
        first = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
        if first.returncode != 0:
            raise NotHereError(f"sandboxd run fails: {last_line(first.stderr)}")
        yield each_alone(lambda: subprocess.run(words, env=settings, check=True))


@contextlib.contextmanager
def in_live_sandbox(ground: Ground, pause_seconds: float = PAUSE_SECONDS) -> Iterator[Block]:
    with contextlib.closing(ground.service().connection()) as connection:
        life = json.dumps({"ttl_seconds": LIFE_SECONDS, "idle_seconds": LIFE_SECONDS})
        sandbox = ask(connection, "POST", "/v1/sandboxes", life)
        path = f"/v1/sandboxes/{sandbox['id']}"
        command = json.dumps({"command": [TRUE]})

        def one() -> None:
            done = ask(connection, "POST", f"{path}/exec", command)
            if done["state"] != "succeeded":
                raise WentWrongError(f"the command did not succeed: {json.dumps(done)}")

        try:
            yield warm(connection, one, pause_seconds)
        finally:
            connection.close()
            connection.request("DELETE", path)
            connection.getresponse().read()


in_live_sandbox_in_a_row = functools.partial(in_live_sandbox, pause_seconds=0.0)


def warm(
    connection: HTTPConnection,
    action: Callable[[], object],
    pause_seconds: float = PAUSE_SECONDS,
) -> Block:
    """Runs, each alone, once everything that a first one needs is there."""
    block = over(connection, action, pause_seconds)
    block(WARM_UP)
    return block


def over(
    connection: HTTPConnection,
    action: Callable[[], object],
    pause_seconds: float = PAUSE_SECONDS,
) -> Block:
    """Each block on a new connection: the service closes one that was idle while others had their turn."""
    block = each_alone(action, pause_seconds)

    def connected(runs: int) -> list[float]:
        connection.close()
        connection.connect()
        return block(runs)

    return connected


def pull(service: MeasuredService, scratch: Path) -> str:
    """Offer an image on loopback and pull it. Returns its reference."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise NotHereError("busybox is not installed (Debian: busybox-static)")
    entry, folder = archives.entry, archives.directory
    layers = (
        (folder("bin"), entry("bin/busybox", Path(busybox).read_bytes(), mode=0o755)),
        (archives.link("bin/true", "busybox"), folder("srv"), entry("srv/gone")),
        (entry("srv/.wh.gone"), entry("srv/there", b"there\n")),
    )
    packed = [gzip.compress(archives.packed(*layer)) for layer in layers]
    with registries.a_stub() as registry:
        reference = registry.offer(registries.make_image(*packed))
        config = scratch / "registry.toml"
        config.write_text(f'[registries."{registry.authority}"]\ninsecure = true\n')
        done = service.command("images", "pull", reference, "--config", str(config))
    if done.returncode != 0:
        raise NotHereError(f"the image was not pulled: {last_line(done.stderr)}")
    return reference
