"""Images over HTTP on their way to others and from them: load, import, save, tag, push, history, commit of a sandbox.

A body goes to a file without a name while it arrives, and is looked at only then.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import IO, TypeVar

import msgspec
from starlette.responses import Response

from sandboxd.api.answers import json_answer, list_answer
from sandboxd.api.body import (
    declared_size,
    parse_json,
    read_body,
    refuse_coding,
    require_json,
    too_large,
)
from sandboxd.api.conversion import pointer_to, read_struct
from sandboxd.api.hanging_up import while_connected
from sandboxd.api.image_archive_schemas import (
    CommitRequest,
    ImageHistory,
    PushedView,
    PushRequest,
    StepOfHistoryView,
    TagRequest,
)
from sandboxd.api.image_schemas import PullLine
from sandboxd.api.images import JSON, in_lines, puller_of, viewer_of
from sandboxd.api.key_watch import KeyedStream
from sandboxd.api.parts import Call
from sandboxd.api.problems import BadParameters
from sandboxd.api.sandboxes import sandboxes_of
from sandboxd.api.uploads import spool
from sandboxd.api.validate import invalid
from sandboxd.api.views import image_view
from sandboxd.errors import Fault, Unavailable
from sandboxd.files.content import check_free
from sandboxd.images.archives.opening import MOST_ARCHIVE_BYTES, opened_file
from sandboxd.images.catalogue import Images
from sandboxd.images.committing import CommitPlan, RunChanges
from sandboxd.images.history import read_history
from sandboxd.images.loading import load as load_images
from sandboxd.images.new_names import new_name
from sandboxd.images.pushing import destination_of
from sandboxd.images.saving import FORMATS, save
from sandboxd.images.transfers import Tell

T = TypeVar("T", bound=msgspec.Struct)

TAR = "application/x-tar"
_MAX_BODY_BYTES = 2 * 2**20
"""Of requests that carry no archive, but may carry an environment."""


async def load(call: Call) -> Response:
    """POST /v1/images/load"""
    query = call.query.reader()
    name = query.text("name")
    query.done()
    images = puller_of(call).images
    async with _received(call, images) as archive:
        with contextlib.ExitStack() as stack:
            opening = opened_file(archive.fileno(), images.blobs.directory)
            source = await asyncio.to_thread(stack.enter_context, opening)
            found = await load_images(images, source, lambda _: None, name=name)
    return list_answer([image_view(image) for image in found])


async def import_(call: Call) -> Response:
    """POST /v1/images/import"""
    query = call.query.reader()
    name = query.text("name")
    query.done()
    if name is None:
        raise BadParameters((("name", "is missing: what the image is to be called"),))
    images = puller_of(call).images
    async with _received(call, images) as archive:
        image = await images.import_tar(name, Path(f"/proc/self/fd/{archive.fileno()}"))
    return json_answer(image_view(image), HTTPStatus.CREATED)


async def archive(call: Call) -> Response:
    """GET /v1/images/{name}/archive"""
    query = call.query.reader()
    form = query.text("format") or FORMATS[0]
    query.done()
    if form not in FORMATS:
        raise BadParameters((("format", f"must be one of {', '.join(FORMATS)}"),))
    pieces = save(puller_of(call).images, [call.parameters["name"]], docker=form == "docker")
    try:
        first = await anext(pieces)  # Before the answer begins: it may be refused.
        if call.scope["method"] == "HEAD":
            await pieces.aclose()
    except BaseException:
        await pieces.aclose()
        raise
    headers = {"Content-Disposition": "attachment"}
    return KeyedStream(call, _joined(first, pieces), headers=headers, media_type=TAR)


async def tag(call: Call) -> Response:
    """POST /v1/images/{name}/tag"""
    request = await _request(call, TagRequest)
    image = await puller_of(call).images.tag(call.parameters["name"], new_name(request.name))
    return json_answer(image_view(image), HTTPStatus.CREATED)


async def push(call: Call) -> Response:
    """POST /v1/images/{name}/push"""
    request = await _request(call, PushRequest)
    name, puller = call.parameters["name"], puller_of(call)
    destination = destination_of(name, request.destination)
    puller.images.record(name)  # Else it would be told of in an answer that has begun.

    async def pushed(tell: Tell) -> PushedView:
        done = await puller.push(name, destination, call.tenant, tell)
        return PushedView(**msgspec.structs.asdict(done))

    async def last_line(tell: Tell) -> PullLine:
        return PullLine(pushed=await pushed(tell))

    if call.media_type == JSON:
        return json_answer(await while_connected(call, pushed(lambda _: None)))
    return in_lines(call, last_line)


async def history(call: Call) -> Response:
    """GET /v1/images/{name}/history"""
    images, name = puller_of(call).images, call.parameters["name"]
    told = await asyncio.to_thread(read_history, images, name, viewer_of(call))
    steps = [StepOfHistoryView(**msgspec.structs.asdict(step)) for step in told]
    return json_answer(ImageHistory(data=steps))


async def commit(call: Call) -> Response:
    """POST /v1/sandboxes/{sandbox_id}/commit"""
    sandbox_id = call.parameters["sandbox_id"]
    call.scope["state"]["sandbox_id"] = sandbox_id
    request = await _request(call, CommitRequest)
    faults = [
        Fault(pointer_to("/changes/env", name), "is no name of a variable")
        for name in request.changes.env
        if not name or "=" in name or "\0" in name
    ]
    if faults:
        raise invalid(faults)
    plan = CommitPlan(
        name=new_name(request.name),
        changes=RunChanges(**msgspec.structs.asdict(request.changes)),
        comment=request.comment,
        author=request.author,
        stop=request.stop,
    )
    image = await sandboxes_of(call).commit(call.tenant, sandbox_id, plan)
    return json_answer(image_view(image), HTTPStatus.CREATED)


async def _request(call: Call, kind: type[T]) -> T:
    require_json(call.scope)
    body = await read_body(call.scope, call.receive, max_bytes=_MAX_BODY_BYTES)
    request, faults = read_struct(parse_json(body), kind)
    if faults:
        raise invalid(faults)
    return request


@contextlib.asynccontextmanager
async def _received(call: Call, images: Images) -> AsyncIterator[IO[bytes]]:
    """The body in a file, from its beginning. Raises TooLarge, Unavailable (no space), HttpRefused, ClientDisconnect."""
    refuse_coding(call.scope)
    if (declared_size(call.scope) or 0) > MOST_ARCHIVE_BYTES:
        raise too_large(MOST_ARCHIVE_BYTES)
    min_free_bytes = call.parts.files.min_free_bytes
    with tempfile.TemporaryFile(dir=images.blobs.directory) as file:

        def take(block: bytes) -> None:
            check_free(file.fileno(), min_free_bytes + len(block))
            file.write(block)

        try:
            await spool(call.receive, take, MOST_ARCHIVE_BYTES)
            await asyncio.to_thread(file.flush)
        except OSError as error:
            detail = f"There is no place for this archive now: {error.strerror}."
            raise Unavailable(detail, code="no_space", retry_after_seconds=60) from error
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        yield file


async def _joined(first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(pieces):
        yield first
        async for piece in pieces:
            yield piece
