"""Statements that every job needs, compiled to SQL once and given to the driver as they are.

Executed as a Core expression each costs several times what the database takes for it (docs/performance.md).
"""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from sqlalchemy import Connection, Insert, Update


class _Compiled(NamedTuple):
    sql: str
    names: tuple[str, ...]
    """Of the values, in the order in which the SQL has their places."""
    constants: dict[str, object]
    """Values that the statement brings along."""


class Prepared:
    """An insert of whole rows, or an update, of which each execution only brings other values.

    Neither values nor rows go through the columns' types, and what the driver raises (PEP 249) is raised as it is.
    A value that is missing is a KeyError.
    """

    def __init__(self, statement: Insert | Update) -> None:
        self._statement = statement
        self._returned = [column["name"] for column in statement.returning_column_descriptions]
        self._by_dialect: dict[str, _Compiled] = {}

    def execute(self, connection: Connection, values: Mapping[str, object]) -> int:
        """Execute a statement that returns no rows. The number of rows that changed."""
        compiled = self._compiled(connection)
        cursor = connection.connection.cursor()
        cursor.execute(compiled.sql, _in_order(compiled, values))
        return int(cursor.rowcount)

    def execute_each(self, connection: Connection, several: Iterable[Mapping[str, object]]) -> None:
        """Execute once for each set of values."""
        compiled = self._compiled(connection)
        rows = [_in_order(compiled, values) for values in several]
        connection.connection.cursor().executemany(compiled.sql, rows)

    def returned(self, connection: Connection, values: Mapping[str, object]) -> Any:
        """Execute a statement with RETURNING. The first row, None where there is none."""
        compiled = self._compiled(connection)
        cursor = connection.connection.cursor()
        cursor.execute(compiled.sql, _in_order(compiled, values))
        rows = cursor.fetchall()
        return SimpleNamespace(**dict(zip(self._returned, rows[0], strict=True))) if rows else None

    def _compiled(self, connection: Connection) -> _Compiled:
        compiled = self._by_dialect.get(connection.dialect.name)
        if compiled is None:
            compiled = _compile(self._statement, connection)
            self._by_dialect[connection.dialect.name] = compiled
        return compiled


def _compile(statement: Insert | Update, connection: Connection) -> _Compiled:
    compiled = statement.compile(dialect=connection.dialect)
    constants = {
        name: bind.value for bind, name in compiled.bind_names.items() if not bind.required
    }
    return _Compiled(str(compiled), tuple(compiled.positiontup or ()), constants)


def _in_order(compiled: _Compiled, values: Mapping[str, object]) -> tuple[object, ...]:
    merged = {**compiled.constants, **values}
    return tuple([merged[name] for name in compiled.names])
