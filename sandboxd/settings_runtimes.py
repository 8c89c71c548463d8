"""OCI runtimes among the settings: sections `[runtimes.NAME]`, whose names are the operator's own.

In the environment `SANDBOXD_RUNTIMES_<NAME>_PATH` and `SANDBOXD_RUNTIMES_<NAME>_ARGS`, the latter split into words as a shell does.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from sandboxd.isolation.spec import NATIVE, OciRuntime
from sandboxd.settings import RuntimeSettings, Settings

SECTION = "runtimes"
FIELDS = RuntimeSettings.__struct_fields__

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_VARIABLE = re.compile(r"SANDBOXD_RUNTIMES_([A-Z][A-Z0-9_]*)_(PATH|ARGS)")


class Word(NamedTuple):
    """One value that somebody set."""

    name: str
    field: str
    value: Any
    origin: str

    @property
    def key(self) -> str:
        return f"{SECTION}.{self.name}.{self.field}"


def is_variable(name: str) -> bool:
    """Whether an environment variable sets a runtime's path or words."""
    return _VARIABLE.fullmatch(name) is not None


def variable_of(key: str) -> str:
    """The environment variable that sets `runtimes.NAME.path`."""
    return f"SANDBOXD_{key.replace('.', '_').replace('-', '_').upper()}"


def from_file(content: Any, origin: str, faults: list[str]) -> Iterator[Word]:
    """What the section of a file says."""
    if not isinstance(content, dict):
        faults.append(f"{SECTION} ({origin}): is a section: write [{SECTION}.NAME] and its keys")
        return
    for name, fields in content.items():
        if not isinstance(fields, dict):
            faults.append(f"{SECTION}.{name} ({origin}): is a section: write [{SECTION}.{name}]")
            continue
        for field, value in fields.items():
            if field in FIELDS:
                yield Word(name, field, value, origin)
            else:
                known = " and ".join(FIELDS)
                faults.append(f"{SECTION}.{name}.{field} ({origin}): a runtime has {known} only")


def from_environment(environ: Mapping[str, str], faults: list[str]) -> Iterator[Word]:
    """What variables say. `_` in a name is `-`."""
    for variable, text in environ.items():
        match = _VARIABLE.fullmatch(variable)
        if match is None:
            continue
        value: Any = text
        field = match[2].lower()
        if field == "args":
            try:
                value = shlex.split(text)
            except ValueError as error:
                faults.append(f"{variable} (environment): {error}")
                continue
        name = match[1].lower().replace("_", "-")
        yield Word(name, field, value, f"environment {variable}")


def assemble(words: list[Word], faults: list[str]) -> dict[str, RuntimeSettings]:
    """The runtimes; of two words for the same thing the later counts."""
    values: dict[str, dict[str, Word]] = {}
    for word in words:
        values.setdefault(word.name, {})[word.field] = word
    runtimes: dict[str, RuntimeSettings] = {}
    for name, fields in values.items():
        origin = next(iter(fields.values())).origin
        if not _NAME.fullmatch(name) or name == NATIVE:
            faults.append(
                f"{SECTION}.{name} ({origin}): a runtime's name is 1 to 32 of a-z 0-9 -, begins with a letter, "
                f'and is not "{NATIVE}", which is always there'
            )
        elif "path" not in fields:
            faults.append(f"{SECTION}.{name} ({origin}): has no path")
        else:
            _read(name, fields, runtimes, faults)
    return runtimes


def oci_runtimes(settings: Settings) -> dict[str, OciRuntime]:
    """The operator's OCI runtimes by name, as sandboxes need them."""
    return {
        name: OciRuntime(name=name, path=runtime.path, args=runtime.args)
        for name, runtime in settings.runtimes.items()
    }


def _read(
    name: str,
    fields: dict[str, Word],
    runtimes: dict[str, RuntimeSettings],
    faults: list[str],
) -> None:
    path = fields["path"]
    if not isinstance(path.value, str) or not path.value.startswith("/") or "\0" in path.value:
        faults.append(f"{path.key} ({path.origin}): must be an absolute path")
        return
    try:
        args = msgspec.convert(fields["args"].value if "args" in fields else [], tuple[str, ...])
    except msgspec.ValidationError:
        faults.append(f"{fields['args'].key} ({fields['args'].origin}): must be a list of words")
        return
    runtimes[name] = RuntimeSettings(path=path.value, args=args)
