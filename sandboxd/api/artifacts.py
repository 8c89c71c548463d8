"""Files that jobs left, over HTTP: the list, one of them, all of them as a tar archive."""

import asyncio
import contextlib
import re
import tarfile
from collections.abc import AsyncIterator, Generator, Iterable, Sequence
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from sandboxd.api.answers import list_answer
from sandboxd.api.headers import etag_matches
from sandboxd.api.parts import Call
from sandboxd.api.ranges import requested_range
from sandboxd.api.views import artifact_view
from sandboxd.errors import NotFound
from sandboxd.files.content import Contents, Reader
from sandboxd.jobs import Artifact, Job

JSON = "application/json"
TAR = "application/x-tar"
RAW = "application/octet-stream"

_UNSAFE_IN_NAME = re.compile(r"[^A-Za-z0-9 ._+=@,()\[\]-]")


class Span(NamedTuple):
    """A part of a job's kept content."""

    offset: int
    size_bytes: int


async def list_(call: Call) -> Response:
    """GET /v1/jobs/{job_id}/artifacts"""
    job = await _job(call)
    artifacts = job.result.artifacts if job.result else ()
    if call.media_type == TAR:
        return await _answer(
            call,
            job,
            _tar_of(artifacts, job.finished_at or 0.0),
            media_type=TAR,
            headers={"Content-Disposition": f'attachment; filename="{job.id}.tar"'},
        )
    return list_answer([artifact_view(artifact) for artifact in artifacts])


async def download(call: Call) -> Response:
    """GET /v1/jobs/{job_id}/artifacts/{path}"""
    job = await _job(call)
    artifact = _find(job, call.parameters["path"])
    etag = f'"{artifact.sha256}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if etag_matches(call.header(b"if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    if_range = call.header(b"if-range")
    asked = call.header(b"range") if if_range in ("", etag) else ""
    part, status, of_range = requested_range(asked, artifact.size_bytes, "file")
    headers |= of_range | {"Content-Disposition": disposition(artifact.path)}
    span = Span(artifact.offset + part.start, part.end - part.start)
    return await _answer(call, job, [span], media_type=RAW, headers=headers, status=status)


async def _job(call: Call) -> Job:
    return await call.parts.store.get(call.tenant, call.parameters["job_id"], with_stdin=False)


def _find(job: Job, path: str) -> Artifact:
    """The artifact of this path, whose first slash an address has no place for. Raises NotFound."""
    for artifact in job.result.artifacts if job.result else ():
        if artifact.path.lstrip("/") == path:
            return artifact
    raise NotFound("The job left no such file.", code="artifact_not_found")


async def _answer(
    call: Call,
    job: Job,
    parts: Sequence[bytes | Span],
    *,
    media_type: str,
    headers: dict[str, str],
    status: int = HTTPStatus.OK,
) -> Response:
    """An answer of these parts, one after the other. Raises NotFound if the content is gone."""
    contents = call.parts.artifacts
    if any(isinstance(part, Span) and part.size_bytes for part in parts):
        try:
            (await asyncio.to_thread(contents.open, job.id)).close()
        except FileNotFoundError:
            raise NotFound("The files of this job are gone.", code="artifacts_gone") from None
    size = sum(part.size_bytes if isinstance(part, Span) else len(part) for part in parts)
    headers = {**headers, "Content-Length": str(size)}
    if call.scope["method"] == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(
        _pieces(contents, job.id, parts), status, headers, media_type=media_type
    )


async def _pieces(
    contents: Contents, job_id: str, parts: Sequence[bytes | Span]
) -> AsyncIterator[bytes]:
    """The bytes of the parts. The next piece is read, in a thread, while the one before is sent."""
    pieces = _read(contents, job_id, parts)

    def begin() -> "asyncio.Future[bytes | None]":
        return asyncio.ensure_future(asyncio.to_thread(next, pieces, None))

    def close(done: "asyncio.Future[bytes | None]") -> None:
        if not done.cancelled():
            done.exception()  # Nobody waits for it any more.
        pieces.close()

    reading = begin()
    try:
        while (piece := await asyncio.shield(reading)) is not None:
            reading = begin()
            yield piece
    finally:
        # A thread that still reads is not stopped: it has the file until it is done.
        reading.add_done_callback(close)


def _read(contents: Contents, job_id: str, parts: Iterable[bytes | Span]) -> Generator[bytes]:
    with contextlib.ExitStack() as opened:
        reader: Reader | None = None
        for part in parts:
            if isinstance(part, bytes):
                yield part
                continue
            if reader is None:
                reader = opened.enter_context(contextlib.closing(contents.open(job_id)))
            yield from reader.pieces(part.offset, part.size_bytes)


def _tar_of(artifacts: Iterable[Artifact], modified_at: float) -> list[bytes | Span]:
    """A tar archive (pax) of the artifacts. Absolute paths lose their first slash, as with tar(1)."""
    parts: list[bytes | Span] = []
    for artifact in artifacts:
        member = tarfile.TarInfo(artifact.path.lstrip("/"))
        member.size = artifact.size_bytes
        member.mode = artifact.mode
        member.mtime = int(modified_at)
        parts.append(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        if artifact.size_bytes:
            parts.append(Span(artifact.offset, artifact.size_bytes))
        parts.append(bytes(-artifact.size_bytes % tarfile.BLOCKSIZE))
    parts.append(bytes(2 * tarfile.BLOCKSIZE))
    return parts


def disposition(path: str) -> str:
    """Content-Disposition (RFC 6266) with the last part of a path as name: nothing in it can end the header or lead away."""
    name = path.rpartition("/")[2]
    plain = _UNSAFE_IN_NAME.sub("_", name).lstrip(".") or "file"
    if plain == name:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
