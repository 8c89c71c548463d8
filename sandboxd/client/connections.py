"""The two clients: each carries on the conversations of `protocol` over HTTP, one blocking, one on asyncio."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar, Unpack

import httpx2

from sandboxd.client import image_protocol, protocol, sandbox_protocol
from sandboxd.client.files import Incoming, Upload, write_all
from sandboxd.client.image_protocol import ProgressReader
from sandboxd.client.protocol import (
    Answer,
    Conversation,
    JobOptions,
    KeyOptions,
    ListOptions,
    Lost,
    Pause,
)
from sandboxd.client.sandbox_protocol import SandboxOptions
from sandboxd.client.sandbox_types import SandboxPage
from sandboxd.client.sandboxes import AsyncSandbox, Sandbox
from sandboxd.client.types import (
    Artifact,
    ClientError,
    ConnectionFailed,
    Event,
    HistoryStep,
    Image,
    ImageDetail,
    Job,
    JobPage,
    Key,
    LayerProgress,
    LogChunk,
    NewKey,
    Pruned,
    Pushed,
    Sample,
)
from sandboxd.jobs import Stream

_Result = TypeVar("_Result")
_CONNECT_SECONDS = 5.0
_DOWNLOAD_BYTES = 2**20


class Client:
    """A connection to a service. Threads may share it."""

    def __init__(self, url: str = "http://127.0.0.1:8080", *, key: str | None = None) -> None:
        """`url`: `http://HOST:PORT`, `https://HOST` or `unix:/path/of/socket`. `key`: the bearer key."""
        self.url = url
        base_url, socket_path = _split_url(url)
        self._http = httpx2.Client(
            base_url=base_url,
            headers=_headers(key),
            transport=httpx2.HTTPTransport(uds=socket_path) if socket_path else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run(self, command: Sequence[str] = (), **options: Unpack[JobOptions]) -> Job:
        """Run a command to its end. If the waiting is interrupted, the job is cancelled."""
        job = self.submit(command, **options)
        try:
            return self.wait(job.id)
        except BaseException:
            with contextlib.suppress(ClientError):
                self.cancel(job.id)
            raise

    def submit(self, command: Sequence[str] = (), **options: Unpack[JobOptions]) -> Job:
        """Hand in a job and go on; it is on the record when this returns."""
        return self._hold(protocol.submit(command, **options))

    def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._hold(protocol.get(job_id))

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> Job:
        """The job when it has ended. Raises WaitTimedOut, with the job, after `timeout_seconds`."""
        return self._hold(protocol.wait(job_id, timeout_seconds))

    def cancel(
        self, job_id: str, *, grace_seconds: float | None = None, reason: str | None = None
    ) -> Job:
        """Stop a job: its stop signal (SIGTERM), `grace_seconds`, SIGKILL. Returns at once; `wait` for its end."""
        return self._hold(protocol.cancel(job_id, grace_seconds, reason))

    def delete(self, job_id: str) -> None:
        """Remove the record and the logs of a job that has ended. Raises Conflict if it has not."""
        self._hold(protocol.delete(job_id))

    def list(self, **options: Unpack[ListOptions]) -> JobPage:
        """One page of jobs, newest first."""
        return self._hold(protocol.list_jobs(**options))

    def list_all(self, **options: Unpack[ListOptions]) -> Iterator[Job]:
        """All jobs, newest first, page by page."""
        while True:
            page = self.list(**options)
            yield from page.data
            if page.next_cursor is None:
                return
            options["cursor"] = page.next_cursor

    def logs(
        self,
        job_id: str,
        *,
        stream: Stream | str | None = None,
        follow: bool = False,
        after_bytes: int = 0,
    ) -> Iterator[LogChunk]:
        """The output in pieces, in order of arrival, from `after_bytes` on. With `follow` until the job has ended.

        A broken connection is taken up again where it broke: no byte is missing and none comes twice.
        """
        reader = protocol.LogReader(job_id, stream, follow=follow, after_bytes=after_bytes)
        while not reader.ended:
            try:
                with self._http.stream(**_arguments(reader.request())) as response:
                    if response.status_code == 200:
                        for event in httpx2.EventSource(response):
                            if (
                                piece := reader.read(event.event, event.data, event.id)
                            ) is not None:
                                yield piece
                        pause = reader.closed()
                    else:
                        body = response.read()
                        pause = reader.accept(response.status_code, body, response.headers)
            except httpx2.TransportError as error:
                pause = reader.lost(_reason(self.url, error))
            if not reader.ended:
                time.sleep(pause)

    def read_log(self, job_id: str, *, stream: Stream | str | None = None) -> bytes:
        """All output that is kept so far: of one stream, or of both in order of arrival."""
        return self._hold(protocol.read_log(job_id, stream))

    def artifacts(self, job_id: str) -> Sequence[Artifact]:
        """The files that a job left."""
        return self._hold(protocol.artifacts(job_id))

    def download(self, job_id: str, path: str, to: str | Path | int) -> None:
        """Write a file that a job left to `to`, a path here or an open descriptor.

        Raises IncompleteFile if not all of it came as it is.
        """
        request = protocol.artifact_request(job_id, path)
        try:
            with self._http.stream(**_arguments(request)) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                with _target(to) as descriptor:
                    incoming = Incoming(descriptor, response.headers)
                    for piece in response.iter_bytes(_DOWNLOAD_BYTES):
                        incoming.write(piece)
                    incoming.end()
        except httpx2.TransportError as error:
            raise ConnectionFailed(_reason(self.url, error)) from error

    def events(self, job_id: str) -> Sequence[Event]:
        """Every change of the job's state, oldest first."""
        return self._hold(protocol.events(job_id))

    def stats(self, job_id: str) -> Sequence[Sample]:
        """What a job used, moment by moment, oldest first; while it runs, so far. A very short one has nothing."""
        return self._hold(protocol.stats(job_id))

    def sandbox(self, **options: Unpack[SandboxOptions]) -> Sandbox:
        """Make a sandbox that lives until it is closed."""
        return Sandbox(self._hold, self._hold(sandbox_protocol.create(**options)))

    def open_sandbox(self, sandbox_id: str) -> Sandbox:
        """A sandbox that is there."""
        return Sandbox(self._hold, self._hold(sandbox_protocol.get(sandbox_id)))

    def list_sandboxes(
        self, *, states: Sequence[str] = (), limit: int = 50, cursor: str | None = None
    ) -> SandboxPage:
        """One page of sandboxes, newest first."""
        return self._hold(sandbox_protocol.list_sandboxes(states, limit, cursor))

    def delete_sandbox(self, sandbox_id: str) -> None:
        """End a sandbox, or remove the record of one that has ended."""
        self._hold(sandbox_protocol.delete(sandbox_id))

    def images(self) -> Sequence[Image]:
        """The images that jobs can name."""
        return self._hold(image_protocol.images())

    def image(self, name: str) -> ImageDetail:
        """One of them, with what it is made of."""
        return self._hold(image_protocol.image(name))

    def pull(self, reference: str, *, pull: str = "always") -> Iterator[LayerProgress | Image]:
        """Have the service fetch an image: how far each layer is, as it changes, and last the image.

        With `pull="missing"` the registry is asked only if the image is not there. Who stops listening stops the pull, unless
        others wait for the same image.
        """
        yield from self._progress(image_protocol.pull_reader(reference, pull))

    def push(self, name: str, destination: str | None = None) -> Iterator[LayerProgress | Pushed]:
        """Have the service send an image to a registry, to where its name says or to `destination` (scope `admin`).

        How far each layer is, as it changes, and last what the registry has. Who stops listening stops the push.
        """
        yield from self._progress(image_protocol.push_reader(name, destination))

    def tag_image(self, source: str, target: str) -> Image:
        """Give an image the name `target`, too (scope `admin`)."""
        return self._hold(image_protocol.tag_image(source, target))

    def image_history(self, name: str) -> Sequence[HistoryStep]:
        """How an image was made, in its author's words, the first step first."""
        return self._hold(image_protocol.image_history(name))

    def load_images(
        self, archive: str | Path | BinaryIO, *, name: str | None = None
    ) -> Sequence[Image]:
        """Make images of all that is in an archive of docker, podman, skopeo or ours (scope `admin`).

        `archive` is its path here, or an open file, which may be a pipe; `name` is what its only image is to be called.
        """
        return self._hold(image_protocol.load_images(Upload(archive), name))

    def import_image(self, name: str, archive: str | Path | BinaryIO) -> Image:
        """Make an image of the root file system in a tar (scope `admin`): its path here, or an open file."""
        return self._hold(image_protocol.import_image(name, Upload(archive)))

    def save_image(self, name: str, to: str | Path | int, *, format: str = "docker") -> None:
        """Write an image into an archive that `load_images` and others read (scope `admin`).

        `to` is a path here or an open descriptor. With `format="oci"` it is an OCI layout alone.
        """
        try:
            with self._http.stream(
                **_arguments(image_protocol.archive_request(name, format))
            ) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                with _target(to) as descriptor:
                    for piece in response.iter_bytes(_DOWNLOAD_BYTES):
                        write_all(descriptor, piece)
        except httpx2.TransportError as error:
            raise ConnectionFailed(_reason(self.url, error)) from error

    def remove_image(self, name: str) -> None:
        """Remove an image (scope `admin`). Raises Conflict while it is in use."""
        self._hold(image_protocol.remove_image(name))

    def prune_images(
        self,
        *,
        all: bool = False,
        unused_seconds: float | None = None,
    ) -> Pruned:
        """Remove what no image needs any more (scope `admin`); images, too: all that are not in use, or those unused for so long."""
        return self._hold(image_protocol.prune_images(all, unused_seconds))

    def create_key(self, name: str, **options: Unpack[KeyOptions]) -> NewKey:
        """Make an API key (scope `admin`)."""
        return self._hold(protocol.create_key(name, **options))

    def list_keys(self) -> Sequence[Key]:
        """All API keys, without their secrets (scope `admin`)."""
        return self._hold(protocol.list_keys())

    def revoke_key(self, key_id: str) -> None:
        """Make a key worthless (scope `admin`)."""
        self._hold(protocol.revoke_key(key_id))

    def system(self) -> dict[str, Any]:
        """What the service and its host are and can do."""
        return self._hold(protocol.system())

    def _progress(self, reader: ProgressReader[_Result]) -> Iterator[LayerProgress | _Result]:
        try:
            with self._http.stream(**_arguments(reader.request())) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                for event in httpx2.EventSource(response):
                    if (step := reader.read(event.event, event.data)) is not None:
                        yield step
        except httpx2.TransportError as error:
            raise ConnectionFailed(_reason(self.url, error)) from error
        reader.closed()

    def _hold(self, conversation: Conversation[_Result]) -> _Result:
        heard: Answer | Lost | None = None
        while True:
            try:
                step = conversation.send(heard)
            except StopIteration as end:
                result: _Result = end.value
                return result
            heard = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
            else:
                try:
                    with _sending(step) as arguments:
                        heard = _answer(self._http.request(**arguments))
                except httpx2.TransportError as error:
                    heard = Lost(_reason(self.url, error))


