"""Registries among the settings: sections `[registries."HOST:PORT"]`, called as references call them.

In the file only: a variable's name cannot hold a host's. None of the settings is a secret: passwords are in files of their own.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sandboxd.settings import RegistrySettings, TenantRegistrySettings

SECTION = "registries"
FIELDS = RegistrySettings.__struct_fields__
DIRECT = "none"
FROM_ENVIRONMENT = "environment"
"""Words instead of a proxy's URL."""

_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
_OF_TENANT = TenantRegistrySettings.__struct_fields__
_KINDS = {str: "a text", bool: "true or false", tuple: "a list of texts", dict: "a section"}
_MOST_MIRRORS = 8
_PREFIX = re.compile(r"(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*/?", re.ASCII)
_HOST = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]", re.ASCII)


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
    """Each setting by its key, for showing them."""
    for host, registry in registries.items():
        place = f'{SECTION}."{host}"'
        for name in FIELDS:
            if name != "tenants":
                yield f"{place}.{name}", getattr(registry, name)
        for tenant, credentials in registry.tenants.items():
            for name in _OF_TENANT:
                yield f"{place}.tenants.{tenant}.{name}", getattr(credentials, name)


def fault_of_proxy(value: str) -> str | None:
    """What is wrong with a proxy, if anything is."""
    if value == FROM_ENVIRONMENT:
        return None
    parts = _split(value)
    if parts is None or parts.path not in ("", "/"):
        return f'must be http://HOST:PORT, https://HOST:PORT or "{FROM_ENVIRONMENT}"'
    if "@" in parts.netloc:
        # The settings are shown; variables of the service are not.
        return f'has credentials in it: set proxy = "{FROM_ENVIRONMENT}", and HTTPS_PROXY'
    return None


def _faults(host: str, fields: Mapping[str, Any], origin: str) -> Iterator[str]:
    """What follows the name of the section."""
    if not host or host != host.lower() or "/" in host or not host.isprintable() or host == "*":
        yield f" ({origin}): is called HOST or HOST:PORT, in lower case, as in the names of images"
    wrong = list(_faults_of_kind(RegistrySettings, "a registry", fields, origin))
    yield from wrong
    if wrong:
        return
    yield from _faults_of_credentials(fields, origin)
    for name, credentials in fields.get("tenants", {}).items():
        if not _TENANT.fullmatch(name):
            yield f'.tenants."{name}" ({origin}): is no tenant: 1 to 63 of a-z 0-9 _ -'
        yield from (f".tenants.{name}{fault}" for fault in _faults_of_tenant(credentials, origin))
    if fields.get("insecure") and fields.get("ca_file"):
        yield f" ({origin}): insecure is plain HTTP, which has no certificates: leave out ca_file"
    yield from _faults_of_ways(fields, origin)


def _faults_of_ways(fields: Mapping[str, Any], origin: str) -> Iterator[str]:
    """Mirrors and proxies."""
    if fields.get("mirrors_only") and not fields.get("mirrors"):
        yield f".mirrors_only ({origin}): there are no mirrors"
    if len(fields.get("mirrors", ())) > _MOST_MIRRORS:
        yield f".mirrors ({origin}): more than {_MOST_MIRRORS}"
    for mirror in fields.get("mirrors", ()):
        if not _is_mirror(mirror):
            yield f'.mirrors ({origin}): "{mirror[:80]}" is not https://HOST[:PORT][/PREFIX]'
    proxy = fields.get("proxy")
    if proxy and proxy != DIRECT and (fault := fault_of_proxy(proxy)):
        yield f".proxy ({origin}): {fault}"


def _faults_of_kind(
    kind: type[msgspec.Struct], what: str, fields: Mapping[str, Any], origin: str
) -> Iterator[str]:
    known, defaults = kind.__struct_fields__, kind()
    for name, value in fields.items():
        if name not in known:
            yield f".{name} ({origin}): {what} has {', '.join(known)} only"
            continue
        expected = type(getattr(defaults, name))
        if expected is tuple:
            right = isinstance(value, list) and all(isinstance(each, str) for each in value)
        else:
            right = isinstance(value, expected)
        if not right:
            yield f".{name} ({origin}): must be {_KINDS[expected]}"
        elif name.endswith("_file") and value and not str(value).startswith("/"):
            yield f".{name} ({origin}): must be an absolute path"


def _faults_of_tenant(credentials: Any, origin: str) -> Iterator[str]:
    if not isinstance(credentials, dict):
        yield f" ({origin}): is a section, with {', '.join(_OF_TENANT)}"
        return
    wrong = list(_faults_of_kind(TenantRegistrySettings, "a tenant", credentials, origin))
    yield from wrong or _faults_of_credentials(credentials, origin)
    if not wrong and not credentials.get("username") and not credentials.get("token_file"):
        yield f" ({origin}): needs username and password_file, or token_file"


def _faults_of_credentials(fields: Mapping[str, Any], origin: str) -> Iterator[str]:
    if bool(fields.get("username")) != bool(fields.get("password_file")):
        yield f" ({origin}): username and password_file go together"
    if fields.get("token_file") and fields.get("username"):
        yield f" ({origin}): token_file is there instead of username and password_file"


def _is_mirror(text: str) -> bool:
    parts = _split(text)
    return parts is not None and "@" not in parts.netloc and bool(_PREFIX.fullmatch(parts.path))


def _split(text: str) -> Any:
    """The parts of a URL of http or https that is nothing but a place; None: it is not."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    host = parts.netloc.rpartition("@")[2].removesuffix(f":{port}")
    fits = parts.scheme in ("http", "https") and _HOST.fullmatch(host) and port != 0
    return None if not fits or "?" in text or "#" in text else parts
