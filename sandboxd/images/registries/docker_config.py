"""Credentials from a file of the shape of Docker's `~/.docker/config.json`: `auths`, `credHelpers` and `credsStore`.

https://docs.docker.com/reference/cli/docker/login/
"""

import base64
import binascii
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sandboxd.errors import SettingsError
from sandboxd.images.documents.references import DEFAULT_DOMAIN, registry_of
from sandboxd.images.registries.credential_helpers import is_helper
from sandboxd.images.registries.credentials import Credentials

OF_DOCKER_IO = "https://index.docker.io/v1/"
"""What docker.io is called in such files, and by credential helpers."""

_MOST_BYTES = 2**20
_DOCKER_IO = frozenset({DEFAULT_DOMAIN, "index.docker.io", registry_of(DEFAULT_DOMAIN)})


class DockerConfig(NamedTuple):
    """What the file says, by the HOST[:PORT] that is spoken to."""

    auths: dict[str, Credentials]
    helpers: dict[str, str]
    store: str = ""
    """The helper for every registry that has none of its own; empty: there is none."""

    def __repr__(self) -> str:
        return f"DockerConfig(auths={list(self.auths)}, helpers={self.helpers}, store={self.store})"


class _Auth(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct, frozen=True):
    auths: dict[str, Any] | None = None
    """Each is read by itself, so that a fault can be told with its key."""
    cred_helpers: dict[str, str] | None = msgspec.field(name="credHelpers", default=None)
    creds_store: str = msgspec.field(name="credsStore", default="")


def read_docker_config(path: str) -> DockerConfig:
    """Raises SettingsError that says what is wrong with the file, without its content."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise _refused(path, error.strerror or "cannot be read") from error
    if len(content) > _MOST_BYTES:
        raise _refused(path, f"is larger than {_MOST_BYTES} bytes")
    try:
        file_ = msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Not the cause: its message may quote a secret.
        raise _refused(path, "is not JSON of the shape of Docker's config.json") from None
    auths: dict[str, Credentials] = {}
    for key in _exact_first(file_.auths or {}):
        host = _host_of(key)
        if host and host not in auths:
            auths[host] = _credentials(path, key, (file_.auths or {})[key])
    helpers: dict[str, str] = {}
    for key in _exact_first(file_.cred_helpers or {}):
        if host := _host_of(key):
            helpers.setdefault(host, (file_.cred_helpers or {})[key])
    for name in [*helpers.values(), *filter(None, [file_.creds_store])]:
        if not is_helper(name):
            raise _refused(path, f"{name[:40]!r} is no name of a credential helper: a-z, 0-9 and -")
    return DockerConfig({k: v for k, v in auths.items() if v}, helpers, file_.creds_store)


def name_for_helper(host: str) -> str:
    """What a helper knows a registry by."""
    return OF_DOCKER_IO if host == registry_of(DEFAULT_DOMAIN) else host


def _exact_first(keys: dict[str, Any]) -> list[str]:
    """Of several keys for one registry the one counts that Docker would write today."""
    return sorted(keys, key=lambda key: "/" in key and key != OF_DOCKER_IO)


def _host_of(key: str) -> str | None:
    """None: it is for a part of a registry, as some tools have it, and the rest is not to see those credentials."""
    rest = key.removeprefix("https://").removeprefix("http://")
    host, _, path = rest.partition("/")
    if path.strip("/") not in ("", "v1", "v2"):
        return None
    host = host.lower()
    return registry_of(DEFAULT_DOMAIN) if host in _DOCKER_IO else host


def _credentials(path: str, key: str, content: Any) -> Credentials:
    try:
        auth = msgspec.convert(content, _Auth)
        username, password = auth.username, auth.password
        if auth.auth:
            words = base64.b64decode(auth.auth, validate=True).decode()
            username, colon, password = words.partition(":")
            if not colon:
                raise ValueError
            password = password.rstrip("\0")  # Old versions of Docker wrote some.
    except (msgspec.ValidationError, binascii.Error, ValueError):
        raise _refused(path, f'auths."{key[:100]}" is not as Docker writes it') from None
    if auth.identitytoken:
        return Credentials(identity_token=auth.identitytoken)
    return Credentials(username, password)


def _refused(path: str, reason: str) -> SettingsError:
    return SettingsError(f"images.docker_config: {path}: {reason}")
