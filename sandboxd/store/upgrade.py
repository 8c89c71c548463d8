"""What a start does with its database: nothing where the schema is this release's."""

from pathlib import Path

from sandboxd.errors import HostNotReady
from sandboxd.store import schema
from sandboxd.store.tables import REVISION


def upgrade(database: Path) -> None:
    """Bring the schema to this release, making the database if there is none. Doing it twice is harmless.

    Raises HostNotReady if the file is no database, another program's, or one of a newer release.
    """
    found = schema.create(database)
    if found == REVISION:
        return
    # Here, because it takes long to import and hardly any start needs it.
    from sandboxd.store import migrate

    if found is not None and found not in migrate.revisions():
        raise HostNotReady(
            f"the schema of {database} is {found}, of a newer release than this one, which works with {REVISION}: "
            "use that release, or another data directory"
        )
    migrate.upgrade(migrate.sqlite_url(database))