class AsyncClient:
    """A connection to a service, for asyncio."""

    def __init__(self, url: str = "http://127.0.0.1:8080", *, key: str | None = None) -> None:
        """`url`: `http://HOST:PORT`, `https://HOST` or `unix:/path/of/socket`. `key`: the bearer key."""
        self.url = url
        base_url, socket_path = _split_url(url)
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            headers=_headers(key),
            transport=httpx2.AsyncHTTPTransport(uds=socket_path) if socket_path else None,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self, command: Sequence[str] = (), **options: Unpack[JobOptions]) -> Job:
        """Run a command to its end. If the waiting is interrupted, the job is cancelled."""
        job = await self.submit(command, **options)
        try:
            return await self.wait(job.id)
        except BaseException:
            # Our own task may be cancelled already: the request goes out in one that is not.
            with contextlib.suppress(ClientError):
                await asyncio.shield(self.cancel(job.id))
            raise

    async def submit(self, command: Sequence[str] = (), **options: Unpack[JobOptions]) -> Job:
        """Hand in a job and go on; it is on the record when this returns."""
        return await self._hold(protocol.submit(command, **options))

    async def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return await self._hold(protocol.get(job_id))

    async def wait(self, job_id: str, timeout_seconds: float | None = None) -> Job:
        """The job when it has ended. Raises WaitTimedOut, with the job, after `timeout_seconds`."""
        return await self._hold(protocol.wait(job_id, timeout_seconds))

    async def cancel(
        self, job_id: str, *, grace_seconds: float | None = None, reason: str | None = None
    ) -> Job:
        """Stop a job: its stop signal (SIGTERM), `grace_seconds`, SIGKILL. Returns at once; `wait` for its end."""
        return await self._hold(protocol.cancel(job_id, grace_seconds, reason))

    async def delete(self, job_id: str) -> None:
        """Remove the record and the logs of a job that has ended. Raises Conflict if it has not."""
        await self._hold(protocol.delete(job_id))

    async def list(self, **options: Unpack[ListOptions]) -> JobPage:
        """One page of jobs, newest first."""
        return await self._hold(protocol.list_jobs(**options))

    async def list_all(self, **options: Unpack[ListOptions]) -> AsyncIterator[Job]:
        """All jobs, newest first, page by page."""
        while True:
            page = await self.list(**options)
            for job in page.data:
                yield job
            if page.next_cursor is None:
                return
            options["cursor"] = page.next_cursor

    async def logs(
        self,
        job_id: str,
        *,
        stream: Stream | str | None = None,
        follow: bool = False,
        after_bytes: int = 0,
    ) -> AsyncGenerator[LogChunk]:
        """The output in pieces, in order of arrival, from `after_bytes` on. With `follow` until the job has ended.

        A broken connection is taken up again where it broke: no byte is missing and none comes twice.
        """
        reader = protocol.LogReader(job_id, stream, follow=follow, after_bytes=after_bytes)
        while not reader.ended:
            try:
                async with self._http.stream(**_arguments(reader.request())) as response:
                    if response.status_code == 200:
                        async for event in httpx2.EventSource(response):
                            if (
                                piece := reader.read(event.event, event.data, event.id)
                            ) is not None:
                                yield piece
                        pause = reader.closed()
                    else:
                        body = await response.aread()
                        pause = reader.accept(response.status_code, body, response.headers)
            except httpx2.TransportError as error:
                pause = reader.lost(_reason(self.url, error))
            if not reader.ended:
                await asyncio.sleep(pause)

    async def read_log(self, job_id: str, *, stream: Stream | str | None = None) -> bytes:
        """All output that is kept so far: of one stream, or of both in order of arrival."""
        return await self._hold(protocol.read_log(job_id, stream))

    async def artifacts(self, job_id: str) -> Sequence[Artifact]:
        """The files that a job left."""
        return await self._hold(protocol.artifacts(job_id))

    async def download(self, job_id: str, path: str, to: str | Path | int) -> None:
        """Write a file that a job left to `to`, a path here or an open descriptor.

        Raises IncompleteFile if not all of it came as it is.
        """
        request = protocol.artifact_request(job_id, path)
        try:
            async with self._http.stream(**_arguments(request)) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refused(response)
                with _target(to) as descriptor:
                    incoming = Incoming(descriptor, response.headers)
                    async for piece in response.aiter_bytes(_DOWNLOAD_BYTES):
                        incoming.write(piece)
                    incoming.end()
        except httpx2.TransportError as error:
            raise ConnectionFailed(_reason(self.url, error)) from error

    async def events(self, job_id: str) -> Sequence[Event]:
        """Every change of the job's state, oldest first."""
        return await self._hold(protocol.events(job_id))

    async def stats(self, job_id: str) -> Sequence[Sample]:
        """What a job used, moment by moment, oldest first; while it runs, so far. A very short one has nothing."""
        return await self._hold(protocol.stats(job_id))

    async def sandbox(self, **options: Unpack[SandboxOptions]) -> AsyncSandbox:
        """Make a sandbox that lives until it is closed."""
        return AsyncSandbox(self._hold, await self._hold(sandbox_protocol.create(**options)))

    async def open_sandbox(self, sandbox_id: str) -> AsyncSandbox:
        """A sandbox that is there."""
        return AsyncSandbox(self._hold, await self._hold(sandbox_protocol.get(sandbox_id)))

    async def list_sandboxes(
        self, *, states: Sequence[str] = (), limit: int = 50, cursor: str | None = None
    ) -> SandboxPage:
        """One page of sandboxes, newest first."""
        return await self._hold(sandbox_protocol.list_sandboxes(states, limit, cursor))

    async def delete_sandbox(self, sandbox_id: str) -> None:
        """End a sandbox, or remove the record of one that has ended."""
        await self._hold(sandbox_protocol.delete(sandbox_id))

    async def images(self) -> Sequence[Image]:
        """The images that jobs can name."""
        return await self._hold(image_protocol.images())

    async def image(self, name: str) -> ImageDetail:
        """One of them, with what it is made of."""
        return await self._hold(image_protocol.image(name))

    async def pull(
        self, reference: str, *, pull: str = "always"
    ) -> AsyncGenerator[LayerProgress | Image]:
        """Have the service fetch an image: how far each layer is, as it changes, and last the image.

        With `pull="missing"` the registry is asked only if the image is not there. Who stops listening stops the pull, unless
        others wait for the same image.
        """
        steps = self._progress(image_protocol.pull_reader(reference, pull))
        async with contextlib.aclosing(steps):
            async for step in steps:
                yield step

    async def push(
        self, name: str, destination: str | None = None
    ) -> AsyncGenerator[LayerProgress | Pushed]:
        """Have the service send an image to a registry, to where its name says or to `destination` (scope `admin`).

        How far each layer is, as it changes, and last what the registry has. Who stops listening stops the push.
        """
        steps = self._progress(image_protocol.push_reader(name, destination))
        async with contextlib.aclosing(steps):
            async for step in steps:
                yield step

    async def tag_image(self, source: str, target: str) -> Image:
        """Give an image the name `target`, too (scope `admin`)."""
        return await self._hold(image_protocol.tag_image(source, target))

    async def image_history(self, name: str) -> Sequence[HistoryStep]:
        """How an image was made, in its author's words, the first step first."""
        return await self._hold(image_protocol.image_history(name))

    async def load_images(
        self, archive: str | Path | BinaryIO, *, name: str | None = None
    ) -> Sequence[Image]:
        """Make images of all that is in an archive of docker, podman, skopeo or ours (scope `admin`).

        `archive` is its path here, or an open file, which may be a pipe; `name` is what its only image is to be called.
        """
        return await self._hold(image_protocol.load_images(Upload(archive), name))

    async def import_image(self, name: str, archive: str | Path | BinaryIO) -> Image:
        """Make an image of the root file system in a tar (scope `admin`): its path here, or an open file."""
        return await self._hold(image_protocol.import_image(name, Upload(archive)))

    async def save_image(self, name: str, to: str | Path | int, *, format: str = "docker") -> None:
        """Write an image into an archive that `load_images` and others read (scope `admin`).

        `to` is a path here or an open descriptor. With `format="oci"` it is an OCI layout alone.
        """
        try:
            async with self._http.stream(
                **_arguments(image_protocol.archive_request(name, format))
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refused(response)
                with _target(to) as descriptor:
                    async for piece in response.aiter_bytes(_DOWNLOAD_BYTES):
                        await asyncio.to_thread(write_all, descriptor, piece)
        except httpx2.TransportError as error:
            raise ConnectionFailed(_reason(self.url, error)) from error

    async def remove_image(self, name: str) -> None:
        """Remove an image (scope `admin`). Raises Conflict while it is in use."""
        await self._hold(image_protocol.remove_image(name))

    async def prune_images(
        self,
        *,
        all: bool = False,
        unused_seconds: float | None = None,
    ) -> Pruned:
        """Remove what no image needs any more (scope `admin`); images, too: all that are not in use, or those unused for so long."""
        return await self._hold(image_protocol.prune_images(all, unused_seconds))

    async def create_key(self, name: str, **options: Unpack[KeyOptions]) -> NewKey:
        """Make an API key (scope `admin`)."""
        return await self._hold(protocol.create_key(name, **options))

    async def list_keys(self) -> Sequence[Key]:
        """All API keys, without their secrets (scope `admin`)."""
        return await self._hold(protocol.list_keys())

    async def revoke_key(self, key_id: str) -> None:
        """Make a key worthless (scope `admin`)."""
        await self._hold(protocol.revoke_key(key_id))

    async def system(self) -> dict[str, Any]:
        """What the service and its host are and can do."""
        return await self._hold(protocol.system())

    async def _progress(
        self, reader: ProgressReader[_Result]
    ) -> AsyncGenerator[LayerProgress | _Result]:
        try:
            async with self._http.stream(**_arguments(reader.request())) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refused(response)
                async for event in httpx2.EventSource(response):
                    if (step := reader.read(event.event, event.data)) is not None:
                        yield step
        except httpx2.TransportError as error:
            raise ConnectionFailed(_reason(self.url, error)) from error
        reader.closed()

    async def _hold(self, conversation: Conversation[_Result]) -> _Result:
        heard: Answer | Lost | None = None
        while True:
            try:
                step = conversation.send(heard)
            except StopIteration as end:
                result: _Result = end.value
                return result
            heard = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            else:
                try:
                    with _sending(step, on_loop=True) as arguments:
                        heard = _answer(await self._http.request(**arguments))
                except httpx2.TransportError as error:
                    heard = Lost(_reason(self.url, error))


def _split_url(url: str) -> tuple[str, str | None]:
    """The base URL, and the path of the unix socket if it is one."""
    if url.startswith("unix:"):
        return "http://sandboxd", url.removeprefix("unix:").removeprefix("//")
    if not url.startswith(("http://", "https://")):
        raise ClientError(
            f'"{url}" is no address of a service: write http://HOST:PORT or unix:/path'
        )
    return url.rstrip("/"), None


def _headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _arguments(request: protocol.Request) -> dict[str, Any]:
    """A request in the words of the HTTP library."""
    return {
        "method": request.method,
        "url": request.path,
        "params": list(request.query),
        "headers": dict(request.headers),
        "content": request.body,
        "timeout": httpx2.Timeout(request.patience_seconds, connect=_CONNECT_SECONDS),
    }


@contextlib.contextmanager
def _sending(request: protocol.Request, *, on_loop: bool = False) -> Iterator[dict[str, Any]]:
    """The same with its files, which are open as long as it takes."""
    arguments = _arguments(request)
    if request.upload is not None:
        with request.upload.opened() as upload:
            arguments["content"] = upload.pieces_on_loop() if on_loop else upload.pieces()
            if (size := upload.size_bytes()) is not None:
                arguments["headers"]["content-length"] = str(size)
            yield arguments
        return
    if not request.form:
        yield arguments
        return
    with contextlib.ExitStack() as opened:
        parts: list[Any] = [("job", (None, arguments.pop("content"), "application/json"))]
        for part in request.form:
            content = part.content
            body = (
                opened.enter_context(content.open("rb")) if isinstance(content, Path) else content
            )
            mode = {"Sandboxd-Mode": f"{part.mode:04o}"}
            parts.append((part.path, (None, body, "application/octet-stream", mode)))
        yield arguments | {"files": parts}


def _refused(response: httpx2.Response) -> ClientError:
    return protocol.refusal_of(_answer(response))


def _answer(response: httpx2.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)


def _reason(url: str, error: httpx2.TransportError) -> str:
    return f"{url}: {error or type(error).__name__}"


@contextlib.contextmanager
def _target(to: str | Path | int) -> Iterator[int]:
    """A descriptor to write to. A file that is written by its path is there as a whole or not at all."""
    if isinstance(to, int):
        yield to
        return
    path = Path(to)
    unfinished = path.with_name(f".{path.name[:200]}.{os.urandom(4).hex()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
        unfinished.replace(path)
    finally:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)
