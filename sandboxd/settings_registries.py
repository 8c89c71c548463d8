"""Registries among the settings: sections `[registries."HOST:PORT"]`, called as references call them.

In the file only: a variable's name cannot hold a host's.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sandboxd.settings import RegistrySettings

SECTION = "registries"
FIELDS = RegistrySettings.__struct_fields__

_KINDS = {str: "a text", bool: "true or false"}


def read_registries(content: Any, origin: str, faults: list[str]) -> dict[str, RegistrySettings]:
    """What the section of a file says."""
    if not isinstance(content, dict):
        faults.append(f'{SECTION} ({origin}): is a section: write [{SECTION}."HOST"] and its keys')
        return {}
    registries: dict[str, RegistrySettings] = {}
    for host, fields in content.items():
        place = f'{SECTION}."{host}"'
        if not isinstance(fields, dict):
            faults.append(f"{place} ({origin}): is a section: write [{place}]")
            continue
        found = [f"{place}{fault}" for fault in _faults(host, fields, origin)]
        faults += found
        if not found:
            registries[host] = msgspec.convert(fields, RegistrySettings)
    return registries


def keys(registries: Mapping[str, RegistrySettings]) -> Iterator[tuple[str, Any]]:
    """Each setting by its key, for showing them. None of them is a secret: a password is in a file of its own."""
    for host, registry in registries.items():
        for name in FIELDS:
            yield f'{SECTION}."{host}".{name}', getattr(registry, name)


def _faults(host: str, fields: Mapping[str, Any], origin: str) -> Iterator[str]:
    """What follows the name of the section."""
    if not host or host != host.lower() or "/" in host or not host.isprintable():
        yield f" ({origin}): is called HOST or HOST:PORT, in lower case, as in the names of images"
    for name, value in fields.items():
        if name not in FIELDS:
            yield f".{name} ({origin}): a registry has {', '.join(FIELDS)} only"
            continue
        kind = type(getattr(RegistrySettings(), name))
        if not isinstance(value, kind):
            yield f".{name} ({origin}): must be {_KINDS[kind]}"
        elif name.endswith("_file") and value and not str(value).startswith("/"):
            yield f".{name} ({origin}): must be an absolute path"
    if bool(fields.get("username")) != bool(fields.get("password_file")):
        yield f" ({origin}): username and password_file go together"
    if fields.get("insecure") and fields.get("ca_file"):
        yield f" ({origin}): insecure is plain HTTP, which has no certificates: leave out ca_file"
