"""What the settings say of registries, made ready for use: passwords and certificates are read when they are needed."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from sandboxd.errors import SettingsError
from sandboxd.images.references import registry_of
from sandboxd.images.transport import Access
from sandboxd.settings import RegistrySettings

_MOST_PASSWORD_BYTES = 64 * 2**10


def open_accesses(registries: Mapping[str, RegistrySettings]) -> dict[str, Access]:
    """By the HOST[:PORT] that is spoken to. Raises SettingsError that names the file which cannot be used."""
    return {
        registry_of(domain): Access(
            username=registry.username,
            password=_read_password(domain, registry.password_file),
            insecure=registry.insecure,
            tls=_trusting(domain, registry.ca_file),
        )
        for domain, registry in registries.items()
    }


def _read_password(domain: str, path: str) -> str:
    """The first line of the file: editors put an end to it."""
    if not path:
        return ""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST_PASSWORD_BYTES)
        return content.decode().partition("\n")[0].rstrip("\r")
    except OSError as error:
        reason = error.strerror or "cannot be read"
    except UnicodeDecodeError:
        reason = "is not text in UTF-8"
    raise SettingsError(f'registries."{domain}".password_file: {path}: {reason}')


def _trusting(domain: str, path: str) -> ssl.SSLContext | None:
    if not path:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "holds no certificate"
        raise SettingsError(f'registries."{domain}".ca_file: {path}: {reason}') from error
