"""Read the settings once: defaults < TOML file < environment < flags, every wrong one reported together.

The file is the one that `--config` or `$SANDBOXD_CONFIG` names (set but empty: no file), else the first that exists
of /etc/sandboxd/config.toml and $XDG_CONFIG_HOME/sandboxd/config.toml. A variable is called
`SANDBOXD_<SECTION>_<FIELD>`; `SANDBOXD_URL` and `SANDBOXD_KEY` are short for the client's two.
"""

import difflib
import ipaddress
import math
import os
import pwd
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sandboxd import settings_registries, settings_runtimes
from sandboxd.addresses import parse_address
from sandboxd.errors import SettingsError
from sandboxd.isolation.destinations import LEAST_RATE_BYTES, parse_destination
from sandboxd.quantities import parse_bytes, parse_cpus
from sandboxd.quotas.limits import LEAST, is_too_little
from sandboxd.settings import HIDDEN, Settings, WebhookSettings, shown

SYSTEM_CONFIG_FILE = Path("/etc/sandboxd/config.toml")
SYSTEM_DATA_DIR = "/var/lib/sandboxd"
SHORT_VARIABLES = {"SANDBOXD_URL": "client.url", "SANDBOXD_KEY": "client.key"}
OTHER_VARIABLES = frozenset({"SANDBOXD_CONFIG", "SANDBOXD_DEBUG", "SANDBOXD_HOST_TESTS"})
"""Variables that are ours and no settings: where the file is, tracebacks, and what tests do without host features."""

_NAMED_BY_OPERATOR = frozenset({settings_runtimes.SECTION, settings_registries.SECTION})
"""Sections of sections, whose names are not ours."""

_KUBERNETES_SERVICE_VARIABLE = re.compile(
    r"SANDBOXD(_[A-Z0-9]+)*?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_[A-Z0-9_]+)?)"
)
"""The kubelet gives each pod such variables for each Service of its namespace, ours among them."""


class Loaded(NamedTuple):
    """All settings, and for each (`"server.listen"`) where its value came from."""

    settings: Settings
    origins: dict[str, str]


class _Field(NamedTuple):
    key: str
    type: Any
    default: Any

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


class _Candidate(NamedTuple):
    """A value somebody set, not yet checked."""

    key: str
    value: Any
    origin: str
    is_text: bool
    """Whether numbers and booleans come as words (environment) instead of with a type (TOML, flags)."""


def load_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str], *, config_file: str | None = None
) -> Loaded:
    """The settings in force. `flags` maps keys such as `"server.listen"` to values; None is a flag not given.

    Raises SettingsError that names every unknown key and every value that cannot be used.
    """
    faults: list[str] = []
    values = {key: field.default for key, field in fields().items()}
    origins = dict.fromkeys(values, "default")
    content, origin = _read_file(_find_config_file(environ, config_file), faults)
    candidates = [
        *_from_file(content, origin, faults),
        *_from_environment(environ, faults),
        *_from_flags(flags),
    ]
    for candidate in candidates:
        try:
            values[candidate.key] = _read(fields()[candidate.key], candidate)
        except ValueError as error:
            faults.append(f"{_describe(candidate)}: {error}")
        origins[candidate.key] = candidate.origin
    if not values["store.data_dir"]:
        values["store.data_dir"] = _default_data_dir(environ)
    words = [
        *settings_runtimes.from_file(content.get(settings_runtimes.SECTION, {}), origin, faults),
        *settings_runtimes.from_environment(environ, faults),
    ]
    origins |= {word.key: word.origin for word in words}
    registries = settings_registries.read_registries(
        content.get(settings_registries.SECTION, {}), origin, faults
    )
    origins |= {key: origin for key, _ in settings_registries.keys(registries)}
    settings = msgspec.structs.replace(
        _assemble(values),
        runtimes=settings_runtimes.assemble(words, faults),
        registries=registries,
    )
    if not faults:
        faults += _contradictions(settings)
    if faults:
        raise SettingsError("\n".join(faults))
    return Loaded(settings, origins)


@cache
def fields() -> dict[str, _Field]:
    """Every setting by its key, in the order of the Structs."""
    table: dict[str, _Field] = {}
    defaults = Settings()
    for section in Settings.__struct_fields__:
        if section in _NAMED_BY_OPERATOR:
            continue
        part = getattr(defaults, section)
        hints = typing.get_type_hints(type(part), include_extras=True)
        for name in part.__struct_fields__:
            key = f"{section}.{name}"
            if key == "quotas.ceilings":
                continue  # Those of all tenants are [ceilings].
            table[key] = _Field(key, hints[name], getattr(part, name))
    return table


