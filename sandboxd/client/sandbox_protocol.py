"""What the client says and hears about sandboxes, as conversations of `protocol`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack
from urllib.parse import quote

import msgspec

from sandboxd.client.protocol import (
    Conversation,
    Request,
    ask,
    exchange,
    get_request,
    path_part,
    text_or_base64,
)
from sandboxd.client.sandbox_types import ExecResult, FileEntry, SandboxPage, SandboxRecord
from sandboxd.client.types import Image

_JSON = {"content-type": "application/json"}
_EXEC_PATIENCE_SECONDS = 86_400.0
"""The service itself ends a command after its wall time."""
_FILE_PATIENCE_SECONDS = 300.0
_COMMIT_PATIENCE_SECONDS = 3600.0
_CREATE_PATIENCE_SECONDS = 3600.0
"""Its image may have to be pulled first. The service gives that up by itself."""


class SandboxOptions(TypedDict, total=False):
    """What a sandbox may be given; see the API's `POST /v1/sandboxes`."""

    image: str
    pull: str
    env: Mapping[str, str]
    workdir: str
    user: str
    limits: Mapping[str, float | int | str]
    labels: Mapping[str, str]
    idle_seconds: float
    ttl_seconds: float


class ExecOptions(TypedDict, total=False):
    """What a command in a sandbox may be given besides its words."""

    stdin: str | bytes
    env: Mapping[str, str]
    workdir: str
    limits: Mapping[str, float | int | str]
    """`wall_seconds` and `output_bytes`"""


class SandboxChanges(TypedDict, total=False):
    """What of a sandbox may be changed."""

    limits: Mapping[str, float | int | str]
    idle_seconds: float
    ttl_seconds: float


class CommitOptions(TypedDict, total=False):
    """What an image that is made of a sandbox may be given; see the API's `POST /v1/sandboxes/{id}/commit`."""

    changes: Mapping[str, Any]
    """How it is run: `entrypoint`, `cmd`, `env`, `user`, `workdir`, `labels`."""
    comment: str
    author: str
    stop: bool


def create(**options: Unpack[SandboxOptions]) -> Conversation[SandboxRecord]:
    """Make a sandbox. Not repeated by itself: a lost answer may leave one that ends when it is idle."""
    request = _send("POST", "/v1/sandboxes", options)
    return (
        yield from ask(request._replace(patience_seconds=_CREATE_PATIENCE_SECONDS), SandboxRecord)
    )


def get(sandbox_id: str) -> Conversation[SandboxRecord]:
    """The sandbox as it is now."""
    return (yield from ask(get_request(sandbox_path(sandbox_id)), SandboxRecord))


def list_sandboxes(
    states: Sequence[str], limit: int, cursor: str | None
) -> Conversation[SandboxPage]:
    """One page of sandboxes, newest first."""
    query = [("state", state) for state in states] + [("limit", str(limit))]
    if cursor is not None:
        query.append(("cursor", cursor))
    return (yield from ask(get_request("/v1/sandboxes", query), SandboxPage))


def change(sandbox_id: str, **changes: Unpack[SandboxChanges]) -> Conversation[SandboxRecord]:
    """Other limits and times from now on."""
    return (yield from ask(_send("PATCH", sandbox_path(sandbox_id), changes), SandboxRecord))


def delete(sandbox_id: str) -> Conversation[None]:
    """End a sandbox, or remove the record of one that has ended."""
    yield from exchange(Request("DELETE", sandbox_path(sandbox_id)))


def act(sandbox_id: str, action: str) -> Conversation[SandboxRecord]:
    """`pause` or `resume` it."""
    request = Request("POST", sandbox_path(sandbox_id, f"/{action}"), may_repeat=True)
    return (yield from ask(request, SandboxRecord))


def commit(sandbox_id: str, name: str, **options: Unpack[CommitOptions]) -> Conversation[Image]:
    """Make an image of a sandbox. It is not sent twice."""
    body: dict[str, Any] = {**options, "name": name}
    request = _send("POST", sandbox_path(sandbox_id, "/commit"), body)
    return (yield from ask(request._replace(patience_seconds=_COMMIT_PATIENCE_SECONDS), Image))


def run(
    sandbox_id: str, command: Sequence[str], **options: Unpack[ExecOptions]
) -> Conversation[ExecResult]:
    """Run a command to its end. It is not sent twice."""
    body: dict[str, Any] = {**options, "command": list(command)}
    stdin = options.get("stdin", "")
    if isinstance(stdin, bytes):
        body["stdin"] = text_or_base64(stdin)
    request = _send("POST", sandbox_path(sandbox_id, "/exec"), body)
    return (yield from ask(request._replace(patience_seconds=_EXEC_PATIENCE_SECONDS), ExecResult))


def write_file(sandbox_id: str, path: str, content: bytes, mode: int | None) -> Conversation[None]:
    """Write a file; twice does no more than once."""
    query = [] if mode is None else [("mode", f"{mode:04o}")]
    yield from exchange(
        Request(
            "PUT",
            _file_path(sandbox_id, path),
            query,
            body=content,
            may_repeat=True,
            patience_seconds=_FILE_PATIENCE_SECONDS,
        )
    )


def read_file(sandbox_id: str, path: str) -> Conversation[bytes]:
    """The content of a file."""
    request = get_request(_file_path(sandbox_id, path))
    answer = yield from exchange(request._replace(patience_seconds=_FILE_PATIENCE_SECONDS))
    return answer.body


def remove_file(sandbox_id: str, path: str) -> Conversation[None]:
    """Remove a file, or a directory that is empty."""
    yield from exchange(Request("DELETE", _file_path(sandbox_id, path)))


def list_files(sandbox_id: str, path: str) -> Conversation[list[FileEntry]]:
    """What is in a directory."""
    request = get_request(sandbox_path(sandbox_id, "/files"), [("path", path)])
    return (yield from ask(request, _FileList)).data


def sandbox_path(sandbox_id: str, rest: str = "") -> str:
    return f"/v1/sandboxes/{path_part(sandbox_id)}{rest}"


def _file_path(sandbox_id: str, path: str) -> str:
    return sandbox_path(sandbox_id, f"/files/{quote(path.lstrip('/'))}")


def _send(method: str, path: str, body: Mapping[str, Any]) -> Request:
    return Request(method, path, headers=_JSON, body=json.dumps(body).encode())


class _FileList(msgspec.Struct):
    data: list[FileEntry]
