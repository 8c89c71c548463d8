"""Requests that bring files beside the job's JSON: a form, or a tar archive with the JSON in a header.

The body goes to a file on the disk while it arrives and is never whole in memory: one block is on its way to the disk, and one
more is read. The file is the job's own from the moment the job is on the record; before that it is removed whenever something is
wrong.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from sandboxd.api.body import (
    declared_size,
    media_type_of,
    parse_json,
    refuse_coding,
    too_large,
    too_slow,
)
from sandboxd.api.files import MAX_FILES
from sandboxd.api.forms import FormReader, boundary_of
from sandboxd.api.parts import Call
from sandboxd.errors import Malformed, Unavailable
from sandboxd.files.archive import BadArchive, files_in
from sandboxd.files.content import Contents, Writer
from sandboxd.jobs import InputFile

FORM = "multipart/form-data"
TAR = "application/x-tar"
JOB_HEADER = b"sandboxd-job"
_BLOCK_BYTES = 2**20
_LARGE_BYTES = 2**12
"""Smaller pieces are put together at once: a client that sends byte by byte would have an object kept for each."""
_GRACE_SECONDS = 120.0
_LEAST_BYTES_PER_SECOND = 64 * 2**10
"""A client that is slower than this, after the grace, is not waited for."""


class Upload:
    """What a request brought: the job's JSON, and files whose content is on the disk under the job's id."""

    def __init__(self, request: Any, files: list[InputFile], digest: bytes) -> None:
        self.request = request
        self.files = tuple(files)
        self.digest = digest
        """Of all that was said: two requests with the same one are the same."""
        self.accepted = False
        """The job is on the record: the content is its own."""


def brings_files(call: Call) -> bool:
    """Whether the body is one of those that bring files."""
    return media_type_of(call.scope) in (FORM, TAR)


@contextlib.asynccontextmanager
async def received(call: Call, job_id: str) -> AsyncIterator[Upload]:
    """What a request brought, its files on the disk. They are removed at the end unless they were accepted.

    Raises Malformed, Invalid, TooLarge, Unavailable (no space), HttpRefused (408), ClientDisconnect.
    """
    contents = call.parts.uploads
    upload: Upload | None = None
    try:
        with _space_wanted():
            upload = await _receive(call, contents, job_id)
        yield upload
    except Exception:
        # Not where this task is cancelled: then the job may be on the record. What is left is swept up at the next start.
        if upload is None or not upload.accepted:
            await asyncio.to_thread(contents.remove, [job_id])
        raise
    if not upload.accepted:
        await asyncio.to_thread(contents.remove, [job_id])


@contextlib.contextmanager
def _space_wanted() -> Any:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"There is no place for these files now: {error.strerror}.",
            code="no_space",
            retry_after_seconds=60,
        ) from error


async def _receive(call: Call, contents: Contents, job_id: str) -> Upload:
    most_bytes = call.parts.files.max_upload_bytes
    refuse_coding(call.scope)
    if (declared_size(call.scope) or 0) > most_bytes:
        raise too_large(most_bytes)
    writer = await asyncio.to_thread(contents.create, job_id)
    try:
        if media_type_of(call.scope) == FORM:
            return await _receive_form(call, writer, most_bytes)
        return await _receive_archive(call, writer, most_bytes, contents, job_id)
    finally:
        writer.close()


async def _receive_form(call: Call, writer: Writer, most_bytes: int) -> Upload:
    form = FormReader(
        boundary_of(call.header(b"content-type")),
        writer,
        most_job_bytes=call.parts.settings.max_body_bytes,
        most_files=MAX_FILES,
    )
    await spool(call.receive, form.feed, most_bytes)
    digest = form.end()
    await asyncio.to_thread(_settle, call, writer)
    return Upload(parse_json(bytes(form.job or b"")), form.files, digest)


async def _receive_archive(
    call: Call, writer: Writer, most_bytes: int, contents: Contents, job_id: str
) -> Upload:
    job = call.header(JOB_HEADER).encode("latin-1")
    if not job:
        raise Malformed(
            "An archive is sent with the job as JSON in the header Sandboxd-Job.",
            code="job_header_missing",
        )
    request = parse_json(job)
    digest = hashlib.sha256(len(job).to_bytes(8, "big") + job)

    def take(block: bytes) -> None:
        digest.update(block)
        writer.write(block)

    await spool(call.receive, take, most_bytes)
    await asyncio.to_thread(_settle, call, writer)
    files = await asyncio.to_thread(_files_of_archive, contents, job_id, writer.size_bytes)
    return Upload(request, files, digest.digest())


def _settle(call: Call, writer: Writer) -> None:
    writer.sync()
    call.parts.uploads.settle()


def _files_of_archive(contents: Contents, job_id: str, size_bytes: int) -> list[InputFile]:
    with contextlib.closing(contents.open(job_id)) as reader:
        try:
            return files_in(reader, size_bytes, most=MAX_FILES)
        except BadArchive as error:
            raise Malformed(f"The archive is refused: {error}.", code="archive_refused") from error


async def spool(receive: Receive, take: Callable[[bytes], None], most_bytes: int) -> None:
    """Hand the body on in blocks, in a thread. Meanwhile the next block is read, and not the one after it."""
    loop = asyncio.get_running_loop()
    began, size_bytes = time.monotonic(), 0
    taking: asyncio.Future[None] | None = None
    more = True
    try:
        while more:
            deadline = began + _GRACE_SECONDS + size_bytes / _LEAST_BYTES_PER_SECOND
            block: list[bytes | bytearray] = []
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    more = await _read_block(receive, block)
            except TimeoutError:
                size_bytes += sum(map(len, block))
                seconds = time.monotonic() - began
                detail = f"The body comes too slowly: {size_bytes} bytes in {seconds:.0f} s."
                raise too_slow(detail) from None
            size_bytes += sum(map(len, block))
            if size_bytes > most_bytes:
                raise too_large(most_bytes)
            await _over(taking)
            taking = loop.run_in_executor(None, _hand_on, take, block)
        await _over(taking)
    finally:
        if taking is not None:
            await _ended(taking)


async def _read_block(receive: Receive, pieces: list[bytes | bytearray]) -> bool:
    """Add a block of the body in the pieces that come, or what is left of it. Whether there is more."""
    size_bytes, more = 0, True
    while more and size_bytes < _BLOCK_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        size_bytes += len(piece)
        if len(piece) >= _LARGE_BYTES:
            pieces.append(piece)
        elif pieces and isinstance(pieces[-1], bytearray):
            pieces[-1] += piece
        else:
            pieces.append(bytearray(piece))
        more = message.get("more_body", False)
    return more


def _hand_on(take: Callable[[bytes], None], pieces: list[bytes | bytearray]) -> None:
    """In a thread: in one piece, for each that is taken is one more wait for the interpreter's lock."""
    block = b"".join(pieces)
    if block:
        take(block)


async def _over(taking: "asyncio.Future[None] | None") -> None:
    """Wait for a thread, if there is one. Raises what it raised."""
    if taking is not None:
        await asyncio.shield(taking)


async def _ended(taking: "asyncio.Future[None]") -> None:
    """Wait for a thread to its end, even if this task is cancelled meanwhile: it has a file open, which is closed next."""
    cancelled: asyncio.CancelledError | None = None
    while not taking.done():
        try:
            await asyncio.wait([taking])
        except asyncio.CancelledError as error:
            cancelled = error
    taking.exception()  # It was looked at, also where something else is raised.
    if cancelled is not None:
        raise cancelled
