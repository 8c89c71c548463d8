"""Statements that every job needs, compiled to SQL once and given to the driver as they are.

Executed as a Core expression each costs several times what the database takes for it (docs/performance.md).
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Delete, Insert, Select, Update

Statement = Insert | Update | Delete | Select[Any]


class _Compiled(NamedTuple):
    sql: str
    names: tuple[str, ...]
    """Of the values, in the order in which the SQL has their places."""
    constants: dict[str, object]
    """Values that the statement brings along."""

    def in_order(self, values: Mapping[str, object]) -> tuple[object, ...]:
        merged = {**self.constants, **values} if self.constants else values
        return tuple(map(merged.__getitem__, self.names))


class Prepared:
    """An insert of whole rows, an update, a deletion or a question, of which each execution only brings other values.

    Neither values nor rows go through the columns' types, and what the driver raises (PEP 249) is raised as it is.
    A value that is missing is a KeyError.
    """

    def __init__(self, statement: Statement) -> None:
        self._statement = statement
        self._row = _row_of(statement)
        self._by_dialect: dict[str, _Compiled] = {}

    def execute(self, connection: Connection, values: Mapping[str, object]) -> int:
        """Execute a statement that returns no rows. The number of rows that changed."""
        compiled = self._compiled(connection)
        cursor = connection.connection.cursor()
        cursor.execute(compiled.sql, compiled.in_order(values))
        return int(cursor.rowcount)

    def execute_each(self, connection: Connection, several: Iterable[Mapping[str, object]]) -> None:
        """Execute once for each set of values."""
        compiled = self._compiled(connection)
        rows = [compiled.in_order(values) for values in several]
        connection.connection.cursor().executemany(compiled.sql, rows)

    def rows(self, connection: Connection, values: Mapping[str, object]) -> list[Any]:
        """Execute a question, or a statement with RETURNING. The rows, with their columns as attributes."""
        compiled = self._compiled(connection)
        cursor = connection.connection.cursor()
        cursor.execute(compiled.sql, compiled.in_order(values))
        return list(map(self._row, cursor.fetchall()))

    def row(self, connection: Connection, values: Mapping[str, object]) -> Any:
        """The first of the rows, None where there is none."""
        rows = self.rows(connection, values)
        return rows[0] if rows else None

    def _compiled(self, connection: Connection) -> _Compiled:
        compiled = self._by_dialect.get(connection.dialect.name)
        if compiled is None:
            compiled = _compile(self._statement, connection)
            self._by_dialect[connection.dialect.name] = compiled
        return compiled


def _row_of(statement: Statement) -> Callable[[Iterable[Any]], Any]:
    """What makes the driver's row one whose columns have names."""
    if isinstance(statement, Select):
        columns = statement.column_descriptions
    else:
        columns = statement.returning_column_descriptions
    row: Any = namedtuple("Row", [each["name"] for each in columns])  # type: ignore[misc]
    make: Callable[[Iterable[Any]], Any] = row._make
    return make


def _compile(statement: Statement, connection: Connection) -> _Compiled:
    compiled = statement.compile(dialect=connection.dialect)
    constants = {
        name: bind.value for bind, name in compiled.bind_names.items() if not bind.required
    }
    return _Compiled(str(compiled), tuple(compiled.positiontup or ()), constants)
