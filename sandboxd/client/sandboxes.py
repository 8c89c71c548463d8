"""Handles of sandboxes: what can be done with one, blocking and on asyncio."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, Unpack

from sandboxd.client import sandbox_protocol
from sandboxd.client.protocol import Conversation
from sandboxd.client.sandbox_protocol import CommitOptions, ExecOptions, SandboxChanges
from sandboxd.client.sandbox_types import ExecResult, FileEntry, SandboxRecord
from sandboxd.client.types import Image, NotFound


class Sandbox:
    """A sandbox of the service's. As a context manager it is ended with the block.

    with client.sandbox(image="host") as sandbox:
        sandbox.exec(["sh", "-c", "echo hello > file"])
        print((sandbox.read_file("/work/file")).decode())
    """

    def __init__(self, hold: Callable[[Conversation[Any]], Any], record: SandboxRecord) -> None:
        """For the client only."""
        self._hold = hold
        self.record = record
        """As it was when the service last told."""

    @property
    def id(self) -> str:
        return self.record.id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it. One that has ended already is fine."""
        record: SandboxRecord
        try:
            record = self._hold(sandbox_protocol.get(self.id))
            if record.state != "ended":
                self._hold(sandbox_protocol.delete(self.id))
        except NotFound:
            return

    def exec(self, command: Sequence[str], **options: Unpack[ExecOptions]) -> ExecResult:
        """Run a command to its end."""
        ended: ExecResult = self._hold(sandbox_protocol.run(self.id, command, **options))
        return ended

    def write_file(self, path: str, content: bytes | str, *, mode: int | None = None) -> None:
        """Write a file; directories above it are made."""
        encoded = content.encode() if isinstance(content, str) else content
        self._hold(sandbox_protocol.write_file(self.id, path, encoded, mode))

    def read_file(self, path: str) -> bytes:
        """The content of a file."""
        content: bytes = self._hold(sandbox_protocol.read_file(self.id, path))
        return content

    def remove_file(self, path: str) -> None:
        """Remove a file, or a directory that is empty."""
        self._hold(sandbox_protocol.remove_file(self.id, path))

    def list_files(self, path: str = "/") -> Sequence[FileEntry]:
        """What is in a directory."""
        found: list[FileEntry] = self._hold(sandbox_protocol.list_files(self.id, path))
        return found

    def pause(self) -> None:
        """Stop everything in it for a while."""
        self.record = self._hold(sandbox_protocol.act(self.id, "pause"))

    def resume(self) -> None:
        """Let it go on."""
        self.record = self._hold(sandbox_protocol.act(self.id, "resume"))

    def change(self, **changes: Unpack[SandboxChanges]) -> None:
        """Other limits and times from now on."""
        self.record = self._hold(sandbox_protocol.change(self.id, **changes))

    def commit(self, name: str, **options: Unpack[CommitOptions]) -> Image:
        """Make an image of what its commands changed above its own (a key with the scope `admin`)."""
        made: Image = self._hold(sandbox_protocol.commit(self.id, name, **options))
        return made

    def refresh(self) -> SandboxRecord:
        """As it is now."""
        self.record = self._hold(sandbox_protocol.get(self.id))
        return self.record


class AsyncSandbox:
    """A sandbox of the service's, for asyncio. As a context manager it is ended with the block.

    async with await client.sandbox(image="host") as sandbox:
        await sandbox.exec(["sh", "-c", "echo hello > file"])
        print((await sandbox.read_file("/work/file")).decode())
    """

    def __init__(
        self, hold: Callable[[Conversation[Any]], Awaitable[Any]], record: SandboxRecord
    ) -> None:
        """For the client only."""
        self._hold = hold
        self.record = record
        """As it was when the service last told."""

    @property
    def id(self) -> str:
        return self.record.id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End it. One that has ended already is fine."""
        record: SandboxRecord
        try:
            record = await self._hold(sandbox_protocol.get(self.id))
            if record.state != "ended":
                await self._hold(sandbox_protocol.delete(self.id))
        except NotFound:
            return

    async def exec(self, command: Sequence[str], **options: Unpack[ExecOptions]) -> ExecResult:
        """Run a command to its end."""
        ended: ExecResult = await self._hold(sandbox_protocol.run(self.id, command, **options))
        return ended

    async def write_file(self, path: str, content: bytes | str, *, mode: int | None = None) -> None:
        """Write a file; directories above it are made."""
        encoded = content.encode() if isinstance(content, str) else content
        await self._hold(sandbox_protocol.write_file(self.id, path, encoded, mode))

    async def read_file(self, path: str) -> bytes:
        """The content of a file."""
        content: bytes = await self._hold(sandbox_protocol.read_file(self.id, path))
        return content

    async def remove_file(self, path: str) -> None:
        """Remove a file, or a directory that is empty."""
        await self._hold(sandbox_protocol.remove_file(self.id, path))

    async def list_files(self, path: str = "/") -> Sequence[FileEntry]:
        """What is in a directory."""
        found: list[FileEntry] = await self._hold(sandbox_protocol.list_files(self.id, path))
        return found

    async def pause(self) -> None:
        """Stop everything in it for a while."""
        self.record = await self._hold(sandbox_protocol.act(self.id, "pause"))

    async def resume(self) -> None:
        """Let it go on."""
        self.record = await self._hold(sandbox_protocol.act(self.id, "resume"))

    async def change(self, **changes: Unpack[SandboxChanges]) -> None:
        """Other limits and times from now on."""
        self.record = await self._hold(sandbox_protocol.change(self.id, **changes))

    async def commit(self, name: str, **options: Unpack[CommitOptions]) -> Image:
        """Make an image of what its commands changed above its own (a key with the scope `admin`)."""
        made: Image = await self._hold(sandbox_protocol.commit(self.id, name, **options))
        return made

    async def refresh(self) -> SandboxRecord:
        """As it is now."""
        self.record = await self._hold(sandbox_protocol.get(self.id))
        return self.record
