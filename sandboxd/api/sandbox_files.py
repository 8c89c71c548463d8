"""Files of a sandbox over HTTP: list a directory, read, write and remove one."""

import asyncio
import re
from collections.abc import AsyncIterator
from http import HTTPStatus

from starlette.responses import Response, StreamingResponse

from sandboxd.api.answers import json_answer, no_content
from sandboxd.api.body import declared_size, refuse_coding, too_large
from sandboxd.api.parts import Call
from sandboxd.api.problems import BadParameters
from sandboxd.api.query import rfc3339
from sandboxd.api.sandbox_schemas import FileList, FileView, FileWritten
from sandboxd.api.sandboxes import live_of, sandboxes_of
from sandboxd.api.uploads import spool
from sandboxd.files.content import check_free
from sandboxd.sandboxes import files as sandbox_files
from sandboxd.sandboxes.files import Opened

_MODE = re.compile(r"[0-7]{3,4}")
_MOST_PATH_BYTES = 4095
_DEFAULT_MODE = 0o644
_PIECE_BYTES = 256 * 2**10


async def list_(call: Call) -> Response:
    """GET /v1/sandboxes/{sandbox_id}/files"""
    query = call.query.reader()
    path = query.text("path")
    query.done()
    path = "/" if path is None else path
    if not path.startswith("/") or "\0" in path or len(path.encode()) > _MOST_PATH_BYTES:
        raise BadParameters((("path", "must be an absolute path without NUL"),))
    live = await live_of(call)
    with live.in_use():
        async with live.transferring:
            live.check_running()
            listed, more = await sandbox_files.list_directory(live.taken.sandbox, path)
    views = [
        FileView(
            name=entry.name,
            kind=entry.kind,
            size_bytes=entry.size_bytes,
            mode=f"{entry.mode:04o}",
            modified_at=rfc3339(min(entry.modified_at, _LATEST)),
        )
        for entry in listed
    ]
    return json_answer(FileList(data=views, truncated=more))


async def read(call: Call) -> Response:
    """GET /v1/sandboxes/{sandbox_id}/files/{path}"""
    live, sandboxes = await live_of(call), sandboxes_of(call)
    with live.in_use():
        async with live.transferring:
            live.check_running()
            opened = await sandbox_files.read(
                live.taken.sandbox,
                _path_of(call),
                sandboxes.spool_directory,
                most_bytes=sandboxes.settings.most_file_bytes,
                min_free_bytes=call.parts.files.min_free_bytes,
            )
    headers = {
        "Content-Length": str(opened.size_bytes),
        "Sandboxd-File-Mode": f"{opened.mode:04o}",
        "Content-Disposition": "attachment",
    }
    return StreamingResponse(
        _pieces(opened), headers=headers, media_type="application/octet-stream"
    )


async def write(call: Call) -> Response:
    """PUT /v1/sandboxes/{sandbox_id}/files/{path}"""
    query = call.query.reader()
    mode = query.text("mode")
    query.done()
    if mode is not None and not _MODE.fullmatch(mode):
        raise BadParameters((("mode", 'must be octal, such as "0755"'),))
    bits = _DEFAULT_MODE if mode is None else int(mode, 8) & 0o777
    live, sandboxes = await live_of(call), sandboxes_of(call)
    live.check_running()
    most_bytes = sandboxes.settings.most_file_bytes
    min_free_bytes = call.parts.files.min_free_bytes
    refuse_coding(call.scope)
    if (declared_size(call.scope) or 0) > most_bytes:
        raise too_large(most_bytes)
    path = _path_of(call)
    with live.in_use(), sandbox_files.spool(sandboxes.spool_directory) as content:

        def take(block: bytes) -> None:
            check_free(content.fileno(), min_free_bytes + len(block))
            content.write(block)

        try:
            await spool(call.receive, take, most_bytes)
            content.flush()
        except OSError as error:
            raise sandbox_files.no_space(error) from error
        size_bytes = content.tell()
        async with live.transferring:
            live.check_running()
            await sandbox_files.write(live.taken.sandbox, path, content, size_bytes, bits)
    return json_answer(FileWritten(path=path, size_bytes=size_bytes), HTTPStatus.OK)


async def remove(call: Call) -> Response:
    """DELETE /v1/sandboxes/{sandbox_id}/files/{path}"""
    live = await live_of(call)
    with live.in_use():
        async with live.transferring:
            live.check_running()
            await sandbox_files.remove(live.taken.sandbox, _path_of(call))
    return no_content()


_LATEST = 253402300799.0
"""The end of the year 9999."""


def _path_of(call: Call) -> str:
    path = f"/{call.parameters['path']}"
    if len(path.encode()) > _MOST_PATH_BYTES or path.endswith("/"):
        raise BadParameters((("path", "must be the path of a file"),))
    return path


async def _pieces(opened: Opened) -> AsyncIterator[bytes]:
    with opened.file as file:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece
