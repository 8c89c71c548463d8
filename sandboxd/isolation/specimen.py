"""One real sandbox, built as the service builds them: proof that on this host all walls can stand at once."""

import asyncio
import os
import tempfile
import time
from pathlib import Path

from sandboxd.errors import SandboxFailed
from sandboxd.isolation.egress import Allowance, Egress
from sandboxd.isolation.idmap import IdRange
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import Command, NetworkMode, OciRuntime, SandboxSpec, Unusable

_TOP_LEVEL = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_RUN_SECONDS = 20.0


async def run_one(
    ids: IdRange | None,
    *,
    show_cgroup: bool = False,
    runtime: OciRuntime | None = None,
    egress: Egress | None = None,
) -> float:
    """Build a sandbox over this machine's /usr, run true(1) in it, remove it. `ids` None: the single-id map.

    With `egress` it is connected first, though nothing is allowed to it.

    Returns the seconds from asking for it until nothing of it was left. Raises SandboxFailed with the step.
    """
    with tempfile.TemporaryDirectory(prefix="sandboxd-specimen-") as directory:
        stage = Path(directory, "stage")
        stage.mkdir()
        launcher = Launcher(stage=stage, ids=ids, show_cgroup=show_cgroup)
        try:
            await launcher.start()
            begun = time.monotonic()
            network = NetworkMode.NONE if egress is None else NetworkMode.EGRESS
            image = _make_image(Path(directory, "root"))
            sandbox = await launcher.create(image._replace(network=network, runtime=runtime))
            try:
                async with asyncio.timeout(_RUN_SECONDS):
                    await _run_connected(sandbox, egress)
            finally:
                sandbox.kill()
                async with asyncio.timeout(_RUN_SECONDS):
                    await sandbox.dead()
            return time.monotonic() - begun
        except TimeoutError:
            raise SandboxFailed("run", f"not done in {_RUN_SECONDS:.0f} s") from None
        finally:
            await launcher.close()


def _make_image(root: Path) -> SandboxSpec:
    """A tree with nothing in it but the way to /usr."""
    root.mkdir()
    root.chmod(0o755)
    binds = [("/usr", "/usr")]
    for name in _TOP_LEVEL:
        source = Path("/", name)
        if source.is_symlink():
            (root / name).symlink_to(os.readlink(source))
        elif source.is_dir():
            binds.append((str(source), str(source)))
    return SandboxSpec(
        rootfs=str(root),
        scratch_bytes=2**20,
        scratch_inodes=256,
        binds=tuple(binds),
        uid=1000,
        gid=1000,
    )


async def _run_connected(sandbox: Sandbox, egress: Egress | None) -> None:
    if egress is None:
        return await _run_true(sandbox)
    nothing = Allowance(0, lambda: None)
    connection = await egress.open(sandbox, (), nothing, lambda _: None)
    try:
        await _run_true(sandbox)
    finally:
        await connection.close()


async def _run_true(sandbox: Sandbox) -> None:
    path = "/usr/bin/true" if os.path.exists("/usr/bin/true") else "/bin/true"
    command = Command(argv=(path,), env={}, workdir="/work", rlimits={"nofile": 64})
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        started = await sandbox.run(command, [null, null, null])
    finally:
        os.close(null)
    if isinstance(started, Unusable):
        raise SandboxFailed("run", f"{path}: {started.what}: {os.strerror(started.errno)}")
    ended = await started.exited()
    if ended is None or ended.code != 0:
        raise SandboxFailed("run", f"{path} ended with {ended}")
