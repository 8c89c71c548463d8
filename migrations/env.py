"""How alembic runs our migrations: on the connection that `sandboxd.store.migrate` hands over."""

from alembic import context

from sandboxd.store.tables import metadata

connection = context.config.attributes["connection"]
on_sqlite = connection.dialect.name == "sqlite"
context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite cannot change a column in place: alembic makes the table anew. All migrations are then one transaction;
    # PostgreSQL needs one each, because an index that is built concurrently must stand outside.
    render_as_batch=on_sqlite,
    transaction_per_migration=not on_sqlite,
)
with context.begin_transaction():
    context.run_migrations()
