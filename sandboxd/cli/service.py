"""The service that a command talks to."""

from typing import TYPE_CHECKING

from sandboxd.addresses import parse_address
from sandboxd.cli.options import load
from sandboxd.settings import Settings

if TYPE_CHECKING:
    from sandboxd.client import Client


def connect(url: str | None, config_file: str | None) -> "Client":
    """A client for the service of `--url` or the settings, else for the one on this machine."""
    from sandboxd.client import Client

    settings = load({"client.url": url}, config_file).settings
    return Client(url_of(settings), key=settings.client.key or None)


def asks_service(settings: Settings, data_dir: str | None) -> bool:
    """Whether a command that can do without a service talks to one: who names a data directory means that one."""
    return bool(settings.client.url) and data_dir is None


def client_of(settings: Settings) -> "Client":
    """A client for the service of the settings."""
    from sandboxd.client import Client

    return Client(settings.client.url, key=settings.client.key or None)


def url_of(settings: Settings) -> str:
    """Where the service is: as configured, else where `sandboxd serve` listens with these settings."""
    if settings.client.url:
        return settings.client.url
    address = parse_address(settings.server.listen)
    if address.path is not None:
        return str(address)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    return f"http://{address._replace(host=host)}"
