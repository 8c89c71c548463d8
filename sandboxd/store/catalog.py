"""Keys and images: small tables, one function per question."""

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from sandboxd.jobs import ApiKey, Image
from sandboxd.store.records import image_from, key_from, key_values
from sandboxd.store.tables import api_key, image


def create_key(connection: Connection, key: ApiKey) -> None:
    """Store a new key."""
    connection.execute(insert(api_key), key_values(key))


def find_key(connection: Connection, key_id: str) -> ApiKey | None:
    """The key, also if it is revoked or expired: the caller judges."""
    row = connection.execute(select(api_key).where(api_key.c.id == key_id)).one_or_none()
    return None if row is None else key_from(row)


def list_keys(connection: Connection) -> list[ApiKey]:
    """Every key, oldest first."""
    rows = connection.execute(select(api_key).order_by(api_key.c.created_at, api_key.c.id))
    return [key_from(row) for row in rows]


def revoke_key(connection: Connection, key_id: str, now: float) -> bool:
    """Make a key worthless; the first time counts. False: there is no such key."""
    revoked_at = func.coalesce(api_key.c.revoked_at, now)
    revoke = update(api_key).where(api_key.c.id == key_id).values(revoked_at=revoked_at)
    return connection.execute(revoke).rowcount == 1


def put_image(connection: Connection, value: Image) -> None:
    """Store an image, in the place of one of the same name."""
    delete_image(connection, value.name)
    connection.execute(insert(image), msgspec.structs.asdict(value))


def get_image(connection: Connection, name: str) -> Image | None:
    """The image of this name."""
    row = connection.execute(select(image).where(image.c.name == name)).one_or_none()
    return None if row is None else image_from(row)


def list_images(connection: Connection) -> list[Image]:
    """Every image, by name."""
    rows = connection.execute(select(image).order_by(image.c.name))
    return [image_from(row) for row in rows]


def delete_image(connection: Connection, name: str) -> bool:
    """Forget an image. False: there is none of this name."""
    return connection.execute(delete(image).where(image.c.name == name)).rowcount == 1
