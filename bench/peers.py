"""Rows of other programs: the C floor, bubblewrap, runc, podman, docker-py on podman's service and on dockerd.

All run `/bin/true` as the user of the bench, without root, without a network of the command's own choice but loopback, and from
images and directories of the bench's own: nothing of the user's is touched.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import floor
from rows import Block, Ground, NotHereError, each_alone, program
from service import TRUE

IMAGE = "bench"
START_SECONDS = 20.0
DOCKER_PY = Path(__file__).with_name("docker_py.py")
SYSTEM_PYTHON = "/usr/bin/python3"
"""The one that Debian's python3-docker is for."""


@contextlib.contextmanager
def c_floor(ground: Ground) -> Iterator[Block]:
    made = floor.compiled(ground.directory)
    made.run(1)
    yield lambda runs: [1000 * seconds for seconds in made.run(runs)[0]]


@contextlib.contextmanager
def bwrap(_: Ground) -> Iterator[Block]:
    words = (program("bwrap", "bubblewrap"), "--unshare-all", "--ro-bind", "/", "/", TRUE)
    yield alone_if_it_works(words)


@contextlib.contextmanager
def runc(ground: Ground) -> Iterator[Block]:
    runtime = program("runc", "runc")
    bundle = ground.directory / "bundle"
    root_directory(bundle / "rootfs")
    subprocess.run([runtime, "spec", "--rootless"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": [TRUE]}
    (bundle / "config.json").write_text(json.dumps(config))
    state = str(ground.directory / "runc")
    words = (runtime, "--root", state, "run", "--bundle", str(bundle), f"bench-{os.getpid()}")
    yield alone_if_it_works(words)


@contextlib.contextmanager
def podman_run(_: Ground) -> Iterator[Block]:
    with podman() as (words, environment):
        yield alone_if_it_works((*words, "run", "--rm", "--network=none", IMAGE, TRUE), environment)


@contextlib.contextmanager
def docker_py_on_podman(_: Ground) -> Iterator[Block]:
    check_docker_py()
    with podman() as (words, environment), tempfile.TemporaryDirectory() as directory:
        socket = Path(directory, "podman.sock")
        serve = [*words, "system", "service", "--time=0", f"unix://{socket}"]
        with daemon(serve, environment, socket):
            yield docker_py(socket)


@contextlib.contextmanager
def docker_py_on_dockerd(ground: Ground) -> Iterator[Block]:
    """Debian's docker.io starts a service of root: `make bench` unpacks it and installs nothing. The bench starts one of its own, without root, or none."""
    dockerd = program("dockerd", "docker.io, which also starts a service of root")
    rootless = rootless_script(Path(dockerd))
    check_docker_py()
    with own_home() as environment:
        home = Path(environment["HOME"])
        socket = home / "docker.sock"
        serve = [rootless, f"--host=unix://{socket}", f"--data-root={home}/docker"]
        serve += [f"--exec-root={home}/exec", f"--pidfile={home}/pid", "--iptables=false"]
        try:
            with daemon(serve, environment, socket):
                load_image(socket, ground.directory)
                yield docker_py(socket)
        finally:
            remove_inside(["rootlesskit"], environment, [f"{home}/docker", f"{home}/exec"])


def rootless_script(dockerd: Path) -> str:
    """It comes with dockerd. Raises NotHereError."""
    for name in ("rootlesskit", "slirp4netns"):
        program(name, name)
    beside = dockerd.parents[1] / "share" / "docker.io" / "contrib"
    found = shutil.which("dockerd-rootless.sh", path=f"{os.environ['PATH']}:{beside}")
    if found is None:
        raise NotHereError("dockerd-rootless.sh is not there: dockerd would need root")
    return found


# What they run


def alone_if_it_works(
    words: tuple[str, ...], environment: Mapping[str, str] | None = None
) -> Block:
    """Runs of a command. Raises NotHereError with what it says if the first one fails."""
    first = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if first.returncode != 0:
        raise NotHereError(f"{Path(words[0]).name} fails: {last_line(first.stderr)}")
    return each_alone(
        lambda: subprocess.run(words, env=environment, check=True, stderr=subprocess.DEVNULL)
    )


def root_directory(path: Path) -> None:
    """A root file system of one program."""
    busybox = program("busybox", "busybox-static")
    (path / "bin").mkdir(parents=True)
    shutil.copy(os.path.realpath(busybox), path / "bin" / "busybox")
    for name in ("true", "sh"):
        (path / "bin" / name).symlink_to("busybox")


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "without a word"


# Podman and daemons


@contextlib.contextmanager
def own_home() -> Iterator[dict[str, str]]:
    """An environment whose home and runtime directory are the bench's: a short path, for sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as home:
        run = Path(home, "run")
        run.mkdir(mode=0o700)
        kept = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
        yield kept | {"HOME": home, "XDG_RUNTIME_DIR": str(run), "TMPDIR": "/var/tmp"}


@contextlib.contextmanager
def podman() -> Iterator[tuple[list[str], dict[str, str]]]:
    """The command, and its environment, with an image of the bench in a store of the bench's."""
    path = program("podman", "podman")
    runtime = program("runc", "runc")
    with own_home() as environment:
        home = Path(environment["HOME"])
        words = [path, f"--root={home}/store", f"--runroot={home}/runroot", "--log-level=error"]
        # Where there is no systemd of the user's; crun does not take a host with both versions of cgroups.
        words += ["--cgroup-manager=cgroupfs", f"--runtime={runtime}", "--storage-driver=overlay"]
        root_directory(home / "root")
        archive = home / "root.tar"
        try:
            subprocess.run(["tar", "-C", home / "root", "-cf", archive, "."], check=True)
            imported = subprocess.run(
                [*words, "import", "--quiet", archive, IMAGE],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if imported.returncode != 0:
                raise NotHereError(f"podman import fails: {last_line(imported.stderr)}")
            yield words, environment
        finally:
            clean_up_podman(words, environment)


def clean_up_podman(words: list[str], environment: dict[str, str]) -> None:
    """Remove the store, and end the process that holds podman's user namespace."""
    home = environment["HOME"]
    remove_inside([*words, "unshare"], environment, [f"{home}/store", f"{home}/runroot"])
    holder = Path(environment["XDG_RUNTIME_DIR"], "libpod", "tmp", "pause.pid")
    if holder.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(holder.read_text()), signal.SIGKILL)


def remove_inside(words: list[str], environment: dict[str, str], paths: list[str]) -> None:
    """Remove what belongs to subordinate ids: `words` run a command in a user namespace that has them."""
    subprocess.run([*words, "rm", "-rf", *paths], env=environment, check=False, capture_output=True)


@contextlib.contextmanager
def daemon(words: list[str], environment: dict[str, str], socket: Path) -> Iterator[None]:
    """A service that listens on a unix socket. Raises NotHereError with what it said if it does not."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(words, cwd="/", env=environment, stdout=log, stderr=log)
        try:
            wait_for_socket(process, socket, log.fileno())
            yield
        finally:
            process.terminate()
            process.wait()


def wait_for_socket(process: "subprocess.Popen[bytes]", socket: Path, log: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = os.pread(log, 2**20, 0).decode(errors="replace")
            raise NotHereError(f"{Path(process.args[0]).name} does not start: {last_line(said)}")  # type: ignore[index, arg-type]
        time.sleep(0.05)


def check_docker_py() -> None:
    found = subprocess.run([SYSTEM_PYTHON, "-c", "import docker"], capture_output=True, check=False)
    if found.returncode != 0:
        raise NotHereError("docker-py is not installed (Debian: python3-docker)")


def docker_py(socket: Path) -> Block:
    """Runs of a program of its own, which measures them: docker-py is not among our packages."""

    def ask(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [SYSTEM_PYTHON, DOCKER_PY, socket, *words], capture_output=True, text=True, check=False
        )

    def block(runs: int) -> list[float]:
        done = ask("run", IMAGE, TRUE, str(runs))
        if done.returncode != 0:
            raise NotHereError(f"docker-py fails: {last_line(done.stderr)}")
        return [1000 * float(line) for line in done.stdout.split()]

    block(1)
    return block


def load_image(socket: Path, directory: Path) -> None:
    """Import the image into dockerd."""
    root, archive = directory / "docker-root", directory / "docker-root.tar"
    root_directory(root)
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    words = [SYSTEM_PYTHON, *map(str, (DOCKER_PY, socket, "import", IMAGE, archive))]
    subprocess.run(words, check=True, capture_output=True)


# A command without walls


def bare(command: tuple[str, ...]) -> Callable[[Ground], contextlib.AbstractContextManager[Block]]:
    """The command by itself, its output read."""

    @contextlib.contextmanager
    def opened(_: Ground) -> Iterator[Block]:
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        yield each_alone(
            lambda: subprocess.run(command, env=environment, check=True, capture_output=True)
        )

    return opened
