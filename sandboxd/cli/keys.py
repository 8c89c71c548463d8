"""`sandboxd keys`: who may call the API.

Without a service (`--url` or the settings) the commands work on the database of the data directory: the first key
cannot come over HTTP. With one they are requests like any other and need a key with the scope `admin`.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sandboxd.cli import output
from sandboxd.cli.database import opened
from sandboxd.cli.options import (
    config_option,
    data_dir_option,
    json_option,
    load,
    parse_duration,
    url_option,
)
from sandboxd.errors import NotFound
from sandboxd.quotas.tenants import Quotas
from sandboxd.settings import Settings, StoreSettings

if TYPE_CHECKING:
    from sandboxd.client import Client, Key, NewKey
    from sandboxd.client.protocol import KeyOptions
    from sandboxd.jobs import ApiKey

EXAMPLES = """\b
Examples:
  sandboxd keys create ci --expires 90d          before the service starts
  export SANDBOXD_KEY=$(sandboxd keys create me --scope admin)
  sandboxd keys create bob --tenant bob --url http://127.0.0.1:8080
  sandboxd keys list
  sandboxd keys revoke key_06f8k0...
"""
SCOPES = ("jobs:read", "jobs:write", "admin")
_LISTS = ("images", "network_modes", "runtimes")


@click.group(epilog=EXAMPLES)
def keys() -> None:
    """Make, list and revoke API keys.

    They work on the database while no service runs; with --url (and no --data-dir) they ask the service.
    """


@keys.command()
@click.argument("name")
@click.option("--tenant", default="default", metavar="NAME", help="Whose jobs it sees. [default]")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What it may do, repeatable. [jobs:read and jobs:write]",
)
@click.option(
    "--quota",
    "quotas",
    multiple=True,
    metavar="NAME=VALUE",
    help="What it may have of what its tenant may, repeatable: max_concurrency=2, images=host,python-*. [all of it]",
)
@click.option("--expires", metavar="TIME", help="How long it is good for: 12h, 90d. [for ever]")
@data_dir_option
@url_option
@config_option
@json_option
def create(
    name: str,
    tenant: str,
    scopes: tuple[str, ...],
    quotas: tuple[str, ...],
    expires: str | None,
    data_dir: str | None,
    url: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Make a key called NAME and print it. It is shown only now: only its hash is kept."""
    settings = _settings(url, data_dir, config_file)
    scopes = scopes or SCOPES[:2]
    ttl_seconds = None if expires is None else parse_duration("--expires", expires)
    own = _quotas(quotas)
    if settings.client.url and data_dir is None:
        with _client(settings) as client:
            options: KeyOptions = {"tenant": tenant, "scopes": scopes}
            if ttl_seconds is not None:
                options["ttl_seconds"] = ttl_seconds
            if own is not None:
                options["quotas"] = msgspec.to_builtins(own)
            made = client.create_key(name, **options)
    else:
        made = asyncio.run(_create(settings, name, tenant, scopes, ttl_seconds, own))
    if as_json:
        output.print_json(made)
        return
    click.echo(made.key)
    output.print_note(f"{made.id} for tenant {made.tenant}: {', '.join(made.scopes)}")


@keys.command("list")
@data_dir_option
@url_option
@config_option
@json_option
def list_keys(
    data_dir: str | None, url: str | None, config_file: str | None, as_json: bool
) -> None:
    """List all keys, without their secrets."""
    settings = _settings(url, data_dir, config_file)
    if settings.client.url and data_dir is None:
        with _client(settings) as client:
            found = client.list_keys()
    else:
        found = asyncio.run(_list(settings.store))
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("key", "name", "tenant", "scopes", "quotas", "created", "expires", "revoked"),
        (
            (
                key.id,
                key.name,
                key.tenant,
                ",".join(key.scopes),
                _quota_words(key.quotas),
                _day(key.created_at),
                _day(key.expires_at),
                _day(key.revoked_at),
            )
            for key in found
        ),
        empty="no keys",
    )


