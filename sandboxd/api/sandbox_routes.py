"""The rows of the table of routes that are about sandboxes."""

from http import HTTPStatus

from sandboxd.api import exec_socket, sandbox_files, sandboxes, streams
from sandboxd.api.auth import JOBS_READ, JOBS_WRITE
from sandboxd.api.query import DEFAULT_PAGE, MAX_PAGE
from sandboxd.api.resources import Parameter, Reply, Route
from sandboxd.api.sandbox_schemas import (
    ExecList,
    ExecRequest,
    ExecView,
    FileList,
    FileWritten,
    SandboxList,
    SandboxPatch,
    SandboxRequest,
    SandboxView,
    SignalRequest,
)
from sandboxd.sandbox_values import SandboxState

_GROUP = "Sandboxes"
_ONE = "/v1/sandboxes/{sandbox_id}"
_EXEC = f"{_ONE}/execs/{{exec_id}}"
_FILE = f"{_ONE}/files/{{path:path}}"
_JSON_OR_EVENTS = ("application/json", streams.SSE)
_AS_IT_IS = Reply(status=HTTPStatus.OK, description="The sandbox as it is now.", body=SandboxView)
_LAST_EVENT_ID = Parameter(name="Last-Event-ID", place="header", description="Where events go on.")

SANDBOX_ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/v1/sandboxes",
        handler=sandboxes.create,
        group=_GROUP,
        summary="Make a sandbox",
        description=(
            "It stands when the answer comes, and lives until it is deleted, nobody used it for `idle_seconds`, `ttl_seconds` are "
            "over, or the service ends. It holds a slot meanwhile: 503 where there is none."
        ),
        scope=JOBS_WRITE,
        request=SandboxRequest,
        request_optional=True,
        replies=(Reply(status=HTTPStatus.CREATED, description="It stands.", body=SandboxView),),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes",
        handler=sandboxes.list_,
        group=_GROUP,
        summary="List sandboxes",
        description="Newest first, those that ended too.",
        scope=JOBS_READ,
        parameters=(
            Parameter(
                name="state",
                description="Only those in this state; may be repeated, and hold several with commas.",
                schema={"type": "array", "items": {"enum": [str(state) for state in SandboxState]}},
            ),
            Parameter(
                name="limit",
                description="Sandboxes on a page.",
                schema={
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MAX_PAGE,
                    "default": DEFAULT_PAGE,
                },
            ),
            Parameter(name="cursor", description="`next_cursor` of the page before."),
        ),
        replies=(Reply(status=HTTPStatus.OK, description="One page.", body=SandboxList),),
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=sandboxes.show,
        group=_GROUP,
        summary="Show a sandbox",
        scope=JOBS_READ,
        replies=(_AS_IT_IS,),
    ),
    Route(
        method="PATCH",
        path=_ONE,
        handler=sandboxes.change,
        group=_GROUP,
        summary="Change limits and times of a sandbox",
        description=(
            "What it uses already counts: with less memory than that it is 409 on cgroup v1, and on v2 it runs out of memory."
        ),
        scope=JOBS_WRITE,
        request=SandboxPatch,
        replies=(_AS_IT_IS,),
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=sandboxes.delete,
        group=_GROUP,
        summary="End a sandbox, or remove the record of one that has ended",
        scope=JOBS_WRITE,
        replies=(
            Reply(status=HTTPStatus.OK, description="It has ended just now.", body=SandboxView),
            Reply(status=HTTPStatus.NO_CONTENT, description="Its record is gone."),
        ),
    ),
    Route(
        method="POST",
        path=f"{_ONE}/pause",
        handler=sandboxes.pause,
        group=_GROUP,
        summary="Stop everything in a sandbox for a while",
        description="It keeps its memory and its slot, and its times go on. 409 where the host has no freezer.",
        scope=JOBS_WRITE,
        replies=(_AS_IT_IS,),
    ),
    Route(
        method="POST",
        path=f"{_ONE}/resume",
        handler=sandboxes.resume,
        group=_GROUP,
        summary="Let a paused sandbox go on",
        scope=JOBS_WRITE,
        replies=(_AS_IT_IS,),
    ),
    Route(
        method="POST",
        path=f"{_ONE}/exec",
        handler=sandboxes.start_exec,
        group=_GROUP,
        summary="Run a command in a sandbox",
        description=(
            "Answers when the command is over, and stops it if the client hangs up before; with `Accept: text/event-stream` the "
            "output comes as it is written, as of a job's log; with `Prefer: respond-async` the answer comes at once."
        ),
        scope=JOBS_WRITE,
        request=ExecRequest,
        parameters=(
            Parameter(name="Prefer", place="header", description="`respond-async`"),
            Parameter(
                name="Sandboxd-On-Disconnect",
                place="header",
                description="`continue`: the command goes on although the client hangs up.",
            ),
        ),
        replies=(
            Reply(
                status=HTTPStatus.OK,
                description="It is over, well or not; or its output.",
                body=ExecView,
                media_types=_JSON_OR_EVENTS,
            ),
            Reply(status=HTTPStatus.ACCEPTED, description="It was started.", body=ExecView),
        ),
    ),
    Route(
        method="GET",
        path=exec_socket.PATH,
        handler=exec_socket.only_as_socket,
        group=_GROUP,
        summary="Connect to a command (WebSocket)",
        description=(
            "First the client says what to run: a ConnectRequest as text. Then binary messages are the command's input, and text ones "
            '`{"type": "resize", "rows": 40, "columns": 100}`, `{"type": "signal", "signal": "SIGINT"}`, `{"type": "end_of_input"}`. '
            'The service says `{"type": "started", "id": …}`, then the output: binary, after a first byte that is 1 for standard '
            'output (and a terminal) and 2 for standard error, and at last `{"type": "exit", "exec": ExecView}`; or `{"type": '
            '"problem", "problem": …}`. Who leaves before hangs up: SIGHUP, two seconds, SIGKILL.'
        ),
        scope=JOBS_WRITE,
        replies=(
            Reply(status=HTTPStatus.SWITCHING_PROTOCOLS, description="Connected.", media_types=()),
        ),
    ),
    Route(
        method="GET",
        path=f"{_ONE}/execs",
        handler=sandboxes.list_execs,
        group=_GROUP,
        summary="List the commands that run in a sandbox, and the last that ran",
        scope=JOBS_READ,
        replies=(Reply(status=HTTPStatus.OK, description="Oldest first.", body=ExecList),),
    ),
    Route(
        method="GET",
        path=_EXEC,
        handler=sandboxes.show_exec,
        group=_GROUP,
        summary="Show or follow a command",
        description="One of the last 64 of a sandbox that lives, or one that runs.",
        scope=JOBS_READ,
        parameters=(
            Parameter(
                name="wait",
                description="Hold the answer until it is over, for at most so many seconds.",
                schema={"type": "number", "minimum": 0},
            ),
            _LAST_EVENT_ID,
        ),
        replies=(
            Reply(
                status=HTTPStatus.OK,
                description="The command with its output so far; or its output as it comes.",
                body=ExecView,
                media_types=_JSON_OR_EVENTS,
            ),
            Reply(status=HTTPStatus.NO_CONTENT, description="You have seen the end."),
        ),
    ),
    Route(
        method="POST",
        path=f"{_EXEC}/signal",
        handler=sandboxes.signal_exec,
        group=_GROUP,
        summary="Send a signal to a command's process group",
        scope=JOBS_WRITE,
        request=SignalRequest,
        replies=(Reply(status=HTTPStatus.ACCEPTED, description="It was sent.", body=ExecView),),
    ),
    Route(
        method="DELETE",
        path=_EXEC,
        handler=sandboxes.stop_exec,
        group=_GROUP,
        summary="Kill a command",
        description="Its process group. What it started in sessions of their own ends with the sandbox.",
        scope=JOBS_WRITE,
        replies=(
            Reply(status=HTTPStatus.ACCEPTED, description="It is being killed.", body=ExecView),
        ),
    ),
    Route(
        method="GET",
        path=f"{_ONE}/files",
        handler=sandbox_files.list_,
        group=_GROUP,
        summary="List a directory of a sandbox",
        description="At most 10,000 entries, by name. Symbolic links are told of as such.",
        scope=JOBS_READ,
        parameters=(
            Parameter(name="path", description="Of the directory, absolute; left out: the root."),
        ),
        replies=(Reply(status=HTTPStatus.OK, description="Its entries.", body=FileList),),
    ),
    Route(
        method="GET",
        path=_FILE,
        handler=sandbox_files.read,
        group=_GROUP,
        summary="Read a file of a sandbox",
        description="`path` is absolute, without its first slash. Regular files only. Its mode is in `Sandboxd-File-Mode`.",
        scope=JOBS_READ,
        replies=(
            Reply(
                status=HTTPStatus.OK,
                description="The content.",
                media_types=("application/octet-stream",),
            ),
        ),
    ),
    Route(
        method="PUT",
        path=_FILE,
        handler=sandbox_files.write,
        group=_GROUP,
        summary="Write a file of a sandbox",
        description=(
            "The body is the content. Directories above it are made; what is there is replaced, and a symbolic link at its place "
            "is not followed. It belongs to the sandbox's user."
        ),
        scope=JOBS_WRITE,
        parameters=(Parameter(name="mode", description="Octal; left out: 0644."),),
        replies=(Reply(status=HTTPStatus.OK, description="It is there.", body=FileWritten),),
    ),
    Route(
        method="DELETE",
        path=_FILE,
        handler=sandbox_files.remove,
        group=_GROUP,
        summary="Remove a file of a sandbox, or a directory that is empty",
        scope=JOBS_WRITE,
        replies=(Reply(status=HTTPStatus.NO_CONTENT, description="It is gone."),),
    ),
)
