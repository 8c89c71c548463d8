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
    delete,
    insert,
    select,
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
OVER = Prepared(
    select(THING.c.name, (THING.c.number * 2).label("twice"))
    .where(THING.c.number > bindparam("least"))
    .order_by(THING.c.name)
    .limit(2)
)
REMOVE = Prepared(delete(THING).where(THING.c.name == bindparam("of")))
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
    row = ADD.row(connection, {"of": "b", "more": 10})
    assert (row.name, row.number) == ("b", 13)


def test_no_row_returned_is_none(connection) -> None:
    assert ADD.row(connection, {"of": "nobody", "more": 1}) is None


def test_the_number_of_rows_that_changed(connection) -> None:
    INSERT.execute(connection, {"name": "a", "number": 1})
    assert SET.execute(connection, {"of": "a"}) == 1
    assert SET.execute(connection, {"of": "b"}) == 0


def test_a_missing_value_is_no_null(connection) -> None:
    with pytest.raises(KeyError, match="number"):
        INSERT.execute(connection, {"name": "a"})


def test_a_question_has_rows_whose_columns_have_names(connection) -> None:
    INSERT.execute_each(connection, [{"name": name, "number": 5} for name in "dcba"])

    assert [(row.name, row.twice) for row in OVER.rows(connection, {"least": 4})] == [
        ("a", 10),
        ("b", 10),
    ]
    assert OVER.rows(connection, {"least": 5}) == []


def test_what_is_removed_is_counted(connection) -> None:
    INSERT.execute(connection, {"name": "a", "number": 1})

    assert [REMOVE.execute(connection, {"of": "a"}) for _ in range(2)] == [1, 0]