@keys.command()
@click.argument("key_id", metavar="KEY_ID")
@data_dir_option
@url_option
@config_option
@json_option
def revoke(
    key_id: str, data_dir: str | None, url: str | None, config_file: str | None, as_json: bool
) -> None:
    """Make a key worthless, from now on and for ever."""
    settings = _settings(url, data_dir, config_file)
    if settings.client.url and data_dir is None:
        with _client(settings) as client:
            client.revoke_key(key_id)
    else:
        asyncio.run(_revoke(settings.store, key_id))
    if as_json:
        output.print_json({"revoked": key_id})
    else:
        click.echo(f"revoked {key_id}")


def _settings(url: str | None, data_dir: str | None, config_file: str | None) -> Settings:
    return load({"client.url": url, "store.data_dir": data_dir}, config_file).settings


def _client(settings: Settings) -> "Client":
    from sandboxd.client import Client

    return Client(settings.client.url, key=settings.client.key or None)


async def _create(
    settings: Settings,
    name: str,
    tenant: str,
    scopes: tuple[str, ...],
    ttl_seconds: float | None,
    quotas: Quotas | None,
) -> "NewKey":
    from sandboxd.api.auth import new_key
    from sandboxd.api.conversion import read_struct
    from sandboxd.api.schemas import KeyRequest
    from sandboxd.client import NewKey
    from sandboxd.execution import serves_one_tenant

    _, faults = read_struct({"name": name, "tenant": tenant, "scopes": list(scopes)}, KeyRequest)
    if faults:
        raise click.UsageError("; ".join(f"{f.pointer.lstrip('/')}: {f.detail}" for f in faults))
    now = time.time()
    expires_at = None if ttl_seconds is None else now + ttl_seconds
    text, record = new_key(
        tenant=tenant, name=name, scopes=scopes, now=now, expires_at=expires_at, quotas=quotas
    )
    one_tenant = serves_one_tenant(settings.isolation)
    async with opened(settings.store) as store:
        await store.create_key(record, one_tenant=one_tenant)
    return NewKey(
        key=text,
        id=record.id,
        tenant=tenant,
        name=name,
        scopes=scopes,
        created_at=_time(now),
        expires_at=None if expires_at is None else _time(expires_at),
        quotas=_shown(quotas),
    )


async def _list(settings: StoreSettings) -> Sequence["Key"]:
    async with opened(settings) as store:
        return [_view(record) for record in await store.list_keys()]


async def _revoke(settings: StoreSettings, key_id: str) -> None:
    async with opened(settings) as store:
        if not await store.revoke_key(key_id, time.time()):
            raise NotFound(f'there is no key "{key_id}"; `sandboxd keys list` has their ids')


def _view(record: "ApiKey") -> "Key":
    from sandboxd.client import Key

    return Key(
        id=record.id,
        tenant=record.tenant,
        name=record.name,
        scopes=record.scopes,
        created_at=_time(record.created_at),
        expires_at=None if record.expires_at is None else _time(record.expires_at),
        revoked_at=None if record.revoked_at is None else _time(record.revoked_at),
        quotas=_shown(record.quotas),
    )


def _quotas(words: tuple[str, ...]) -> Quotas | None:
    """Of words such as `max_concurrency=2`; None: there are none."""
    values: dict[str, str | list[str]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in Quotas.__struct_fields__:
            known = ", ".join(Quotas.__struct_fields__)
            raise click.UsageError(f'--quota takes NAME=VALUE, not "{word}"; names are {known}')
        values[name] = value.split(",") if name in _LISTS else value
    try:
        quotas = msgspec.convert(values, Quotas, strict=False)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"--quota: {error}") from None
    if math.inf in msgspec.structs.astuple(quotas):
        raise click.UsageError("--quota: a number must be finite; without a bound leave it out")
    return quotas if values else None


def _shown(quotas: Quotas | None) -> dict[str, Any] | None:
    """As the API shows them."""
    return None if quotas is None else msgspec.to_builtins(quotas)


def _quota_words(quotas: dict[str, Any] | None) -> str:
    """Those that bound anything, as `--quota` takes them."""
    given = ((name, value) for name, value in (quotas or {}).items() if value)
    return " ".join(
        f"{name}={','.join(value) if name in _LISTS else value}" for name, value in given
    )


def _time(unix_seconds: float) -> datetime:
    return datetime.fromtimestamp(unix_seconds, UTC)


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d}" if moment else ""
