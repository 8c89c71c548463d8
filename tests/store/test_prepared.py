"""Statements that are compiled once."""

import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    create_engine,
    insert,
    update,
)

from sandboxd.store.prepared import Prepared

THING = Table(
    "thing",
    MetaData(),
    Column("name", Text, primary_key=True),
    Column("number", Integer, nullable=False),
)
INSERT = Prepared(insert(THING))
ADD = Prepared(
    update(THING)
    .where(THING.c.name == bindparam("of"))
    .values(number=THING.c.number + 1 + bindparam("more"))
    .returning(THING.c.name, THING.c.number)
)
SET = Prepared(update(THING).where(THING.c.name == bindparam("of")).values(number=0))


@pytest.fixture
def connection():
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        THING.metadata.create_all(connection)
        yield connection
    engine.dispose()


def test_values_have_names_and_the_statement_brings_its_own(connection) -> None:
    INSERT.execute_each(connection, [{"number": 1, "name": "a"}, {"name": "b", "number": 2}])
    row = ADD.returned(connection, {"of": "b", "more": 10})
    assert (row.name, row.number) == ("b", 13)


def test_no_row_returned_is_none(connection) -> None:
    assert ADD.returned(connection, {"of": "nobody", "more": 1}) is None


def test_the_number_of_rows_that_changed(connection) -> None:
    INSERT.execute(connection, {"name": "a", "number": 1})
    assert SET.execute(connection, {"of": "a"}) == 1
    assert SET.execute(connection, {"of": "b"}) == 0


def test_a_missing_value_is_no_null(connection) -> None:
    with pytest.raises(KeyError, match="number"):
        INSERT.execute(connection, {"name": "a"})
