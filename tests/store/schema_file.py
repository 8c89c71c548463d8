"""Write `migrations/schema.sql` anew, after a new migration: python tests/store/schema_file.py"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from sandboxd.store import migrate, schema

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory, "sandboxd.db")
        migrate.upgrade(migrate.sqlite_url(database))
        (ROOT / "migrations" / schema.FILE).write_text(schema.written_down(database))