def variable_of(key: str) -> str:
    """The environment variable that sets `key`."""
    return settings_runtimes.variable_of(key)


def _find_config_file(environ: Mapping[str, str], asked: str | None) -> Path | None:
    if asked is None:
        asked = environ.get("SANDBOXD_CONFIG")
    if asked is not None:
        return Path(asked) if asked else None
    of_user = Path(environ.get("XDG_CONFIG_HOME") or _home(environ) / ".config")
    for path in (SYSTEM_CONFIG_FILE, of_user / "sandboxd" / "config.toml"):
        try:
            if path.exists():
                return path
        except PermissionError:
            continue  # in a directory of somebody else: not meant for this user
    return None


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or "/")


def _read_file(path: Path | None, faults: list[str]) -> tuple[dict[str, Any], str]:
    """The sections of the file, and what it is called."""
    if path is None:
        return {}, ""
    try:
        with path.open("rb") as file:
            return tomllib.load(file), f"file {path}"
    except OSError as error:
        faults.append(f"{path}: cannot be read: {error.strerror} (SANDBOXD_CONFIG= reads no file)")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        faults.append(f"{path}: is not TOML: {error}")
    return {}, ""


def _from_file(sections: Mapping[str, Any], origin: str, faults: list[str]) -> Iterator[_Candidate]:
    for section, content in sections.items():
        if section in _NAMED_BY_OPERATOR:
            continue
        if section not in Settings.__struct_fields__:
            known = ", ".join(f"[{name}]" for name in Settings.__struct_fields__)
            faults.append(f"{section} ({origin}): there is no such section; there are {known}")
        elif not isinstance(content, dict):
            faults.append(
                f"{section} ({origin}): is a section: write [{section}] and its keys below"
            )
        else:
            for name, value in content.items():
                key = f"{section}.{name}"
                if key in fields():
                    yield _Candidate(key, value, origin, is_text=False)
                else:
                    faults.append(f"{key} ({origin}): {_unknown(key, list(fields()))}")


def _from_environment(environ: Mapping[str, str], faults: list[str]) -> Iterator[_Candidate]:
    # The short names come first, so that where both are set the full one wins.
    variables = SHORT_VARIABLES | {variable_of(key): key for key in fields()}
    for variable, key in variables.items():
        if variable in environ:
            yield _Candidate(key, environ[variable], f"environment {variable}", is_text=True)
    for variable in environ:
        if (
            variable.startswith("SANDBOXD_")
            and variable not in variables
            and variable not in OTHER_VARIABLES
            and not settings_runtimes.is_variable(variable)
            and not _KUBERNETES_SERVICE_VARIABLE.fullmatch(variable)
        ):
            faults.append(f"{variable} (environment): {_unknown(variable, list(variables))}")


def _from_flags(flags: Mapping[str, Any]) -> Iterator[_Candidate]:
    for key, value in flags.items():
        if value is not None:
            name = fields()[key].name.replace("_", "-")
            flag = f"--no-{name}" if value is False else f"--{name}"
            yield _Candidate(key, value, f"flag {flag}", is_text=False)


_SIZES = ("_bytes", "_bytes_per_second")
"""Ends of the names of settings that are written as quantities."""


def _read(field: _Field, candidate: _Candidate) -> Any:
    """The value in the setting's own type and unit. Raises ValueError that says what is accepted."""
    value = candidate.value
    if field.name.endswith(_SIZES) and isinstance(value, int | str):
        value = parse_bytes(value)
    elif field.name == "cpus" and isinstance(value, str):
        value = parse_cpus(value)
    elif typing.get_origin(field.type) is tuple and isinstance(value, str):
        value = [word.strip() for word in value.split(",") if word.strip()]
    try:
        value = msgspec.convert(value, field.type, strict=not candidate.is_text)
    except msgspec.ValidationError:
        raise ValueError(f"must be {_accepted(field)}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be {_accepted(field)}")
    _check(field, value)
    return value


