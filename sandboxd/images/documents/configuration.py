"""The configuration of an image: how its author wants it run. Untrusted, like everything that a registry sends."""

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from sandboxd.images.documents.manifests import MOST_LAYERS, BadManifest, Machine
from sandboxd.images.documents.references import DIGEST
from sandboxd.signal_names import parse_signal

_MOST_WORDS = 1024
_MOST_VARIABLES = 1024
_LONGEST_WORD = 128 * 2**10
"""What execve(2) takes (MAX_ARG_STRLEN)."""
_MOST_TEXT_BYTES = 2**20
_LONGEST_PATH = 4096

_Word = Annotated[str, Meta(max_length=_LONGEST_WORD - 1)]
_Words = Annotated[tuple[_Word, ...], Meta(max_length=_MOST_WORDS)]
_DiffId = Annotated[str, Meta(pattern=rf"^(?:{DIGEST.pattern})\Z")]


class _Run(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What is not named here has no meaning for a job: volumes, ports, health checks. Labels mean nothing to anything here (CVE-2026-53488)."""

    user: Annotated[str, Meta(max_length=256)] | None = None
    env: Annotated[tuple[_Word, ...], Meta(max_length=_MOST_VARIABLES)] | None = None
    entrypoint: _Words | None = None
    cmd: _Words | None = None
    working_dir: Annotated[str, Meta(max_length=_LONGEST_PATH - 1)] | None = None
    stop_signal: str | None = None


class _RootFs(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    diff_ids: Annotated[tuple[_DiffId, ...], Meta(max_length=MOST_LAYERS)]


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    rootfs: _RootFs
    architecture: str = ""
    os: str = ""
    config: _Run | None = None


class Configuration(NamedTuple):
    """How an image is run where a job says nothing else."""

    diff_ids: tuple[str, ...]
    """`sha256:…` of each layer's tar, uncompressed, the lowest first."""
    user: str
    env: dict[str, str]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    workdir: str
    stop_signal: int


def parse_configuration(content: bytes, machine: Machine, layers: int) -> Configuration:
    """Of an image with so many layers, for this machine. Raises BadManifest."""
    try:
        config = msgspec.json.decode(content, type=_Config)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadManifest(f"is not valid: {error}") from error
    if (config.os or "linux", config.architecture or machine.architecture) != (
        "linux",
        machine.architecture,
    ):
        raise BadManifest(
            f"is for {config.os[:40]}/{config.architecture[:40]}; this machine is {machine}"
        )
    if config.rootfs.type != "layers" or len(config.rootfs.diff_ids) != layers:
        raise BadManifest(f"does not describe the {layers} layers of its manifest")
    run = config.config or _Run()
    return Configuration(
        diff_ids=config.rootfs.diff_ids,
        user=run.user or "",
        env=_environment(run.env or ()),
        entrypoint=_words("Entrypoint", run.entrypoint or ()),
        cmd=_words("Cmd", run.cmd or ()),
        workdir=_workdir(run.working_dir or "/"),
        stop_signal=_stop_signal(run.stop_signal or "SIGTERM"),
    )


def _environment(variables: tuple[str, ...]) -> dict[str, str]:
    env: dict[str, str] = {}
    for variable in _words("Env", variables):
        name, equals, value = variable.partition("=")
        if not name or not equals:
            raise BadManifest(f"has {variable[:80]!r} in its Env, which is no NAME=VALUE")
        env[name] = value
    return env


def _words(name: str, words: tuple[str, ...]) -> tuple[str, ...]:
    if any("\0" in word for word in words):
        raise BadManifest(f"has a NUL in its {name}")
    if sum(len(word.encode()) for word in words) > _MOST_TEXT_BYTES:
        raise BadManifest(f"has more than {_MOST_TEXT_BYTES} bytes of {name}")
    return words


def _workdir(path: str) -> str:
    if "\0" in path or not path.startswith("/") or ".." in path.split("/"):
        raise BadManifest(f"has {path[:80]!r} for its WorkingDir, which is no absolute path")
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _stop_signal(text: str) -> int:
    try:
        return parse_signal(text)
    except ValueError as error:
        raise BadManifest(f"has no StopSignal that there is: {error}") from None
