"""What a job request says of files: those that it brings, and the patterns of those that it wants kept."""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence

from sandboxd.api.conversion import pointer_to
from sandboxd.api.schemas import Base64, FileRequest, JobRequest
from sandboxd.errors import Fault
from sandboxd.jobs import InputFile

MAX_FILES = 1000
MAX_PATTERNS = 100
MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755

_OCTAL = re.compile(r"0?[0-7]{3}")
_OF_THE_KERNEL = ("/proc", "/sys", "/dev")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 (inside the sandbox)


def files_of(
    request: JobRequest, uploaded: tuple[InputFile, ...], faults: list[Fault]
) -> tuple[tuple[InputFile, ...], bytes]:
    """The files of a request with those that were uploaded beside it, and the contents of the former, one after the other.

    What is wrong goes to `faults`; an uploaded file is called by its name, as `/uploads/NAME`.
    """
    if not request.files and not uploaded:
        return (), b""
    if (count := len(request.files) + len(uploaded)) > MAX_FILES:
        faults.append(Fault("/files", f"{count} files are over the limit of {MAX_FILES}"))
        return (), b""
    files: list[InputFile] = []
    contents: list[bytes] = []
    for index, asked in enumerate(request.files):
        place = pointer_to("/files", index)
        content = _content_of(asked, place, faults)
        if (problem := path_problem(asked.path, request.workdir)) is not None:
            faults.append(Fault(f"{place}/path", problem))
        files.append(
            InputFile(
                path=asked.path,
                mode=_mode_of(asked, place, faults),
                size_bytes=None if asked.directory else len(content),
            )
        )
        contents.append(content)
    places = [f"/files/{index}/path" for index in range(len(files))]
    for file in uploaded:
        places.append(pointer_to("/uploads", file.path))
        if (problem := path_problem(file.path, request.workdir)) is not None:
            faults.append(Fault(places[-1], problem))
    files += uploaded
    for index, problem in conflicts(files, request.workdir):
        faults.append(Fault(places[index], problem))
    return tuple(files), b"".join(contents)


def outputs_of(request: JobRequest, faults: list[Fault]) -> tuple[str, ...]:
    """The patterns of a request; what is wrong goes to `faults`."""
    if len(request.outputs) > MAX_PATTERNS:
        detail = f"{len(request.outputs)} patterns are over the limit of {MAX_PATTERNS}"
        faults.append(Fault("/outputs", detail))
        return ()
    for index, pattern in enumerate(request.outputs):
        if (problem := _form_problem(pattern)) is not None:
            faults.append(Fault(f"/outputs/{index}", problem))
    return tuple(request.outputs)


def path_problem(path: str, workdir: str | None) -> str | None:
    """Why no file may be put at a path; None if it may."""
    if (problem := _form_problem(path)) is not None:
        return problem
    if path.endswith("/"):
        return 'must not end with "/": a directory is asked for by `directory`'
    whole = _whole(path, workdir)
    if whole == "/":
        return "is the root itself"
    below = f"{whole}/"
    if below.startswith(f"{_SHARED_MEMORY}/") and whole != _SHARED_MEMORY:
        return None
    for top in _OF_THE_KERNEL:
        if below.startswith(f"{top}/"):
            return f"is in {top}, where nothing can be put"
    return None


def conflicts(files: Sequence[InputFile], workdir: str | None) -> Iterable[tuple[int, str]]:
    """Of each file that another one is in the way of: its place among them, and why."""
    kinds: dict[str, bool] = {}
    for index, file in enumerate(files):
        whole = _whole(file.path, workdir)
        if whole in kinds:
            yield index, "occurs twice"
        kinds[whole] = file.size_bytes is None
    for index, file in enumerate(files):
        whole = _whole(file.path, workdir)
        parts = whole.split("/")
        for length in range(1, len(parts)):
            if kinds.get("/".join(parts[:length])) is False:
                yield (
                    index,
                    f"{'/'.join(parts[:length])[:200]} is a file of this request, and no directory",
                )
                break


def _form_problem(path: str) -> str | None:
    if not path or "\0" in path:
        return "must not be empty, nor have a NUL"
    if len(encoded := path.encode("utf-8")) > MAX_PATH_BYTES:
        return f"{len(encoded)} bytes are over the limit of {MAX_PATH_BYTES}"
    parts = path.split("/")
    if ".." in parts:
        return 'must not have ".." as a part'
    if any(len(part.encode("utf-8")) > MAX_NAME_BYTES for part in parts):
        return f"has a name of more than {MAX_NAME_BYTES} bytes"
    return None


def _whole(path: str, workdir: str | None) -> str:
    """The path without what means nothing. Where the working directory is not known, it is another root."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/"):
        return "/" + "/".join(parts)
    if workdir is None:
        return "/".join(["(working directory)", *parts])
    above = [part for part in workdir.split("/") if part not in ("", ".")]
    return "/" + "/".join([*above, *parts])


def _content_of(asked: FileRequest, place: str, faults: list[Fault]) -> bytes:
    if asked.directory and asked.content:
        faults.append(Fault(f"{place}/content", "a directory has no content"))
    if not isinstance(asked.content, Base64):
        return asked.content.encode("utf-8")
    try:
        return base64.b64decode(asked.content.base64, validate=True)
    except (binascii.Error, ValueError):
        detail = "is not base64 (RFC 4648, section 4, with padding)"
        faults.append(Fault(f"{place}/content/base64", detail))
        return b""


def _mode_of(asked: FileRequest, place: str, faults: list[Fault]) -> int:
    usual = DIRECTORY_MODE if asked.directory else FILE_MODE
    mode = asked.mode
    if mode is None:
        return usual
    if isinstance(mode, str):
        if _OCTAL.fullmatch(mode):
            return int(mode, 8)
        detail = (
            'must be octal digits such as "0644": the permission bits, and no set-id or sticky bit'
        )
    elif 0 <= mode <= 0o777:
        return mode
    else:
        detail = "a number is the mode itself, from 0 to 511 (0o777); write octal digits as a text"
    faults.append(Fault(f"{place}/mode", detail))
    return usual
