"""An init that was broken into and is asked for files: it may lie, but nobody waits for it without end."""

import asyncio
import io
import os

import pytest
from sandbox_bench import Bench
from test_protocol import Impostor

from sandboxd.errors import NotFound
from sandboxd.isolation import protocol
from sandboxd.sandboxes import files


def asked(impostor: Impostor) -> tuple[int, int]:
    """The descriptor that came with the service's request, and the other end of its pipe, by way of /proc."""
    _, (descriptor,) = protocol.receive(impostor.channel, protocol.from_above)
    return descriptor, os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)


@pytest.mark.attack(15)
def test_a_pipe_that_is_full_does_not_hold_up_the_service(bench: Bench) -> None:
    def fill_and_refuse(impostor: Impostor) -> list[int]:
        output, other = asked(impostor)
        os.set_blocking(output, False)
        try:
            while os.write(output, b"\xff" * 4096):
                pass
        except BlockingIOError:
            os.set_blocking(output, True)
        protocol.send(impostor.channel, protocol.NotPlaced(0, 2))
        return [output, other]

    async def look() -> None:
        impostor = Impostor()
        playing = asyncio.ensure_future(asyncio.to_thread(fill_and_refuse, impostor))
        with pytest.raises(NotFound):
            await files.list_directory(impostor.sandbox, "/")
        for descriptor in await playing:
            os.close(descriptor)
        impostor.sandbox.kill()
        await impostor.ended()

    bench.do(look())


@pytest.mark.attack(15)
def test_contents_that_are_not_read_are_not_written_without_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SECONDS", 0.5)

    def accept_and_not_read(impostor: Impostor) -> list[int]:
        contents, other = asked(impostor)
        protocol.send(impostor.channel, protocol.Done(1, 0))
        return [contents, other]

    async def write() -> None:
        impostor = Impostor()
        playing = asyncio.ensure_future(asyncio.to_thread(accept_and_not_read, impostor))
        async with asyncio.timeout(20):
            await files.write(impostor.sandbox, "/tmp/x", io.BytesIO(bytes(2**20)), 2**20, 0o644)
        for descriptor in await playing:
            os.close(descriptor)
        impostor.sandbox.kill()
        await impostor.ended()

    bench.do(write())
