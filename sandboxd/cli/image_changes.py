"""`--change` of `sandboxes commit`: how an image is run, in the words of a Dockerfile."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

import click

_SHELL = ["/bin/sh", "-c"]


def changes_of(instructions: Sequence[str]) -> dict[str, Any]:
    """The `changes` of the API's request. Raises UsageError."""
    changes: dict[str, Any] = {}
    for instruction in instructions:
        word, _, rest = instruction.strip().partition(" ")
        rest = rest.strip()
        if not rest:
            raise click.UsageError(f'--change takes an instruction and its words, not "{word}"')
        match word.upper():
            case "CMD":
                changes["cmd"] = _words(rest)
            case "ENTRYPOINT":
                changes["entrypoint"] = _words(rest)
            case "ENV":
                changes.setdefault("env", {}).update(_pairs(rest))
            case "LABEL":
                changes.setdefault("labels", {}).update(_pairs(rest))
            case "USER":
                changes["user"] = rest
            case "WORKDIR":
                changes["workdir"] = rest
            case _:
                known = "CMD, ENTRYPOINT, ENV, LABEL, USER, WORKDIR"
                raise click.UsageError(f'--change takes {known}, not "{word}"')
    return changes


def _words(text: str) -> list[str]:
    """An array in JSON, or a line for a shell."""
    if not text.startswith("["):
        return [*_SHELL, text]
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise click.UsageError(f"--change: {text} is no array of strings in JSON")
    return words


def _pairs(text: str) -> dict[str, str]:
    """`K=V`, as often as there are, quoted as in a shell; or `K V`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"--change: {text}: {error}") from None
    if "=" not in words[0]:
        key, _, value = text.partition(" ")
        return {key: value.strip()}
    pairs = [word.partition("=") for word in words]
    if not all(key and equals for key, equals, _ in pairs):
        raise click.UsageError(f"--change takes KEY=VALUE, not {text}")
    return {key: value for key, _, value in pairs}
