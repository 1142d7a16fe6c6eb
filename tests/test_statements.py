"""The SQL: every statement compiles for each database, and finds its rows through an index."""

from __future__ import annotations

import gc
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Dialect, bindparam, select
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.dialects.sqlite import pysqlite

from goal_state.storage.schema import goals
from goal_state.storage.statements import Statement
from tests.processes import python
from tests.statements import find_statements

DIALECTS: dict[str, Dialect] = {
    "sqlite": pysqlite.dialect(),
    "postgresql": psycopg.dialect(paramstyle="format"),
}
PLACEHOLDERS = {"sqlite": "?", "postgresql": "%s"}

# These read, or count, a whole table: that is what they are for.
WHOLE_TABLE = {
    "cursors._ALL",
    "goals._COUNT",
    "goals._COUNT_OF_STATUS",
    # The live holds alone, by their index.
    "holds._DUE_ROOTS",
    # Once at the end of an import, over all that it brought.
    "transfer._BALANCES_AND_PARTS",
    "transfer._PART_OF_NO_BALANCE",
    "transfer._BALANCE_OF_NO_GOAL",
    "transfer._IN_BALANCE_ALREADY",
    "transfer._REPLACED_AND_THERE",
    "transfer._SAME_EVENT_ID",
    "verification._LEDGERS",
}
# In the order of the primary key, which STRICT tables keep apart from their rows.
EXPORT = "transfer._ALL_ROWS"
# Only where an import is refused, to say at which line.
COUNT = "transfer._HOW_MANY["
# Pruning works its way through the log from its beginning, and sorts what it has in hand.
PRUNING = "retention."

STATEMENTS = find_statements()


def test_every_statement_there_is_is_found() -> None:
    assert len(STATEMENTS) > 40
    assert set(STATEMENTS) > WHOLE_TABLE
    known = {id(statement) for statement in STATEMENTS.values()}
    others = [
        each
        for each in gc.get_objects()
        if isinstance(each, Statement)
        and each._build.__module__.startswith("goal_state.")
        and id(each) not in known
    ]
    assert not others


@pytest.mark.parametrize("database", DIALECTS)
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_compiles_with_its_parameters_in_their_order(name: str, database: str) -> None:
    statement, dialect = STATEMENTS[name], DIALECTS[database]
    text = statement.compile(dialect)  # refuses any other order
    assert statement.texts[dialect.name] == text
    assert text.count(PLACEHOLDERS[database]) == len(statement.parameters)


# The n-th call of a function raises, for each n until the statement is compiled. In a process of its own,
# where nothing was compiled before.
STRUCK_AND_COMPILED = """
import sys
from sqlalchemy.dialects.sqlite import pysqlite
from tests.statements import find_statements

class Struck(BaseException): pass

def struck(work, n):
    def count(frame, event, _):
        nonlocal n
        n -= event == "call"
        if n == 0:
            sys.setprofile(None)
            raise Struck
    sys.setprofile(count)
    try:
        work()
    except Struck:
        return True
    finally:
        sys.setprofile(None)
    return False

dialect = pysqlite.dialect()
strikes = 0
for statement in find_statements().values():
    for n in range(1, 150):
        if not struck(lambda: statement.compile(dialect), n):
            break
        strikes += 1
    statement.compile(dialect)
print(strikes)
"""


@pytest.mark.slow
def test_a_statement_compiles_after_an_interruption_of_its_first_compilation() -> None:
    assert int(python(STRUCK_AND_COMPILED)) > 50 * len(STATEMENTS)


def test_a_goal_is_locked_where_the_database_locks_rows() -> None:
    lock, read = STATEMENTS["goals._LOCK_BY_THREAD"], STATEMENTS["goals._BY_THREAD"]
    assert lock.compile(DIALECTS["postgresql"]).endswith("FOR UPDATE")
    assert lock.compile(DIALECTS["sqlite"]) == read.compile(DIALECTS["sqlite"])


def _plan(database: Path, name: str) -> list[str]:
    text = STATEMENTS[name].compile(DIALECTS["sqlite"])
    with closing(sqlite3.connect(database)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN {text}", [1] * len(STATEMENTS[name].parameters)
        ).fetchall()
    return [step for *_, step in plan]


@pytest.mark.parametrize(
    "name",
    [n for n in STATEMENTS if n not in WHOLE_TABLE and not n.startswith((EXPORT, COUNT, PRUNING))],
)
def test_a_statement_goes_through_an_index(database: Path, name: str) -> None:
    steps = _plan(database, name)
    assert not [step for step in steps if step.startswith(("SCAN", "USE TEMP"))], steps
    assert steps or STATEMENTS[name].texts["sqlite"].startswith("INSERT")


@pytest.mark.parametrize("name", sorted(WHOLE_TABLE))
def test_a_statement_that_reads_a_whole_table_is_named_here_for_a_reason(
    database: Path, name: str
) -> None:
    assert any(step.startswith("SCAN") for step in _plan(database, name))


@pytest.mark.parametrize("name", [n for n in STATEMENTS if n.startswith(EXPORT)])
def test_an_export_reads_its_rows_in_their_order_without_sorting_them(
    database: Path, name: str
) -> None:
    assert not [step for step in _plan(database, name) if step.startswith("USE TEMP")]


def test_parameters_in_another_order_than_the_texts_are_refused() -> None:
    statement = Statement(
        lambda status, goal_id: select(goals).where(
            goals.c.goal_id == goal_id, goals.c.status == status
        )
    )
    with pytest.raises(AssertionError, match="in the order"):
        statement.compile(DIALECTS["sqlite"])


def test_a_parameter_that_the_text_does_not_name_is_refused() -> None:
    statement = Statement(lambda goal_id, _status: select(goals).where(goals.c.goal_id == goal_id))
    with pytest.raises(AssertionError, match="in the order"):
        statement.compile(DIALECTS["sqlite"])


def test_a_parameter_that_is_not_declared_is_refused() -> None:
    statement = Statement(lambda: select(goals).where(goals.c.goal_id == bindparam("goal_id")))
    with pytest.raises(AssertionError, match="in the order"):
        statement.compile(DIALECTS["sqlite"])
