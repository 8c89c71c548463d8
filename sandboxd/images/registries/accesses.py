"""What the settings say of registries, made ready for use: passwords and certificates are read when they are needed.

Who the service is at a registry is said, the first that says it, by: the section of the registry for the tenant, the section itself,
the credential helper or the entry that `images.docker_config` has for it.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sandboxd.errors import SettingsError
from sandboxd.images.documents.references import registry_of
from sandboxd.images.registries.credentials import Credentials
from sandboxd.images.registries.docker_config import DockerConfig, read_docker_config
from sandboxd.images.registries.terms import ANY_OTHER, Access
from sandboxd.settings import ImagesSettings, RegistrySettings, TenantRegistrySettings

_MOST_PASSWORD_BYTES = 64 * 2**10
_NO_CONFIG = DockerConfig({}, {})
_USUAL = ImagesSettings()


def open_accesses(
    registries: Mapping[str, RegistrySettings],
    images: ImagesSettings = _USUAL,
    tenant: str = "",
) -> dict[str, Access]:
    """By the HOST[:PORT] that is spoken to; ANY_OTHER stands for all that are not there.

    For a tenant that has credentials of its own at a registry they are those, and `owner` is the tenant, as it is where it has them
    at a mirror; else the operator's.
    Raises SettingsError that names the file which cannot be used.
    """
    config = read_docker_config(images.docker_config) if images.docker_config else _NO_CONFIG
    accesses = {ANY_OTHER: Access(is_named=False, helper=config.store, proxy=images.proxy)}
    for host in {*config.auths, *config.helpers}:
        accesses[host] = _with_config(accesses[ANY_OTHER], config, host)
    for registry in registries.values():
        for mirror in registry.mirrors:
            # Who is a mirror was named by the operator; what else there is to say is in a section.
            host = urlsplit(mirror).netloc
            accesses[host] = accesses.get(host, accesses[ANY_OTHER])._replace(is_named=True)
    for domain, registry in registries.items():
        access = Access(
            insecure=registry.insecure,
            tls=_trusting(domain, registry.ca_file),
            proxy=registry.proxy or images.proxy,
            mirrors=registry.mirrors,
            mirrors_only=registry.mirrors_only,
        )
        host = registry_of(domain)
        place = f'registries."{domain}"'
        if own := registry.tenants.get(tenant):
            credentials = _read_credentials(f"{place}.tenants.{tenant}", own)
            accesses[host] = _with_credentials(access, credentials)._replace(owner=tenant)
        elif credentials := _read_credentials(place, registry):
            accesses[host] = _with_credentials(access, credentials)
        else:
            accesses[host] = _with_config(access, config, host)
    return {
        host: access._replace(owner=_owner(access, accesses)) for host, access in accesses.items()
    }


def _owner(access: Access, accesses: Mapping[str, Access]) -> str:
    """Whose an image is that comes from there: one that a mirror shows to a tenant is that tenant's, too."""
    mirrors = (accesses[urlsplit(mirror).netloc] for mirror in access.mirrors)
    return access.owner or next((each.owner for each in mirrors if each.owner), "")


def _with_config(access: Access, config: DockerConfig, host: str) -> Access:
    """As Docker does: who has a helper is asked there, and what is written in the file counts where it knows nothing."""
    access = _with_credentials(access, config.auths.get(host, Credentials()))
    return access._replace(helper=config.helpers.get(host, config.store))


def _with_credentials(access: Access, credentials: Credentials) -> Access:
    return access._replace(
        username=credentials.username,
        password=credentials.password,
        identity_token=credentials.identity_token,
        helper="",
    )


def _read_credentials(
    place: str, settings: RegistrySettings | TenantRegistrySettings
) -> Credentials:
    return Credentials(
        settings.username,
        _read_secret(f"{place}.password_file", settings.password_file),
        _read_secret(f"{place}.token_file", settings.token_file),
    )


def _read_secret(key: str, path: str) -> str:
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
    raise SettingsError(f"{key}: {path}: {reason}")


def _trusting(domain: str, path: str) -> ssl.SSLContext | None:
    if not path:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "holds no certificate"
        raise SettingsError(f'registries."{domain}".ca_file: {path}: {reason}') from error