def _check(field: _Field, value: Any) -> None:
    """What a type cannot say."""
    section = field.key.partition(".")[0]
    if section in ("limits", "ceilings") and is_too_little(field.name, value):
        raise ValueError(f"must be at least {getattr(LEAST, field.name)}")
    match field.key:
        case "server.listen":
            parse_address(value)
        case "server.metrics_listen" if value:
            if parse_address(value).path is not None:
                raise ValueError("must be HOST:PORT, or empty")
        case "network.allow":
            _check_each(value, parse_destination)
        case "network.deny":
            _check_each(value, ipaddress.ip_network)
        case "network.rate_bytes" if value < LEAST_RATE_BYTES:
            raise ValueError(f"must be at least {LEAST_RATE_BYTES}")
        case "store.data_dir" | "images.docker_config" if value and not value.startswith("/"):
            raise ValueError("must be an absolute path")
        case "client.url" | "images.proxy" | "webhooks.url" | "webhooks.secret" if value:
            _check_remote(field.key, value)


def _check_remote(key: str, value: str) -> None:
    """Addresses of other services, and what is shared with them."""
    match key:
        case "client.url" if not value.startswith(("http://", "https://", "unix:/")):
            raise ValueError("must be http://HOST:PORT, https://HOST or unix:/path")
        case "images.proxy" if fault := settings_registries.fault_of_proxy(value):
            raise ValueError(fault)
        case "webhooks.url" if not value.startswith(("http://", "https://")):
            raise ValueError("must be http://HOST/… or https://HOST/…")
        case "webhooks.secret":
            try:
                _ = WebhookSettings(secret=value).signing_key
            except ValueError:
                raise ValueError('must be "whsec_" and 24 to 64 bytes in base64') from None


def _check_each(words: tuple[str, ...], parse: Callable[[str], object]) -> None:
    for word in words:
        try:
            parse(word)
        except ValueError as error:
            raise ValueError(f'"{word[:80]}" {error}') from None


def _accepted(field: _Field) -> str:
    """What the setting accepts, to follow the words "must be"."""
    kind, limits = field.type, ""
    if typing.get_origin(kind) is typing.Annotated:
        kind, *extras = typing.get_args(kind)
        limits = "".join(f", at least {extra.ge}" for extra in extras if extra.ge is not None)
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if field.name.endswith(_SIZES):
        return 'a number of bytes or a quantity such as "128Mi"'
    if field.name == "cpus":
        return 'a number of CPUs such as 0.5 or "500m"'
    if typing.get_origin(kind) is tuple:
        return "a list of texts (in a variable: with commas between them)"
    if kind is bool:
        return "true or false"
    if kind is int:
        return f"a whole number{limits}"
    if kind is float:
        return f"a number{limits}"
    return "a text"


def _describe(candidate: _Candidate) -> str:
    value = shown(candidate.key, candidate.value)
    if value == HIDDEN:
        word = HIDDEN
    elif isinstance(value, bool):
        word = str(value).lower()
    elif isinstance(value, str):
        word = f'"{value[:80]}"'
    else:
        word = str(value)[:80]
    return f"{candidate.key} = {word} ({candidate.origin})"


def _unknown(name: str, known: list[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    return f"there is no such setting{hint} (`sandboxd config show` lists all)"


def _default_data_dir(environ: Mapping[str, str]) -> str:
    """Where the record is kept if nobody said: systemd's StateDirectory, the system's, or the user's own."""
    if directory := environ.get("STATE_DIRECTORY"):
        return directory.partition(":")[0]
    if os.geteuid() == 0 or _home_of_account() == SYSTEM_DATA_DIR:
        return SYSTEM_DATA_DIR
    base = environ.get("XDG_STATE_HOME") or str(_home(environ) / ".local" / "state")
    return f"{base}/sandboxd"


def _home_of_account() -> str | None:
    """Not $HOME: `runuser -u sandboxd -- sandboxd …` keeps root's."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return None  # a container's user need not have an entry


def _assemble(values: Mapping[str, Any]) -> Settings:
    parts: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        parts.setdefault(section, {})[name] = value
    return Settings(
        **{section: type(getattr(Settings(), section))(**part) for section, part in parts.items()},
    )


def _contradictions(settings: Settings) -> Iterator[str]:
    server = settings.server
    if settings.webhooks.url and not settings.webhooks.secret:
        yield (
            "webhooks.url is set and webhooks.secret is not: who gets the events could not tell them from others'; make one "
            "with: echo whsec_$(head -c 32 /dev/urandom | base64)"
        )
    if not server.auth and not parse_address(server.listen).is_local:
        yield (
            f"server.auth is off and server.listen is {server.listen}: without keys anybody on the network could "
            "run commands; listen on 127.0.0.1 or a unix socket, or turn auth on"
        )
