"""The sandbox that unpacks an archive is limited as a job is: the archive is somebody else's."""

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

import pytest
from archives import entry, packed

from sandboxd.execution import Execution
from sandboxd.quotas.host import CgroupVersion, probe_host
from sandboxd.settings import Settings

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]


def limit_files(state: Path) -> dict[str, tuple[Path, str]]:
    """Controller to the directory of this instance in its hierarchy, and the name of the limit's file."""
    instance = hashlib.sha256(os.fsencode(state.absolute())).hexdigest()[:16]
    controllers = probe_host().controllers
    memory = {CgroupVersion.V1: "memory.limit_in_bytes", CgroupVersion.V2: "memory.max"}
    version = controllers["memory"].version
    assert version is not None
    names = {"memory": memory[version], "pids": "pids.max"}
    return {
        controller: (Path(f"{controllers[controller].directory}/{instance}"), name)
        for controller, name in names.items()
    }


def test_an_import_has_a_gibibyte_and_eight_processes(tmp_path: Path) -> None:
    content = packed(*(entry(f"f{n}", b"x" * 300_000) for n in range(200)))
    archive = tmp_path / "archive.tar"
    archive.write_bytes(content)
    seen: dict[str, set[str]] = {"memory": set(), "pids": set()}

    def look(files: dict[str, tuple[Path, str]]) -> None:
        for controller, (directory, name) in files.items():
            for path in directory.glob(f"sbx_*/{name}"):
                with contextlib.suppress(OSError):  # It has just been removed.
                    seen[controller].add(path.read_text().strip())

    async def load() -> int:
        execution = Execution(
            Settings(), state=tmp_path / "state", images_directory=tmp_path / "images", parked=0
        )
        files = limit_files(tmp_path / "state")
        try:
            importing = asyncio.ensure_future(execution.images.import_tar("made", archive))
            while not importing.done():
                look(files)
                await asyncio.sleep(0)
            await execution.images.remove("made")
            return (await importing).size_bytes
        finally:
            await execution.close()

    assert asyncio.run(load()) == 60_000_000
    assert seen["memory"] == {str(2**30)}
    assert seen["pids"] == {"8"}
