"""Sandboxes that work on trees: they fill, pack, read and empty them, since files there have owners that the service cannot become."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from sandboxd.errors import SandboxFailed
from sandboxd.isolation.launcher_client import Launcher
from sandboxd.isolation.places import Place, remove_place, see_dead
from sandboxd.isolation.protocol import Done, OnTree, Read
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import SandboxSpec

_WORK_SECONDS = 1800.0
_READING_BYTES = 2**20


class TreeSandboxes:
    """A sandbox for each piece of work, gone when that is done."""

    def __init__(self, launcher: Launcher, make_place: Callable[[], Place]) -> None:
        self._launcher = launcher
        self._make_place = make_place

    @property
    def id_count(self) -> int:
        """Ids that a file can have as owner, from 0 on; 0: only one."""
        return self._launcher.ids.size if self._launcher.ids else 0

    def trees_in_use(self) -> set[str]:
        """The paths of all trees that a sandbox of this process has been made of which still lives."""
        return self._launcher.trees_in_use()

    async def work(
        self,
        rootfs: Path,
        request: OnTree,
        descriptors: Sequence[int],
        below: tuple[str, ...] = (),
    ) -> Done:
        """Have a sandbox whose root is this directory, above those at the paths `below`, do the work. Raises SandboxFailed."""
        spec = SandboxSpec(
            rootfs=str(rootfs),
            below=below,
            scratch_bytes=0,
            scratch_inodes=0,
            writable_root=True,
        )
        async with self._sandbox(spec) as sandbox:
            return await sandbox.work(request, descriptors)

    async def read(self, trees: Sequence[str], files: Sequence[str]) -> list[bytes]:
        """Up to a mebibyte of each file, as root of an image of the trees at these paths finds it; nothing of what is no file.

        Raises SandboxFailed.
        """
        rootfs, *below = trees
        spec = SandboxSpec(
            rootfs=rootfs,
            below=tuple(below),
            scratch_bytes=_READING_BYTES,
            scratch_inodes=64,
        )
        with contextlib.ExitStack() as opened:
            outputs = [opened.enter_context(_file_in_memory()) for _ in files]
            async with self._sandbox(spec) as sandbox:
                request = Read(tuple(files), _READING_BYTES)
                await sandbox.read(request, [output.fileno() for output in outputs])
            return [os.pread(output.fileno(), _READING_BYTES, 0) for output in outputs]

    @contextlib.asynccontextmanager
    async def _sandbox(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """One for what is asked for within. Raises SandboxFailed."""
        place = self._make_place()
        sandbox: Sandbox | None = None
        gone = True
        try:
            sandbox = await self._launcher.create(
                spec, join_files=place.join_files(), cgroup_fd=place.directory_fd()
            )
            async with asyncio.timeout(_WORK_SECONDS):
                yield sandbox
        except TimeoutError:
            raise SandboxFailed("unpack images", f"not done in {_WORK_SECONDS:.0f} s") from None
        finally:
            if sandbox is not None:
                sandbox.kill()
                gone = await see_dead(sandbox, place)
            await remove_place(place)
        if not gone:
            raise SandboxFailed("unpack images", "a process is stuck in the kernel")


def _file_in_memory() -> BinaryIO:
    return os.fdopen(os.memfd_create("file", os.MFD_CLOEXEC), "rb+", 0)
